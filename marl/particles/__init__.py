"""The multi-agent particle environments in batches: `Particles`, its prey, and a PettingZoo view of one episode."""

from marl.particles.environment import Particles, State
from marl.particles.parallel import ParticleParallelEnv
from marl.particles.preys import (
    PREYS,
    Flight,
    NetworkPrey,
    Prey,
    PublishedPrey,
    learned_path,
    load_prey,
    save_prey,
)
from marl.particles.rendering import frame
from marl.particles.worlds import RULES, SCENARIOS, World, make_world

__all__ = [
    "PREYS",
    "RULES",
    "SCENARIOS",
    "Flight",
    "NetworkPrey",
    "ParticleParallelEnv",
    "Particles",
    "Prey",
    "PublishedPrey",
    "State",
    "World",
    "frame",
    "learned_path",
    "load_prey",
    "make_world",
    "save_prey",
]

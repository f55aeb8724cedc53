"""Learning to be the prey: predators follow a script, and the prey are the team that learns."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from core.environments import Environments, Observed, Stepped, TeamSpec
from core.errors import UserError
from core.rollout import Context, Policy
from marl.behaviours import scripted_team
from marl.learner import MATD3, learn
from marl.learner_config import LearnerConfig
from marl.particles import NetworkPrey, Particles


class Hunted(Environments):
    """The prey's side of a scenario.

    Args:
        particles: made without a prey, so that the prey are agents. predators: the policy of the others.
    """

    def __init__(self, particles: Particles, predators: Policy):
        if particles.prey is not None or not particles.world.prey:
            raise UserError("the prey can learn where they are agents: make Particles('tag' or 'world', prey=None)")
        self.particles, self.predators = particles, predators
        self.team = particles.world.team
        self.agents = particles.agents[self.team :]
        self.spec = TeamSpec(len(self.agents), min(particles.spec.sizes or (particles.spec.observation_dim,)), 2)

    def reset(self, seeds: Sequence[int]) -> Observed:
        self.predators.reset(seeds)
        self._step, self._running = 0, torch.ones(len(seeds), dtype=torch.bool)
        return self._seen(self.particles.reset(seeds))

    def step(self, actions: Tensor) -> Stepped:
        others = self.predators.act(self._predators_see, Context(self._step, self._running))
        mine = pad(actions, (0, self.particles.spec.action_dim - actions.shape[-1]))
        stepped = self.particles.step(torch.cat([others.to(mine.device), mine], dim=1))
        self._step += 1
        return replace(
            stepped,
            observed=self._seen(stepped.observed),
            rewards=stepped.rewards[:, self.team :],
            costs=stepped.costs[:, self.team :],
        )

    def _seen(self, observed: Observed) -> Observed:
        self._predators_see = observed.observations[:, : self.team]
        return Observed(observed.observations[:, self.team :, : self.spec.observation_dim].contiguous())


def learn_prey(
    scenario: str,
    rules: str,
    config: LearnerConfig,
    folder: Path,
    progress: Callable[[int, float], None] = lambda steps, score: None,
) -> NetworkPrey:
    """A prey that learned to evade the scripted predators, who come from all sides and err a little.

    It is meant to be caught: `config.episodes` says how good it becomes.
    """
    team = scripted_team(f"mpe/{scenario}", "multimodal", rules)
    team.steering = replace(team.steering, noise=0.3)
    learned = learn(Hunted(Particles(scenario, rules), team), config, folder, progress)
    return as_prey(learned.learner, f"learned by TD3 from {learned.replay.episodes} episodes with scripted predators")


@torch.no_grad()
def as_prey(learner: MATD3, description: str) -> NetworkPrey:
    """A learner's actor, with its normaliser, as a fixed network."""
    layers = [layer for layer in learner.actor if isinstance(layer, nn.Linear)]
    hidden = tuple(layer.out_features for layer in layers[:-1])
    prey = NetworkPrey(learner.spec.observation_dim, hidden, description=description)
    state = prey.state_dict()
    state["in_fn.running_mean"] = learner.normaliser.shift
    state["in_fn.running_var"] = learner.normaliser.scale**2 - prey.in_fn.eps
    for number, layer in enumerate(layers, start=1):
        state |= {f"fc{number}.{name}": value for name, value in layer.state_dict().items()}
    prey.load_state_dict(state)
    return prey.eval().requires_grad_(False)

"""One episode of the particle scenarios as a PettingZoo ParallelEnv."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo import ParallelEnv

from core.errors import UserError
from marl.particles.environment import Particles
from marl.particles.rendering import frame


class ParticleParallelEnv(ParallelEnv):
    """A batch of one episode of `Particles`, with dictionaries of arrays.

    reset(seed=k) begins the very episode of Particles.reset([k]); without a seed, one is drawn from the generator that
    the last seed began. info["cost"] of an agent counts the teammates that it touches. An agent's observation
    and action have its own sizes; an action padded to the team's longest is taken too.
    """

    def __init__(self, particles: Particles, render_mode: str | None = None):
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"unknown render_mode {render_mode!r}: choose 'rgb_array', or None for no frames")
        self.particles, self.render_mode = particles, render_mode
        world, spec = particles.world, particles.spec
        name = f"{world.scenario}_{world.rules}"
        self.metadata = {"name": name, "render_modes": ["rgb_array"], "render_fps": 10, "is_parallelizable": True}
        self.possible_agents = list(particles.agents)
        self.agents: list[str] = []
        sizes = spec.sizes or (spec.observation_dim,) * spec.agents
        acted = [spec.action_dim if index == 0 else 2 for index in range(spec.agents)]
        self.observation_spaces = {
            agent: spaces.Box(-np.inf, np.inf, (size,), np.float32)
            for agent, size in zip(self.possible_agents, sizes, strict=True)
        }
        self.action_spaces = {
            agent: spaces.Box(-1.0, 1.0, (size,), np.float32)
            for agent, size in zip(self.possible_agents, acted, strict=True)
        }
        self.np_random, _ = seeding.np_random(None)

    def observation_space(self, agent: str) -> spaces.Box:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Box:
        return self.action_spaces[agent]

    @property
    def state_space(self) -> spaces.Box:
        world = self.particles.world
        size = 4 * len(world.bodies) + 2 * len(world.kinds) + 4 * world.leader
        size += len(world.kinds) if self.particles.missing else 0
        return spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        if seed is None:
            seed = int(self.np_random.integers(2**62))
        else:
            self.np_random, _ = seeding.np_random(seed)
        self.agents = list(self.possible_agents)
        observed = self.particles.reset([seed])
        return self._split(observed.observations[0]), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        if not self.agents:
            return {}, {}, {}, {}, {}
        joint = np.zeros((1, len(self.possible_agents), self.particles.spec.action_dim), np.float32)
        for index, agent in enumerate(self.possible_agents):
            if agent not in actions:
                raise ValueError(f"no action for {agent}: a step needs one of each of {', '.join(self.agents)}")
            action = np.asarray(actions[agent], np.float32)
            size = self.action_spaces[agent].shape[0]
            if action.shape not in ((size,), joint.shape[2:]):
                raise ValueError(f"the action of {agent} must have shape {(size,)}, got {action.shape}")
            joint[0, index, : len(action)] = action
        stepped = self.particles.step(torch.from_numpy(joint))
        agents, over = self.agents, bool(stepped.truncated)
        self.agents = [] if over else agents
        rewards, costs = stepped.rewards[0].tolist(), stepped.costs[0].tolist()
        return (
            self._split(stepped.observed.observations[0]),
            dict(zip(agents, rewards, strict=True)),
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, over),
            {agent: {"cost": cost} for agent, cost in zip(agents, costs, strict=True)},
        )

    def _split(self, observations: torch.Tensor) -> dict[str, np.ndarray]:
        rows = observations.cpu().numpy().astype(np.float32)
        return {
            agent: row[: self.observation_spaces[agent].shape[0]].copy()
            for agent, row in zip(self.possible_agents, rows, strict=True)
        }

    def state(self) -> np.ndarray:
        """Positions and velocities of the bodies, landmarks, what the leader said, and which landmarks are there."""
        state = self.particles.state
        parts = [state.positions, state.velocities, state.landmarks, state.communication, state.kept]
        return torch.cat([part[0].flatten().float() for part in parts if part is not None]).cpu().numpy()

    def render(self) -> np.ndarray | None:
        """A frame [480, 480, 3] uint8; None without render_mode="rgb_array"."""
        return frame(self.particles.state, self.particles.world) if self.render_mode else None

    def close(self) -> None:
        return

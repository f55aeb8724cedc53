"""Disks: a team crosses a plane, each to its own goal, and none may touch another. The task is ours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo import ParallelEnv
from torch import Tensor

from core.environments import Environments, Observed, Stepped, TeamSpec
from core.errors import UserError, nearest
from core.noise import normal
from safe.environments import drawn, picture

#: Radius of the circle and half the side of the square that episodes begin in, in metres; disks may leave them. Across
#: the circle is no whole number of steps, so that no arrival hangs on rounding.
FIELD = 1.225

#: Speed limit in m/s, and seconds of a step.
SPEED, INTERVAL = 1.0, 0.1

#: Entries of an observation, for barriers; from OWN on, two for each other disk.
VELOCITY, POSITION, GOAL, OWN = (0, 1), (2, 3), (4, 5), 6

SCENARIOS = ("crossing", "swap", "random")

#: Places tried for a disk; the first is taken that is far enough from the others, else the farthest.
_TRIED = 256


@dataclass(frozen=True)
class DisksState:
    """Where B episodes are: positions, velocities and goals [B, A, 2], in metres and m/s."""

    positions: Tensor
    velocities: Tensor
    goals: Tensor


class Disks(Environments):
    """B teams of disks in the plane, in float64 tensors alone: no step waits for the device.

    An action in [-1, 1]^2 is a velocity in shares of the limit, 1 m/s, shortened to it where it is longer; a step is
    0.1 s. That a disk has no inertia makes a plan of positions its own control: the action between two waypoints is
    their difference over 0.1 m, so that positions which a projection has moved are reached as planned, so long as no
    two in turn are more than 0.1 m apart. Disks do not push each other.

    The reward of a step is the decrease of the distance to the goal, in metres, and 0.1 more (1 a second) at the goal,
    within the disk's radius of it. A straight way at full speed gives about the same over any distance. The cost is 1
    where the disk overlaps another, centres closer than two radii. Episodes are truncated after `max_cycles` steps.

    An agent observes (vx, vy, x, y, goal x, goal y), v being its last step's velocity, then (x_j - x, y_j - y) for each
    other agent j in order. What is said of others, and v, follow from the positions: `recomputed` makes them agree
    again in a plan of which positions were moved.

    Scenarios: in "crossing", disks begin on a circle with their goals opposite; in "swap", two by two change places;
    in "random", all places are drawn. Starts are at least four radii apart, and so are goals.

    Args:
        agents: 2 to 16, even ones in "swap". radius: of a disk, in metres. max_cycles: steps of an episode.
        entities: tell `spec.entities` of the other agents' entries, so that planners can serve teams of any size.

    Raises:
        UserError: an unknown scenario, no steps, or agents that are too many, too few or too large.
    """

    def __init__(
        self,
        scenario: str = "crossing",
        *,
        agents: int = 4,
        radius: float = 0.1,
        max_cycles: int = 50,
        entities: bool = False,
        device: torch.device | str = "cpu",
    ):
        _check(scenario, agents, radius, max_cycles)
        self.scenario, self.radius, self.max_cycles = scenario, radius, max_cycles
        self.device = torch.device(device)
        self.agents = tuple(f"disk_{index}" for index in range(agents))
        tokens = ((agents - 1, 2),) if entities else ()
        self.spec = TeamSpec(agents, OWN + 2 * (agents - 1), 2, entities=tokens)
        self._state: DisksState | None = None

    @property
    def state(self) -> DisksState:
        """Where the episodes are, float64. Later steps leave it as it is."""
        if self._state is None:
            raise RuntimeError("no episode has begun: call reset(seeds) or start(positions, goals) first")
        return self._state

    def reset(self, seeds: Sequence[int] | Tensor) -> Observed:
        return self.start(*places(self.scenario, seeds, self.spec.agents, self.radius, self.device))

    def start(self, positions: Tensor, goals: Tensor) -> Observed:
        """Begin episodes at rest, with positions and goals [B, A, 2], which stay as they are.

        Raises:
            ValueError: tensors of another shape.
        """
        shapes, expected = (tuple(positions.shape), tuple(goals.shape)), (len(positions), self.spec.agents, 2)
        if shapes != (expected, expected):
            raise ValueError(f"positions and goals must have shape {('B', *expected[1:])}, got {shapes}")
        positions, goals = (value.to(self.device, torch.float64) for value in (positions, goals))
        self._state, self._time = DisksState(positions, torch.zeros_like(positions), goals), 0
        return _observed(self._state)

    def step(self, actions: Tensor) -> Stepped:
        state = self.state
        if actions.shape != state.positions.shape:
            raise ValueError(f"actions must have shape {tuple(state.positions.shape)}, got {tuple(actions.shape)}")
        shares = actions.to(self.device, torch.float64).clamp(-1, 1)
        velocities = SPEED * shares / shares.norm(dim=2, keepdim=True).clamp(min=1)
        positions = state.positions + INTERVAL * velocities
        self._state, self._time = DisksState(positions, velocities, state.goals), self._time + 1
        before, after = ((state.goals - values).norm(dim=2) for values in (state.positions, positions))
        rewards = before - after + INTERVAL * (after <= self.radius)
        costs = (_offsets(positions).norm(dim=3) < 2 * self.radius).any(dim=2)
        truncated = torch.full((len(positions),), self._time >= self.max_cycles, device=self.device)
        return Stepped(_observed(self._state), rewards.float(), costs.float(), torch.zeros_like(truncated), truncated)

    def arrived(self, observations: Tensor) -> Tensor:
        """Which agents are at their goals [..., A], by their observations [..., A, O]; a team succeeds where all are at
        the end of its episode."""
        position, goal = (observations[..., first : first + 2] for first in (POSITION[0], GOAL[0]))
        return (position - goal).norm(dim=-1) <= self.radius


def recomputed(plan: Tensor) -> Tensor:
    """A plan [..., T, A, O] in physical units with all that follows from its positions made to agree with them.

    Relative positions are those at each waypoint, velocities those from the waypoint before; the first waypoint keeps
    its velocity. Teams of any size, with gradients.

    Raises:
        ValueError: observations that are not those of a team of so many disks.
    """
    if plan.ndim < 3 or plan.shape[-2] < 2 or plan.shape[-1] != OWN + 2 * (plan.shape[-2] - 1):
        raise ValueError(f"a plan of A disks has shape [..., T, A, {OWN} + 2 (A - 1)], got {list(plan.shape)}")
    velocities, positions, goals, _ = plan.split([2, 2, 2, plan.shape[-1] - OWN], dim=-1)
    velocities = torch.cat([velocities[..., :1, :, :], positions.diff(dim=-3) / INTERVAL], dim=-3)
    return torch.cat([velocities, positions, goals, _offsets(positions).flatten(-2)], dim=-1)


def others(agents: int, device: torch.device | str = "cpu") -> Tensor:
    """The other agents of each [A, A - 1], in order."""
    index = torch.arange(agents - 1, device=device)
    return index + (index >= torch.arange(agents, device=device)[:, None])


def places(
    scenario: str, seeds: Sequence[int] | Tensor, agents: int, radius: float, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Where episodes begin and where their goals are, [B, A, 2] float64 each, by each seed alone."""
    apart = 4 * radius
    if scenario == "crossing":
        # Evenly on the circle, turned, each then moved on by no more than keeps it apart from the next.
        pitch = 2 * math.pi / agents
        slack = pitch - 2 * math.asin(apart / 2 / FIELD)
        shares = drawn(seeds, (0.0,) * (agents + 1), (1.0,) * (agents + 1), device)
        turned = 2 * math.pi * shares[:, :1] + pitch * torch.arange(agents, device=device)
        angles = turned + slack * shares[:, 1:]
        starts = FIELD * torch.stack([angles.cos(), angles.sin()], dim=2)
        return starts, -starts
    keys = torch.as_tensor(seeds, dtype=torch.int64, device=device)
    starts = _scattered(keys, agents, apart, stream=0)
    if scenario == "swap":
        return starts, starts.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)
    return starts, _scattered(keys, agents, apart, stream=1)


def _scattered(keys: Tensor, agents: int, apart: float, stream: int) -> Tensor:
    """Places [B, A, 2] uniform in the square, one after the other, each among those apart from all before it."""
    shares = torch.special.ndtr(normal(keys, (agents, _TRIED, 2), stream=stream, dtype=torch.float64))
    tried = FIELD * (2 * shares - 1)
    taken = tried[:, 0, :1]
    for one in tried[:, 1:].unbind(dim=1):
        room = (one[:, :, None] - taken[:, None]).norm(dim=3).amin(dim=2).clamp(max=apart)
        first = room.argmax(dim=1)[:, None, None].expand(-1, 1, 2)
        taken = torch.cat([taken, one.gather(1, first)], dim=1)
    return taken


def _observed(state: DisksState) -> Observed:
    seen = [state.velocities, state.positions, state.goals, _offsets(state.positions).flatten(2)]
    return Observed(torch.cat(seen, dim=2).float())


def _offsets(positions: Tensor) -> Tensor:
    """From each of positions [..., A, 2] to the others [..., A, A - 1, 2]."""
    return positions[..., others(positions.shape[-2], positions.device), :] - positions[..., None, :]


def _check(scenario: str, agents: int, radius: float, max_cycles: int) -> None:
    if scenario not in SCENARIOS:
        raise UserError(f"unknown scenario {scenario!r}: {nearest(scenario, SCENARIOS)}")
    if not 2 <= agents <= 16 or (scenario == "swap" and agents % 2):
        raise UserError(f"disks are 2 to 16 agents, and an even number where they swap places, got {agents}")
    most = math.sqrt(0.17 / agents)
    if not 0 < radius <= most:
        raise UserError(f"{agents} disks find room up to a radius of {most:.3f}, got {radius}: make them smaller")
    if max_cycles < 1:
        raise UserError(f"max_cycles must be at least 1, got {max_cycles}")


class DisksParallelEnv(ParallelEnv):
    """One episode of `Disks` for PettingZoo, written apart from the batches; its arguments are theirs.

    reset(seed=k) begins the very episode of the batch's reset([k]); without a seed, one is drawn from the generator
    that the last seed began. The cost of an agent is info["cost"].
    """

    def __init__(
        self,
        scenario: str = "crossing",
        *,
        agents: int = 4,
        radius: float = 0.1,
        max_cycles: int = 50,
        render_mode: str | None = None,
    ):
        _check(scenario, agents, radius, max_cycles)
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"unknown render_mode {render_mode!r}: choose 'rgb_array', or None for no frames")
        self.scenario, self.radius, self.max_cycles, self.render_mode = scenario, radius, max_cycles, render_mode
        self.metadata = {"name": f"disks_{scenario}", "render_modes": ["rgb_array"], "render_fps": 10}
        self.possible_agents = [f"disk_{index}" for index in range(agents)]
        self.agents: list[str] = []
        seen = (-np.inf, np.inf, (OWN + 2 * (agents - 1),), np.float32)
        self.observation_spaces = {agent: spaces.Box(*seen) for agent in self.possible_agents}
        self.action_spaces = {agent: spaces.Box(-1.0, 1.0, (2,), np.float32) for agent in self.possible_agents}
        self.np_random, _ = seeding.np_random(None)

    def observation_space(self, agent: str) -> spaces.Box:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Box:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], ...]:
        if seed is not None:
            self.np_random, _ = seeding.np_random(seed)
        begun = int(self.np_random.integers(2**62)) if seed is None else seed
        self.agents, self._time = list(self.possible_agents), 0
        starts, goals = places(self.scenario, [begun], len(self.agents), self.radius)
        self.positions, self.goals = starts[0].numpy(), goals[0].numpy()
        self.velocities = np.zeros_like(self.positions)
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, np.ndarray]) -> tuple[dict[str, Any], ...]:
        if not self.agents:
            return {}, {}, {}, {}, {}
        agents, before = self.agents, self._distances()
        for index, agent in enumerate(agents):
            if agent not in actions or np.shape(actions[agent]) != (2,):
                raise ValueError(f"a step needs an action of shape (2,) of {agent}, got {actions.get(agent)}")
            x, y = np.clip(np.asarray(actions[agent], np.float64), -1.0, 1.0)
            self.velocities[index] = np.array([x, y]) * SPEED / max(1.0, math.hypot(x, y))
        self.positions = self.positions + self.velocities * INTERVAL
        self._time += 1
        after, over = self._distances(), self._time >= self.max_cycles
        rewards, infos = {}, {}
        for index, agent in enumerate(agents):
            rewards[agent] = before[index] - after[index] + (INTERVAL if after[index] <= self.radius else 0.0)
            gaps = [math.dist(self.positions[index], other) for other in np.delete(self.positions, index, axis=0)]
            infos[agent] = {"cost": float(min(gaps) < 2 * self.radius)}
        self.agents = [] if over else agents
        return self._seen(), rewards, dict.fromkeys(agents, False), dict.fromkeys(agents, over), infos

    def _distances(self) -> list[float]:
        return [math.dist(position, goal) for position, goal in zip(self.positions, self.goals, strict=True)]

    def _seen(self) -> dict[str, np.ndarray]:
        seen = {}
        for index, agent in enumerate(self.possible_agents):
            own = [self.velocities[index], self.positions[index], self.goals[index]]
            away = np.delete(self.positions, index, axis=0) - self.positions[index]
            seen[agent] = np.concatenate([*own, away.ravel()]).astype(np.float32)
        return seen

    def render(self) -> np.ndarray | None:
        """A frame [240, 240, 3] uint8, disks in colours with their goals as rings; None without "rgb_array"."""
        return picture(self._draw) if self.render_mode else None

    def _draw(self, axes: Any) -> None:
        from matplotlib import colormaps
        from matplotlib.patches import Circle

        for index, (position, goal) in enumerate(zip(self.positions, self.goals, strict=True)):
            colour = colormaps["tab20"](index)
            axes.add_patch(Circle(goal, self.radius, fill=False, color=colour))
            axes.add_patch(Circle(position, self.radius, color=colour))
        view = max(1.2 * FIELD, float(np.abs(self.positions).max()) + self.radius)
        axes.set(xlim=(-view, view), ylim=(-view, view))

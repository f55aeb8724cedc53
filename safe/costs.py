"""Costs of MuJoCo tasks, told in info["cost"] of each step: velocity and height limits, and hazards in a plane."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper

from core.errors import UserError


class Cost(Protocol):
    """What a step costs, from MuJoCo's state after it (mujoco.MjData) and what the environment tells of it."""

    def __call__(self, data: Any, info: Mapping[str, Any]) -> float: ...


@dataclass(frozen=True)
class VelocityLimit:
    """1 where v > threshold, in metres a second, as Safety-Gymnasium's velocity tasks have it.

    v is the way of a step along x over its time, which the environment tells as "x_velocity"; a `planar` one is
    sqrt(vx^2 + vy^2).
    """

    threshold: float
    planar: bool = False

    def __call__(self, data: Any, info: Mapping[str, Any]) -> float:
        """Raises: UserError: the environment does not tell its velocity."""
        try:
            velocity = math.hypot(info["x_velocity"], info["y_velocity"]) if self.planar else info["x_velocity"]
        except KeyError as error:
            raise UserError(
                f"a velocity limit needs info[{error}], which the environment does not tell: it is for those that run"
            ) from error
        return float(velocity > self.threshold)


@dataclass(frozen=True)
class HeightLimit:
    """1 where z + seconds * vz > limit, in metres, as SafeDiffuser's locomotion has it (arXiv 2306.00148).

    Attributes:
        seconds: weight of the vertical velocity; 0 limits the height alone.
        place: of the torso's height in MuJoCo's qpos, and of its velocity in qvel; 1 in Hopper and Walker2d.
    """

    limit: float
    seconds: float = 0.0
    place: int = 1

    def __call__(self, data: Any, info: Mapping[str, Any]) -> float:
        return float(data.qpos[self.place] + self.seconds * data.qvel[self.place] > self.limit)


@dataclass(frozen=True)
class Disc:
    """A disc in the plane, in metres."""

    x: float
    y: float
    radius: float

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"a disc needs a positive radius, got {self.radius}")


@dataclass(frozen=True)
class Hazards:
    """1 where the agent's centre, the first two of MuJoCo's qpos, is inside any of the discs."""

    discs: tuple[Disc, ...]

    def __call__(self, data: Any, info: Mapping[str, Any]) -> float:
        x, y = data.qpos[:2]
        return float(any(math.hypot(x - disc.x, y - disc.y) < disc.radius for disc in self.discs))


class CostWrapper(gymnasium.Wrapper):
    """A MuJoCo environment with a cost, which is added to one that it tells itself."""

    def __init__(self, env: gymnasium.Env, cost: Cost):
        """Raises: UserError: the environment has no MuJoCo state."""
        super().__init__(env)
        self.cost = cost
        _check(env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, _with_cost(self.cost, self.env, info)


class TeamCostWrapper(BaseParallelWrapper):
    """A team of multi-agent MuJoCo with a cost, of which each agent bears the whole: they are parts of one body."""

    def __init__(self, env: ParallelEnv, cost: Cost):
        """Raises: UserError: the environment is not one of multi-agent MuJoCo."""
        if not hasattr(env.unwrapped, "single_agent_env"):
            raise UserError(f"a team's cost is for multi-agent MuJoCo, and {type(env.unwrapped).__name__} is not of it")
        super().__init__(env)
        self.cost = cost
        self.metadata = env.metadata
        _check(env.unwrapped.single_agent_env)

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        body = self.env.unwrapped.single_agent_env
        told = {agent: _with_cost(self.cost, body, info) for agent, info in infos.items()}
        return observations, rewards, terminations, truncations, told


def _check(env: gymnasium.Env) -> None:
    if not hasattr(env.unwrapped, "data"):
        raise UserError(f"costs are of MuJoCo's state, and {type(env.unwrapped).__name__} has none")


def _with_cost(cost: Cost, env: gymnasium.Env, info: dict[str, Any]) -> dict[str, Any]:
    """An info with the cost of the step that it is of."""
    return {**info, "cost": info.get("cost", 0.0) + cost(env.unwrapped.data, info)}  # type: ignore[attr-defined]

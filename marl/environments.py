"""Team tasks as PettingZoo parallel environments."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper

from core.errors import UserError, nearest

#: Rule sets of the multi-agent particle environments.
RULES = ("mpe2",)


@dataclass(frozen=True)
class References:
    """Mean scores that normalise a return: 0 is `random`, 100 is `expert`; `source` says how they were measured."""

    random: float
    expert: float
    source: str

    def normalise(self, score: float) -> float:
        return 100 * (score - self.random) / (self.expert - self.random)


#: Reference scores of (task, rules).
REFERENCES = {
    ("mpe/spread", "mpe2"): References(
        -26.3, -6.0, "uniform random actions and the scripted expert, measured by benchmarks/references.py"
    ),
}


@dataclass
class TaskConfig:
    """A team task.

    Attributes:
        name: "mpe/spread". rules: "mpe2", today's package. agents: number of agents, and of landmarks in spread.
        max_cycles: steps of an episode, which then is truncated, never terminated.
    """

    name: str = "mpe/spread"
    rules: str = "mpe2"
    agents: int = 3
    max_cycles: int = 25

    def __post_init__(self) -> None:
        if self.name not in _MAKERS:
            raise ValueError(f"unknown task {self.name!r}: {nearest(self.name, _MAKERS)}")
        if self.rules not in RULES:
            raise ValueError(f"unknown task.rules {self.rules!r}: choose one of {', '.join(RULES)}")
        if self.agents < 1 or self.max_cycles < 1:
            raise ValueError(
                f"task.agents and task.max_cycles must be at least 1, got {self.agents}, {self.max_cycles}"
            )

    @property
    def references(self) -> References | None:
        """Reference scores, which hold for the task's own sizes alone."""
        standard = TaskConfig(self.name, self.rules)
        return REFERENCES.get((self.name, self.rules)) if self == standard else None

    def make(self) -> ParallelEnv:
        return _MAKERS[self.name](self)

    def dataset_id(self, quality: str) -> str:
        """Minari id of the task's dataset of a quality."""
        size = "" if self == TaskConfig(self.name, self.rules) else f"-{self.agents}x{self.max_cycles}"
        return f"{self.name}/{self.rules}/{quality}{size}-v0"


class SpreadActions(BaseParallelWrapper):
    """mpe2's simple_spread with the force u in [-1, 1]^2 as the action and collisions as the cost.

    mpe2 takes Box(0, 1, (5,)) and applies u = (a2 - a1, a4 - a3); the wrapper maps u to its positive and negative
    parts. info["cost"] of an agent counts the agents it touches: centres closer than twice the radius of 0.15.
    """

    def __init__(self, env: ParallelEnv):
        super().__init__(env)
        self._box = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Box:
        return self._box

    def step(self, actions: dict[str, np.ndarray]) -> tuple[dict, dict, dict, dict, dict]:
        native = {agent: _native_action(u) for agent, u in actions.items()}
        observations, rewards, terminations, truncations, infos = self.env.step(native)
        bodies = self.env.unwrapped.world.agents
        positions = np.stack([body.state.p_pos for body in bodies])
        distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
        touching = (distance < 2 * bodies[0].size).sum(axis=1) - 1
        for agent, count in zip(self.possible_agents, touching, strict=True):
            if agent in infos:
                infos[agent]["cost"] = float(count)
        return observations, rewards, terminations, truncations, infos


def _native_action(u: np.ndarray) -> np.ndarray:
    """The force u [2] as mpe2's five numbers (no-op, left, right, down, up); float32, or mpe2 warns at every step."""
    x, y = (min(max(float(entry), -1.0), 1.0) for entry in u)
    return np.array([0.0, max(-x, 0.0), max(x, 0.0), max(-y, 0.0), max(y, 0.0)], np.float32)


def _spread(task: TaskConfig) -> ParallelEnv:
    from mpe2 import simple_spread_v3

    return SpreadActions(
        simple_spread_v3.parallel_env(N=task.agents, max_cycles=task.max_cycles, continuous_actions=True)
    )


_MAKERS: dict[str, Callable[[TaskConfig], ParallelEnv]] = {"mpe/spread": _spread}

#: Names of the tasks.
TASKS = tuple(_MAKERS)


def parallel_env(name: str, rules: str = "mpe2", *, agents: int = 3, max_cycles: int = 25) -> ParallelEnv:
    """A task as a PettingZoo ParallelEnv with Box actions in [-1, 1] and info["cost"] for every agent.

    Raises:
        UserError: unknown task or rules.
    """
    try:
        return TaskConfig(name, rules, agents, max_cycles).make()
    except ValueError as error:
        raise UserError(str(error)) from error

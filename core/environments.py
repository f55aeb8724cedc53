"""Environments of teams: many episodes of one task, stepped together."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class TeamSpec:
    """What a team sees and does.

    Attributes:
        agents: A. observation_dim: O, entries of the longest observation; shorter ones are padded with zeros.
        action_dim: U, entries of an action; of a discrete one, which is one-hot, its choices.
        discrete: whether actions are choices.
        sizes: entries of each agent's own observation, where they differ.
        entities: of entity-wise observations, what follows an agent's own entries: (count, entries) of each kind.
    """

    agents: int
    observation_dim: int
    action_dim: int
    discrete: bool = False
    sizes: tuple[int, ...] = ()
    entities: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        object.__setattr__(self, "entities", tuple((int(count), int(size)) for count, size in self.entities))


@dataclass(frozen=True)
class Observed:
    """What B teams see.

    Attributes:
        observations: [B, A, O] float32. legal: [B, A, U] bool, the choices an agent has, None where it has all.
        present: [B, A] bool, the agents that take part, None where all do.
    """

    observations: Tensor
    legal: Tensor | None = None
    present: Tensor | None = None


@dataclass(frozen=True)
class Stepped:
    """What a joint action of B teams led to.

    Attributes:
        observed: by then. rewards, costs: [B, A] float32.
        terminated, truncated: [B] bool, whether the episode ended, and whether only for its time.
    """

    observed: Observed
    rewards: Tensor
    costs: Tensor
    terminated: Tensor
    truncated: Tensor


class Environments(ABC):
    """B episodes of one task, as a context manager that closes them. What is said of an ended episode means nothing.

    Attributes:
        agents: the agents' names, in the order of the agent axis. spec: what they see and do.
    """

    agents: tuple[str, ...]
    spec: TeamSpec

    @abstractmethod
    def reset(self, seeds: Sequence[int]) -> Observed:
        """Begin an episode for each seed, which alone decides how it begins; B may differ from the last time's."""

    @abstractmethod
    def step(self, actions: Tensor) -> Stepped:
        """Act for all agents: actions [B, A, U] in [-1, 1], or one-hot."""

    def close(self) -> None:
        """Let go of what the environments hold."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

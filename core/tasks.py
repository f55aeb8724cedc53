"""What a task is to the command line, the trainer and the evaluator: an environment, its data and its scales."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.data.trajectories import Trajectories
from core.environments import Environments


@dataclass(frozen=True)
class References:
    """Mean scores that normalise a return: 0 is `random`, 100 is `expert`; `source` says how they were measured."""

    random: float
    expert: float
    source: str

    def normalise(self, score: float) -> float:
        return 100 * (score - self.random) / (self.expert - self.random)


@dataclass(frozen=True)
class Collected:
    """Episodes and what made them: a description, as plain data, and the names that their tags count."""

    trajectories: Trajectories
    description: dict[str, Any]
    behaviours: tuple[str, ...]


class Task(ABC):
    """A task by its settings; a configuration dataclass with these fields.

    Attributes:
        name: of the task. rules: its rule set, "" where there is one alone. max_cycles: steps of an episode, at most.
        options: keyword arguments of the environment.
    """

    name: str
    rules: str
    max_cycles: int
    options: dict[str, Any]

    @property
    def foreign(self) -> bool:
        """Whether the environment is not our own."""
        return False

    @property
    def environment_id(self) -> str:
        """Gymnasium's id of the environment, "" where it is known by another name."""
        return ""

    @property
    @abstractmethod
    def references(self) -> References | None:
        """Scores that normalise its returns, None where nobody has measured them."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What tells the environment from the task's usual one, as plain data."""

    @property
    def budget(self) -> float | None:
        """Cost of an episode, averaged over the agents, that a budget of ratio 1 allows; None without any."""
        return None

    @abstractmethod
    def make(self, device: str = "cpu") -> Environments:
        """The task's environments.

        Raises:
            UserError: the environment cannot be made with these settings.
        """

    @abstractmethod
    def dataset_id(self, quality: str) -> str:
        """Minari id of the task's dataset of a quality."""

    @abstractmethod
    def collect(
        self,
        quality: str,
        environments: Environments,
        episodes: int,
        seed: int,
        *,
        parallel: int = 256,
        progress: Callable[[int], None] = lambda steps: None,
    ) -> Collected:
        """Episodes of a quality.

        Args:
            quality: which behaviour. environments: of the task. episodes: how many, at most.
            seed: of the first, or of what learns the behaviour. parallel: stepped at once.
            progress: told of environment steps.

        Raises:
            UserError: unknown quality.
        """

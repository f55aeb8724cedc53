"""What every sampler is to the loop: a grid of steps with their coefficients, and how to take one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor

from core.samplers.grid import SPACINGS, Step, chain, levels_of
from core.schedules import Level, Schedule

Coefficients = tuple[float, ...]
Memory = Any  # what a sampler hands from one step to the next; None at first


class Denoise(Protocol):
    """x at the level of a step, the walk's present one unless given, -> clean estimate, edits applied."""

    def __call__(self, x: Tensor, step: Step | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Sampler(ABC):
    """`steps` transitions from t = 1 to t = `stop`, on a grid laid out by `spacing`.

    "time", "quadratic": uniform in t or in its square root. "lambda", "karras": uniform in lambda or in
    (sigma / alpha)^(1/7); with stop = 0 they go down to t = 1e-3 and end with one step to the clean estimate.
    "leading": every (T / steps)-th step of a table, as the papers' code counts them.

    repeats: so many times the last step is taken again, with nothing noised in between: SafeDiffuser's extra steps. The
    last level should be almost clean, as in a long grid or with "lambda"; otherwise they shrink the samples.
    """

    steps: int = 20
    spacing: str = "time"
    stop: float = 0.0
    repeats: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a sampler needs steps >= 1, got {self.steps}")
        if self.spacing not in SPACINGS:
            raise ValueError(f"unknown spacing {self.spacing!r}: choose one of {', '.join(SPACINGS)}")
        if not 0 <= self.stop < 1:
            raise ValueError(f"stop is a time in [0, 1), got {self.stop}")
        if self.repeats < 0 or (self.repeats and self.stop):
            raise ValueError(
                f"a sampler repeats its last step to the data, with stop = 0, 0 or more times, got {self.repeats} "
                f"with stop = {self.stop}"
            )

    def grid(self, schedule: Schedule, start: float = 1.0) -> tuple[Step, ...]:
        """The steps of a walk from time `start`.

        Raises:
            ValueError: the walk is not defined for this schedule or start.
        """
        return _grid(self, schedule, start)

    def evaluations(self, schedule: Schedule, start: float = 1.0) -> int:
        """Calls of the denoiser in a walk from time `start`."""
        return sum(1 if step.inner is None else 2 for step in self.grid(schedule, start))

    def transitions(self, schedule: Schedule, start: float) -> list[tuple[Level, Level]]:
        """The levels (start, end) of each step. Noise fills a gap between one's end and the next one's start."""
        return list(pairwise(levels_of(schedule, self.steps, self.spacing, self.stop, start)))

    def inner(self, schedule: Schedule, start: Level, end: Level) -> Level | None:
        """The level of a second call of the denoiser."""
        return None

    def draws(self, step: Step) -> int:
        """How often `step` will ask for noise."""
        return 0

    @property
    def inflation(self) -> float:
        """Factor on the noise that fills gaps."""
        return 1.0

    @abstractmethod
    def coefficients(
        self, schedule: Schedule, starts: Sequence[Level], end: Level, inner: Level | None
    ) -> Coefficients:
        """The numbers of a step from starts[-1] to end; before it come the starts of the steps before."""

    @abstractmethod
    def step(
        self, x: Tensor, denoise: Denoise, step: Step, memory: Memory, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Memory]:
        """One transition. `memory` is None at first, then what the last step returned; `noise()` draws like x."""


@lru_cache(maxsize=256)
def _grid(sampler: Sampler, schedule: Schedule, start: float) -> tuple[Step, ...]:
    transitions = sampler.transitions(schedule, start)
    if sampler.repeats and len(transitions) == 1:
        raise ValueError("the one step of a walk begins with noise and cannot be repeated: take steps >= 2")
    transitions += transitions[-1:] * sampler.repeats
    inner = [sampler.inner(schedule, *transition) for transition in transitions]
    starts = [transition[0] for transition in transitions]
    coefficients = [
        sampler.coefficients(schedule, starts[: i + 1], end, inner[i]) for i, (_, end) in enumerate(transitions)
    ]
    return chain(transitions, coefficients, inner, sampler.inflation)

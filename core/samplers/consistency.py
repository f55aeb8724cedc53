"""Sampling of consistency models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from core.samplers.base import Coefficients, Denoise, Memory, Sampler
from core.samplers.grid import LAST_TIME, Step, levels_of
from core.schedules import CLEAN, Level, Schedule


@dataclass(frozen=True)
class Consistency(Sampler):
    """Every step goes to the clean estimate, and noise takes it up to the next level (Song et al. 2023, algorithm 1).

    For consistency models (`core.ConsistencyModel`), whose estimate is a sample already, in 1 to 4 steps.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop:
            raise ValueError(f"consistency sampling ends at the data: it has no stop, got {self.stop}")

    def transitions(self, schedule: Schedule, start: float) -> list[tuple[Level, Level]]:
        stop = 0.0 if self.spacing == "leading" else min(LAST_TIME, start / 2)
        levels = levels_of(schedule, self.steps, self.spacing, stop, start)
        return [(level, CLEAN) for level in levels[:-1]]

    def coefficients(
        self, schedule: Schedule, starts: Sequence[Level], end: Level, inner: Level | None
    ) -> Coefficients:
        return ()

    def step(
        self, x: Tensor, denoise: Denoise, step: Step, memory: Memory, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Memory]:
        return denoise(x), None

"""Heun's method, the second-order solver of EDM and of flows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.samplers.base import Coefficients, Denoise, Memory, Sampler
from core.samplers.ddim import linear
from core.samplers.grid import Step
from core.schedules import VE, Level, Schedule


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method on the probability flow, with EDM's churn (Karras et al. 2022, algorithm 2). Steps call the
    denoiser twice, but for the last one to the data.

    Attributes:
        frame: what is integrated: "edm", x / alpha over sigma / alpha; "flow", x / (alpha + sigma) over
            sigma / (alpha + sigma), which for `Flow` is Heun's method on dx/dt. None: "edm" for `VE`, as published, and
            "flow" otherwise, which is several times more accurate there (docs/gallery.md).
        churn, churn_min, churn_max, churn_noise: S_churn, S_tmin, S_tmax and S_noise in units of sigma / alpha. Noise
            is never raised above the level the walk starts from.
    """

    frame: str | None = None
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frame not in (None, "edm", "flow"):
            raise ValueError(f"unknown frame {self.frame!r}: choose edm, flow or None")
        if not (0 <= self.churn < math.inf and 0 <= self.churn_min <= self.churn_max and self.churn_noise >= 0):
            raise ValueError(
                "churn must be finite and at least 0, with 0 <= churn_min <= churn_max and churn_noise >= 0"
            )

    def transitions(self, schedule: Schedule, start: float) -> list[tuple[Level, Level]]:
        plain = super().transitions(schedule, start)
        return [(self._churned(schedule, level, plain[0][0]), end) for level, end in plain]

    def _churned(self, schedule: Schedule, level: Level, highest: Level) -> Level:
        if not self.churn or level.alpha == 0 or not self.churn_min <= level.sigma / level.alpha <= self.churn_max:
            return level
        lam = level.lam - math.log1p(min(self.churn / self.steps, math.sqrt(2) - 1))
        if lam <= highest.lam:
            return highest
        return schedule.levels(schedule.time(torch.tensor([lam], dtype=torch.float64)))[0]

    @property
    def inflation(self) -> float:
        return self.churn_noise

    def inner(self, schedule: Schedule, start: Level, end: Level) -> Level | None:
        return end if end.sigma > 0 else None

    def coefficients(
        self, schedule: Schedule, starts: Sequence[Level], end: Level, inner: Level | None
    ) -> Coefficients:
        start = starts[-1]
        if inner is None:
            return linear(start, end)
        frame = self.frame or ("edm" if isinstance(schedule, VE) else "flow")
        if frame == "edm" and start.alpha == 0:
            raise ValueError(
                f'Heun\'s "edm" frame divides by alpha, which is 0 where {schedule} starts: use frame="flow"'
            )
        # y = x / size over tau = sigma / size has dy/dtau = (y - x0) / tau, whichever size is taken.
        sizes = [level.alpha + (level.sigma if frame == "flow" else 0.0) for level in (start, end)]
        taus = [start.sigma / sizes[0], end.sigma / sizes[1]]
        half = (taus[1] - taus[0]) / 2
        at_start, at_end = half / taus[0], half / taus[1]
        return (
            *linear(start, end),
            sizes[1] / sizes[0] * (1 + at_start),
            -sizes[1] * at_start,
            at_end,
            -sizes[1] * at_end,
        )

    def step(
        self, x: Tensor, denoise: Denoise, step: Step, memory: Memory, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Memory]:
        keep, gain, *heun = step.coefficients
        x0 = denoise(x)
        euler = (keep * x).add(x0, alpha=gain)
        if step.inner is None:
            return euler, None
        on_x, on_x0, on_euler, on_second = heun
        x_new = (on_x * x).add(x0, alpha=on_x0).add(euler, alpha=on_euler)
        return x_new.add(denoise(euler, step.inner), alpha=on_second), None

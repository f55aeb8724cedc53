"""DDIM, DDPM and everything that equals them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from core.samplers.base import Coefficients, Denoise, Memory, Sampler
from core.samplers.grid import Step, ancestral_variance, forward_variance
from core.schedules import Level, Schedule


def linear(start: Level, end: Level, variance: float = 0.0) -> tuple[float, float]:
    """(keep, gain) of x_end = keep x + gain x0 that leaves room for noise of the given variance (Song et al. 2021,
    eq. 12)."""
    keep = math.sqrt(max(0.0, end.sigma**2 - variance)) / start.sigma
    return keep, end.alpha - keep * start.alpha


@dataclass(frozen=True)
class DDIM(Sampler):
    """Song et al. 2021, eq. 12: deterministic for eta = 0, ancestral sampling for eta = 1.

    large: draw with the variance of the forward step instead, DDPM's "fixed large"; for eta = 1 only.
    """

    eta: float = 0.0
    large: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta lies in [0, 1], got {self.eta}")
        if self.large and self.eta != 1:
            raise ValueError(f"the large variance is DDPM's, with eta = 1; got eta = {self.eta}")

    def coefficients(
        self, schedule: Schedule, starts: Sequence[Level], end: Level, inner: Level | None
    ) -> Coefficients:
        variance = self.eta**2 * ancestral_variance(starts[-1], end)
        drawn = forward_variance(end, starts[-1]) if self.large and variance > 0 else variance
        return (*linear(starts[-1], end, variance), math.sqrt(drawn))

    def draws(self, step: Step) -> int:
        return int(step.coefficients[2] > 0)

    def step(
        self, x: Tensor, denoise: Denoise, step: Step, memory: Memory, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Memory]:
        keep, gain, deviation = step.coefficients
        x_new = (keep * x).add(denoise(x), alpha=gain)
        return (x_new.add(noise(), alpha=deviation) if deviation else x_new), None


def DDPM(steps: int = 20, spacing: str = "time", stop: float = 0.0, *, large: bool = False) -> DDIM:  # noqa: N802
    """Ancestral sampling of the DDPM posterior (Ho et al. 2020): DDIM with eta = 1.

    large: draw with the variance of the forward step, "fixed large", rather than with the posterior's, "fixed small".
    """
    return DDIM(steps, spacing, stop, eta=1.0, large=large)


Euler = DDIM
EulerAncestral = DDPM

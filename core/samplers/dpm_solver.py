"""DPM-Solver++ of orders 1 to 3, as an ODE and as an SDE solver."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from core.samplers.base import Coefficients, Denoise, Memory, Sampler
from core.samplers.ddim import linear
from core.samplers.grid import Step, ancestral_variance
from core.schedules import Level, Schedule


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++ on the clean estimate (Lu et al. 2022): order 1 is DDIM, 2 and 3 are the multistep 2M and 3M.

    3M integrates the parabola through the last three estimates exactly. (As usually written, diffusers included, its
    second derivative is halved, which leaves order 2.)

    sde: the SDE versions, ancestral noise in every step. singlestep: 2S, for order 2, whose steps call the denoiser
    twice and remember nothing.
    """

    order: int = 2
    sde: bool = False
    singlestep: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2, 3):
            raise ValueError(f"DPMSolver has orders 1, 2 and 3, got {self.order}")
        if self.singlestep and self.order != 2:
            raise ValueError(f"the single-step DPMSolver is of order 2, got {self.order}")

    def inner(self, schedule: Schedule, start: Level, end: Level) -> Level | None:
        if not self.singlestep or not math.isfinite(start.lam) or not math.isfinite(end.lam) or start.lam == end.lam:
            return None
        middle = torch.tensor([(start.lam + end.lam) / 2], dtype=torch.float64)
        return schedule.levels(schedule.time(middle))[0]

    def coefficients(
        self, schedule: Schedule, starts: Sequence[Level], end: Level, inner: Level | None
    ) -> Coefficients:
        start = starts[-1]
        variance = ancestral_variance(start, end) if self.sde else 0.0
        keep, gain = linear(start, end, variance)
        if inner is not None:
            first = ancestral_variance(start, inner) if self.sde else 0.0
            second = ancestral_variance(inner, end) if self.sde else 0.0
            carried = linear(inner, end, second)[0] * math.sqrt(first)  # what is left of the first noise at the end
            return (*linear(start, inner, first), math.sqrt(first), keep, gain, carried, math.sqrt(second))
        # How far back lambda rose in every step, the last step to sigma = 0 being first order as well.
        lams = [level.lam for level in (*starts[-self.order :], end)]
        gaps = [b - a for a, b in pairwise(lams)]
        while len(gaps) > 1 and not all(0 < gap < math.inf for gap in gaps):
            gaps.pop(0)
        return keep, math.sqrt(variance), *_extrapolation(gaps[::-1], gain, end.alpha, 2.0 if self.sde else 1.0)

    def draws(self, step: Step) -> int:
        return int(self.sde and step.end.sigma > 0) * (1 if step.inner is None else 2)

    def step(
        self, x: Tensor, denoise: Denoise, step: Step, memory: Memory, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Memory]:
        if step.inner is not None:
            return self._two_stages(x, denoise, step, step.inner, noise), None
        keep, deviation, *weights = step.coefficients
        estimates = (denoise(x), *(memory or ()))[: self.order]
        x_new = keep * x
        for weight, estimate in zip(weights, estimates, strict=False):
            x_new = x_new.add(estimate, alpha=weight)
        return (x_new.add(noise(), alpha=deviation) if deviation else x_new), estimates

    def _two_stages(self, x: Tensor, denoise: Denoise, step: Step, inner: Step, noise: Callable[[], Tensor]) -> Tensor:
        """2S with its middle at half the step in lambda: the estimate there stands for the whole step."""
        keep1, gain1, deviation1, keep, gain, carried, deviation2 = step.coefficients
        middle = (keep1 * x).add(denoise(x), alpha=gain1)
        if not deviation1:
            return (keep * x).add(denoise(middle, inner), alpha=gain)
        first = noise()
        estimate = denoise(middle.add(first, alpha=deviation1), inner)
        return (keep * x).add(estimate, alpha=gain).add(first, alpha=carried).add(noise(), alpha=deviation2)


def _extrapolation(gaps: Sequence[float], gain: float, alpha: float, rate: float) -> tuple[float, ...]:
    """Weights of the present and past estimates in a multistep update. gaps: of lambda, this step's first; gain: of a
    constant estimate; rate: 1 for the ODE, 2 for the SDE, of the kernel rate exp(-rate (h - u)) over the step."""
    h = gaps[0]
    if len(gaps) == 1:
        return (gain,)
    if len(gaps) == 2:  # the estimate at the middle of the step, on the line through the last two (algorithm 2)
        ahead = h / (2 * gaps[1])
        return gain * (1 + ahead), -gain * ahead
    h0, h1 = gaps[1:]
    # The kernel's moments over u in [0, h], and Newton's form of the parabola through u = 0, -h0 and -(h0 + h1).
    zeroth = -math.expm1(-rate * h)
    first = h - zeroth / rate
    second = h**2 - 2 * first / rate + h0 * first
    outer, inner = second / ((h0 + h1) * h1), second / ((h0 + h1) * h0)
    weights = (zeroth + first / h0 + inner, -first / h0 - inner - outer, outer)
    return tuple(alpha * weight for weight in weights)

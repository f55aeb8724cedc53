"""Grids: which noise levels a walk visits, and everything about its steps that can be computed before it begins."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.schedules import CLEAN, Level, Schedule

SPACINGS = ("time", "lambda", "quadratic", "karras", "leading")

#: Grids that are uniform in lambda or Karras's sigma reach this time, or a table's first step, before the last step to
#: the data, where lambda is infinite; and where a schedule has no signal at its start, they are laid out from as far
#: below t = 1.
LAST_TIME = 1e-3


@dataclass(frozen=True)
class Step:
    """One transition between noise levels, as plain floats.

    Attributes:
        start, end: the level at which the denoiser is called, and the one the iterate is taken to.
        index: of the step in its walk.
        dtau: the diffusion time it covers.
        variance: of the ancestral (DDPM, "fixed small") transition, which edits may scale with under any sampler.
        coefficients: the sampler's own.
        renoise: (scale, deviation) of the fresh noise that takes the iterate up to `start`, None where the step before
            ended there.
        place: of the call of the denoiser among all of the walk's.
        inner: the second call of a sampler that makes two, and inner_of, on that one, the step it belongs to.
    """

    start: Level
    end: Level
    index: int
    dtau: float
    variance: float
    coefficients: tuple[float, ...]
    renoise: tuple[float, float] | None = None
    place: int = 0
    inner: "Step | None" = None
    inner_of: int | None = None


def levels_of(schedule: Schedule, steps: int, spacing: str, stop: float, start: float) -> tuple[Level, ...]:
    """The steps + 1 levels of a grid from time `start` down to `stop`; for stop = 0 the last one is the data.

    Raises:
        ValueError: times out of order, or a spacing that is not defined for the schedule.
    """
    if not stop < start <= 1:
        raise ValueError(f"sampling starts at a time above its stop {stop} and at most 1, got {start}")
    if stop > 0:
        return schedule.levels(_times(schedule, steps + 1, spacing, start, stop, stop))
    clean_at_zero = schedule.sigma(torch.zeros(())).item() == 0
    if spacing == "leading":
        return (*schedule.levels(_leading(schedule, steps, start)), CLEAN)
    if clean_at_zero and spacing in ("time", "quadratic"):
        return (*schedule.levels(_times(schedule, steps + 1, spacing, start, 0.0, 0.0))[:-1], CLEAN)
    last = min(1 / schedule.steps if schedule.steps else LAST_TIME, start / 2) if clean_at_zero else 0.0
    return (*schedule.levels(_times(schedule, steps, spacing, start, last, stop)), CLEAN)


def _times(schedule: Schedule, points: int, spacing: str, start: float, last: float, stop: float) -> Tensor:
    """So many times from `start` to `last`."""
    fraction = torch.linspace(0, 1, points, dtype=torch.float64)
    ends = torch.tensor([start, last], dtype=torch.float64)
    if spacing == "time":
        return torch.lerp(ends[0], ends[1], fraction)
    if spacing == "quadratic":
        return torch.lerp(ends[0].sqrt(), ends[1].sqrt(), fraction) ** 2
    if spacing == "leading":
        raise ValueError(f'"leading" spacing goes down to the data: it has no stop, got {stop}')
    lam = schedule.lam(ends)
    if lam[0] == -math.inf:
        lam = schedule.lam(torch.stack([1 - torch.clamp((1 - ends[1]) / points, max=LAST_TIME), ends[1]]))
    if spacing == "lambda":
        lam = torch.lerp(lam[0], lam[1], fraction)
    else:  # Karras et al. 2022, eq. 5, on kappa = sigma / alpha with rho = 7
        root = torch.exp(-lam / 7)
        lam = -7 * torch.log(torch.lerp(root[0], root[1], fraction))
    times = schedule.time(lam)
    times[0] = start  # not its round trip through lambda
    return times


def _leading(schedule: Schedule, steps: int, start: float) -> Tensor:
    """Every (T // steps)-th timestep i of a table of T from 0 up, as the papers' code has them: t = (i + 1) / T."""
    if schedule.steps is None:
        raise ValueError(f'"leading" spacing counts the steps of a table: {schedule} has none, core.VPTable does')
    if start < 1 or steps > schedule.steps:
        raise ValueError(
            f'"leading" spacing takes at most the {schedule.steps} steps of its table, from t = 1; '
            f"got {steps} from {start}"
        )
    index = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (schedule.steps // steps)
    return (index + 1) / schedule.steps


def ancestral_variance(start: Level, end: Level) -> float:
    """Variance of q(x_end | x_start, x_0), the DDPM posterior between any two levels of any schedule."""
    return forward_variance(end, start) * end.sigma**2 / start.sigma**2


def forward_variance(level: Level, noisier: Level) -> float:
    """Variance of q(x_noisier | x_level)."""
    return max(0.0, noisier.sigma**2 - (noisier.alpha / level.alpha * level.sigma) ** 2)


def chain(
    transitions: Sequence[tuple[Level, Level]],
    coefficients: Sequence[tuple[float, ...]],
    inner: Sequence[Level | None],
    inflation: float = 1.0,
) -> tuple[Step, ...]:
    """The steps of a walk over transitions (start, end). Where one starts above the end of the one before, the iterate
    is noised up to it by the forward process, with that noise's deviation times `inflation`; but a transition that is
    made again takes the iterate as it is."""
    steps: list[Step] = []
    place = 0
    for index, ((start, end), numbers, level) in enumerate(zip(transitions, coefficients, inner, strict=True)):
        renoise = None
        if steps and steps[-1].end != start and (steps[-1].start, steps[-1].end) != (start, end):
            here = steps[-1].end
            renoise = (start.alpha / here.alpha, inflation * math.sqrt(forward_variance(here, start)))
        dtau, variance = start.t - end.t, ancestral_variance(start, end)
        second = None
        if level is not None:
            second = Step(level, end, index, dtau, variance, (), place=place + 1, inner_of=index)
        steps.append(Step(start, end, index, dtau, variance, numbers, renoise, place, second))
        place += 1 if second is None else 2
    return tuple(steps)

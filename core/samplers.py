"""Samplers: which noise levels to visit, and how to step from one to the next given the clean estimate."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import torch
from torch import Tensor

from core.schedules import Level, Schedule

SPACINGS = ("time", "lambda", "karras")

#: Grids that are uniform in lambda reach this time before the last step to the data, where lambda is infinite.
LAST_TIME = 1e-3

Denoise = Callable[[Tensor], Tensor]  # x at the step's start -> clean estimate, edits applied
Memory = Tensor | None


@dataclass(frozen=True)
class Step:
    """One transition between noise levels, as plain floats.

    dtau: the diffusion time it covers. variance: of the ancestral (DDPM, "fixed small") transition, which edits may
    scale with under any sampler. previous: the level before `start`, None at the first step.
    """

    start: Level
    end: Level
    index: int
    dtau: float
    variance: float
    previous: Level | None


@dataclass(frozen=True)
class Sampler(ABC):
    """`steps` network evaluations from t = 1 to t = `stop` on a grid uniform in time, lambda, or Karras et al.'s sigma.

    With stop = 0 a grid in lambda or Karras's sigma goes down to t = 1e-3 and ends with one step to the clean estimate.
    """

    steps: int = 20
    spacing: str = "time"
    stop: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a sampler needs steps >= 1, got {self.steps}")
        if self.spacing not in SPACINGS:
            raise ValueError(f"unknown spacing {self.spacing!r}: choose one of {', '.join(SPACINGS)}")
        if not 0 <= self.stop < 1:
            raise ValueError(f"stop is a time in [0, 1), got {self.stop}")

    def grid(self, schedule: Schedule, start: float = 1.0) -> tuple[Step, ...]:
        """The transitions from time `start`, each with one call of the denoiser."""
        return _grid(schedule, self.steps, self.spacing, self.stop, start)

    @abstractmethod
    def step(
        self, x: Tensor, denoise: Denoise, step: Step, memory: Memory, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Memory]:
        """One transition. `memory` is None at first, then what the last step returned; `noise()` draws like x."""


@lru_cache(maxsize=256)
def _grid(schedule: Schedule, steps: int, spacing: str, stop: float, start: float) -> tuple[Step, ...]:
    levels = schedule.levels(_times(schedule, steps, spacing, stop, start))
    return tuple(
        Step(a, b, i, a.t - b.t, _ancestral_variance(a, b), levels[i - 1] if i else None)
        for i, (a, b) in enumerate(pairwise(levels))
    )


def _times(schedule: Schedule, steps: int, spacing: str, stop: float, start: float) -> Tensor:
    if not stop < start <= 1:
        raise ValueError(f"sampling starts at a time above its stop {stop} and at most 1, got {start}")
    if spacing == "time":
        return torch.linspace(start, stop, steps + 1, dtype=torch.float64)
    last = stop if stop > 0 else min(LAST_TIME, start / 2)
    ends = schedule.lam(torch.tensor([start, last], dtype=torch.float64))
    points = steps + 1 if stop > 0 else steps
    fraction = torch.linspace(0, 1, points, dtype=torch.float64)
    if spacing == "lambda":
        lam = torch.lerp(ends[0], ends[1], fraction)
    else:  # Karras et al. 2022, eq. 5, on kappa = sigma / alpha with rho = 7
        root = torch.exp(-ends / 7)
        lam = -7 * torch.log(torch.lerp(root[0], root[1], fraction))
    times = schedule.time(lam)
    times[0] = start  # not its round trip through lambda
    return times if stop > 0 else torch.cat([times, times.new_zeros(1)])


def _ancestral_variance(start: Level, end: Level) -> float:
    """Variance of q(x_end | x_start, x_0), the DDPM posterior between any two levels of any schedule."""
    forward = start.sigma**2 - (start.alpha / end.alpha * end.sigma) ** 2  # of q(x_start | x_end)
    return max(0.0, forward * end.sigma**2 / start.sigma**2)


@dataclass(frozen=True)
class DDIM(Sampler):
    """Song et al. 2021, eq. 12: deterministic for eta = 0 (also DPM-Solver-1), ancestral sampling for eta = 1."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta lies in [0, 1], got {self.eta}")

    def step(
        self, x: Tensor, denoise: Denoise, step: Step, memory: Memory, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Memory]:
        start, end = step.start, step.end
        variance = self.eta**2 * step.variance
        keep = math.sqrt(max(0.0, end.sigma**2 - variance)) / start.sigma
        x_new = keep * x + (end.alpha - keep * start.alpha) * denoise(x)
        if variance > 0:
            x_new = x_new + math.sqrt(variance) * noise()
        return x_new, None


#: Ancestral sampling of the DDPM posterior with its "fixed small" variance (Ho et al. 2020) is DDIM with eta = 1.
DDPM = partial(DDIM, eta=1.0)


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++ (Lu et al. 2022), multistep on the clean estimate; order 1 is DDIM, order 2 is 2M."""

    spacing: str = "lambda"
    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2):
            raise ValueError(f"DPMSolver has orders 1 and 2, got {self.order}")

    def step(
        self, x: Tensor, denoise: Denoise, step: Step, memory: Memory, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, Memory]:
        start, end = step.start, step.end
        x0 = denoise(x)
        direction = x0
        # The last step, to sigma = 0, is first order, and so is one after levels that share their lambda (VPCosine
        # within 0.0006 of t = 1).
        if self.order == 2 and memory is not None and step.previous is not None and math.isfinite(end.lam):
            behind = start.lam - step.previous.lam
            if behind > 0:  # the estimate extrapolated to the middle of the step
                direction = torch.lerp(memory, x0, 1 + (end.lam - start.lam) / (2 * behind))
        keep = end.sigma / start.sigma
        return keep * x + (end.alpha - keep * start.alpha) * direction, x0


@dataclass
class SamplerConfig:
    """A sampler by name: "ddim", "ddpm" or "dpm" (DPM-Solver++ of the given order), and its grid; `spacing` is the
    sampler's own unless given."""

    name: str = "ddim"
    steps: int = 5
    spacing: str | None = None
    stop: float = 0.0
    order: int = 2

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> Sampler:
        if self.name == "dpm":
            return DPMSolver(self.steps, self.spacing or DPMSolver.spacing, self.stop, order=self.order)
        if self.name not in ("ddim", "ddpm"):
            raise ValueError(f"unknown sampler.name {self.name!r}: choose one of ddim, ddpm, dpm")
        return DDIM(self.steps, self.spacing or DDIM.spacing, self.stop, eta=1.0 if self.name == "ddpm" else 0.0)

    def __str__(self) -> str:
        extras = [self.spacing] if self.spacing else []
        extras += [f"order {self.order}"] if self.name == "dpm" and self.order != 2 else []
        extras += [f"stop {self.stop:g}"] if self.stop else []
        return ", ".join([f"{self.name}-{self.steps}", *extras])

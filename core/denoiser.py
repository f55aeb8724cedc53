"""Denoisers: callables (x_t, t, cond) -> estimate of the clean sample x_0, whatever the network predicts.

Samplers and guidance see only this estimate. `t` is a 0-d float64 tensor while sampling and [B] while training.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from core.schedules import Schedule, per_sample

PREDICTIONS = ("noise", "x0", "v")


class Denoiser(Protocol):
    """Estimates E[x_0 | x_t]. Guidance is a denoiser that wraps a denoiser."""

    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor: ...


class NetworkDenoiser(nn.Module):
    """A network network(x, t [B], cond) with what it predicts: "noise", "x0" or "v" = alpha eps - sigma x0.

    Salimans and Ho (2022) for v; every prediction turns into x0 exactly, for any alpha and sigma.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, prediction: str = "noise"):
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {prediction!r}: choose one of {', '.join(PREDICTIONS)}")
        self.network = network
        self.schedule = schedule
        self.prediction = prediction

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.to_x0(self.predict(x, t, cond), x, t)

    def to_x0(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The clean estimate that an output of the network at x_t stands for."""
        if self.prediction == "x0":
            return output
        alpha, sigma = per_sample(self.schedule.alpha(t), x), per_sample(self.schedule.sigma(t), x)
        if self.prediction == "noise":
            return (x - sigma * output) / alpha
        return (alpha * x - sigma * output) / (alpha**2 + sigma**2)

    def predict(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's own output, which is what training compares with `target`."""
        t = t.to(x.device, torch.promote_types(x.dtype, torch.float32))  # bf16 cannot tell neighbouring times apart
        return self.network(x, t.expand(x.shape[0]), cond)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should have said of alpha x0 + sigma noise."""
        if self.prediction == "x0":
            return x0
        if self.prediction == "noise":
            return noise
        return per_sample(self.schedule.alpha(t), x0) * noise - per_sample(self.schedule.sigma(t), x0) * x0


class wrap:  # noqa: N801  (reads as the verb it is: core.wrap(fn, schedule))
    """A denoiser of any callable fn(x, t) -> x0, or fn(x, t, cond) -> x0 where a condition is passed to `sample`."""

    def __init__(self, fn: Callable[..., Tensor], schedule: Schedule):
        self.fn = fn
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.fn(x, t) if cond is None else self.fn(x, t, cond)


class Clip:
    """Bounds the clean estimate, entry by entry. It belongs outside all guidance, which can overshoot the data."""

    def __init__(self, denoiser: Denoiser, low: Tensor | float = -1.0, high: Tensor | float = 1.0):
        """low and high broadcast against a sample [B, ...]."""
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.low, self.high = low, high

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        x0 = self.denoiser(x, t, cond)
        low, high = (
            bound.to(x0) if isinstance(bound, Tensor) else x0.new_full((), bound) for bound in (self.low, self.high)
        )
        return torch.clamp(x0, low, high)

"""Denoisers: callables (x_t, t, cond) -> estimate of the clean sample x_0, whatever the network predicts.

Samplers and guidance see only this estimate.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from core.networks.embeddings import TimeEmbedding
from core.predictions import prediction_of
from core.schedules import Level, Schedule, per_sample

#: A condition [B, ...], or several of one shape for guidance that composes them.
Condition = Tensor | Sequence[Tensor]


class Walk:
    """The times [N] at which one call of `sample` asks its denoiser, and what was computed from all of them at once."""

    def __init__(self, times: Tensor):
        self.times = times
        self._hoisted: dict[object, Tensor] = {}

    def hoist(self, key: object, function: Callable[[Tensor], Tensor]) -> Tensor:
        """function(times), computed when it is first asked for."""
        if key not in self._hoisted:
            self._hoisted[key] = function(self.times)
        return self._hoisted[key]


@dataclass(frozen=True)
class Time:
    """The noise level a denoiser is asked about while sampling: plain floats, and its place in the walk."""

    level: Level
    walk: Walk
    place: int

    @property
    def tensor(self) -> Tensor:
        """The time as a 0-d float64 tensor on the sample's device."""
        return self.walk.times[self.place]


class Denoiser:
    """Base of all denoisers: (x [B, ...], t, cond) -> estimate of E[x_0 | x_t], of x's shape.

    Guidance is a denoiser that wraps a denoiser; it hands `t` on as it is. While sampling, t is a `Time`; elsewhere a
    tensor of times, 0-d or [B]. Any other callable with a `schedule` serves as well: it is given t as a tensor.
    """

    schedule: Schedule

    def __call__(self, x: Tensor, t: Time | Tensor, cond: Condition | None = None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no __call__")


class AnyDenoiser(Protocol):
    """What users may pass where a denoiser is asked for."""

    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None, /) -> Tensor: ...


class wrap(Denoiser):  # noqa: N801  (reads as the verb it is: core.wrap(fn, schedule))
    """A denoiser of any callable fn(x, t) -> x0, or fn(x, t, cond) -> x0 where a condition is passed to `sample`."""

    def __init__(self, fn: Callable[..., Tensor], schedule: Schedule):
        self.fn = fn
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Time | Tensor, cond: Condition | None = None) -> Tensor:
        time = t.tensor if isinstance(t, Time) else t
        return self.fn(x, time) if cond is None else self.fn(x, time, cond)


def as_denoiser(denoiser: Denoiser | AnyDenoiser) -> Denoiser:
    """The denoiser itself, or one of a user's callable with a schedule.

    Raises:
        TypeError: it has no schedule.
    """
    if isinstance(denoiser, Denoiser):
        return denoiser
    if not callable(denoiser) or not isinstance(getattr(denoiser, "schedule", None), Schedule):
        raise TypeError(
            f"{type(denoiser).__name__} is no denoiser: it needs a .schedule and a call (x, t, cond); "
            "core.wrap(fn, schedule) makes one of a function"
        )
    return wrap(denoiser, denoiser.schedule)


class NetworkDenoiser(nn.Module, Denoiser):
    """A network network(x, t [B], cond) with what it predicts (`core.predictions.PREDICTIONS`).

    A network with a `core.networks.TimeEmbedding` named `time` takes, in place of the times, their embeddings [B, E]:
    while sampling, those of the whole walk are computed at once, before the first step.

    Args:
        data_std: standard deviation of the clean samples, for EDM's preconditioning.
        autocast: a lower precision for the network alone, such as torch.bfloat16; samples keep theirs.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: str = "noise",
        *,
        data_std: float = 1.0,
        autocast: torch.dtype | None = None,
    ):
        super().__init__()
        if not 0 < data_std < float("inf"):
            raise ValueError(f"data_std must be positive, got {data_std}")
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.data_std = data_std
        self.autocast = autocast
        self._kind = prediction_of(prediction)
        self._hoists = isinstance(getattr(network, "time", None), TimeEmbedding)

    def forward(self, x: Tensor, t: Time | Tensor, cond: Tensor | None = None) -> Tensor:
        return self.to_x0(self.predict(x, t, cond), x, t)

    def to_x0(self, output: Tensor, x: Tensor, t: Time | Tensor) -> Tensor:
        """The clean estimate that an output of the network at x_t stands for."""
        if self.prediction == "x0":
            return output
        if isinstance(t, Time):
            p, q = self._kind.estimate(t.level.alpha, t.level.sigma, self.data_std)
            return torch.add(p * x, output, alpha=q)
        p, q = self._kind.estimate(*self._alpha_sigma(t), self.data_std)
        return per_sample(p, x) * x + per_sample(q, x) * output

    def predict(self, x: Tensor, t: Time | Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's own output, which is what training compares with `target`."""
        if isinstance(t, Time) and t.level.alpha == 0 and self.prediction in ("noise", "score", "edm"):
            raise ValueError(
                f"predicting {self.prediction!r} is not defined at t = {t.level.t:g}, where alpha = 0: "
                'predict "flow", "v" or "x0" with this schedule, or start below with core.WarmStart'
            )
        if self.prediction == "edm":
            x = x * self._input_scale(x, t)
        time = self._embedded(t) if isinstance(t, Time) and self._hoists else self._times(t, x.dtype)
        cast = nullcontext() if self.autocast is None else torch.autocast(x.device.type, self.autocast)
        with cast:
            output = self.network(x, time.expand(x.shape[0], *time.shape[1:]), cond)
        return output.to(x.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should have said of alpha x0 + sigma noise."""
        c, d = self._kind.target(*self._alpha_sigma(t), self.data_std)
        return per_sample(c, x0) * x0 + per_sample(d, x0) * noise

    def error_gain(self, t: Tensor) -> Tensor:
        """|q| at times t, float64: how much an error of the network's output moves the clean estimate."""
        return self._kind.estimate(*self._alpha_sigma(t), self.data_std)[1].abs()

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.alpha(t), self.schedule.sigma(t)

    def _input_scale(self, x: Tensor, t: Time | Tensor) -> Tensor | float:
        """EDM's c_in, for the sample itself rather than for x / alpha."""
        if isinstance(t, Time):
            return (t.level.sigma**2 + (self.data_std * t.level.alpha) ** 2) ** -0.5
        alpha, sigma = self._alpha_sigma(t)
        return per_sample((sigma**2 + (self.data_std * alpha) ** 2) ** -0.5, x)

    def _times(self, t: Time | Tensor, dtype: torch.dtype) -> Tensor:
        """What the network is told of the time, [1] or [B]: EDM's c_noise = log(sigma / alpha) / 4, or t itself."""
        time = t.tensor if isinstance(t, Time) else t
        if self.prediction == "edm":
            time = -self.schedule.lam(time) / 4
        # bf16 cannot tell neighbouring times apart
        return torch.atleast_1d(time.to(dtype=torch.promote_types(dtype, torch.float32)))

    def _embedded(self, t: Time) -> Tensor:
        """The time's embedding [1, E]."""
        embed: TimeEmbedding = self.network.time  # type: ignore[assignment]
        rows = t.walk.hoist(self, lambda times: embed(self._times(times, embed.frequencies.dtype)))
        return rows[t.place : t.place + 1]

"""Denoisers: callables (x_t, t, cond) -> estimate of the clean sample x_0, whatever the network predicts.

Samplers and guidance see only this estimate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

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


@dataclass(slots=True)
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

    Guidance is a denoiser that wraps a denoiser; it hands `t` on as it is. t is a tensor of times, 0-d or [B], and
    while sampling a 0-d one, or, for a class that says `takes_time = True`, a `Time`, with which what depends on the
    times alone is computed once a walk. Any other callable with a `schedule` serves as a denoiser as well.
    """

    schedule: Schedule
    takes_time: ClassVar[bool] = False

    def __call__(self, x: Tensor, t: Any, cond: Any = None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no __call__")


def alpha_sigma(schedule: Schedule, x: Tensor, t: Time | Tensor) -> tuple[Any, Any]:
    """alpha and sigma as factors of a sample x [B, ...]: floats while sampling, otherwise tensors."""
    if isinstance(t, Time):
        return t.level.alpha, t.level.sigma
    return per_sample(schedule.alpha(t), x), per_sample(schedule.sigma(t), x)


class AnyDenoiser(Protocol):
    """What users may pass where a denoiser is asked for."""

    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None, /) -> Tensor: ...


class wrap(Denoiser):  # noqa: N801  (reads as the verb it is: core.wrap(fn, schedule))
    """A denoiser of any callable fn(x, t) -> x0, or fn(x, t, cond) -> x0 where a condition is passed to `sample`.

    t is a tensor of times, 0-d while sampling. The estimate is taken in the sample's precision.
    """

    takes_time = True

    def __init__(self, fn: Callable[..., Tensor], schedule: Schedule):
        self.fn = fn
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Time | Tensor, cond: Condition | None = None) -> Tensor:
        time = t.tensor if isinstance(t, Time) else t
        return (self.fn(x, time) if cond is None else self.fn(x, time, cond)).to(x.dtype)


def as_denoiser(denoiser: Denoiser | AnyDenoiser) -> Denoiser:
    """The denoiser itself, or one around a user's callable with a schedule, which is given times as tensors.

    Raises:
        TypeError: it has no schedule.
    """
    if isinstance(denoiser, Denoiser) and denoiser.takes_time:
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

    takes_time = True

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

    def forward(self, x: Tensor, t: Time | Tensor, cond: Tensor | None = None) -> Tensor:
        return self.to_x0(self.predict(x, t, cond), x, t)

    def to_x0(self, output: Tensor, x: Tensor, t: Time | Tensor) -> Tensor:
        """The clean estimate that an output of the network at x_t stands for."""
        if self.prediction == "x0":
            return output
        p, q = self._kind.estimate(*alpha_sigma(self.schedule, x, t), self.data_std)
        return torch.add(p * x, output, alpha=q) if isinstance(t, Time) else p * x + q * output

    def predict(self, x: Tensor, t: Time | Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's own output, which is what training compares with `target`."""
        if isinstance(t, Time) and t.level.alpha == 0 and self.prediction in ("noise", "score", "edm"):
            raise ValueError(
                f"predicting {self.prediction!r} is not defined at t = {t.level.t:g}, where alpha = 0: "
                'predict "flow", "v" or "x0" with this schedule, or start below with core.WarmStart'
            )
        if self.prediction == "edm":
            alpha, sigma = alpha_sigma(self.schedule, x, t)
            x = x * (sigma**2 + (self.data_std * alpha) ** 2) ** -0.5  # c_in, for x itself rather than x / alpha
        time = self._time(t, x)
        if len(time) != len(x):
            time = time.expand(len(x), *time.shape[1:])
        if self.autocast is None:
            return self.network(x, time, cond)
        with torch.autocast(x.device.type, self.autocast):
            return self.network(x, time, cond).to(x.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should have said of alpha x0 + sigma noise."""
        c, d = self._kind.target(*alpha_sigma(self.schedule, x0, t), self.data_std)
        return c * x0 + d * noise

    def error_gain(self, t: Tensor) -> Tensor:
        """|q| at times t, float64: how much an error of the network's output moves the clean estimate."""
        return self._kind.estimate(self.schedule.alpha(t), self.schedule.sigma(t), self.data_std)[1].abs()

    def _time(self, t: Time | Tensor, x: Tensor) -> Tensor:
        """What the network is told of the time: [1] or [B] numbers, or an embedding [1, E]."""
        if isinstance(t, Tensor):
            return self._numbers(t, x)
        rows = t.walk.hoist((self, x.dtype), lambda times: self._rows(times, x))
        return rows[t.place : t.place + 1]

    def _rows(self, times: Tensor, x: Tensor) -> Tensor:
        """The same of all times of a walk, at once."""
        numbers = self._numbers(times, x)
        embed = getattr(self.network, "time", None)
        if not isinstance(embed, TimeEmbedding):
            return numbers
        features = embed.features(numbers)
        if len(x) == 1 and x.is_cpu and torch.get_num_threads() > 1:
            # A product of several rows wakes the other threads, which costs a single sample more than it saves.
            return torch.cat([embed.mlp(row) for row in features.split(1)])
        return embed.mlp(features)

    def _numbers(self, t: Tensor, x: Tensor) -> Tensor:
        """EDM's c_noise = log(sigma / alpha) / 4, or t itself."""
        number = -self.schedule.lam(t) / 4 if self.prediction == "edm" else t
        # bf16 cannot tell neighbouring times apart
        return torch.atleast_1d(number.to(dtype=torch.promote_types(x.dtype, torch.float32)))

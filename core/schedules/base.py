"""What every schedule is: alpha, sigma and lambda of the time, and back."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One noise level as plain floats, so that a sampling loop never asks the device for a number.

    scale: how much larger than clean data of unit variance a sample is, where it is larger: sqrt(alpha^2 + sigma^2), at
    least 1. It is 1 for every schedule but `VE`.
    """

    t: float
    alpha: float
    sigma: float
    lam: float

    @property
    def scale(self) -> float:
        size = math.hypot(self.alpha, self.sigma)
        return size if size > 1 + 1e-12 else 1.0


#: The data themselves, where every walk without a `stop` ends.
CLEAN = Level(0.0, 1.0, 0.0, math.inf)


class Schedule(ABC):
    """A noise schedule. Times are tensors of any shape in [0, 1]; results are float64 of the same shape and device.

    Attributes:
        steps: number T of the discrete steps t = 1/T, ..., 1 it is defined by, None if it is continuous.
    """

    steps: int | None = None

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data at time t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at time t."""

    @abstractmethod
    def time(self, lam: Tensor) -> Tensor:
        """Inverse of `lam`: the time at which lambda takes the given value."""

    def lam(self, t: Tensor) -> Tensor:
        """lambda(t) = log(alpha / sigma); inf where there is no noise, -inf where there is nothing else."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def scale(self, t: Tensor) -> Tensor:
        """`Level.scale` at time t."""
        size = torch.hypot(self.alpha(t), self.sigma(t))
        return torch.where(size > 1 + 1e-12, size, 1.0)

    def levels(self, t: Tensor) -> tuple[Level, ...]:
        """The levels at times t, a 1-D tensor on the CPU."""
        columns = (t.double(), self.alpha(t), self.sigma(t), self.lam(t))
        return tuple(Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True))

    def diffuse(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t from clean samples and standard normal noise of one shape [B, ...]; t is 0-d or [B]."""
        return per_sample(self.alpha(t), x0) * x0 + per_sample(self.sigma(t), x0) * noise


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Shape a 0-d or [B] value so that it multiplies a [B, ...] sample, in the sample's precision."""
    value = value.to(like.dtype)
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (like.ndim - 1))


def log_alpha(lam: Tensor) -> Tensor:
    """log alpha of a variance-preserving schedule from lambda."""
    return -torch.logaddexp(-2 * lam.double(), torch.zeros((), dtype=torch.float64, device=lam.device)) / 2

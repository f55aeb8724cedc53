"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps for t in [0, 1].

Everything is computed in float64. The half log signal-to-noise ratio lambda = log(alpha / sigma) orders the levels
from noise (t = 1) to data (t = 0, lambda = inf).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

#: The least signal that the cosine schedule keeps. It is singular at t = 1, and x0 estimates divide by alpha.
MIN_ALPHA = 1e-3


@dataclass(frozen=True)
class Level:
    """One noise level as plain floats, so that a sampling loop never asks the device for a number."""

    t: float
    alpha: float
    sigma: float
    lam: float


class Schedule(ABC):
    """A noise schedule. Times are tensors of any shape in [0, 1]; results are float64 of the same shape and device."""

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
        """lambda(t) = log(alpha / sigma); inf at t = 0."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

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


@dataclass(frozen=True)
class VPLinear(Schedule):
    """Variance preserving with linear beta(t) (Ho et al. 2020; continuous form of Song et al. 2021, eq. 32-33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max < math.inf:
            raise ValueError(f"VPLinear needs 0 < beta_min < beta_max < inf, got {self.beta_min} and {self.beta_max}")

    def _log_alpha(self, t: Tensor) -> Tensor:
        t = t.double()
        return -t * (self.beta_min / 2 + t * (self.beta_max - self.beta_min) / 4)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def time(self, lam: Tensor) -> Tensor:
        # log alpha = -softplus(-2 lambda) / 2, then the root of the quadratic in the form that does not cancel.
        rate = torch.logaddexp(-2 * lam.double(), torch.zeros((), dtype=torch.float64, device=lam.device))
        slope = self.beta_max - self.beta_min
        return 2 * rate / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * rate))


@dataclass(frozen=True)
class VPCosine(Schedule):
    """Variance preserving with alpha = cos(theta) / cos(theta_0), theta = (t + s) / (1 + s) pi / 2.

    Nichol and Dhariwal 2021, eq. 17. alpha stays at or above `MIN_ALPHA` (reached at t = 0.9994), which takes the place
    of the papers' clipped betas.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0 < self.s < math.inf:
            raise ValueError(f"VPCosine needs a finite offset s > 0, got {self.s}")

    @property
    def _theta0(self) -> float:
        return self.s / (1 + self.s) * math.pi / 2

    def _theta(self, t: Tensor) -> Tensor:
        theta = (t.double() + self.s) / (1 + self.s) * (math.pi / 2)
        return theta.clamp(max=math.acos(MIN_ALPHA * math.cos(self._theta0)))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._theta(t)) / math.cos(self._theta0)

    def sigma(self, t: Tensor) -> Tensor:
        # sin(a - b) sin(a + b) = cos(b)^2 - cos(a)^2, without the cancellation near t = 0.
        theta = self._theta(t)
        return torch.sqrt(torch.sin(theta - self._theta0) * torch.sin(theta + self._theta0)) / math.cos(self._theta0)

    def time(self, lam: Tensor) -> Tensor:
        # sin(theta - theta0) sin(theta + theta0) = sigma^2 cos(theta0)^2 and cos(theta) = alpha cos(theta0).
        lam = lam.double()
        alpha2 = torch.sigmoid(2 * lam)
        sigma2 = torch.sigmoid(-2 * lam)
        cos0, sin0 = math.cos(self._theta0), math.sin(self._theta0)
        theta = torch.atan2(torch.sqrt(sigma2 * cos0**2 + sin0**2), torch.sqrt(alpha2) * cos0)
        return theta * (1 + self.s) * (2 / math.pi) - self.s


#: Schedules by their names in configurations.
SCHEDULES = {"linear": VPLinear, "cosine": VPCosine}

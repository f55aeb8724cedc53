"""Schedules in continuous time."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.schedules.base import Schedule, log_alpha

#: The least signal that the cosine and sigmoid schedules keep. They are singular at t = 1, and estimates of x0 divide
#: by alpha.
MIN_ALPHA = 1e-3


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
        # The root of the quadratic in the form that does not cancel.
        rate = -2 * log_alpha(lam)
        slope = self.beta_max - self.beta_min
        return 2 * rate / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * rate))


@dataclass(frozen=True)
class VPCosine(Schedule):
    """Variance preserving with alpha = cos(theta) / cos(theta_0), theta = (t + s) / (1 + s) pi / 2.

    Nichol and Dhariwal 2021, eq. 17. alpha stays at or above `MIN_ALPHA` (reached at t = 0.9994), which takes the place
    of the papers' clipped betas (which `VPTable.cosine` has).
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0 < self.s < math.inf:
            raise ValueError(f"VPCosine needs a finite offset s > 0, got {self.s}")

    @property
    def _theta0(self) -> float:
        return self.s / (1 + self.s) * math.pi / 2

    def _climbed(self, t: Tensor) -> Tensor:
        """theta - theta_0."""
        most = math.acos(MIN_ALPHA * math.cos(self._theta0)) - self._theta0
        return (t.double() / (1 + self.s) * (math.pi / 2)).clamp(max=most)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._climbed(t) + self._theta0) / math.cos(self._theta0)

    def sigma(self, t: Tensor) -> Tensor:
        # sin(a - b) sin(a + b) = cos(b)^2 - cos(a)^2, without the cancellation near t = 0.
        climbed = self._climbed(t)
        return torch.sqrt(torch.sin(climbed) * torch.sin(climbed + 2 * self._theta0)) / math.cos(self._theta0)

    def time(self, lam: Tensor) -> Tensor:
        # sin(theta - theta0) sin(theta + theta0) = sigma^2 cos(theta0)^2 and cos(theta) = alpha cos(theta0).
        lam = lam.double()
        alpha2 = torch.sigmoid(2 * lam)
        sigma2 = torch.sigmoid(-2 * lam)
        cos0, sin0 = math.cos(self._theta0), math.sin(self._theta0)
        theta = torch.atan2(torch.sqrt(sigma2 * cos0**2 + sin0**2), torch.sqrt(alpha2) * cos0)
        return theta * (1 + self.s) * (2 / math.pi) - self.s


@dataclass(frozen=True)
class VPSigmoid(Schedule):
    """Variance preserving with 1 - alpha^2 rising as a sigmoid from `start` to `end`, rescaled to [0, 1].

    Jabri et al. 2022 (algorithm 4): alpha^2 = (S(end) - S(start + t (end - start))) / (S(end) - S(start)), with
    S(u) = 1 / (1 + exp(-u / tau)). alpha stays at or above `MIN_ALPHA`.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        if not (self.start < self.end and self.tau > 0 and max(-self.start, self.end, self.start) <= 30 * self.tau):
            raise ValueError(
                f"VPSigmoid needs start < end, both within 30 tau > 0 of 0, got {self.start}, {self.end} and {self.tau}"
            )

    @property
    def _ends(self) -> tuple[float, float]:
        """S(start) and S(end) - S(start)."""
        low, high = (1 / (1 + math.exp(-u / self.tau)) for u in (self.start, self.end))
        return low, high - low

    def sigma(self, t: Tensor) -> Tensor:
        # S(a) - S(b) = S(a) S(-b) (1 - exp(b - a)), without the cancellation near t = 0.
        low, rise = self._ends
        climbed = t.double() * (self.end - self.start) / self.tau
        share = torch.sigmoid(climbed + self.start / self.tau) * (1 - low) * -torch.expm1(-climbed) / rise
        return torch.sqrt(share.clamp(max=1 - MIN_ALPHA**2))

    def alpha(self, t: Tensor) -> Tensor:
        # S(end) - S(u) likewise, for the digits near t = 1.
        low, rise = self._ends
        left = (1 - t.double()) * (self.end - self.start) / self.tau
        share = (low + rise) * torch.sigmoid(left - self.end / self.tau) * -torch.expm1(-left) / rise
        return torch.sqrt(share.clamp(min=MIN_ALPHA**2))

    def time(self, lam: Tensor) -> Tensor:
        low, rise = self._ends
        climbed = torch.sigmoid(-2 * lam.double()) * rise
        left = torch.sigmoid(2 * lam.double()) * rise  # 1 - S, less 1 - S(end), for the digits near t = 1
        odds = torch.log1p(climbed / low) - torch.log((left + (1 - low - rise)) / (1 - low))
        return odds * self.tau / (self.end - self.start)


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding: alpha = 1, sigma from `sigma_max` at t = 1 to `sigma_min` at t = 0.

    sigma^(1 / rho) is linear in t, so that a grid uniform in t is the one of Karras et al. 2022, eq. 5 (EDM). The last
    step of a walk without `stop` goes from sigma_min to the clean estimate.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (0 < self.sigma_min < self.sigma_max < math.inf and 0 < self.rho < math.inf):
            raise ValueError(
                f"VE needs 0 < sigma_min < sigma_max and rho > 0, got {self.sigma_min}, {self.sigma_max}, {self.rho}"
            )

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        low, high = self._ends
        return (low + t.double() * (high - low)) ** self.rho

    def lam(self, t: Tensor) -> Tensor:
        return -torch.log(self.sigma(t))

    def time(self, lam: Tensor) -> Tensor:
        low, high = self._ends
        return (torch.exp(-lam.double() / self.rho) - low) / (high - low)


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow (Liu et al. 2023; Lipman et al. 2023): alpha = 1 - t, sigma = t, pure noise at t = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        return t.double() + 0.0  # a copy where it was float64 already

    def time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam.double())

"""Schedules of discrete steps, as the papers' code has them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.schedules.base import Schedule, log_alpha


@dataclass(frozen=True, eq=False)
class VPTable(Schedule):
    """A discrete chain of T steps with the given betas, as the papers' code has: x_k at t = k / T for k = 1, ..., T.

    What they call timestep i = 0, ..., T - 1 is t = (i + 1) / T. Between the steps log alpha is linear in t.
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.betas or not all(0 < beta < 1 for beta in self.betas):
            raise ValueError("VPTable needs at least one beta, all of them inside (0, 1)")
        object.__setattr__(self, "steps", len(self.betas))
        decay = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64, device="cpu")).cumsum(0) / 2
        object.__setattr__(self, "_tables", {"cpu": torch.cat([decay.new_zeros(1), decay])})

    def __repr__(self) -> str:
        return f"VPTable(T={len(self.betas)}, betas {self.betas[0]:.3g} to {self.betas[-1]:.3g})"

    @classmethod
    def linear(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "VPTable":
        """Ho et al. 2020. With the default betas alpha(1) is 0.006 at T = 1000, but 0.36 at 200 and 0.78 at 50: a
        shorter table needs larger ones."""
        _check_steps(steps)
        return cls(tuple(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64, device="cpu").tolist()))

    @classmethod
    def cosine(cls, steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> "VPTable":
        """Nichol and Dhariwal 2021, eq. 17, with their clipped betas."""
        _check_steps(steps)
        angle = (torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps + s) / (1 + s) * (math.pi / 2)
        bars = torch.cos(angle) ** 2
        return cls(tuple((1 - bars[1:] / bars[:-1]).clamp(max=max_beta).tolist()))

    @classmethod
    def sigmoid(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "VPTable":
        """Betas rising as a sigmoid over [-6, 6] (Xu et al. 2022, GeoDiff), which is another schedule than `VPSigmoid`;
        like `linear`, its default betas are for T = 1000."""
        _check_steps(steps)
        rise = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64, device="cpu"))
        return cls(tuple((beta_start + (beta_end - beta_start) * rise).tolist()))

    @classmethod
    def vp(cls, steps: int = 5, beta_min: float = 0.1, beta_max: float = 10.0) -> "VPTable":
        """Few steps of the continuous linear schedule (Xiao et al. 2022), as in Diffusion-QL."""
        _check_steps(steps)
        k = torch.arange(1, steps + 1, dtype=torch.float64, device="cpu")
        exponent = beta_min / steps + 0.5 * (beta_max - beta_min) * (2 * k - 1) / steps**2
        return cls(tuple((-torch.expm1(-exponent)).tolist()))

    def _table(self, device: torch.device) -> Tensor:
        """log alpha at k = 0, ..., T."""
        tables: dict[str, Tensor] = self._tables  # type: ignore[attr-defined]
        if str(device) not in tables:
            tables[str(device)] = tables["cpu"].to(device)
        return tables[str(device)]

    def _log_alpha(self, t: Tensor) -> Tensor:
        table = self._table(t.device)
        place = t.double() * len(self.betas)
        low = place.floor().clamp(0, len(self.betas) - 1).long()
        # take() indexes with 0-d tensors without asking for their value.
        return torch.lerp(table.take(low), table.take(low + 1), place - low)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.expm1(2 * self._log_alpha(t)).abs())

    def time(self, lam: Tensor) -> Tensor:
        table = self._table(lam.device)
        value = log_alpha(lam)
        high = torch.searchsorted(-table, -value.contiguous()).clamp(1, len(self.betas))
        below, above = table.take(high - 1), table.take(high)
        share = (value - below) / (above - below)
        return (high - 1 + share.clamp(0, 1)) / len(self.betas)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a table needs at least one step, got {steps}")

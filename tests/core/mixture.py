"""A Gaussian mixture in two dimensions: a clean estimate that is not linear, in closed form, and its exact flow."""

import math

import torch
from torch import Tensor

from core.schedules import Schedule

MEANS = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [-0.5, -1.5]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
DEVIATIONS = torch.tensor([0.5, 0.7, 0.6], dtype=torch.float64)


class Mixture:
    """The exact denoiser E[x0 | x_t] of x0 ~ sum of WEIGHTS N(MEANS, DEVIATIONS^2); samples are [B, 2] in float64."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.at(x, self.schedule.alpha(t), self.schedule.sigma(t))

    @staticmethod
    def at(x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """E[x0 | alpha x0 + sigma eps = x]."""
        variance = (alpha * DEVIATIONS) ** 2 + sigma**2  # [3], of x in each component
        gap = x[:, None] - alpha * MEANS
        share = torch.softmax(WEIGHTS.log() - variance.log() - (gap**2).sum(dim=-1) / (2 * variance), dim=1)
        return (share[..., None] * (MEANS + (alpha * DEVIATIONS**2 / variance)[:, None] * gap)).sum(dim=1)

    def flow(self, x: Tensor, start: float, end: float, steps: int = 2000) -> Tensor:
        """The probability flow by the classical Runge-Kutta method on y = x / alpha over u = log(sigma / alpha).

        There dy/du = y - E[x0 | y], whatever the schedule: d(y - x0) / du is what is left of the noise.
        """
        times = torch.tensor([start, end], dtype=torch.float64)
        alphas = self.schedule.alpha(times).tolist()
        high, low = (math.log(s / a) for s, a in zip(self.schedule.sigma(times).tolist(), alphas, strict=True))
        h, y = (low - high) / steps, x / alphas[0]

        def slope(y, u):
            return y - self.at(y, 1.0, math.exp(u))

        for k in range(steps):
            u = high + k * h
            k1 = slope(y, u)
            k2 = slope(y + h / 2 * k1, u + h / 2)
            k3 = slope(y + h / 2 * k2, u + h / 2)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, u + h))
        return alphas[1] * y

"""Gaussian data, for which denoiser, probability flow and guidance have closed forms."""

import torch
from torch import Tensor

from core.schedules import Schedule


class Gaussian:
    """The exact denoiser E[x0 | x_t] of data N(mean, covariance) in d dimensions; samples are [B, d] in float64."""

    def __init__(self, schedule: Schedule, mean: Tensor, covariance: Tensor):
        self.schedule = schedule
        self.mean = mean
        self.covariance = covariance
        self.variances, self.basis = torch.linalg.eigh(covariance)

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        alpha, sigma = self.schedule.alpha(t)[..., None], self.schedule.sigma(t)[..., None]
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return self.mean + (gain * ((x - alpha * self.mean) @ self.basis)) @ self.basis.T

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[eps | x_t], from the score of x_t's law rather than from the clean estimate."""
        alpha, sigma = self.schedule.alpha(t)[..., None], self.schedule.sigma(t)[..., None]
        eye = torch.eye(len(self.mean), dtype=x.dtype)
        law = alpha[..., None] ** 2 * self.covariance + sigma[..., None] ** 2 * eye
        return sigma * torch.linalg.solve(law, (x - alpha * self.mean)[..., None])[..., 0]

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """The exact probability flow: along an eigenvector of variance v, x - alpha mean ~ sqrt(alpha^2 v + sigma^2)"""
        times = torch.tensor([start, end], dtype=torch.float64)
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        scale = torch.sqrt(alpha[:, None] ** 2 * self.variances + sigma[:, None] ** 2)
        return alpha[1] * self.mean + ((x - alpha[0] * self.mean) @ self.basis * scale[1] / scale[0]) @ self.basis.T


def correlated(schedule: Schedule) -> Gaussian:
    """Three dimensions, none independent of another, with neither the prior's mean nor its covariance."""
    root = torch.tensor([[0.9, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.4, 0.3, 0.5]], dtype=torch.float64)
    return Gaussian(schedule, torch.tensor([0.8, -0.5, 1.5], dtype=torch.float64), root @ root.T)

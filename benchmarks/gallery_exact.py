"""Closed forms that the gallery measures against: a Gaussian mixture with classes, and tilts of one Gaussian."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import core


@dataclass(frozen=True, eq=False)
class Mixture:
    """x0 ~ sum_k weights_k N(means_k, deviation^2 I) in two dimensions. The components are its classes.

    means: [K, 2]; weights: [K], which sum to 1; both float64.
    """

    means: Tensor
    weights: Tensor
    deviation: float

    def denoiser(self, schedule: core.Schedule) -> core.Denoiser:
        """The exact E[x0 | x_t, class] for samples [B, 2]; a condition [B, 1] holds the class, NaN for any."""

        def estimate(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            alpha, sigma = schedule.alpha(t).to(x), schedule.sigma(t).to(x)
            variance = (alpha * self.deviation) ** 2 + sigma**2
            means = self.means.to(x)
            gap = x[:, None] - alpha * means
            share = torch.softmax(self._log_weights(cond).to(x) - gap.square().sum(dim=-1) / (2 * variance), dim=-1)
            centre = share @ means
            return centre + alpha * self.deviation**2 / variance * (x - alpha * centre)

        return core.wrap(estimate, schedule)

    def _log_weights(self, cond: Tensor | None) -> Tensor:
        """[K], or [B, K] for a condition [B, 1]."""
        if cond is None:
            return self.weights.log()
        only = (torch.arange(len(self.weights)) == cond).double().log()
        return torch.where(cond.isnan(), self.weights.log(), only)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Exact samples [B, 2]."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
        return self.means[component] + self.deviation * noise

    def log_densities(self, x: Tensor) -> Tensor:
        """log p(x | class) at points [..., 2]: [..., K]."""
        gap = (x[..., None, :] - self.means).square().sum(dim=-1)
        return -gap / (2 * self.deviation**2) - math.log(2 * math.pi * self.deviation**2)

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) at points [..., 2]."""
        return torch.logsumexp(self.log_densities(x) + self.weights.log(), dim=-1)

    def power_density(self, x: Tensor, label: int, scale: float) -> Tensor:
        """log p(x) + scale (log p(x | class) - log p(x)) at points [..., 2], not normalised."""
        return torch.lerp(self.log_density(x), self.log_densities(x)[..., label], scale)

    def power_moments(self, label: int, scale: float) -> tuple[float, float]:
        """Mean and deviation along the first axis of the law with that density."""
        axis = torch.linspace(-8, 8, 401, dtype=torch.float64)
        log_density = self.power_density(torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1), label, scale)
        marginal = torch.softmax(log_density.flatten(), dim=0).reshape(401, 401).sum(dim=1)
        mean = (marginal * axis).sum()
        return mean.item(), (marginal * (axis - mean).square()).sum().sqrt().item()

    def shares(self, x: Tensor) -> Tensor:
        """Share of samples [B, 2] nearest to each mean: [K]."""
        nearest = torch.cdist(x.double(), self.means).argmin(dim=1)
        return torch.bincount(nearest, minlength=len(self.means)) / len(x)

    def spread(self, x: Tensor) -> float:
        """Root mean square distance in one direction from the nearest mean."""
        return (torch.cdist(x.double(), self.means).amin(dim=1).square().mean() / 2).sqrt().item()

    def energy_distance(self, x: Tensor, directions: int = 24) -> float:
        """2 E|X - Y| - E|X - X'| - E|Y - Y'| between samples X [B, 2] and the exact Y.

        In two dimensions |v| = pi / 2 times the mean of |v . u| over unit vectors u, and in one the distance is
        2 int (F_X - F_Y)^2, where F_Y is known: so it is computed from sorted projections, and only X is random.
        """
        angle = torch.arange(directions, dtype=torch.float64) * (math.pi / directions)
        unit = torch.stack([angle.cos(), angle.sin()])
        edges = torch.linspace(-8, 8, 641, dtype=torch.float64)
        standard = (edges[:, None, None] - self.means @ unit) / (self.deviation * math.sqrt(2))
        exact = ((1 + torch.erf(standard)) / 2 * self.weights[:, None]).sum(dim=1).T
        ordered = (x.double() @ unit).T.contiguous().sort(dim=1).values
        empirical = torch.searchsorted(ordered, edges.expand(directions, -1).contiguous(), right=True) / len(x)
        squares = (empirical - exact).square().sum(dim=1).mean() * (edges[1] - edges[0])
        return (math.pi * squares).item()


@dataclass(frozen=True)
class Tilt:
    """An energy J(x0) of standard normal data [B, 1], and what is exact for exp(-J) N(0, 1), again a Gaussian.

    noisy: (schedule, x, t) -> E_t(x) = -log E[exp(-J(x0)) | x_t] up to a constant; the schedule preserves variance.
    """

    name: str
    energy: Callable[[Tensor], Tensor]
    noisy: Callable[[core.Schedule, Tensor, Tensor], Tensor]
    mean: float
    variance: float


def _quadratic(schedule: core.Schedule, x: Tensor, t: Tensor) -> Tensor:
    return (schedule.alpha(t) * x - 1).square().sum(dim=-1) / (2 * (1 + schedule.sigma(t) ** 2))


#: x0 given x_t is N(alpha x, sigma^2).
TILTS = (
    Tilt("quadratic", lambda x0: (x0 - 1).square().sum(dim=-1) / 2, _quadratic, 0.5, 0.5),
    Tilt("linear", lambda x0: -x0.sum(dim=-1), lambda schedule, x, t: -schedule.alpha(t) * x.sum(dim=-1), 1.0, 1.0),
)


def exact_flow(denoiser: core.Denoiser, noise: Tensor, steps: int = 2000, stop: float = 1e-6) -> Tensor:
    """Where the probability flow takes the noise at time `stop`."""
    return core.sample(denoiser, noise, core.DPMSolver(steps, "lambda", order=3, stop=stop)).x


def consistency_function(denoiser: core.Denoiser, steps: int = 100) -> core.Denoiser:
    """f(x, t), the end of the probability flow through x at time t: what a consistency model learns."""

    def end(x: Tensor, t: Tensor) -> Tensor:
        start = core.WarmStart(torch.zeros_like(x), t.item())
        noise = x / denoiser.schedule.sigma(t).to(x)
        return core.sample(denoiser, noise, core.DPMSolver(steps, "lambda", order=3), start=start).x

    return core.wrap(end, denoiser.schedule)

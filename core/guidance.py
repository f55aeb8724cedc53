"""Guidance: denoisers that wrap a denoiser and change its estimate of the clean sample."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from core.denoiser import AnyDenoiser, Condition, Denoiser, Time, as_denoiser
from core.samplers.grid import LAST_TIME
from core.schedules import per_sample

ENERGIES = ("estimate", "frozen", "noisy")


class ClassifierFree(Denoiser):
    """D_u + sum_i scale_i (D_ci - D_u) in one batched network call (Ho, Salimans 2021; composed: Liu et al. 2022).

    With one scale, 0 ignores the condition, 1 is the conditional model, above 1 exaggerates what the condition changes,
    and below 0 it drives away from it. "No condition" is NaN in the condition tensor, as networks take it
    (`core.networks.ConditionEmbedding`). What would count with weight 0 is not computed.
    """

    def __init__(self, denoiser: Denoiser | AnyDenoiser, scale: float | Sequence[float]):
        """scale: one number for `cond=tensor`, or one for each tensor of `cond=[...]`."""
        self.denoiser = as_denoiser(denoiser)
        self.schedule = denoiser.schedule
        self.scales = tuple(map(float, scale)) if isinstance(scale, Sequence) else (float(scale),)
        if not self.scales or not all(map(math.isfinite, self.scales)):
            raise ValueError(f"guidance needs at least one scale, all of them finite, got {scale}")

    def __call__(self, x: Tensor, t: Time | Tensor, cond: Condition | None = None) -> Tensor:
        conditions = [cond] if isinstance(cond, Tensor) else list(cond or ())
        if len(conditions) != len(self.scales):
            raise ValueError(
                f"classifier-free guidance with {len(self.scales)} scales needs as many conditions, "
                f"got {len(conditions)}: pass cond= to sample()"
            )
        weighted = [(1 - math.fsum(self.scales), torch.full_like(conditions[0], torch.nan))]
        weighted += zip(self.scales, conditions, strict=True)
        weighted = [(weight, condition) for weight, condition in weighted if weight != 0.0]
        count = len(weighted)
        if count == 1 and weighted[0][0] == 1.0:
            return self.denoiser(x, t, weighted[0][1])
        times = torch.cat([t] * count) if isinstance(t, Tensor) and t.ndim else t
        estimates = self.denoiser(torch.cat([x] * count), times, torch.cat([c for _, c in weighted])).chunk(count)
        total = weighted[0][0] * estimates[0]
        for (weight, _), estimate in zip(weighted[1:], estimates[1:], strict=True):
            total = torch.add(total, estimate, alpha=weight)
        return total


class Energy(Denoiser):
    """Guidance by an energy, on the score: p(x_t) is tilted by exp(-scale E), so D becomes
    D - scale (sigma^2 / alpha) grad E (Dhariwal and Nichol 2021, in terms of x0). It works with every sampler.

    What `energy` is a function of, `on`:

    - "estimate": energy(x0), taken at the clean estimate, with the gradient through the network (Chung et al. 2023).
      Exact for Gaussian data and a linear energy, an approximation otherwise.
    - "frozen": the same without the gradient through the network, whose Jacobian is replaced by that of standard normal
      data, alpha / (alpha^2 + sigma^2): no backward pass.
    - "noisy": energy(x_t, t), such as a classifier of noisy samples, or the exact E_t(x) = -log E[exp(-E(x0)) | x_t].

    `energy` returns one number a sample, [B], and is minimised. Where alpha = 0 (`Flow` at t = 1) the sample says
    nothing of the data: "estimate" is taken a thousandth below, and "noisy" does not guide.

    Gradients keep their graph only in `sample(grad=True)`.
    """

    def __init__(
        self,
        denoiser: Denoiser | AnyDenoiser,
        energy: Callable[..., Tensor],
        scale: float = 1.0,
        *,
        on: str = "estimate",
    ):
        if on not in ENERGIES:
            raise ValueError(f"unknown kind of energy {on!r}: choose one of {', '.join(ENERGIES)}")
        if not math.isfinite(scale):
            raise ValueError(f"the energy's scale must be finite, got {scale}")
        self.denoiser = as_denoiser(denoiser)
        self.schedule = denoiser.schedule
        self.energy = energy
        self.scale = float(scale)
        self.on = on

    def __call__(self, x: Tensor, t: Time | Tensor, cond: Condition | None = None) -> Tensor:
        if self.scale == 0.0:
            return self.denoiser(x, t, cond)
        if self.on == "frozen":
            x0 = self.denoiser(x, t, cond)
            alpha, sigma = self._alpha_sigma(x, t)
            return x0 - self.scale * sigma**2 / (alpha**2 + sigma**2) * gradient(self.energy, x0)
        if self.on == "noisy":
            time = t.tensor if isinstance(t, Time) else t
            slope = gradient(lambda noisy: self.energy(noisy, time), x)
            return self.denoiser(x, t, cond) - self.scale * self._posterior(x, t) * slope
        t = self._with_signal(t)
        estimates: list[Tensor] = []

        def energy_of(noisy: Tensor) -> Tensor:
            estimates.append(self.denoiser(noisy, t, cond))
            return self.energy(estimates[0])

        slope = gradient(energy_of, x)
        x0 = estimates[0] if torch.is_grad_enabled() else estimates[0].detach()
        return x0 - self.scale * self._posterior(x, t) * slope

    def _alpha_sigma(self, x: Tensor, t: Time | Tensor) -> tuple[Any, Any]:
        """Floats while sampling, else tensors that multiply x."""
        if isinstance(t, Time):
            return t.level.alpha, t.level.sigma
        return per_sample(self.schedule.alpha(t), x), per_sample(self.schedule.sigma(t), x)

    def _posterior(self, x: Tensor, t: Time | Tensor) -> Tensor | float:
        """sigma^2 / alpha, which turns a gradient of log p(x_t) into one of x0; 0 where alpha = 0."""
        alpha, sigma = self._alpha_sigma(x, t)
        if isinstance(alpha, Tensor):
            return torch.where(alpha > 0, sigma**2 / alpha, 0.0)
        return sigma**2 / alpha if alpha else 0.0

    def _with_signal(self, t: Time | Tensor) -> Time | Tensor:
        """The time, or one just below where alpha = 0."""
        if isinstance(t, Time):
            return t if t.level.alpha else t.tensor - LAST_TIME
        return torch.where(self.schedule.alpha(t) > 0, t, t - LAST_TIME)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of the sum of function(x) [B], of x's shape. It has a graph where gradients are enabled.

    Raises:
        ValueError: the function does not depend on x.
        RuntimeError: under torch.inference_mode().
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("gradients cannot be taken under torch.inference_mode(): use torch.no_grad()")
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x if keep and x.requires_grad else x.detach().requires_grad_()
        value = function(leaf)
        slope = (
            torch.autograd.grad(value.sum(), leaf, create_graph=keep, allow_unused=True)[0]
            if value.requires_grad
            else None
        )
    if slope is None:
        raise ValueError("the gradient of a function that does not depend on its sample was asked for")
    return slope

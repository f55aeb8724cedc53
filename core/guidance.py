"""Guidance: denoisers that wrap a denoiser and change its estimate of the clean sample."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from core.denoiser import AnyDenoiser, Condition, Denoiser, Time, alpha_sigma, as_denoiser
from core.samplers.grid import LAST_TIME
from core.schedules import per_sample

ENERGIES = ("estimate", "frozen", "noisy")


class ClassifierFree(Denoiser):
    """D_u + sum_i scale_i (D_ci - D_u) in one batched network call (Ho, Salimans 2021; composed: Liu et al. 2022).

    With one scale, 0 ignores the condition, 1 is the conditional model, above 1 exaggerates what the condition changes,
    and below 0 it drives away from it. "No condition" is NaN in the condition tensor unless `null` says otherwise, as
    networks here take it (`core.networks.ConditionEmbedding`). What would count with weight 0 is not computed.
    """

    takes_time = True

    def __init__(
        self,
        denoiser: Denoiser | AnyDenoiser,
        scale: float | Tensor | Sequence[float],
        *,
        null: float | Tensor = math.nan,
    ):
        """
        Args:
            scale: one number for `cond=tensor`, one for each tensor of `cond=[...]`, or a tensor [B] with a number for
                each sample of `cond=tensor`, of which none is left out of the computation.
            null: what stands for "no condition" in a condition tensor: a number, such as a null class, or a tensor that
                broadcasts against it.
        """
        self.denoiser = as_denoiser(denoiser)
        self.schedule = denoiser.schedule
        self.null = null
        self.weights: list[float | Tensor]  # of the estimate without a condition, then with each
        if isinstance(scale, Tensor) and scale.ndim:
            finite, self.weights = bool(scale.isfinite().all()), [1 - scale.double(), scale]
        else:
            scales = list(map(float, scale)) if isinstance(scale, Sequence) else [float(scale)]
            finite = bool(scales) and all(map(math.isfinite, scales))
            self.weights = [1 - math.fsum(scales), *scales] if finite else []
        if not finite:
            raise ValueError(f"guidance needs at least one scale, all of them finite, got {scale}")

    def __call__(self, x: Tensor, t: Time | Tensor, cond: Condition | None = None) -> Tensor:
        conditions = [cond] if isinstance(cond, Tensor) else list(cond or ())
        if len(conditions) != len(self.weights) - 1:
            raise ValueError(
                f"classifier-free guidance with {len(self.weights) - 1} scales needs as many conditions, "
                f"got {len(conditions)}: pass cond= to sample()"
            )
        weights = [per_sample(w, x) if isinstance(w, Tensor) else w for w in self.weights if _counts(w)]
        count = len(weights)
        if isinstance(t, Time):
            stacked = t.walk.hoist((self, *map(id, conditions)), lambda _: self._stacked(conditions))
        else:
            stacked, t = self._stacked(conditions), torch.cat([t] * count) if t.ndim else t
        if weights == [1.0]:
            return self.denoiser(x, t, stacked)
        estimates = self.denoiser(torch.cat([x] * count), t, stacked).chunk(count)
        total = weights[0] * estimates[0]
        for weight, estimate in zip(weights[1:], estimates[1:], strict=True):
            if isinstance(weight, Tensor):
                total = torch.addcmul(total, weight, estimate)
            else:
                total = torch.add(total, estimate, alpha=weight)
        return total

    def _stacked(self, conditions: Sequence[Tensor]) -> Tensor:
        """The conditions of the batched call, the absent one first where it counts."""
        none = torch.empty_like(conditions[0])
        none.copy_(self.null) if isinstance(self.null, Tensor) else none.fill_(self.null)
        weighted = zip(self.weights, (none, *conditions), strict=True)
        return torch.cat([condition for weight, condition in weighted if _counts(weight)])


def _counts(weight: float | Tensor) -> bool:
    return isinstance(weight, Tensor) or weight != 0.0


class Energy(Denoiser):
    """Guidance by an energy, on the score: p(x_t) is tilted by exp(-scale E), so D becomes
    D - scale (sigma^2 / alpha) grad E (Dhariwal and Nichol 2021, in terms of x0). It works with every sampler.

    What `energy` is a function of, `on`:

    - "estimate": energy(x0), taken at the clean estimate, with the gradient through the network (Chung et al. 2023).
      Exact for Gaussian data and a linear energy, an approximation otherwise.
    - "frozen": the same without the gradient through the network, whose Jacobian is replaced by that of standard normal
      data, alpha / (alpha^2 + sigma^2): no backward pass but the energy's own.
    - "noisy": energy(x_t, t), such as a classifier of noisy samples, or the exact E_t(x) = -log E[exp(-E(x0)) | x_t].

    `energy` returns one number a sample, [B], and is minimised. Where alpha = 0 (`Flow` at t = 1) the sample says
    nothing of the data: "estimate" is taken a thousandth below, and "noisy" does not guide.

    Gradients keep their graph only in `sample(grad=True)`.
    """

    takes_time = True

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
            alpha, sigma = alpha_sigma(self.schedule, x, t)
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

    def _posterior(self, x: Tensor, t: Time | Tensor) -> Tensor | float:
        """sigma^2 / alpha, which turns a gradient of log p(x_t) into one of x0; 0 where alpha = 0."""
        alpha, sigma = alpha_sigma(self.schedule, x, t)
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
        ValueError: the function does not depend on x, or is not one number a sample.
        RuntimeError: under torch.inference_mode().
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("gradients cannot be taken under torch.inference_mode(): use torch.no_grad()")
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x if keep and x.requires_grad else x.detach().requires_grad_()
        value = function(leaf)
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"an energy or a value is one number a sample, [{len(x)}], got {list(value.shape)}: "
                "sum or average over all dimensions but the first"
            )
        slope = (
            torch.autograd.grad(value.sum(), leaf, create_graph=keep, allow_unused=True)[0]
            if value.requires_grad
            else None
        )
    if slope is None:
        raise ValueError("the gradient of a function that does not depend on its sample was asked for")
    return slope

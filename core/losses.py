"""The diffusion training loss: which times are trained, how they are weighted, and what is compared."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.denoiser import NetworkDenoiser
from core.edits import Clamp
from core.schedules import Schedule, per_sample


@dataclass(frozen=True)
class UniformTimes:
    """Times t = 1 - (1 - u)^emphasis with u uniform, and stratified over the batch, for less variance.

    Under a schedule of T steps (`core.VPTable`) they are its steps 1/T, ..., 1, and continuous otherwise.

    emphasis: above 1, high noise is trained more often: that is where a plan decides what it becomes.
    """

    emphasis: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.emphasis < math.inf:
            raise ValueError(f"the emphasis of training times must be positive, got {self.emphasis}")

    def __call__(
        self, batch: int, schedule: Schedule, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        u = torch.rand(batch, generator=generator, device=device, dtype=torch.float64)
        # What rounds to 1 must stay below it: it belongs to the last step of a table, and Flow has no signal there.
        t = (1 - (1 - (u + torch.arange(batch, device=device)) / batch) ** self.emphasis).clamp(max=1 - 1e-12)
        return t if schedule.steps is None else (torch.floor(t * schedule.steps) + 1) / schedule.steps


@dataclass(frozen=True)
class LogNormalTimes:
    """sigma / alpha is log-normal (Karras et al. 2022, table 1), cut off at the schedule's ends."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"log-normal times need a finite mean and std > 0, got {self.mean} and {self.std}")

    def __call__(
        self, batch: int, schedule: Schedule, generator: torch.Generator | None, device: torch.device
    ) -> Tensor:
        z = torch.randn(batch, generator=generator, device=device, dtype=torch.float64)
        return schedule.time(-(self.mean + self.std * z)).clamp(0, 1)


Times = Callable[[int, Schedule, torch.Generator | None, torch.device], Tensor]

#: Weights of the squared error of the clean estimate, as functions of alpha, sigma and the data's deviation. "simple",
#: which is not among them, weights the error of the network's own output with 1.
WEIGHTINGS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "x0": lambda alpha, sigma, std: torch.ones_like(alpha),
    "snr": lambda alpha, sigma, std: (alpha / sigma) ** 2,
    "min_snr": lambda alpha, sigma, std: ((alpha / sigma) ** 2).clamp(max=5.0),
    "edm": lambda alpha, sigma, std: (alpha / sigma) ** 2 + std**-2,
}


def diffusion_loss(
    denoiser: NetworkDenoiser,
    x0: Tensor,
    *,
    clamp: Clamp | None = None,
    cond: Tensor | None = None,
    weights: Tensor | None = None,
    times: Times = UniformTimes(),
    weighting: str = "simple",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squared error of the network's own prediction, over unclamped entries.

    Args:
        x0: clean samples [B, ...].
        clamp: its entries are given to the network clean, as in sampling, and do not count.
        weights: of the entries, at least 0, broadcast to x0; 0 masks an entry.
        times: which times are trained, `UniformTimes` or `LogNormalTimes`.
        weighting: of the times. "simple": 1, on the network's own output (Ho et al. 2020, eq. 14). Others weight the
            error of the clean estimate: "x0" by 1, "snr" by (alpha / sigma)^2, which is "simple" on the noise,
            "min_snr" by that up to 5 (Hang et al. 2023), "edm" by (sigma^2 + std^2) / (sigma std)^2 (Karras et al.
            2022, for x / alpha), which is "simple" on EDM's network.

    Returns:
        The loss, a scalar; the clean estimates [B, ...]; the times [B] they were made at.

    Raises:
        ValueError: an unknown weighting.
    """
    t = times(x0.shape[0], denoiser.schedule, generator, x0.device)
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    x = denoiser.schedule.diffuse(x0, noise, t)
    if clamp is not None:
        x = clamp.noisy(x, denoiser.schedule.scale(t))
    output = denoiser.predict(x, t, cond)
    weight = torch.ones_like(x0) if clamp is None else clamp.free.to(x0.dtype).expand_as(x0)
    if weights is not None:
        weight = weight * weights
    # What the network says at entries that do not count is never used, not even times zero: it may be infinite.
    error = torch.where(weight > 0, output - denoiser.target(x0, noise, t), 0.0) ** 2
    total = weight.sum().clamp(min=torch.finfo(x0.dtype).tiny)
    estimate = denoiser.to_x0(output, x, t)
    return (
        (time_weights(denoiser, t, weighting, x0) * weight * error).sum() / total,
        estimate if clamp is None else clamp(estimate),
        t,
    )


def time_weights(denoiser: NetworkDenoiser, t: Tensor, weighting: str, like: Tensor) -> Tensor:
    """Factors on the squared error of the network's output at times t [B], shaped to multiply a [B, ...] sample."""
    if weighting == "simple":
        return torch.ones((), dtype=like.dtype, device=like.device)
    if weighting not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {weighting!r}: choose one of simple, {', '.join(WEIGHTINGS)}")
    schedule = denoiser.schedule
    on_x0 = WEIGHTINGS[weighting](schedule.alpha(t), schedule.sigma(t), denoiser.data_std)
    return per_sample(on_x0 * denoiser.error_gain(t) ** 2, like)

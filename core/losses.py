"""The diffusion training loss."""

import torch
from torch import Tensor

from core.denoiser import NetworkDenoiser
from core.edits import Clamp


def diffusion_loss(
    denoiser: NetworkDenoiser,
    x0: Tensor,
    *,
    clamp: Clamp,
    cond: Tensor | None = None,
    weights: Tensor | None = None,
    noise_emphasis: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squared error of the network's own prediction (Ho et al. 2020, eq. 14), over unclamped entries.

    Args:
        x0: clean samples [B, ...].
        clamp: its entries are given to the network clean, as in sampling, and do not count.
        weights: of the entries, broadcast to x0.
        noise_emphasis: training times are t = 1 - (1 - u)^emphasis with u uniform (and stratified over the batch, for
            less variance). Above 1, high noise is trained more often: that is where a plan decides what it becomes.

    Returns:
        The loss, a scalar; the clean estimates [B, ...]; the times [B] they were made at.
    """
    batch = x0.shape[0]
    u = torch.rand(batch, generator=generator, device=x0.device, dtype=torch.float64)
    t = 1 - (1 - (u + torch.arange(batch, device=x0.device)) / batch) ** noise_emphasis
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    x = clamp(denoiser.schedule.diffuse(x0, noise, t))
    output = denoiser.predict(x, t, cond)
    weight = clamp.free.to(x0.dtype).expand_as(x0)
    if weights is not None:
        weight = weight * weights
    error = (output - denoiser.target(x0, noise, t)) ** 2
    return (weight * error).sum() / weight.sum(), clamp(denoiser.to_x0(output, x, t)), t

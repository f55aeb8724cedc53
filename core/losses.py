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
        weights: of the entries, at least 0, broadcast to x0.
        noise_emphasis: training times are t = 1 - (1 - u)^emphasis with u uniform (and stratified over the batch, for
            less variance). Above 1, high noise is trained more often: that is where a plan decides what it becomes.

    Returns:
        The loss, a scalar; the clean estimates [B, ...]; the times [B] they were made at.
    """
    if noise_emphasis <= 0:
        raise ValueError(f"noise_emphasis must be positive, got {noise_emphasis}")
    batch = x0.shape[0]
    u = torch.rand(batch, generator=generator, device=x0.device, dtype=torch.float64)
    t = 1 - (1 - (u + torch.arange(batch, device=x0.device)) / batch) ** noise_emphasis
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    x = clamp(denoiser.schedule.diffuse(x0, noise, t))
    output = denoiser.predict(x, t, cond)
    weight = clamp.free.to(x0.dtype).expand_as(x0)
    if weights is not None:
        weight = weight * weights
    # What the network says at entries that do not count is never used, not even times zero: it may be infinite.
    error = torch.where(weight > 0, output - denoiser.target(x0, noise, t), 0.0) ** 2
    total = weight.sum().clamp(min=torch.finfo(x0.dtype).tiny)
    return (weight * error).sum() / total, clamp(denoiser.to_x0(output, x, t)), t

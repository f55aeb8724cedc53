"""Guidance: denoisers that wrap a denoiser and change its estimate of the clean sample."""

import torch
from torch import Tensor

from core.denoiser import Denoiser


class ClassifierFree:
    """D_u + scale (D_c - D_u) in one batched network call (Ho, Salimans 2021).

    Scale 0 ignores the condition, 1 is the conditional model, above 1 exaggerates what the condition changes.
    "No condition" is NaN in the condition tensor, as networks take it (`core.networks.ConditionEmbedding`).
    """

    def __init__(self, denoiser: Denoiser, scale: float):
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.scale = float(scale)

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is None:
            raise ValueError("classifier-free guidance needs a condition: pass cond= to sample()")
        unknown = torch.full_like(cond, torch.nan)
        if self.scale == 0.0:
            return self.denoiser(x, t, unknown)
        if self.scale == 1.0:
            return self.denoiser(x, t, cond)
        unconditional, conditional = self.denoiser(torch.cat([x, x]), t, torch.cat([unknown, cond])).chunk(2)
        return torch.lerp(unconditional, conditional, self.scale)

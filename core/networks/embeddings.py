"""Embeddings shared by all networks."""

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sinusoidal features of the diffusion time followed by a two-layer MLP: [B] -> [B, width]."""

    frequencies: Tensor

    def __init__(self, width: int):
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"the time embedding needs an even width of at least 4, got {width}")
        half = width // 2
        self.register_buffer(
            "frequencies", torch.exp(-math.log(10_000) * torch.arange(half) / (half - 1)), persistent=False
        )
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))

    def forward(self, t: Tensor) -> Tensor:
        phase = 1000.0 * t.to(self.frequencies.dtype)[..., None] * self.frequencies
        return self.mlp(torch.cat([phase.sin(), phase.cos()], dim=-1))


class ConditionEmbedding(nn.Module):
    """MLP of a condition vector: [..., c] -> [..., width]. NaN marks "no condition" and embeds as zero.

    With the marker inside the tensor, dropping a condition in training and stacking the conditional and the
    unconditional call of classifier-free guidance need no second argument anywhere.
    """

    def __init__(self, condition_dim: int, width: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(condition_dim, width),
            nn.Mish(),
            nn.Linear(width, 4 * width),
            nn.Mish(),
            nn.Linear(4 * width, width),
        )

    def forward(self, condition: Tensor) -> Tensor:
        unknown = condition.isnan().any(dim=-1, keepdim=True)
        return self.mlp(torch.nan_to_num(condition)).masked_fill(unknown, 0.0)

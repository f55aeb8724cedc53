"""Embeddings shared by all networks."""

import math

import torch
from einops import repeat
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sinusoidal features of the diffusion time followed by a two-layer MLP: [B] -> [B, width].

    What is embedded already, [B, width], passes as it is: while sampling, the embeddings of all steps are computed at
    once (`core.NetworkDenoiser`).
    """

    def __init__(self, width: int):
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"the time embedding needs an even width of at least 4, got {width}")
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))

    def forward(self, t: Tensor) -> Tensor:
        return t if t.ndim == 2 else self.mlp(self.features(t))

    def features(self, t: Tensor) -> Tensor:
        """Sines and cosines of t [B] at rates from 1000 down to 0.1, [B, width], in the precision of the weights."""
        # Computed in single precision at least, and in no buffer that would be cast with them: 1000 t has many digits.
        half = self.width // 2
        rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000) / (half - 1)))
        phase = 1000.0 * t.to(torch.promote_types(t.dtype, torch.float32))[..., None] * rates
        return torch.cat([phase.sin(), phase.cos()], dim=-1).to(next(self.mlp.parameters()).dtype)


class ConditionEmbedding(nn.Module):
    """MLP of a condition vector: [..., c] -> [..., width]. NaN marks "no condition" and embeds as zero.

    With the marker inside the tensor, dropping a condition in training and stacking the conditional and the
    unconditional call of classifier-free guidance need no second argument anywhere.
    """

    def __init__(self, condition_dim: int, width: int):
        super().__init__()
        self.dim = condition_dim
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


def embed(
    time: TimeEmbedding, condition: ConditionEmbedding | None, t: Tensor, cond: Tensor | None, agents: int
) -> Tensor:
    """What the blocks of a network over plans are told, [B, A, E]: the time's embedding and, where the network has one,
    the condition's beside it.

    t: [B]; cond: [B, A, c], [B, 1, c] for one shared by all agents, or None.
    """
    times = repeat(time(t), "b e -> b a e", a=agents)
    if condition is None:
        if cond is not None:
            raise ValueError("this network was built without a condition (condition_dim=0), but one was given")
        return times
    if cond is None:
        return torch.cat([times, torch.zeros_like(times)], dim=-1)
    if cond.ndim != 3:
        raise ValueError(f"the condition must be [B, A, {condition.dim}], got {list(cond.shape)}")
    return torch.cat([times, condition(cond).expand_as(times)], dim=-1)

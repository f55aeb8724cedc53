"""Embeddings shared by all networks."""

import math

import torch
from einops import repeat
from torch import Tensor, nn

from core.networks.mlp import mlp


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


class PlanEmbedding(nn.Module):
    """What every block of a network over plans is told, [B, A, E]: the diffusion time, and beside it the condition and
    each agent's entries at one step, where the network has them.

    A clamped step is known to a convolution only as far as its kernel reaches; embedded, it is known to every block
    (Diffusion Policy's global conditioning, Chi et al. 2023).

    Args:
        width: E of the time's and the condition's. condition_dim: c of the condition; 0 for none.
        features: D of a plan. current: its time step that is embedded, in 2 `width` entries; None for none.
    """

    def __init__(self, width: int, condition_dim: int, features: int, current: int | None):
        super().__init__()
        self.time = TimeEmbedding(width)
        self.condition = ConditionEmbedding(condition_dim, width) if condition_dim else None
        self.current = current
        self.now = None if current is None else mlp(features, 2 * width, 2 * width)
        self.width = width * (1 + (condition_dim > 0) + 2 * (current is not None))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """x [B, T, A, D]; t [B]; cond [B, A, c], [B, 1, c] for one shared by all agents, or None."""
        times = repeat(self.time(t), "b e -> b a e", a=x.shape[2])
        parts = [times]
        if self.condition is None:
            if cond is not None:
                raise ValueError("this network was built without a condition (condition_dim=0), but one was given")
        elif cond is None:
            parts.append(torch.zeros_like(times))
        elif cond.ndim != 3:
            raise ValueError(f"the condition must be [B, A, {self.condition.dim}], got {list(cond.shape)}")
        else:
            parts.append(self.condition(cond).expand_as(times))
        if self.now is not None:
            parts.append(self.now(x[:, self.current]))
        return torch.cat(parts, dim=-1)

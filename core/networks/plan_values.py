"""Values of noisy plans: the encoder half of the temporal U-Net with a few numbers at its end."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

from core.networks.embeddings import PlanEmbedding, TimeEmbedding
from core.networks.temporal_blocks import ACTIVATIONS, Conv, Pair, ResidualBlock, check_horizon


class PlanValues(nn.Module):
    """V values of a noisy plan [B, T, 1, D] at a diffusion time (Diffuser, Janner et al. 2022; TREBI's models of return
    and cost are two of them).

    Args:
        features: entries D of one time step. horizon: number T of time steps. values: V.
        width, multipliers, kernel, groups, activation: as of `TemporalUNet`; every level halves the steps.
        condition_dim: entries of what the values depend on beside the plan; 0 for none. current: as of `TemporalUNet`.
    """

    def __init__(
        self,
        features: int,
        horizon: int,
        values: int,
        *,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        condition_dim: int = 0,
        current: int | None = None,
        kernel: int = 5,
        groups: int = 8,
        activation: str = "mish",
    ):
        super().__init__()
        check_horizon(horizon, len(multipliers) + 1)
        conv = Conv(kernel, groups, activation)
        self.embedding = PlanEmbedding(width, condition_dim, features, current)
        self.activate = ACTIVATIONS[activation]()
        embedding, channels = self.embedding.width, [features, *(width * m for m in multipliers)]
        self.blocks, self.downsamples = nn.ModuleList(), nn.ModuleList()
        for inputs, outputs in pairwise(channels):
            first, second = (ResidualBlock(size, outputs, embedding, conv) for size in (inputs, outputs))
            self.blocks.append(Pair(first, second))
            self.downsamples.append(nn.Conv1d(outputs, outputs, 3, stride=2, padding=1))
        flat = channels[-1] * (horizon >> len(multipliers)) + embedding
        self.head = nn.Sequential(nn.Linear(flat, flat // 2), self.activate, nn.Linear(flat // 2, values))

    @property
    def time(self) -> TimeEmbedding:
        """The embedding of the diffusion time."""
        return self.embedding.time

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x [B, T, 1, D], t [B] in [0, 1], cond [B, 1, condition_dim] or None -> [B, V]."""
        flat = rearrange(self.activate(self.embedding(x, t, cond)), "b 1 e -> b e")
        h = rearrange(x, "b t 1 d -> b d t")
        for block, downsample in zip(self.blocks, self.downsamples, strict=True):
            h = downsample(block(h, flat))
        return self.head(torch.cat([h.flatten(1), flat], dim=1))

"""A transformer over time with adaptive normalisation, over plans with an agent axis."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from core.networks.embeddings import PlanEmbedding, TimeEmbedding
from core.networks.mixing import MixerFactory, mix, silence


def _modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return h * (1 + scale[:, None]) + shift[:, None]


class _Block(nn.Module):
    """Attention over time and an MLP, each shifted, scaled and gated by the embedding; gates start at 0."""

    def __init__(self, width: int, heads: int, embedding: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in range(2)])
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(embedding, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding).chunk(6, dim=-1)
        q, k, v = rearrange(
            self.qkv(_modulate(self.norms[0](h), shift1, scale1)), "b t (s n c) -> s b n t c", s=3, n=self.heads
        )
        attended = rearrange(F.scaled_dot_product_attention(q, k, v), "b n t c -> b t (n c)")
        h = h + gate1[:, None] * self.out(attended)
        return h + gate2[:, None] * self.mlp(_modulate(self.norms[1](h), shift2, scale2))


class TemporalTransformer(nn.Module):
    """Transformer along time with adaptive layer norm (Peebles and Xie 2023, "adaLN-Zero"), shared by all agents.

    Agents meet only in the mixers. Nothing depends on the horizon: positions are sinusoidal.

    Args:
        features: entries D of one agent at one time step.
        width: of the tokens, one a time step. layers, heads: of the transformer.
        condition_dim: entries of the condition vector; 0 for none.
        current: time step whose entries are embedded beside the diffusion time; None for none.
        mixer: factory of the modules after each layer where agents exchange features; None keeps them independent.
    """

    def __init__(
        self,
        features: int,
        *,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        condition_dim: int = 0,
        current: int | None = None,
        mixer: MixerFactory | None = None,
    ):
        super().__init__()
        if min(features, layers, heads) < 1 or width < 4 or width % heads or width % 2:
            raise ValueError(
                f"width {width} must be even and a multiple of the {heads} heads, with {layers} >= 1 layers"
            )
        self.embedding = PlanEmbedding(width, condition_dim, features, current)
        embedding = self.embedding.width
        self.inputs = nn.Linear(features, width)
        self.blocks = nn.ModuleList([_Block(width, heads, embedding) for _ in range(layers)])
        self.mixers = nn.ModuleList([mixer(width, embedding) for _ in range(layers)] if mixer else [])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.head = nn.Linear(width, features)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer(
            "frequencies",
            torch.exp(-math.log(10_000) * torch.arange(width // 2) / max(1, width // 2 - 1)),
            persistent=False,
        )
        self.frequencies: Tensor

    @property
    def time(self) -> TimeEmbedding:
        """The embedding of the diffusion time."""
        return self.embedding.time

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """x [B, T, A, D], t [B] in [0, 1], cond [B, A, condition_dim] or None -> [B, T, A, D].

        present: [B, A] bool, the agents that take part, None where all do. The others change nothing for them, and what
        is said of the others themselves means nothing.
        """
        batch, horizon, _, _ = x.shape
        if present is not None:
            x, cond = silence(x, cond, present)
        embedding = F.silu(self.embedding(x, t, cond))
        flat = rearrange(embedding, "b a e -> (b a) e")
        phase = torch.arange(horizon, device=x.device)[:, None] * self.frequencies
        h = self.inputs(rearrange(x, "b t a d -> (b a) t d")) + torch.cat([phase.sin(), phase.cos()], dim=-1)
        for index, block in enumerate(self.blocks):
            h = block(h, flat)
            if self.mixers:
                h = mix(self.mixers[index], h.mT, embedding, present).mT
        shift, scale = self.modulation(flat).chunk(2, dim=-1)
        h = self.head(_modulate(self.norm(h), shift, scale))
        return rearrange(h, "(b a) t d -> b t a d", b=batch)

"""Attention across agents (MADiff, section 4.1)."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

#: What one token is: how queries, keys and values become tokens of n heads, and how the result becomes features.
TOKENS = {
    "trajectory": ("(b a) (n c) t -> b n a (c t)", "b n a (c t) -> (b a) (n c) t"),
    "step": ("(b a) (n c) t -> b (n t) a c", "b (n t) a c -> (b a) (n c) t"),
}
WIDTHS = ("light", "published")
#: Agents from which a step's attention is faster in a fused kernel, and with no A x A scores in memory.
FUSED_FROM = 8


class AgentAttention(nn.Module):
    """Self-attention over agents: each is one token, its whole feature map, or one at each of its time steps.

    Queries, keys and values are 1x1 convolutions of the features plus a projection of the embedding; the result is
    added with a learned gate that starts at 0, so that a new network starts with independent agents. Nothing depends
    on an agent's index: permuting the agents permutes the output.

    With K key and V value channels it has (2 K + V) (C + E + 2) + (V + 1) C + 1 parameters, without the (V + 1) C of
    the projection back where there is none: as many with either token, at any number of agents and time steps.
    """

    def __init__(
        self,
        channels: int,
        embedding: int,
        *,
        heads: int = 4,
        key_channels: int = 0,
        value_channels: int = 0,
        token: str = "trajectory",
        widths: str = "light",
    ):
        """Args:
        channels: C of the features. embedding: its width E.
        heads: n of the attention.
        key_channels, value_channels: K and V of all heads together, where they are not those of `widths`.
        token: "trajectory", the published one, compares agents over all of the plan at once, with n A^2 scores a
            sample; "step" at each time step by itself, with n A^2 T.
        widths: "light" has K = C/16 and V = C/4, raised to a multiple of the heads, and a projection back to C;
            "published" has as many in each head, K = n C/16 and V = C for its four heads, and adds them as they are.
        """
        super().__init__()
        if heads < 1:
            raise ValueError(f"attention needs at least one head, got {heads}")
        for name, value, choices in (("token", token, TOKENS), ("widths", widths, WIDTHS)):
            if value not in choices:
                raise ValueError(f"unknown {name} {value!r} of the attention: choose one of {', '.join(choices)}")
        self.heads = heads
        self.token = token
        if widths == "light":
            keys = key_channels or heads * math.ceil(channels / 16 / heads)
            values = value_channels or heads * math.ceil(channels / 4 / heads)
        else:
            keys = key_channels or heads * math.ceil(channels / 16)
            values = value_channels or channels
            if values != channels:
                raise ValueError(
                    f"value_channels {values} must be the {channels} channels of the features where widths is "
                    '"published": nothing projects them back'
                )
        for name, width in (("key_channels", keys), ("value_channels", values)):
            if width % heads:
                raise ValueError(f"{name} {width} must be a multiple of the {heads} attention heads")
        self.split = (keys, keys, values)
        self.project = nn.Conv1d(channels, 2 * keys + values, 1)
        self.embed = nn.Linear(embedding, 2 * keys + values)
        self.out = nn.Conv1d(values, channels, 1) if widths == "light" else nn.Identity()
        self.gate = nn.Parameter(self.project.weight.new_zeros(()))

    def forward(self, h: Tensor, embedding: Tensor, present: Tensor | None = None) -> Tensor:
        """h [B, A, C, T], embedding [B, A, E], already activated -> [B, A, C, T].

        present: [B, A] bool, the agents that are attended to, None for all.
        """
        batch, agents, _, time = h.shape
        flat = rearrange(h, "b a c t -> (b a) c t")
        qkv = self.project(flat) + rearrange(self.embed(embedding), "b a c -> (b a) c 1")
        mask = None
        if present is not None:
            # Zeros, since scores that overflow outlast a mask. All attend to themselves too, so that no row is empty.
            qkv = torch.where(present.reshape(-1, 1, 1), qkv, 0.0)
            mask = (present[:, None] | torch.eye(agents, dtype=torch.bool, device=h.device))[:, None]
        split, join = TOKENS[self.token]
        q, k, v = (rearrange(part, split, b=batch, n=self.heads) for part in qkv.split(self.split, dim=1))
        scale, room = None, v.shape[-1] - k.shape[-1]
        if self.token == "step" and agents >= FUSED_FROM and room > 0:
            scale = k.shape[-1] ** -0.5
            q, k = F.pad(q, (0, room)), F.pad(k, (0, room))  # fused kernels want one width
        attended = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
        mixed = rearrange(attended, join, n=self.heads, t=time)
        return h + self.gate * rearrange(self.out(mixed), "(b a) c t -> b a c t", b=batch)

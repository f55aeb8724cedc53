"""Attention across agents (MADiff, section 4.1)."""

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class AgentAttention(nn.Module):
    """Self-attention over agents, one token per agent: its whole feature map, channels x time.

    Queries, keys and values are 1x1 convolutions of the features plus a projection of the embedding; the result is
    added with a learned gate that starts at 0, so that a new network starts with independent agents. Nothing depends
    on an agent's index: permuting the agents permutes the output.
    """

    def __init__(
        self, channels: int, embedding: int, *, heads: int = 4, key_channels: int = 0, value_channels: int = 0
    ):
        """Args: channels C of the features; embedding width E; key and value channels default to the published
        C/16 and C/4, raised to a multiple of the heads where C is small."""
        super().__init__()
        if heads < 1:
            raise ValueError(f"attention needs at least one head, got {heads}")
        self.heads = heads
        keys = key_channels or heads * math.ceil(channels / 16 / heads)
        values = value_channels or heads * math.ceil(channels / 4 / heads)
        for name, width in (("key_channels", keys), ("value_channels", values)):
            if width % heads:
                raise ValueError(f"{name} {width} must be a multiple of the {heads} attention heads")
        self.split = (keys, keys, values)
        self.project = nn.Conv1d(channels, 2 * keys + values, 1)
        self.embed = nn.Linear(embedding, 2 * keys + values)
        self.out = nn.Conv1d(values, channels, 1)
        self.gate = nn.Parameter(self.project.weight.new_zeros(()))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """h [B, A, C, T], embedding [B, A, E], already activated -> [B, A, C, T]."""
        batch, _, _, time = h.shape
        flat = rearrange(h, "b a c t -> (b a) c t")
        qkv = self.project(flat) + rearrange(self.embed(embedding), "b a c -> (b a) c 1")
        q, k, v = (
            rearrange(part, "(b a) (n c) t -> b n a (c t)", b=batch, n=self.heads)
            for part in qkv.split(self.split, dim=1)
        )
        mixed = rearrange(F.scaled_dot_product_attention(q, k, v), "b n a (c t) -> (b a) (n c) t", t=time)
        return h + self.gate * rearrange(self.out(mixed), "(b a) c t -> b a c t", b=batch)

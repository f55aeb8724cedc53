"""The temporal U-Net of the trajectory-diffusion papers, over plans with an agent axis."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from core.networks.embeddings import PlanEmbedding, TimeEmbedding
from core.networks.mixing import MixerFactory, mix, silence
from core.networks.temporal_blocks import ACTIVATIONS, Conv, Pair, ResidualBlock, check_horizon

DECODERS = ("light", "published")


class TemporalUNet(nn.Module):
    """U-Net along time, shared by all agents; agents meet only in the mixers (MADiff, section 4.1; Diffuser for A = 1).

    No parameter depends on the horizon: a network takes plans of any multiple of 2^(levels - 1) steps.

    Args:
        features: entries D of one agent at one time step.
        horizon: number T of time steps it is trained with.
        width: channels of the finest level.
        multipliers: channels of each level as multiples of `width`.
        condition_dim: entries of the condition vector; 0 for none.
        current: time step whose entries are embedded beside the diffusion time; None for none, as published.
        kernel: width of the convolutions, odd. groups: of the group normalisation.
        activation: "mish" as published, or "silu", which is several times cheaper on a CPU.
        mixer: factory of the modules at the bottleneck and on every skip; None keeps the agents independent.
        decoder: "light" upsamples before its blocks and takes a skip from every level but the coarsest; "published"
            upsamples after them and takes one from every level but the finest, as the published code has it, whose
            bottleneck mixes after both of its blocks.
    """

    def __init__(
        self,
        features: int,
        horizon: int,
        *,
        width: int = 128,
        multipliers: Sequence[int] = (1, 4, 8),
        condition_dim: int = 0,
        current: int | None = None,
        kernel: int = 5,
        groups: int = 8,
        activation: str = "mish",
        mixer: MixerFactory | None = None,
        decoder: str = "light",
    ):
        super().__init__()
        levels = len(multipliers)
        check_horizon(horizon, levels)
        if width % groups:
            raise ValueError(f"width {width} must be a multiple of the {groups} normalisation groups")
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        if decoder not in DECODERS:
            raise ValueError(f"unknown decoder {decoder!r}: choose one of {', '.join(DECODERS)}")
        conv = Conv(kernel, groups, activation)
        self.embedding = PlanEmbedding(width, condition_dim, features, current)
        embedding = self.embedding.width
        channels = [width * m for m in multipliers]

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, embedding, conv)

        def pair(inputs: int, outputs: int) -> Pair:
            return Pair(block(inputs, outputs), block(outputs, outputs))

        self.activate = ACTIVATIONS[activation]()
        self.decoder = decoder
        published = decoder == "published"
        self.joined = range(1, levels) if published else range(levels - 1)  # levels whose skip joins the decoder
        self.meeting = 1 if published else 0  # block of the bottleneck after which the agents meet
        self.down_blocks, self.downsamples, self.skip_mixers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            self.down_blocks.append(pair(channels[level - 1] if level else features, channels[level]))
            if level < levels - 1:
                self.downsamples.append(nn.Conv1d(channels[level], channels[level], 3, stride=2, padding=1))
            if mixer and level in self.joined:
                self.skip_mixers.append(mixer(channels[level], embedding))
        self.middle = nn.ModuleList([block(channels[-1], channels[-1]) for _ in range(2)])
        self.middle_mixer = mixer(channels[-1], embedding) if mixer else None
        self.upsamples, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(levels - 1)):
            inputs, skip = (level, level + 1) if published else (level + 1, level)
            self.upsamples.append(nn.ConvTranspose1d(channels[inputs], channels[level], 4, stride=2, padding=1))
            self.up_blocks.append(pair(2 * channels[skip], channels[level]))
        self.head = nn.Sequential(conv.block(channels[0], channels[0]), nn.Conv1d(channels[0], features, 1))

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
        check_horizon(horizon, len(self.down_blocks))
        if present is not None:
            x, cond = silence(x, cond, present)
        embedding = self.activate(self.embedding(x, t, cond))
        h = rearrange(x, "b t a d -> (b a) d t")
        flat = rearrange(embedding, "b a e -> (b a) e")
        skips: list[Tensor] = []
        for level, pair in enumerate(self.down_blocks):
            h = pair(h, flat)
            if level in self.joined:
                skips.append(mix(self.skip_mixers[len(skips)], h, embedding, present) if self.skip_mixers else h)
            if level < len(self.downsamples):
                h = self.downsamples[level](h)
        for index, block in enumerate(self.middle):
            h = block(h, flat)
            if self.middle_mixer is not None and index == self.meeting:
                h = mix(self.middle_mixer, h, embedding, present)
        for upsample, pair in zip(self.upsamples, self.up_blocks, strict=True):
            if self.decoder == "light":
                h = pair(torch.cat([upsample(h), skips.pop()], dim=1), flat)
            else:
                h = upsample(pair(torch.cat([h, skips.pop()], dim=1), flat))
        return rearrange(self.head(h), "(b a) d t -> b t a d", b=batch)

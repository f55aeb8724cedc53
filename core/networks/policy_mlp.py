"""The networks of diffusion policies without residual blocks: a plain MLP, and a U-Net of linear layers."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from core.networks.embeddings import TimeEmbedding
from core.networks.grouped import LinearFactory
from core.networks.mlp import mlp


class ConcatMLP(nn.Module):
    """MLP of a noisy sample, the diffusion time's embedding and the condition, side by side (Wang et al. 2023).

    Args:
        features: entries D of a sample, such as an action's. condition_dim: of the condition, such as an observation's.
        hidden, layers: of the MLP. time_width: of the time embedding.
        activation: of the MLP; Mish as published is several times dearer than SiLU on a CPU.
        outputs: entries that it says, 0 for a sample's.
        linear: makes each layer.
    """

    def __init__(
        self,
        features: int,
        *,
        condition_dim: int,
        hidden: int = 256,
        layers: int = 3,
        time_width: int = 16,
        activation: str = "mish",
        outputs: int = 0,
        linear: LinearFactory = nn.Linear,
    ):
        super().__init__()
        self.time = TimeEmbedding(time_width)
        inputs = features + time_width + condition_dim
        self.net = mlp(inputs, outputs or features, hidden, layers, activation=activation, linear=linear)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """x [B, ..., D], t [B] in [0, 1], cond [B, ..., condition_dim] -> [B, ..., D]."""
        return self.net(torch.cat([x, _beside(self.time(t), x), cond], dim=-1))


class _Stage(nn.Module):
    """SiLU of a linear layer, plus the time, then another; a linear skip around both (DOM2, appendix)."""

    def __init__(self, inputs: int, outputs: int, time_width: int, dropout: float, linear: LinearFactory):
        super().__init__()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.first, self.second, self.skip = linear(inputs, outputs), linear(outputs, outputs), linear(inputs, outputs)
        self.time = nn.Linear(time_width, outputs)
        self.activate = nn.SiLU()

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        inner = self.activate(self.dropout(self.first(h))) + _beside(self.time(time), h)
        return self.activate(self.dropout(self.second(inner))) + self.skip(h)


class LinearUNet(nn.Module):
    """U-Net of linear layers: narrower and narrower, and back with skips (DOM2, Li et al. 2023).

    Args:
        features: entries D of a sample. condition_dim: of the condition, which enters beside it.
        widths: of the way down. time_width: of the time embedding. dropout: after each linear layer.
        linear: makes each layer.
    """

    def __init__(
        self,
        features: int,
        *,
        condition_dim: int,
        widths: tuple[int, ...] = (512, 256, 128),
        time_width: int = 32,
        dropout: float = 0.0,
        linear: LinearFactory = nn.Linear,
    ):
        super().__init__()
        if not widths or min(widths) < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"a linear U-Net needs widths of at least 1 and dropout in [0, 1), got {widths}, {dropout}"
            )
        self.time = TimeEmbedding(time_width)
        options = (time_width, dropout, linear)
        down = [features + condition_dim, *widths]
        up = [*reversed(widths), widths[0]]
        self.down = nn.ModuleList(_Stage(a, b, *options) for a, b in pairwise(down))
        self.middle = _Stage(widths[-1], widths[-1], *options)
        self.up = nn.ModuleList(_Stage(2 * a, b, *options) for a, b in pairwise(up))
        self.head = linear(widths[0], features)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """x [B, ..., D], t [B] in [0, 1], cond [B, ..., condition_dim] -> [B, ..., D]."""
        time = self.time(t)
        h, skips = torch.cat([x, cond], dim=-1), []
        for stage in self.down:
            h = stage(h, time)
            skips.append(h)
        h = self.middle(h, time)
        for stage in self.up:
            h = stage(torch.cat([h, skips.pop()], dim=-1), time)
        return self.head(h)


def _beside(time: Tensor, x: Tensor) -> Tensor:
    """An embedding [B, E] at every place of x [B, ..., D]: [B, ..., E]."""
    return time.reshape(len(time), *[1] * (x.ndim - 2), -1).expand(*x.shape[:-1], -1)

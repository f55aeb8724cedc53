"""The residual MLP of the diffusion-policy papers, for samples without a time axis."""

import torch
from torch import Tensor, nn

from core.networks.embeddings import TimeEmbedding
from core.networks.grouped import LinearFactory


class _Block(nn.Module):
    def __init__(self, width: int, expansion: int, dropout: float, layer_norm: bool, linear: LinearFactory):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Dropout(dropout) if dropout else nn.Identity(),
            # Without a gain: the layer that follows has one.
            nn.LayerNorm(width, elementwise_affine=False) if layer_norm else nn.Identity(),
            linear(width, expansion * width),
            nn.SiLU(),
            linear(expansion * width, width),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


class ResidualMLP(nn.Module):
    """Residual blocks of x + W2 act(W1 norm(x)) (Hansen-Estruch et al. 2023, IDQL), over the last axis.

    Args:
        features: entries D of a sample, such as an action's.
        width: of the residual stream. blocks: how many. expansion: of the hidden layer in a block.
        condition_dim: entries of the condition vector, such as an observation's; 0 for none.
        time_width: of the time embedding.
        dropout, layer_norm: at the head of each block. linear: makes each layer.
    """

    def __init__(
        self,
        features: int,
        *,
        width: int = 256,
        blocks: int = 3,
        expansion: int = 4,
        condition_dim: int = 0,
        time_width: int = 32,
        dropout: float = 0.0,
        layer_norm: bool = True,
        linear: LinearFactory = nn.Linear,
    ):
        super().__init__()
        if min(features, width, blocks, expansion) < 1 or condition_dim < 0 or not 0 <= dropout < 1:
            raise ValueError(
                f"a residual MLP needs features, width, blocks and expansion >= 1 and dropout in [0, 1), "
                f"got {features}, {width}, {blocks}, {expansion} and {dropout}"
            )
        self.time = TimeEmbedding(time_width)
        self.inputs = linear(features, width)
        self.embed = nn.Linear(time_width, width)
        self.condition = linear(condition_dim, width) if condition_dim else None
        self.blocks = nn.Sequential(*[_Block(width, expansion, dropout, layer_norm, linear) for _ in range(blocks)])
        self.head = nn.Sequential(nn.SiLU(), linear(width, features))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x [B, ..., D], t [B] in [0, 1], cond [B, ..., condition_dim] (NaN: none) or None -> [B, ..., D]."""
        time = self.embed(self.time(t))
        h = self.inputs(x) + time.reshape(len(time), *[1] * (x.ndim - 2), -1)
        if cond is not None:
            if self.condition is None:
                raise ValueError("this network was built without a condition (condition_dim=0), but one was given")
            unknown = cond.isnan().any(dim=-1, keepdim=True)
            h = h + self.condition(torch.nan_to_num(cond)).masked_fill(unknown, 0.0)
        return self.head(self.blocks(h))

"""Multi-layer perceptrons."""

from itertools import pairwise

from torch import nn


def mlp(inputs: int, outputs: int, hidden: int = 256, layers: int = 2) -> nn.Sequential:
    """`layers` hidden layers of `hidden` units with SiLU, and a linear head."""
    if hidden < 1 or layers < 1:
        raise ValueError(f"an MLP needs at least one hidden layer and unit, got {layers} layers of {hidden}")
    widths = [inputs, *[hidden] * layers]
    blocks = [module for a, b in pairwise(widths) for module in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*blocks, nn.Linear(hidden, outputs))

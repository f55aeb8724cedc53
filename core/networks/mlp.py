"""Multi-layer perceptrons."""

from itertools import pairwise

from torch import nn

from core.networks.grouped import LinearFactory

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "mish": nn.Mish, "relu": nn.ReLU}


def mlp(
    inputs: int,
    outputs: int,
    hidden: int = 256,
    layers: int = 2,
    *,
    activation: str = "silu",
    linear: LinearFactory = nn.Linear,
) -> nn.Sequential:
    """`layers` hidden layers of `hidden` units and a linear head.

    linear: makes each layer, such as `core.networks.linear_of(agents)` for a network of every agent's own.
    """
    if hidden < 1 or layers < 1:
        raise ValueError(f"an MLP needs at least one hidden layer and unit, got {layers} layers of {hidden}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
    widths = [inputs, *[hidden] * layers]
    blocks = [module for a, b in pairwise(widths) for module in (linear(a, b), ACTIVATIONS[activation]())]
    return nn.Sequential(*blocks, linear(hidden, outputs))

"""Linear layers of several networks in one call, such as each agent's own."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

#: (inputs, outputs) -> a layer of the last axis.
LinearFactory = Callable[[int, int], nn.Module]


class GroupedLinear(nn.Module):
    """G linear layers, each of its own place in the axis before the last: x [..., G, in] -> [..., G, out].

    Initial weights are those of G `nn.Linear`.
    """

    def __init__(self, groups: int, inputs: int, outputs: int):
        super().__init__()
        if min(groups, inputs, outputs) < 1:
            raise ValueError(f"groups, inputs and outputs must be at least 1, got {groups}, {inputs} and {outputs}")
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(groups, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        groups, inputs, outputs = self.weight.shape
        if x.shape[-2:] != (groups, inputs):
            raise ValueError(f"the layer takes [..., {groups}, {inputs}], got {list(x.shape)}")
        rows = x.reshape(-1, groups, inputs).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], rows, self.weight).transpose(0, 1).reshape(*x.shape[:-1], outputs)


def linear_of(groups: int) -> LinearFactory:
    """Layers for so many groups, each with its own weights; 0 for one that all share."""
    return partial(GroupedLinear, groups) if groups else nn.Linear

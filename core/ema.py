"""Exponential moving average of a model's parameters."""

import torch
from torch import Tensor, nn


class EMA:
    """Averages parameters in one fused call a step; the decay of update n is (1 + n) / (10 + n), until that
    exceeds the one given."""

    def __init__(self, module: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"the EMA decay lies in [0, 1), got {decay}")
        self.decay = decay
        self.updates = 0
        self.source = dict(module.named_parameters())
        self.average = {name: parameter.detach().clone() for name, parameter in self.source.items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), list(self.source.values()), 1 - decay)

    @torch.no_grad()
    def load(self, average: dict[str, Tensor], updates: int) -> None:
        self.updates = updates
        for name, value in average.items():
            self.average[name].copy_(value)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the averages into a module of the same structure."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.average[name])

"""What a learner learns from: the latest steps of all it did."""

import torch
from torch import Tensor

from core.data import Transitions


class Replay:
    """The latest steps of a learner, up to a capacity, on its device."""

    def __init__(self, capacity: int, device: torch.device):
        self.capacity = capacity
        self.device = device
        self.added = 0
        self.kept: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, transitions: Transitions) -> None:
        """Take steps in, in place of the oldest."""
        given = {name: value for name, value in vars(transitions).items() if value is not None}
        new = {name: value[-self.capacity :].to(self.device) for name, value in given.items()}
        if not self.kept:
            self.kept = {name: value.new_empty(self.capacity, *value.shape[1:]) for name, value in new.items()}
        count = len(new["rewards"])
        places = (self.added + torch.arange(count, device=self.device)) % self.capacity
        for name, value in new.items():
            self.kept[name][places] = value
        self.added += count

    def gather(self, index: Tensor) -> Transitions:
        """The steps of an index tensor [B]."""
        return Transitions(**{name: value[index] for name, value in self.kept.items()})

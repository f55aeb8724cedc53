"""What a learner learns from: the latest steps of all it did."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.data import Trajectories


@dataclass(frozen=True)
class Transitions:
    """What B teams did at a step, and what came of it some steps later.

    Attributes:
        observations: [B, A, O] before the step. actions: [B, A, U]. rewards: [B, A], discounted and summed until then.
        following: [B, A, O] what they saw then. discount: [B] of what is worth from then on; 0 where the episode
            terminated, though not where it was only cut off by its time limit.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    following: Tensor
    discount: Tensor

    @staticmethod
    def of(trajectories: Trajectories, discount: float, lookahead: int) -> "Transitions":
        """Every step of the trajectories, in order, with what came of it `lookahead` steps later or at the end."""
        rows = trajectories.decisions
        last = trajectories.last[rows]
        # The rewards of last rows are zeros, so that steps beyond an end add nothing.
        rewards = sum(discount**k * trajectories.rewards[torch.minimum(rows + k, last)] for k in range(lookahead))
        end = torch.minimum(rows + lookahead, last)
        over = (end == last) & trajectories.terminated[trajectories.episode[rows]]
        return Transitions(
            trajectories.observations[rows],
            trajectories.actions[rows],
            torch.as_tensor(rewards),
            trajectories.observations[end],
            torch.where(over, 0.0, discount ** (end - rows).float()),
        )


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
        new = {name: value[-self.capacity :].to(self.device) for name, value in vars(transitions).items()}
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

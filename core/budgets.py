"""Budgets of a cost while episodes run."""

import torch
from torch import Tensor

from core.acting import Asked


class Allowance:
    """What B running episodes may still cost: z_t = (b - sum_{k<t} gamma^k c_k) / gamma^t (TREBI, Lin et al. 2023), at
    least 0, and infinite without a budget.

    Args:
        asked: the budgets b, and when they change. discount: gamma of costs, in which budgets are meant too.
    """

    def __init__(self, asked: Asked, discount: float = 1.0):
        self.asked = asked
        self.discount = discount
        self.step = 0
        self.spent = torch.zeros_like(asked.budgets)

    @property
    def unclamped(self) -> Tensor:
        """What is left [B]; negative where more was spent than allowed."""
        changed = torch.where(self.step >= self.asked.changes, self.asked.factors, 1.0)
        # No budget stays none, whatever its factor.
        budgets = torch.where(self.asked.budgets.isinf(), self.asked.budgets, self.asked.budgets * changed)
        return (budgets - self.spent) / self.discount**self.step

    @property
    def left(self) -> Tensor:
        """What is left [B], at least 0."""
        return self.unclamped.clamp(min=0)

    def spend(self, costs: Tensor) -> None:
        """Take note of the last step's costs [B, A], of which the agents' mean counts."""
        self.spent = self.spent + self.discount**self.step * costs.mean(dim=1)
        self.step += 1

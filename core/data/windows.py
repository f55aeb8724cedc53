"""Windows of trajectories, gathered by index on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.data.conditions import return_ranks
from core.data.trajectories import Trajectories


def window_rows(last: Tensor, starts: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Rows [B, T] of windows that start at the given rows [B] and repeat their episode's last row (`last`, [S]) where
    they pass its end, and a mask [B, T] that is True where the row holds a real action."""
    last = last[starts][:, None]
    rows = starts[:, None] + torch.arange(horizon, device=starts.device)
    return torch.minimum(rows, last), rows < last


@dataclass(frozen=True)
class WindowBatch:
    """B windows of T steps.

    Attributes:
        observations: [B, T, A, O], as they were given to `Windows`. actions: [B, T, A, U].
        valid: [B, T], False where the window is past its episode's last action.
        ranks: [B, A, 1], return rank of each agent at the window's start.
    """

    observations: Tensor
    actions: Tensor
    valid: Tensor
    ranks: Tensor


class Windows:
    """Every window that starts at a decision: no work for an item, all of a batch gathered at once."""

    def __init__(self, trajectories: Trajectories, observations: Tensor, horizon: int, discount: float = 1.0):
        """Args: observations [S, A, O], normalised or not, on the device to gather on; discount of the return ranks."""
        device = observations.device
        self.observations = observations
        self.actions = trajectories.actions.to(device)
        self.ranks = return_ranks(trajectories, discount)[..., None].to(device)
        self.starts = trajectories.decisions.to(device)
        self.last = trajectories.last.to(device)
        self.horizon = horizon

    def __len__(self) -> int:
        return len(self.starts)

    def gather(self, index: Tensor) -> WindowBatch:
        """The windows of an index [B]."""
        starts = self.starts[index]
        rows, valid = window_rows(self.last, starts, self.horizon)
        return WindowBatch(self.observations[rows], self.actions[rows], valid, self.ranks[starts])

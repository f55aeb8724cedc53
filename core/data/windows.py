"""Windows of trajectories, gathered by index on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.data.conditions import return_ranks
from core.data.trajectories import Trajectories


def window_rows(first: Tensor, last: Tensor, starts: Tensor, horizon: int, history: int = 0) -> tuple[Tensor, Tensor]:
    """Rows [B, T] of windows of the `history` rows before the given ones [B] and `horizon` from there on, and a mask
    [B, T] that is True where the row holds a real action.

    They repeat their episode's first row (`first`, [S]) and its last (`last`, [S]) where they pass its ends.
    """
    rows = starts[:, None] + torch.arange(-history, horizon, device=starts.device)
    begin, end = first[starts][:, None], last[starts][:, None]
    return rows.clamp(begin, end), (begin <= rows) & (rows < end)


@dataclass(frozen=True)
class WindowBatch:
    """B windows of T steps, the earlier ones of a history included.

    Attributes:
        observations: [B, T, A, O], as they were given to `Windows`. actions: [B, T, A, U].
        valid: [B, T], False where the window is before its episode's first action or past its last.
        ranks: [B, A, 1], return rank of each agent at the current step, the first after the history.
        legal: [B, T, A, U], the legal choices. present: [B, T, A], who takes part. None where nothing restricts them.
    """

    observations: Tensor
    actions: Tensor
    valid: Tensor
    ranks: Tensor
    legal: Tensor | None = None
    present: Tensor | None = None


class Windows:
    """Every window that starts at a decision: no work for an item, all of a batch gathered at once."""

    def __init__(
        self,
        trajectories: Trajectories,
        observations: Tensor,
        horizon: int,
        discount: float = 1.0,
        *,
        history: int = 0,
    ):
        """Args: observations [S, A, O], normalised or not, on the device to gather on; discount of the return ranks;
        horizon from the current step on, which is one of it, and history before."""
        device = observations.device
        self.observations = observations
        self.actions = trajectories.actions.to(device)
        self.ranks = return_ranks(trajectories, discount)[..., None].to(device)
        self.starts = trajectories.decisions.to(device)
        self.first = (trajectories.last + 1 - trajectories.offsets.diff()[trajectories.episode]).to(device)
        self.last = trajectories.last.to(device)
        self.horizon, self.history = horizon, history
        self.legal, self.present = (
            None if mask is None else mask.to(device) for mask in (trajectories.legal, trajectories.present)
        )

    def __len__(self) -> int:
        return len(self.starts)

    def gather(self, index: Tensor) -> WindowBatch:
        """The windows of an index [B]."""
        starts = self.starts[index]
        rows, valid = window_rows(self.first, self.last, starts, self.horizon, self.history)
        masks = (None if mask is None else mask[rows] for mask in (self.legal, self.present))
        return WindowBatch(self.observations[rows], self.actions[rows], valid, self.ranks[starts], *masks)

"""Windows of trajectories with what they return and cost until the end of their episode."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.data import Trajectories, WindowBatch, Windows


@dataclass(frozen=True)
class BudgetBatch:
    """B windows, and what follows from their first step to the end of the episode.

    Attributes:
        window: observations [B, T, A, O] and actions [B, T, A, U].
        returns, costs: [B], discounted sums, averaged over the agents. remaining: [B], share of the episode left.
        ranks: [B], rank in (0, 1] of the return among the data of about the same time and cost.
    """

    window: WindowBatch
    returns: Tensor
    costs: Tensor
    remaining: Tensor
    ranks: Tensor


class BudgetWindows:
    """Every window that starts at a decision, gathered at once.

    Args:
        observations: [S, A, O], normalised, on the device to gather on. length: steps of a whole episode.
        discount, cost_discount: of rewards and of costs.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        observations: Tensor,
        horizon: int,
        length: int,
        discount: float = 1.0,
        cost_discount: float = 1.0,
    ):
        self.windows = Windows(trajectories, observations, horizon)
        device = observations.device
        returns = trajectories.returns_to_go(discount).mean(dim=1)
        costs = trajectories.costs_to_go(cost_discount).mean(dim=1)
        self.returns, self.costs = returns.to(device), costs.to(device)
        self.remaining = (1 - trajectories.time / length).to(observations)
        self.ranks = ranks_at_cost(returns, costs, trajectories.time).to(device)

    def __len__(self) -> int:
        return len(self.windows)

    def gather(self, index: Tensor) -> BudgetBatch:
        """The windows of an index [B]."""
        rows = self.windows.starts[index]
        return BudgetBatch(
            self.windows.gather(index), self.returns[rows], self.costs[rows], self.remaining[rows], self.ranks[rows]
        )


def ranks_at_cost(returns: Tensor, costs: Tensor, time: Tensor, neighbours: int = 64) -> Tensor:
    """Rank in (0, 1] of each row's return to go [S] among those of the same time step and about the same cost to go.

    A rank among all would leave hardly any episode at a low cost and a high rank: what is asked for could not be had.
    Those of about the same cost are a run of `neighbours` in the order of costs.
    """
    # Rows of a time step follow one another, in the order of their costs.
    order = costs.argsort(stable=True)
    order = order[time[order].argsort(stable=True)]
    place = torch.arange(len(order))
    start = torch.searchsorted(time[order], torch.unique(time))
    within = place - start[torch.searchsorted(torch.unique(time), time[order])]
    group = (time[order] * len(order) + within // neighbours).unique(return_inverse=True)[1]
    inner = returns[order].argsort(stable=True)
    inner = inner[group[inner].argsort(stable=True)]
    counts = torch.bincount(group)
    begins = torch.cumsum(counts, 0) - counts
    ranks = torch.empty_like(returns)
    ranks[order[inner]] = ((place - begins[group[inner]] + 1) / counts[group[inner]]).to(returns.dtype)
    return ranks

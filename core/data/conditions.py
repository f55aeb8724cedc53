"""What a planner or policy is conditioned on."""

import torch
from torch import Tensor

from core.data.trajectories import Trajectories


def return_ranks(trajectories: Trajectories, discount: float = 1.0) -> Tensor:
    """Rank in (0, 1] of each return to go [S, A] among all those of the same time step and any agent.

    A raw return to go depends on how much of the episode is left, and its scale on the task (the two published
    sources of MADiff disagree about theirs). Its rank does neither: 1 asks for the best continuation in the data,
    from any moment of an episode, under any rewards. Agents that left are not counted.
    """
    to_go = trajectories.returns_to_go(discount)
    order = torch.argsort(trajectories.time, stable=True)
    ranks = torch.empty_like(to_go)
    for rows in torch.split(order, torch.bincount(trajectories.time).tolist()):
        values = to_go[rows].flatten()
        there = values if trajectories.present is None else values[trajectories.present[rows].flatten()]
        ordered = there.sort().values
        found = torch.searchsorted(ordered, values, right=True) / max(1, len(ordered))
        ranks[rows] = found.reshape(len(rows), -1).to(ranks.dtype)
    return ranks


def drop_conditions(condition: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Replace the condition [B, ...] of a random share of the items by NaN, "no condition"."""
    dropped = torch.rand(len(condition), generator=generator, device=condition.device) < probability
    return condition.masked_fill(dropped.reshape(-1, *[1] * (condition.ndim - 1)), torch.nan)

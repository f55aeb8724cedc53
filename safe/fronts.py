"""Data that cover what episodes return and cost alike: at most so many of any one kind (as DSRL, Liu et al. 2024)."""

import torch
from torch import Tensor

from core.data import Trajectories


def filtered(trajectories: Trajectories, cells: tuple[int, int], most: int) -> Trajectories:
    """The first `most` episodes of each cell of a grid over (cost, return), in their order.

    Args:
        cells: of the grid along each axis, which go from the least to the most that any episode has; both averaged
            over agents.

    Raises:
        ValueError: cells or most below 1.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    return trajectories.subset(torch.nonzero(_places(trajectories, cells) < most)[:, 0])


def even(trajectories: Trajectories, cells: tuple[int, int], episodes: int) -> Trajectories:
    """So many episodes, or all where there are fewer, as evenly over the cells of `filtered` as they come.

    Raises:
        ValueError: cells or episodes below 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    return trajectories.subset(_places(trajectories, cells).argsort(stable=True)[:episodes].sort().values)


def _places(trajectories: Trajectories, cells: tuple[int, int]) -> Tensor:
    """How many episodes of its cell come before each episode [E]."""
    if min(cells) < 1:
        raise ValueError(f"cells must be at least 1 along each axis, got {cells}")
    costs = trajectories.episode_sums(trajectories.costs.double()).mean(dim=1)
    points = torch.stack([costs, trajectories.scores.double()], dim=1)
    shape, low, high = torch.tensor(cells), points.amin(dim=0), points.amax(dim=0)
    column, row = ((points - low) / (high - low).clamp(min=1e-9) * shape).long().minimum(shape - 1).unbind(dim=1)
    cell, order = (column * cells[1] + row).sort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - torch.searchsorted(cell, cell)
    return place

"""How well constraints are kept: by plans as they are returned, and by what was executed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.data.normalisers import Normaliser
from core.data.trajectories import Trajectories
from safe.barriers import Barrier

#: A barrier this far below 0 is rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class ConstraintSummary:
    """Constraints of B plans and of E executed episodes; what was not given is NaN.

    Attributes:
        plan_minimum: the least barrier of all plans, in its own units. plan_violation_rate: share of the plans with one
            below 0, or with numbers that are not finite.
        trap_rate: share of the plans with a gap between consecutive waypoints above a threshold: those that were
            pushed to either side of an obstacle, and cannot be followed.
        distance: from the unconstrained plans, in the plans' units: mean over waypoints and agents.
        executed_minimum, executed_violation_rate: of the episodes.
    """

    plan_minimum: float
    plan_violation_rate: float
    trap_rate: float
    distance: float = math.nan
    executed_minimum: float = math.nan
    executed_violation_rate: float = math.nan


def summarise_constraints(
    barriers: Sequence[Barrier],
    plans: Tensor,
    normaliser: Normaliser | None = None,
    *,
    entries: Sequence[int] = (0, 1),
    gap: float = 0.2,
    unconstrained: Tensor | None = None,
    executed: Trajectories | None = None,
) -> ConstraintSummary:
    """Summarise constraints.

    Args:
        plans: [B, T, A, O], as `core.sample` returned them, in physical units without a normaliser.
        entries: of a position. gap: the longest step between waypoints that counts as none, in the plans' units
            (published 0.20).
        unconstrained: the plans of the same noise without constraints.
        executed: episodes in physical units, whose observations have the barriers' entries at the same places.

    Raises:
        ValueError: no plans, no barriers, or shapes that do not agree.
    """
    if not barriers:
        raise ValueError("constraints need at least one barrier to be summarised")
    if plans.ndim != 4 or not len(plans):
        raise ValueError(f"plans must be [B, T, A, O] with at least one, got {list(plans.shape)}")
    if unconstrained is not None and unconstrained.shape != plans.shape:
        raise ValueError(f"unconstrained plans must be {list(plans.shape)}, got {list(unconstrained.shape)}")
    planned = least_of_plans(barriers, plans, normaliser)
    happened = least_of_episodes(barriers, executed) if executed is not None else None
    return ConstraintSummary(
        plan_minimum=float(planned.min()),
        plan_violation_rate=_violated(planned),
        trap_rate=float((gaps(plans, entries).amax(dim=(1, 2)) > gap).double().mean()),
        distance=math.nan if unconstrained is None else float(_length(plans - unconstrained, entries).mean()),
        executed_minimum=math.nan if happened is None else float(happened.min()),
        executed_violation_rate=math.nan if happened is None else _violated(happened),
    )


def least_of_plans(barriers: Sequence[Barrier], plans: Tensor, normaliser: Normaliser | None = None) -> Tensor:
    """The least of several barriers in each plan [B, T, A, O] -> [B]; NaN where a plan has one."""
    return torch.stack([barrier(plans, normaliser).flatten(1).amin(dim=1) for barrier in barriers]).amin(dim=0)


def least_of_episodes(barriers: Sequence[Barrier], executed: Trajectories) -> Tensor:
    """The least of several barriers in each episode [E]. Rows of all episodes are read as one plan, so that a barrier
    that differs from waypoint to waypoint cannot be."""
    least = torch.full((executed.episodes,), torch.inf, dtype=torch.float64)
    for barrier in barriers:
        values = barrier(executed.observations).flatten(1).amin(dim=1)
        episode = executed.episode[: len(values)]
        if barrier.couples == "steps":  # no step leads from an episode to the next
            values = torch.where(episode == executed.episode[1:], values, torch.inf)
        least = least.scatter_reduce(0, episode, values, "amin")
    return least


def gaps(plans: Tensor, entries: Sequence[int] = (0, 1)) -> Tensor:
    """Distances [B, T - 1, A] between consecutive waypoints of plans [B, T, A, O]."""
    return _length(plans.diff(dim=1), entries)


def _length(moves: Tensor, entries: Sequence[int]) -> Tensor:
    return torch.stack([moves[..., entry] for entry in entries], dim=-1).double().norm(dim=-1)


def _violated(least: Tensor) -> float:
    """Share of numbers that are below 0, or none."""
    return float((~(least >= -ROUNDING)).double().mean())

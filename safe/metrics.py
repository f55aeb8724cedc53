"""What executed costs say about a budget."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CostSummary:
    """Episode costs against a limit.

    Attributes:
        mean, worst: of the episodes' costs. cvar: mean of the worst tenth.
        violation_rate: share of the episodes above the limit.
        normalised: mean cost as a share of the limit; at most 1 is safe (DSRL, Liu et al. 2024; a limit of 0 counts
            as 1 for cost and limit alike).
    """

    mean: float
    worst: float
    cvar: float
    violation_rate: float
    normalised: float


def summarise_costs(costs: Tensor, limit: float, *, tail: float = 0.1) -> CostSummary:
    """Summarise the costs of N episodes [N] against a limit; `tail` is the share that CVaR averages.

    Raises:
        ValueError: no episode, a negative limit, or a tail outside (0, 1].
    """
    if costs.ndim != 1 or not len(costs):
        raise ValueError(f"costs must be one number for each episode, got shape {list(costs.shape)}")
    if limit < 0:
        raise ValueError(f"a cost limit must be at least 0, got {limit}")
    if not 0 < tail <= 1:
        raise ValueError(f"tail is a share in (0, 1], got {tail}")
    values = costs.double()
    count = max(1, round(tail * len(values)))
    epsilon = 1.0 if limit == 0 else 0.0
    return CostSummary(
        mean=float(values.mean()),
        worst=float(values.max()),
        cvar=float(torch.topk(values, count).values.mean()),
        violation_rate=float((values > limit).double().mean()),
        normalised=(float(values.mean()) + epsilon) / (limit + epsilon),
    )

"""What executed costs say about a budget, and scores in DSRL's form (Liu et al. 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Cost limits of DSRL's velocity and navigation tasks; those of its Bullet and MetaDrive tasks are half of them.
LIMITS = (20.0, 40.0, 80.0)


@dataclass(frozen=True)
class CostSummary:
    """Episode costs against a limit.

    Attributes:
        mean, worst: of the episodes' costs. cvar: mean of the worst tenth.
        violation_rate: share of the episodes above the limit.
        normalised: as `normalised_cost`, at most 1 where it is safe.
    """

    mean: float
    worst: float
    cvar: float
    violation_rate: float
    normalised: float


@dataclass(frozen=True)
class NormalisedScore:
    """Return and cost on the scales of a dataset and of cost limits.

    Attributes:
        reward: 0 is the lowest return of an episode of the dataset, 1 the highest. cost: as a share of the limit.
    """

    reward: float
    cost: float

    @property
    def safe(self) -> bool:
        """Whether the mean cost is within the limit."""
        return self.cost <= 1


def summarise_costs(costs: Tensor, limit: float, *, tail: float = 0.1) -> CostSummary:
    """Summarise the costs of N episodes [N] against a limit; `tail` is the share that CVaR averages.

    Raises:
        ValueError: no episode, a negative limit, or a tail outside (0, 1].
    """
    if not 0 < tail <= 1:
        raise ValueError(f"tail is a share in (0, 1], got {tail}")
    values = _episodes("costs", costs)
    return CostSummary(
        normalised=normalised_cost(costs, limit),
        mean=float(values.mean()),
        worst=float(values.max()),
        cvar=float(torch.topk(values, max(1, round(tail * len(values)))).values.mean()),
        violation_rate=float((values > limit).double().mean()),
    )


def normalised_cost(costs: Tensor, limit: float) -> float:
    """(C + e) / (limit + e) of the mean cost C of N episodes [N], where e is 1 for a limit of 0 and else 0.

    Raises:
        ValueError: no episode, or a negative limit.
    """
    if not limit >= 0:
        raise ValueError(f"a cost limit must be at least 0, got {limit}")
    epsilon = 1.0 if limit == 0 else 0.0
    return (float(_episodes("costs", costs).mean()) + epsilon) / (limit + epsilon)


def normalised_reward(returns: Tensor, data: Tensor) -> float:
    """(R - least) / (most - least) of the mean return R of N episodes [N], by the returns of a whole dataset [E].

    Raises:
        ValueError: no episode, or a dataset whose returns are all alike.
    """
    scale = _episodes("the dataset's returns", data)
    least, most = float(scale.min()), float(scale.max())
    if not least < most:
        raise ValueError(f"the dataset's returns must differ to be a scale, and all are {least}")
    return (float(_episodes("returns", returns).mean()) - least) / (most - least)


def normalised_score(returns: Tensor, costs: Tensor, data: Tensor, limits: Sequence[float] = LIMITS) -> NormalisedScore:
    """The means over cost limits of normalised reward and cost, as DSRL's tables have them, of one training.

    They are DSRL's scores only on DSRL's own data and environments: on data collected here, other returns are 0 and 1,
    and the numbers compare methods trained on one dataset, never with published ones.

    Args:
        returns, costs: of N episodes [N], or [L, N] where those of each limit are their own, as for a policy that is
            told the limit.
        data: returns of all episodes of the dataset [E]. limits: L of them.

    Raises:
        ValueError: returns or costs of another shape, no limit or a negative one, or data that are no scale.
    """
    count = len(limits)
    for name, values in (("returns", returns), ("costs", costs)):
        if not count or values.ndim not in (1, 2) or (values.ndim == 2 and len(values) != count):
            raise ValueError(f"{name} must be [N] or [{count}, N], one row for each limit, got {list(values.shape)}")
    rewards = [normalised_reward(one, data) for one in returns.expand(count, -1)]
    shares = [normalised_cost(one, limit) for one, limit in zip(costs.expand(count, -1), limits, strict=True)]
    return NormalisedScore(sum(rewards) / count, sum(shares) / count)


def _episodes(name: str, values: Tensor) -> Tensor:
    """One number for each episode [N], float64."""
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be one number for each episode, got shape {list(values.shape)}")
    return values.double()

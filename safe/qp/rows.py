"""The projection of many points at once: rows of length 1, slack where it is given, a second look at contradictions."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from safe.qp.active_set import Nearest, nearest

#: Largest violation of a feasible answer, as a share of its problem's scale.
FEASIBLE = 1e-10
#: What a unit of slack is worth to rows that contradict each other, in their own lengths.
CONTRADICTORY = 1e-4
#: Shorter rows count as zeros.
SHORTEST = 1e-150


class Solution(NamedTuple):
    """Of P problems; see `safe.qp.Projection`."""

    u: Tensor
    feasible: Tensor
    multipliers: Tensor
    violation: Tensor
    faults: Tensor

    @classmethod
    def unchanged(cls, u_ref: Tensor, missing: Tensor, sane: Tensor) -> Self:
        """All u_ref [P, n] meet their rows [P, m], but for those that are not sane [P]."""
        violation = torch.where(sane, 0.0, torch.inf).to(u_ref.dtype)
        return cls(u_ref.clone(), sane, torch.zeros_like(missing), violation, ~sane)

    def put(self, places: Tensor, part: Self) -> Self:
        """With another solution in some places [Q]."""
        return type(self)(*(old.index_copy(0, places, new) for old, new in zip(self, part, strict=True)))

    def where(self, kept: Tensor, other: Self) -> Self:
        """Itself where `kept` [P], another one elsewhere."""
        return type(self)(*(torch.where(along(kept, old), old, new) for old, new in zip(self, other, strict=True)))


def along(mask: Tensor, like: Tensor) -> Tensor:
    """A mask [P] that broadcasts to [P, ...]."""
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def solved(
    u_ref: Tensor, rows: Tensor, missing: Tensor, weights: Tensor | None, relax: Tensor | None, *, shrink: bool
) -> tuple[Solution, Tensor]:
    """Project P points u_ref [P, n]; also the derivative of u in b [P, m, n].

    Args:
        rows: [P, m, n]. missing: [P, m], b - A u_ref. weights: [P, n]. relax: [P, m].
        shrink: see `nearest`.
    """
    missing = missing.T.contiguous()
    roots = torch.ones_like(u_ref.T.contiguous()) if weights is None else weights.T.contiguous().sqrt()
    slack = torch.zeros_like(missing) if relax is None else relax.T.contiguous()
    units = rows.permute(1, 2, 0).contiguous() / roots
    lengths = (units.square().sum(1) + slack.square()).sqrt()
    zero = lengths < SHORTEST
    lengths = torch.where(zero, 1.0, lengths)
    units = torch.where(zero[:, None], 0.0, units / lengths[:, None])
    slack = torch.where(zero, 0.0, slack / lengths)
    bounds = torch.where(zero, -1.0, missing / lengths)
    scale = (u_ref.T.contiguous() * roots).norm(dim=0)

    move, multipliers, basis, _, unfinished = _reached(units, slack, bounds, scale, relax is not None, shrink)
    outside = bounds - (units * move).sum(1) - slack.square() * multipliers
    allowed = FEASIBLE * (bounds.abs() + scale + move.norm(dim=0) + (slack * multipliers).norm(dim=0))
    meets = (outside <= allowed) & ~(zero & (missing > 0))
    violation = torch.where(zero, missing, outside).amax(dim=0).clamp(min=0)

    u, multipliers = u_ref + (move / roots).T, (multipliers / lengths).T
    sane = ((u.abs().amax(dim=1) + multipliers.amax(dim=1) + lengths.amax(dim=0)) < torch.inf) & ~unfinished
    found = Solution(u, meets.all(dim=0), multipliers, violation, ~sane)
    influence = torch.where(sane, basis / (roots * lengths[:, None]), 0.0).permute(2, 0, 1)
    return found.where(sane, Solution.unchanged(u_ref, multipliers, sane)), influence


def _reached(units: Tensor, slack: Tensor, bounds: Tensor, scale: Tensor, relaxed: bool, shrink: bool) -> Nearest:
    """The nearest points, of contradictory rows the least violating ones."""
    found = (
        _with_slack(units, slack, bounds, scale, shrink) if relaxed else nearest(units, bounds, scale, shrink=shrink)
    )
    if len(units) == 1:
        return found
    slack = torch.where(slack > 0, slack, CONTRADICTORY)
    if not shrink:
        again = _with_slack(units, slack, bounds, scale, shrink)
        return Nearest(*(torch.where(found.stuck, new, old) for old, new in zip(found, again, strict=True)))
    places = found.stuck.nonzero().squeeze(1)
    if not len(places):
        return found
    again = _with_slack(units[..., places], slack[:, places], bounds[:, places], scale[places], shrink)
    return Nearest(*(old.index_copy(-1, places, new) for old, new in zip(found, again, strict=True)))


def _with_slack(units: Tensor, slack: Tensor, bounds: Tensor, scale: Tensor, shrink: bool) -> Nearest:
    """The nearest points when each row has one more variable, of which a unit is worth its `slack` [m, P]."""
    count, size = units.shape[:2]
    diagonal = torch.eye(count, dtype=units.dtype, device=units.device)[..., None] * slack
    wide = torch.cat([units, diagonal], dim=1)
    lengths = wide.square().sum(1).sqrt()
    lengths = torch.where(lengths > 0, lengths, 1.0)
    found = nearest(wide / lengths[:, None], bounds / lengths, scale, shrink=shrink)
    return found._replace(
        move=found.move[:size], multipliers=found.multipliers / lengths, basis=found.basis[:, :size] / lengths[:, None]
    )

"""Batched projections onto polyhedra: min |u - u_ref|^2 s.t. A u >= b."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from safe.qp.rows import Solution, along, solved


@dataclass(frozen=True)
class Projection:
    """The points of a batch of sets nearest to given ones.

    Attributes:
        u: [..., n].
        feasible: [...] bool, whether u meets every row up to rounding (1e-10 of the problem's scale).
        multipliers: [..., m] float64, at least 0, of the rows as given: weights (u - u_ref) = A^T multipliers. A
            relaxed row's slack is `relax` times its multiplier. Where rows contradict each other they are, up to a
            factor, a certificate of it: b . multipliers is positive and A^T multipliers almost 0.
        violation: [...] float64, the furthest that u lies outside a row, as a distance; before rounding to u's dtype.
            It is b at a row of zeros, and infinite at a fault.
        faults: [...] bool, problems that were not solved and whose u_ref is given back: numbers that are not finite, or
            so large that they do not stay so.
    """

    u: Tensor
    feasible: Tensor
    multipliers: Tensor
    violation: Tensor
    faults: Tensor


def project(
    u_ref: Tensor,
    A: Tensor,  # noqa: N803  (the field's name)
    b: Tensor,
    *,
    weights: Tensor | None = None,
    relax: Tensor | float | None = None,
    screen: bool | None = None,
) -> Projection:
    """min sum of weights (u - u_ref)^2 + |r|^2 s.t. A u + relax r >= b, for a batch of small dense problems.

    All is computed in float64. Rows are compared by the distance to them, |a| being taken in the metric of the weights.
    Where they contradict each other, `feasible` is False and u is the least violating point: it minimises
    |u - u_ref|^2 + 10^8 times the sum of squared distances to the violated rows. That is the point nearest to u_ref
    among those of the least sum, but for some 10^-8 of the distances, 10^-5 where rows are nearly parallel. Rows that
    are a combination of others up to an angle of 10^-7 count as one. A row of zeros holds where b <= 0; where b > 0 it
    contradicts itself, and the others are met without it.

    u is differentiable, once, in u_ref, A, b, weights and relax, by the implicit function theorem at the active rows.
    Contradictory rows keep their lengths in it.

    Args:
        u_ref: [..., n]. A: [..., m, n]. b: [..., m]. Their batch dimensions broadcast.
        weights: positive, broadcasts to [..., n]; None for ones.
        relax: what a unit of a row's slack r is worth, "w" of SafeDiffuser's ReS; at least 0, broadcasts to [..., m].
            Rows of 0 are hard; None for all.
        screen: solve only the problems whose u_ref violates a row, with as many turns as each needs. That reads from
            the device, which a CUDA graph cannot record. With False all problems are solved, in a fixed number of
            turns. None screens on a CPU.

    Raises:
        ValueError: shapes that do not agree, a u_ref of integers, or a negative number for `relax`.
    """
    batch = _batch(u_ref, A, b, weights, relax)
    count, size = A.shape[-2:]

    def flat(values: Tensor, *shape: int) -> Tensor:
        return values.double().expand(*batch, *shape).reshape(-1, *shape)

    if not isinstance(relax, Tensor):
        relax = torch.full_like(b, relax, dtype=torch.float64) if relax else None
    u, *facts = _Project.apply(
        flat(u_ref, size),
        flat(A, count, size),
        flat(b, count),
        None if weights is None else flat(weights, size),
        None if relax is None else flat(relax, count),
        u_ref.device.type == "cpu" if screen is None else screen,
    )
    found = Projection(u.to(u_ref.dtype), *facts)
    return Projection(*(value.reshape((*batch, *value.shape[1:])) for value in vars(found).values()))


class _Project(torch.autograd.Function):
    """The solution and, by the implicit function theorem, its derivative.

    At the active rows W (u - u_ref) = A^T mu and A u + relax^2 mu = b. With C the derivative of u in b, a gradient g of
    u is q = C g in b, W p = g - A^T q in u_ref, and mu p^T - q u^T in A.
    """

    @staticmethod
    def forward(
        ctx: Any, u_ref: Tensor, rows: Tensor, b: Tensor, weights: Tensor | None, relax: Tensor | None, screen: bool
    ) -> tuple[Tensor, ...]:
        wanted = any(ctx.needs_input_grad)
        *found, influence = torch.ops.convoy.project(u_ref, rows, b, weights, relax, screen, wanted)
        if wanted:
            ctx.save_for_backward(u_ref, rows, weights, relax, influence, *found)
        ctx.mark_non_differentiable(*found[1:])
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        u_ref, rows, weights, relax, influence, u, _, multipliers, _, faults = ctx.saved_tensors
        # What is not finite in a fault would spoil the gradients of others that share its rows.
        u_ref, rows, u = (torch.where(along(faults, value), 0.0, value) for value in (u_ref, rows, u))
        by_b = (influence * slope[:, None]).sum(-1)
        by_reference = slope - (rows * by_b[..., None]).sum(1)
        p = by_reference if weights is None else by_reference / weights
        wanted = ctx.needs_input_grad
        return (
            by_reference,
            multipliers[..., None] * p[:, None] - by_b[..., None] * u[:, None] if wanted[1] else None,
            by_b,
            p * (u_ref - u) if wanted[3] else None,
            -2 * relax * multipliers * by_b if wanted[4] else None,
            None,
        )


def _batch(u_ref: Tensor, rows: Tensor, b: Tensor, weights: Tensor | None, relax: Tensor | float | None) -> torch.Size:
    """The batch dimensions, all else checked."""
    shapes = f"u_ref {list(u_ref.shape)}, A {list(rows.shape)} and b {list(b.shape)}"
    if not (u_ref.ndim and rows.ndim > 1 and b.ndim) or rows.shape[-2:] != (b.shape[-1], u_ref.shape[-1]):
        raise ValueError(f"a projection needs u_ref [..., n], A [..., m, n] and b [..., m], got {shapes}")
    if not rows.shape[-2] or not rows.shape[-1]:
        raise ValueError(f"a projection needs at least one row and one variable, got {shapes}")
    try:
        batch = torch.broadcast_shapes(u_ref.shape[:-1], rows.shape[:-2], b.shape[:-1])
    except RuntimeError as error:
        raise ValueError(f"the batch dimensions of {shapes} do not broadcast") from error
    if not u_ref.is_floating_point():
        raise ValueError(f"a projection needs a floating u_ref, got {u_ref.dtype}")
    if weights is not None:
        check_broadcast("weights", weights, (*batch, u_ref.shape[-1]))
    if isinstance(relax, Tensor):
        check_broadcast("relax", relax, (*batch, b.shape[-1]))
    elif relax is not None and not relax >= 0:
        raise ValueError(f"relax must be at least 0, got {relax}")
    return batch


def check_broadcast(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise a ValueError where a tensor does not broadcast to a shape."""
    try:
        fits = torch.broadcast_shapes(value.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{name} must broadcast to {list(shape)}, got {list(value.shape)}")


def _projected(
    u_ref: Tensor, rows: Tensor, b: Tensor, weights: Tensor | None, relax: Tensor | None, screen: bool, wanted: bool
) -> tuple[Tensor, ...]:
    """A solution, and the derivative of u in b [P, m, n], [0] where it is not wanted."""
    missing = b - torch.bmm(rows, u_ref[..., None]).squeeze(-1)
    finite = missing.abs().amax(dim=-1) < torch.inf
    violated = finite & ~(missing.amax(dim=-1) <= 0)
    found = Solution.unchanged(u_ref, missing, finite)
    influence = torch.zeros_like(rows) if wanted else rows.new_zeros(0)
    if not screen:
        part, slopes = solved(u_ref, rows, missing, weights, relax, shrink=False)
        found = found.where(~violated, part)
        influence = torch.where(along(violated, rows), slopes, influence) if wanted else influence
    elif len(chosen := violated.nonzero().squeeze(1)):
        metric, slack = (None if one is None else one[chosen] for one in (weights, relax))
        part, slopes = solved(u_ref[chosen], rows[chosen], missing[chosen], metric, slack, shrink=True)
        found = found.put(chosen, part)
        influence = influence.index_copy(0, chosen, slopes) if wanted else influence
    return *found, influence


def _alike(u_ref: Tensor, rows: Tensor, b: Tensor, *options: Any) -> tuple[Tensor, ...]:
    """What `_projected` returns, without its values."""
    flags = u_ref.new_empty(len(u_ref), dtype=torch.bool)
    influence = torch.empty_like(rows) if options[-1] else rows.new_empty(0)
    return torch.empty_like(u_ref), flags, torch.empty_like(b), b.new_empty(len(b)), torch.empty_like(flags), influence


# One operation to whatever records a loop: a compiler would unroll all turns of the solver.
_LIBRARY = torch.library.Library("convoy", "DEF")
_LIBRARY.define(
    "project(Tensor u_ref, Tensor rows, Tensor b, Tensor? weights, Tensor? relax, bool screen, bool wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("project", _projected, "CompositeExplicitAutograd")
_LIBRARY.impl("project", _alike, "Meta")

"""The nearest points of many small polyhedra at once, by a dual active-set method.

Problems lie along the last axis, P of them, so that every operation runs over contiguous memory whatever their size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

#: A row counts as a combination of others when its sine against their span is at most this.
DEPENDENT = 1e-7
#: Slack that is rounding, as a share of a problem's scale.
ROUNDING = 1e-12


class Nearest(NamedTuple):
    """The shortest moves that reach P polyhedra.

    Attributes:
        move: [n, P]. multipliers: [m, P], at least 0: move is the sum of multipliers times rows.
        basis: [m, n, P], the dual basis of the active rows: basis_i . row_j is 1 if i is j, else 0; 0 for other rows.
        stuck: [P], there is no such point. unfinished: [P], the method was stopped.
    """

    move: Tensor
    multipliers: Tensor
    basis: Tensor
    stuck: Tensor
    unfinished: Tensor


class _State(NamedTuple):
    """Where the method stands. The row `entering` [P] lacks `missing` [P] and may be `halfway` [P] in."""

    move: Tensor
    multipliers: Tensor
    basis: Tensor
    active: Tensor
    entering: Tensor
    missing: Tensor
    halfway: Tensor
    stuck: Tensor
    done: Tensor


def nearest(rows: Tensor, bounds: Tensor, scale: Tensor, *, shrink: bool) -> Nearest:
    """min |move|^2 s.t. rows @ move >= bounds, for each of P problems.

    One row has a closed form. More are solved by the dual method of Goldfarb and Idnani (1983), which begins with it:
    the most violated row enters at each turn, and rows whose multipliers would turn negative leave. It needs no
    feasible start, keeps the active rows independent whatever the rows are, cannot cycle, and finds out where there is
    no solution. In place of factorisations it carries the active rows' dual basis, which a turn changes by one outer
    product, so that errors grow with the condition of the rows and not, as with Gram matrices, with its square.

    Args:
        rows: [m, n, P] of length 1; one of zeros needs a negative bound.
        bounds: [m, P]. scale: [P], of the numbers that the bounds were computed from.
        shrink: go on with the unsolved problems alone, which reads their count from the device at each turn. Otherwise
            every problem is given 2 m + 2 turns; of 10^5 random ones of m <= 8 rows none took more than 1.6 m.
    """
    problem, state = (rows, bounds, scale), _begun(rows, bounds)
    if len(rows) > 1:
        state = _search(problem, state) if shrink else _fixed(problem, state)
    return _polished(rows, bounds, state)


def _begun(rows: Tensor, bounds: Tensor) -> _State:
    """The row that lacks most has entered."""
    missing, entering = bounds.max(dim=0)
    active = (torch.arange(len(rows), device=rows.device)[:, None] == entering) & (bounds > 0)
    multipliers = torch.where(active, bounds, 0.0)
    basis = torch.where(active[:, None], rows, 0.0)
    move = (basis * multipliers[:, None]).sum(0)
    never = torch.zeros_like(missing, dtype=torch.bool)
    done = never if len(rows) > 1 else ~never
    return _State(move, multipliers, basis, active, entering, missing, never, never, done)


def _fixed(problem: tuple[Tensor, Tensor, Tensor], state: _State) -> _State:
    """As many turns for every problem, without a look at how they stand."""
    for _ in range(2 * len(problem[0]) + 2):
        state = _advanced(problem[0], _chosen(problem, state))
    return _chosen(problem, state)


def _search(problem: tuple[Tensor, Tensor, Tensor], state: _State) -> _State:
    """As many turns as each problem needs."""
    result = _State(*(part.clone() for part in state))
    places = torch.arange(state.done.shape[-1], device=state.done.device)
    for _ in range(20 + 10 * len(problem[0])):
        state = _chosen(problem, state)
        over, going = state.done.nonzero().squeeze(1), (~state.done).nonzero().squeeze(1)
        if len(over):
            for name in ("basis", "active", "stuck", "done"):
                getattr(result, name)[..., places[over]] = getattr(state, name)[..., over]
            places = places[going]
            state = _State(*(part[..., going] for part in state))
            problem = (problem[0][..., going], problem[1][..., going], problem[2][going])
        if not len(going):
            break
        state = _advanced(problem[0], state)
    return result


def _chosen(problem: tuple[Tensor, Tensor, Tensor], state: _State) -> _State:
    """Which row enters next, the one that is violated most, and which problems are done."""
    rows, bounds, scale = problem
    slack = (rows * state.move).sum(1) - bounds
    allowed = ROUNDING * (scale + state.move.norm(dim=0) + bounds.abs())
    worst, violated = torch.where(state.active, torch.inf, slack + allowed).min(dim=0)
    entering = torch.where(state.halfway, state.entering, violated)
    done = state.stuck | (~state.halfway & (worst >= 0))
    return state._replace(entering=entering, missing=-_pick(slack, entering).clamp(max=0), done=done)


def _advanced(rows: Tensor, state: _State) -> _State:
    """One turn: the entering row comes to hold, or the row that blocks its way leaves."""
    move, multipliers, basis, active, entering, missing, _, stuck, done = state
    order = torch.arange(len(rows), device=rows.device)[:, None]
    enters = order == entering

    # What of the entering row lies outside the span of the active ones; projected twice, since once is not enough
    # where they are nearly dependent.
    outside = _pick(rows, entering)
    shares = (basis * outside).sum(1)
    outside = outside - (rows * shares[:, None]).sum(0)
    again = (basis * outside).sum(1)
    outside, shares = outside - (rows * again[:, None]).sum(0), shares + again
    square = outside.square().sum(0)

    # Its multiplier grows until the row holds, or until that of an active row is 0.
    whole = torch.where(square > DEPENDENT**2, missing / square, torch.inf)
    part, blocking = torch.where(active & (shares > ROUNDING), multipliers / shares, torch.inf).min(dim=0)
    leaves = ~done & (part < whole)
    arrives = ~done & (whole <= part) & (whole < torch.inf)
    changes = leaves | arrives
    growth = torch.where(changes, torch.minimum(whole, part), 0.0)
    multipliers = torch.where(enters, multipliers + growth, multipliers - growth * shares)
    move = move + torch.where(whole < torch.inf, growth * outside, 0.0)

    left = _pick(basis, blocking)
    direction = torch.where(arrives, outside / square, torch.where(leaves, left, 0.0))
    amounts = torch.where(leaves, (basis * left).sum(1) / left.square().sum(0), shares)
    comes, goes = enters & arrives, (order == blocking) & leaves
    active = (active | comes) & ~goes
    basis = torch.where(comes[:, None], direction, basis - amounts[:, None] * direction)
    basis = torch.where(active[:, None], basis, 0.0)
    multipliers = torch.where(goes, 0.0, multipliers)
    return _State(move, multipliers, basis, active, entering, missing, leaves, stuck | ~(done | changes), done)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """values [m, ..., P] at index [P] -> [..., P]."""
    return values.gather(0, index.expand(1, *values.shape[1:])).squeeze(0)


def _polished(rows: Tensor, bounds: Tensor, state: _State) -> Nearest:
    """The solution of the active rows as equalities, refined once."""
    basis, active = state.basis, state.active
    move = (basis * torch.where(active, bounds, 0.0)[:, None]).sum(0)
    move = move + (basis * torch.where(active, bounds - (rows * move).sum(1), 0.0)[:, None]).sum(0)
    multipliers = (basis * move).sum(1)
    multipliers = multipliers + (basis * (move - (rows * multipliers[:, None]).sum(0))).sum(1)
    return Nearest(move, multipliers.clamp(min=0), basis, state.stuck, ~state.done)

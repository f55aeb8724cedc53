"""Projections onto any convex set, one at a time by cvxpy: for a user's own constraints, never for a hot loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safe.qp.projection import Projection, check_broadcast

if TYPE_CHECKING:
    import cvxpy

#: (u, *parameters) -> the constraints on a cvxpy.Variable [n], given cvxpy.Parameters.
Constraints = Callable[..., "list[cvxpy.Constraint]"]


def project_convex(
    u_ref: Tensor,
    constraints: Constraints,
    *parameters: Tensor,
    weights: Tensor | None = None,
    tolerance: float = 1e-9,
) -> Projection:
    """min sum of weights (u - u_ref)^2 over any convex set, by Clarabel (an interior-point method).

        def near(u, centre):
            return [cvxpy.norm(u - centre) <= 1.0]

        safe.project_convex(u_ref, near, centre).u

    The problem is built once for a function and the shapes of what it is given. There is no gradient and there are no
    multipliers ([..., 0]). `violation` is in the constraints' own units. Where the set is empty, as where the solver
    gives up (a fault), u is u_ref.

    Args:
        u_ref: [..., n]. parameters: [..., *shape], with the same batch dimensions; the function is given one
            cvxpy.Parameter of each shape.
        constraints: see above; it must be cvxpy's "DPP": convex, and linear in each parameter.
        weights: positive, broadcasts to [..., n].
        tolerance: of the solver, absolute and relative.

    Raises:
        ValueError: shapes that do not agree, or constraints that are no parametrised convex program.
    """
    batch, size = u_ref.shape[:-1], u_ref.shape[-1]
    for place, value in enumerate(parameters):
        if value.shape[: len(batch)] != batch:
            raise ValueError(f"parameter {place} must be [{list(batch)}, ...], as u_ref is, got {list(value.shape)}")
    if weights is not None:
        check_broadcast("weights", weights, tuple(u_ref.shape))
    program = _program(constraints, size, tuple(tuple(value.shape[len(batch) :]) for value in parameters))
    reference = u_ref.detach().double().cpu()
    roots = torch.ones(()) if weights is None else weights.detach().double().cpu().sqrt()
    rows = [value.detach().double().cpu().reshape(-1, *value.shape[len(batch) :]) for value in parameters]
    columns = zip(reference.reshape(-1, size), roots.expand_as(reference).reshape(-1, size), *rows, strict=True)
    solved = [program.solve(tolerance, *values) for values in columns]
    u = torch.stack([one[0] for one in solved]) if solved else reference.reshape(-1, size)
    feasible, violation, faults = (torch.tensor([one[k] for one in solved]) for k in (1, 2, 3))
    return Projection(
        u.reshape(u_ref.shape).to(u_ref),
        feasible.bool().reshape(batch).to(u_ref.device),
        u_ref.new_zeros((*batch, 0), dtype=torch.float64),
        violation.double().reshape(batch).to(u_ref.device),
        faults.bool().reshape(batch).to(u_ref.device),
    )


class _Program:
    """A projection with parameters, compiled by cvxpy when it is first solved."""

    def __init__(self, constraints: Constraints, size: int, shapes: tuple[tuple[int, ...], ...]):
        import cvxpy

        self.u = cvxpy.Variable(size)
        self.roots, self.goal = cvxpy.Parameter(size, nonneg=True), cvxpy.Parameter(size)
        self.parameters = [cvxpy.Parameter(shape) for shape in shapes]
        self.constraints = list(constraints(self.u, *self.parameters))
        distance = cvxpy.sum_squares(cvxpy.multiply(self.roots, self.u) - self.goal)  # type: ignore[attr-defined]
        self.problem = cvxpy.Problem(cvxpy.Minimize(distance), self.constraints)
        if not self.problem.is_dpp():
            raise ValueError(
                f"the constraints of {constraints!r} are no parametrised convex program: each must be convex, and "
                "linear in every parameter (https://www.cvxpy.org/tutorial/dpp)"
            )

    def solve(
        self, tolerance: float, u_ref: Tensor, roots: Tensor, *values: Tensor
    ) -> tuple[Tensor, bool, float, bool]:
        """u, whether it is feasible, its violation, and whether the solver gave up."""
        import cvxpy

        if not all(bool(torch.isfinite(value).all()) for value in (u_ref, roots, *values)):
            return u_ref, False, torch.inf, True
        self.roots.value, self.goal.value = roots.numpy(), (roots * u_ref).numpy()
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.value = value.numpy()
        accuracy = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas", "tol_ktratio"), tolerance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an inaccurate solution is a fault, said below
            try:
                self.problem.solve(solver=cvxpy.CLARABEL, **accuracy)
                status = self.problem.status
            except cvxpy.SolverError:
                status = "failed"
        found = status == cvxpy.OPTIMAL
        if not found:
            self.u.value = u_ref.numpy()
        violation = max((float(one.violation().max()) for one in self.constraints), default=0.0)
        fault = not found and status not in (cvxpy.INFEASIBLE, cvxpy.INFEASIBLE_INACCURATE)
        return torch.as_tensor(self.u.value), found, torch.inf if fault else violation, fault


@lru_cache(maxsize=32)
def _program(constraints: Constraints, size: int, shapes: tuple[tuple[int, ...], ...]) -> _Program:
    return _Program(constraints, size, shapes)

"""Small quadratic programs, many at once: projections onto polyhedra, and onto any convex set by cvxpy."""

from safe.qp.convex import project_convex
from safe.qp.projection import Projection, project

__all__ = ["Projection", "project", "project_convex"]

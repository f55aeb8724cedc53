"""Barriers: functions of a plan that are at least 0 where it is safe, in physical units."""

from safe.barriers.base import Barrier, Linearised, joined
from safe.barriers.coupled import FunctionBarrier, Separation, SpeedLimit
from safe.barriers.sets import Ellipse, HalfSpaces, within

__all__ = [
    "Barrier",
    "Ellipse",
    "FunctionBarrier",
    "HalfSpaces",
    "Linearised",
    "Separation",
    "SpeedLimit",
    "joined",
    "within",
]

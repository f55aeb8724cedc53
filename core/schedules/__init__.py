"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps for t in [0, 1].

Everything is computed in float64. The half log signal-to-noise ratio lambda = log(alpha / sigma) orders the levels
from noise (t = 1) to data (t = 0, lambda = inf, except for `VE`, which ends at its least noise).
"""

from core.schedules.base import CLEAN, Level, Schedule, per_sample
from core.schedules.continuous import MIN_ALPHA, VE, Flow, VPCosine, VPLinear, VPSigmoid
from core.schedules.table import VPTable

__all__ = [
    "CLEAN",
    "MIN_ALPHA",
    "SCHEDULES",
    "TABLES",
    "VE",
    "Flow",
    "Level",
    "Schedule",
    "VPCosine",
    "VPLinear",
    "VPSigmoid",
    "VPTable",
    "per_sample",
    "schedule_of",
]

#: Continuous schedules by their names in configurations, and the tables of T steps as "name/T".
SCHEDULES = {"linear": VPLinear, "cosine": VPCosine, "sigmoid": VPSigmoid, "ve": VE, "flow": Flow}
TABLES = {"linear": VPTable.linear, "cosine": VPTable.cosine, "sigmoid": VPTable.sigmoid, "vp": VPTable.vp}


def schedule_of(name: str) -> Schedule:
    """The schedule of a configuration: "linear", "cosine", ... or a table of T steps, such as "cosine/200".

    Raises:
        ValueError: there is none of that name.
    """
    kind, slash, steps = name.partition("/")
    if not slash and kind in SCHEDULES:
        return SCHEDULES[kind]()
    if slash and kind in TABLES and steps.isdecimal() and int(steps) > 0:
        return TABLES[kind](int(steps))
    raise ValueError(
        f"unknown schedule {name!r}: choose one of {', '.join(SCHEDULES)}, "
        f"or a table of T steps, {'/T, '.join(TABLES)}/T"
    )

"""Safety: tasks with a cost, and how executed costs compare with a budget."""

from core.algorithm import Algorithm
from safe.barriers import (
    Barrier,
    Ellipse,
    FunctionBarrier,
    HalfSpaces,
    Linearised,
    Separation,
    SpeedLimit,
    joined,
    within,
)
from safe.bcq_lagrangian import BCQLagrangian, BCQLagrangianConfig
from safe.constraint_metrics import ConstraintSummary, gaps, least_of_episodes, least_of_plans, summarise_constraints
from safe.controllers import Controller, Detour, GoToGoal, Swing, SwingUp
from safe.decision_transformer import CDT
from safe.decision_transformer_config import CDTConfig
from safe.disk_controllers import Passing, PassRight
from safe.disks import Disks, DisksParallelEnv, recomputed
from safe.fronts import even, filtered
from safe.metrics import CostSummary, NormalisedScore, normalised_score, summarise_costs
from safe.pendulum import SafePendulum, SafePendulumEnv, pendulum_cost
from safe.point_robot import PointRobot, PointRobotEnv
from safe.qp import Projection, project, project_convex
from safe.safety_filter import SafetyFilter, SafetyReport
from safe.safety_rules import FiniteTime, Relaxed, Robust, Rule, TimeVarying
from safe.tasks import TASKS, Quality, SafeTask, SafeTaskConfig
from safe.trebi import BudgetedPlan, Trebi
from safe.trebi_config import TrebiConfig
from safe.two_phase import TwoPhase, two_phase

#: Algorithms by the `name` of their configuration.
ALGORITHMS: dict[str, type[Algorithm]] = {
    "trebi": Trebi,
    "cdt": CDT,
    "bcq_lagrangian": BCQLagrangian,
}

__all__ = [
    "ALGORITHMS",
    "CDT",
    "BCQLagrangian",
    "BCQLagrangianConfig",
    "CDTConfig",
    "BudgetedPlan",
    "Trebi",
    "TrebiConfig",
    # tasks
    "TASKS",
    "Disks",
    "DisksParallelEnv",
    "PointRobot",
    "PointRobotEnv",
    "recomputed",
    "Quality",
    "SafePendulum",
    "SafePendulumEnv",
    "SafeTask",
    "SafeTaskConfig",
    "pendulum_cost",
    # data
    "Controller",
    "Detour",
    "GoToGoal",
    "PassRight",
    "Passing",
    "Swing",
    "SwingUp",
    "even",
    "filtered",
    # constraints
    "ConstraintSummary",
    "FiniteTime",
    "Relaxed",
    "Robust",
    "Rule",
    "SafetyFilter",
    "SafetyReport",
    "TimeVarying",
    "TwoPhase",
    "gaps",
    "least_of_episodes",
    "least_of_plans",
    "summarise_constraints",
    "two_phase",
    "Barrier",
    "Ellipse",
    "FunctionBarrier",
    "HalfSpaces",
    "Linearised",
    "Separation",
    "SpeedLimit",
    "joined",
    "within",
    "Projection",
    "project",
    "project_convex",
    # costs
    "CostSummary",
    "NormalisedScore",
    "normalised_score",
    "summarise_costs",
]

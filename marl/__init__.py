"""Teams: environments, behaviours, and diffusion planners and policies for several agents."""

from core.algorithm import Algorithm
from marl.attention import AgentAttention
from marl.behaviours import QUALITIES, Steering, scripted_team
from marl.cloning import Cloning, CloningConfig
from marl.distilled import Distilled, DistilledConfig
from marl.environments import TASKS, References, TaskConfig, parallel_env
from marl.inverse_dynamics import InverseConfig, InverseDynamics
from marl.madiff import MADiff, Plan
from marl.madiff_config import MADiffConfig

#: Algorithms by the `name` of their configuration.
ALGORITHMS: dict[str, type[Algorithm]] = {"madiff": MADiff, "distilled": Distilled, "cloning": Cloning}

__all__ = [
    "ALGORITHMS",
    "QUALITIES",
    "TASKS",
    "AgentAttention",
    "Cloning",
    "CloningConfig",
    "Distilled",
    "DistilledConfig",
    "InverseConfig",
    "InverseDynamics",
    "MADiff",
    "MADiffConfig",
    "Plan",
    "References",
    "Steering",
    "TaskConfig",
    "parallel_env",
    "scripted_team",
]

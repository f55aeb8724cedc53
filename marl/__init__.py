"""Teams: environments, behaviours, and diffusion planners and policies for several agents."""

from core.algorithm import Algorithm
from marl.attention import AgentAttention
from marl.behaviours import QUALITIES, Steering, scripted_team
from marl.cloning import Cloning, CloningConfig
from marl.collecting import REPLAY, collect_episodes
from marl.diffusion_policy import DiffusionPolicy
from marl.diffusion_policy_config import DiffusionPolicyConfig
from marl.distilled import Distilled, DistilledConfig
from marl.environments import TASKS, References, TaskConfig, parallel_env
from marl.inverse_dynamics import InverseConfig, InverseDynamics
from marl.madiff import MADiff
from marl.madiff_config import MADiffConfig
from marl.planning import MADiffPolicy, Plan

#: Algorithms by the `name` of their configuration.
ALGORITHMS: dict[str, type[Algorithm]] = {
    "madiff": MADiff,
    "distilled": Distilled,
    "cloning": Cloning,
    "diffusion_policy": DiffusionPolicy,
}

__all__ = [
    "ALGORITHMS",
    "QUALITIES",
    "REPLAY",
    "TASKS",
    "AgentAttention",
    "Cloning",
    "CloningConfig",
    "DiffusionPolicy",
    "DiffusionPolicyConfig",
    "Distilled",
    "DistilledConfig",
    "InverseConfig",
    "InverseDynamics",
    "MADiff",
    "MADiffConfig",
    "MADiffPolicy",
    "Plan",
    "References",
    "Steering",
    "TaskConfig",
    "collect_episodes",
    "parallel_env",
    "scripted_team",
]

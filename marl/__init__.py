"""Teams: environments, behaviours, and diffusion planners and policies for several agents."""

from core.algorithm import Algorithm
from marl.attention import AgentAttention
from marl.behaviours import QUALITIES, Steering, scripted_team
from marl.collecting import REPLAY
from marl.cql import CQL, CQLConfig
from marl.diffusion_policy import DiffusionPolicy
from marl.diffusion_policy_config import DiffusionPolicyConfig
from marl.distilled import Distilled, DistilledConfig
from marl.environments import TASKS, TaskConfig, parallel_env
from marl.icq import ICQ, ICQConfig
from marl.inverse_dynamics import InverseConfig, InverseDynamics
from marl.madiff import MADiff
from marl.madiff_config import MADiffConfig
from marl.omar import OMAR, OMARConfig
from marl.planning import MADiffPolicy, Plan
from marl.srpo import SRPO, SRPOConfig
from marl.td3_bc import TD3BC, TD3BCConfig

#: Algorithms by the `name` of their configuration.
ALGORITHMS: dict[str, type[Algorithm]] = {
    "madiff": MADiff,
    "distilled": Distilled,
    "diffusion_policy": DiffusionPolicy,
    "srpo": SRPO,
    "td3_bc": TD3BC,
    "cql": CQL,
    "icq": ICQ,
    "omar": OMAR,
}

__all__ = [
    "ALGORITHMS",
    "CQL",
    "ICQ",
    "OMAR",
    "QUALITIES",
    "REPLAY",
    "SRPO",
    "SRPOConfig",
    "TASKS",
    "TD3BC",
    "AgentAttention",
    "CQLConfig",
    "DiffusionPolicy",
    "DiffusionPolicyConfig",
    "Distilled",
    "DistilledConfig",
    "ICQConfig",
    "InverseConfig",
    "InverseDynamics",
    "MADiff",
    "MADiffConfig",
    "MADiffPolicy",
    "OMARConfig",
    "Plan",
    "Steering",
    "TD3BCConfig",
    "TaskConfig",
    "parallel_env",
    "scripted_team",
]

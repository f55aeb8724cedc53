"""Networks and their parts."""

from core.networks.embeddings import ConditionEmbedding, TimeEmbedding
from core.networks.grouped import GroupedLinear, LinearFactory, linear_of
from core.networks.mixing import MixerFactory
from core.networks.mlp import mlp
from core.networks.plan_values import PlanValues
from core.networks.policy_mlp import ConcatMLP, LinearUNet
from core.networks.residual_mlp import ResidualMLP
from core.networks.temporal_transformer import TemporalTransformer
from core.networks.temporal_unet import TemporalUNet

__all__ = [
    "ConcatMLP",
    "ConditionEmbedding",
    "GroupedLinear",
    "LinearFactory",
    "LinearUNet",
    "MixerFactory",
    "PlanValues",
    "ResidualMLP",
    "TemporalTransformer",
    "TemporalUNet",
    "TimeEmbedding",
    "linear_of",
    "mlp",
]

"""Networks and their parts."""

from core.networks.embeddings import ConditionEmbedding, TimeEmbedding
from core.networks.mixing import MixerFactory
from core.networks.mlp import mlp
from core.networks.residual_mlp import ResidualMLP
from core.networks.temporal_transformer import TemporalTransformer
from core.networks.temporal_unet import TemporalUNet

__all__ = [
    "ConditionEmbedding",
    "MixerFactory",
    "ResidualMLP",
    "TemporalTransformer",
    "TemporalUNet",
    "TimeEmbedding",
    "mlp",
]

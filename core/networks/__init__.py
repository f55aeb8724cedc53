"""Networks and their parts."""

from core.networks.embeddings import ConditionEmbedding, TimeEmbedding
from core.networks.mlp import mlp
from core.networks.temporal_unet import TemporalUNet

__all__ = ["ConditionEmbedding", "TemporalUNet", "TimeEmbedding", "mlp"]

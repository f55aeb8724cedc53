"""Trajectories from Minari to tensors."""

from core.data.conditions import drop_conditions, return_ranks
from core.data.curation import CurationConfig
from core.data.normalisers import Affine
from core.data.storage import Dataset, Provenance, list_datasets, read_dataset, read_provenance, write_dataset
from core.data.trajectories import Trajectories
from core.data.transitions import Transitions
from core.data.windows import WindowBatch, Windows, window_rows

__all__ = [
    "Affine",
    "CurationConfig",
    "Dataset",
    "Provenance",
    "Trajectories",
    "Transitions",
    "WindowBatch",
    "Windows",
    "drop_conditions",
    "list_datasets",
    "read_dataset",
    "read_provenance",
    "return_ranks",
    "window_rows",
    "write_dataset",
]

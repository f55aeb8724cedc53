"""What users give is checked here, once; inside, arrays are finite float64 [S, M]."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def as_scores(values: ArrayLike, name: str = "scores") -> Array:
    """Scores [S] or [S, M] as float64 [S, M].

    Raises:
        ValueError: no values, another number of dimensions, or a value that is not finite.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.ndim not in (1, 2) or given.size == 0:
        raise ValueError(f"{name} has shape {given.shape}: give an array [seeds] or [seeds, tasks] that is not empty")
    if not np.isfinite(given).all():
        place = np.argwhere(~np.isfinite(given))[0]
        where = ", ".join(f"{axis} {index}" for axis, index in zip(("seed", "task"), place))
        raise ValueError(f"{name} has the value {given[tuple(place)]} at {where}: remove that seed, or mend its run")
    return given if given.ndim == 2 else given[:, None]


def check_confidence(confidence: float) -> None:
    """Raise a ValueError for a confidence outside (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: give a share inside (0, 1), such as 0.95")

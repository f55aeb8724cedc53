"""Statistics of episode scores."""

import math

from scipy import stats
from torch import Tensor


def mean_interval(values: Tensor, confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Mean of independent values [N] and Student's t confidence interval of it; infinite for a single value."""
    count = len(values)
    mean = float(values.double().mean())
    if count < 2:
        return mean, (-math.inf, math.inf)
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * float(values.double().std()) / math.sqrt(count)
    return mean, (mean - half, mean + half)

import math

import pytest
import torch
from scipy import stats

from core.statistics import mean_interval


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("count", [2, 5, 300])
def test_mean_interval_is_scipys(count, confidence):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)) * 3 - 20
    mean, interval = mean_interval(values, confidence)
    sample = values.double().numpy()
    low, high = stats.ttest_1samp(sample, 0).confidence_interval(confidence)
    assert mean == pytest.approx(sample.mean())
    assert interval == pytest.approx((low, high))


def test_worked_example():
    # Standard deviation 1, two degrees of freedom: the t quantile is 4.302653.
    mean, (low, high) = mean_interval(torch.tensor([1.0, 2.0, 3.0]))
    assert mean == 2
    assert high - mean == mean - low == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)


def test_one_value_says_nothing_of_the_spread():
    assert mean_interval(torch.tensor([4.0])) == (4.0, (-math.inf, math.inf))


def test_equal_values_and_large_offsets():
    assert mean_interval(torch.full((4,), 2.5)) == (2.5, (2.5, 2.5))
    values = torch.tensor([1e8, 1e8 + 8, 1e8 + 16])  # exact in float32, but not their sum
    mean, (low, high) = mean_interval(values)
    assert mean == 1e8 + 8
    assert high - mean == pytest.approx(4.302653 * 8 / math.sqrt(3), rel=1e-5)
    assert low < mean


@pytest.mark.parametrize("count", [3, 20])
def test_coverage(count):
    """Of 2000 intervals, 95% hold the true mean, within four standard errors."""
    values = torch.randn(2000, count, generator=torch.Generator().manual_seed(0)) + 7
    hits = sum(low <= 7 <= high for _, (low, high) in map(mean_interval, values))
    assert abs(hits / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)

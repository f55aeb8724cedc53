"""The mean and the interquartile mean over seeds and tasks, with intervals for few seeds."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor

from core.errors import nearest
from core.statistics.inputs import Array, as_scores, check_confidence
from core.statistics.intervals import Bounds, Statistic, bootstrap_t, interquartile_mean_of, mean_of, student_t

#: How the interval of a mean is made.
METHODS = ("bootstrap-t", "t")

#: Resamples of a bootstrap; (resamples + 1) times the usual tails is whole.
RESAMPLES = 9999


@dataclass(frozen=True)
class Estimate:
    """A statistic with its confidence interval.

    Attributes:
        value, low, high: in the scores' units; the interval is infinite for a single seed.
        seeds, tasks: how many it is made from. method: of the interval. confidence: that it holds the true value.
    """

    value: float
    low: float
    high: float
    seeds: int
    tasks: int
    method: str
    confidence: float = 0.95


def mean(
    scores: ArrayLike,
    *,
    method: str = "bootstrap-t",
    joint: bool = False,
    confidence: float = 0.95,
    rng: np.random.Generator | int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean over tasks of the means over seeds.

    Args:
        scores: [S] or [S, M]. joint: a seed is the same in all tasks, so their scores may be dependent.
        method: "bootstrap-t", or "t", which is exact for normal scores and narrower, but too short for skewed ones.
        rng: a generator or its seed, of the resamples.

    Raises:
        ValueError: scores that are empty or not finite, or another setting that has no meaning.
    """
    table = as_scores(scores)
    if method not in METHODS:
        raise ValueError(f"method is {method!r}: {nearest(method, METHODS)}")
    if method == "bootstrap-t":
        return _bootstrapped(mean_of, table, joint, confidence, rng, resamples)
    check_confidence(confidence)
    if len(table) < 2:
        return _single(mean_of, table, method, confidence)
    return _estimate(student_t(table, confidence, joint), table, method, confidence)


def interquartile_mean(
    scores: ArrayLike,
    *,
    joint: bool = False,
    confidence: float = 0.95,
    rng: np.random.Generator | int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean of the middle half of all S M scores (IQM, Agarwal et al. 2021), with a bootstrap-t interval.

    The trimming is exact: a quarter of the scores' total weight at each end, of single scores in part. Where S M is a
    multiple of 4 this is `scipy.stats.trim_mean(scores, 0.25)`, which else trims fewer. Arguments as of `mean`.
    """
    return _bootstrapped(interquartile_mean_of, as_scores(scores), joint, confidence, rng, resamples)


def _bootstrapped(
    statistic: Statistic,
    table: Array,
    joint: bool,
    confidence: float,
    rng: np.random.Generator | int,
    resamples: int,
) -> Estimate:
    check_confidence(confidence)
    if resamples < 2 / (1 - confidence):
        raise ValueError(f"resamples is {resamples}: give {math.ceil(2 / (1 - confidence))} or more")
    if len(table) < 2:
        return _single(statistic, table, "bootstrap-t", confidence)
    generator = np.random.default_rng(rng)
    bounds = bootstrap_t(statistic, _in_order(table, joint), confidence, generator, resamples, joint)
    return _estimate(bounds, table, "bootstrap-t", confidence)


def _estimate(bounds: Bounds, table: Array, method: str, confidence: float) -> Estimate:
    value, low, high = (float(bound) for bound in bounds)
    seeds, tasks = table.shape
    return Estimate(value, low, high, seeds, tasks, method, confidence)


def _single(statistic: Statistic, table: Array, method: str, confidence: float) -> Estimate:
    """One seed says nothing of the spread between seeds."""
    value = statistic(table)[0]
    return _estimate((value, np.array(-np.inf), np.array(np.inf)), table, method, confidence)


def _in_order(table: Array, joint: bool) -> Array:
    """The same scores in an order of their own, so that how seeds and tasks are listed does not meet other draws."""
    by_task = table[:, np.argsort(table.mean(axis=0), kind="stable")]
    return by_task[np.argsort(by_task.mean(axis=1), kind="stable")] if joint else np.sort(by_task, axis=0)


def mean_interval(values: Tensor, confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Mean of independent values [N] and Student's t confidence interval of it; infinite for a single value."""
    count = len(values)
    mean = float(values.double().mean())
    if count < 2:
        return mean, (-math.inf, math.inf)
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1)) * float(values.double().std()) / math.sqrt(count)
    return mean, (mean - half, mean + half)

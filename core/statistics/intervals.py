"""Intervals of many samples at once: arrays are [..., S, M], and results [...].

A statistic is a function of an array [..., S, M]. It returns its value [...] and the sensitivities [..., S, M]: what
the value moves by, up to a constant and the sign, when that one score is left out. They give the jackknife's standard
error, which the bootstrap-t studentises by.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from core.statistics.inputs import Array

Statistic = Callable[[Array], tuple[Array, Array]]
Bounds = tuple[Array, Array, Array]

#: Standard deviation of the noise that smooths resamples, in standard errors of a task's mean. Chosen by simulation.
SMOOTHING = 0.7


def mean_of(scores: Array) -> tuple[Array, Array]:
    """The mean over seeds and tasks, and its sensitivities."""
    seeds, tasks = scores.shape[-2:]
    return scores.mean(axis=(-2, -1)), scores / (tasks * max(seeds - 1, 1))


def interquartile_mean_of(scores: Array) -> tuple[Array, Array]:
    """The mean of the middle half of all scores, trimmed exactly, and its sensitivities.

    Each of the N = S M sorted scores fills 1 / N of [0, 1] and counts by how much of that lies in [1/4, 3/4]. Leaving
    one out shifts the others by a place, so that the value moves by a winsorised copy of the score left out.
    """
    count = scores.shape[-2] * scores.shape[-1]
    ordered = np.sort(scores.reshape(*scores.shape[:-2], count), axis=-1)
    value = ordered @ _middle_half(count)
    if count <= 2:
        return value, scores
    weights = _middle_half(count - 1)
    first = (count - 1) // 4  # the outermost scores that count, in part, once one is left out

    def winsorised(lowest: int) -> Array:
        low, high = ordered[..., lowest, None, None], ordered[..., count - 1 - lowest, None, None]
        return np.clip(scores, low, high)

    part, whole = weights[first], 2 / (count - 1)
    return value, part * winsorised(first) + (whole - part) * winsorised(first + 1)


def _middle_half(count: int) -> Array:
    """Weights [count] of sorted scores in their interquartile mean; they sum to 1."""
    return 2 * np.diff(np.clip(np.arange(count + 1) / count, 0.25, 0.75))


def _standard_error(scores: Array, sensitivities: Array, joint: bool) -> Array:
    """The jackknife's [...], seeds within tasks left out one by one, or a seed of all tasks at once.

    A part 1 / (4 M) of the mean's variance is added: with few or tied scores, the middle half alone may not vary at
    all. Any scale will do for a bootstrap-t, as long as samples and resamples are measured by the same.
    """
    seeds, tasks = scores.shape[-2:]
    left_out = (seeds - 1) ** 2 / seeds * _variance_of_sum(sensitivities, joint)
    of_mean = _variance_of_sum(scores, joint) / (seeds * tasks**2)
    return np.sqrt(left_out + of_mean / (4 * tasks))


def _variance_of_sum(values: Array, joint: bool) -> Array:
    """Variance [...] over seeds of the sum over tasks; tasks are independent unless their seeds are joint."""
    if joint:
        return values.sum(axis=-1).var(axis=-1, ddof=1)
    deviations = values - values.mean(axis=-2, keepdims=True)
    return np.einsum("...sm,...sm->...", deviations, deviations) / (values.shape[-2] - 1)


def _constant(scores: Array) -> NDArray[np.bool_]:
    """Tasks [..., M] whose seeds all have one value; their variance is zero, not a rounding error."""
    return (scores == scores[..., :1, :]).all(axis=-2)


def student_t(scores: Array, confidence: float, joint: bool = False) -> Bounds:
    """The mean [...] with Student's t interval.

    With one task or joint seeds, of the S seed means, with S - 1 degrees of freedom. With independent seeds, of the
    stratified mean, with Welch and Satterthwaite's degrees of freedom (1946).
    """
    seeds = scores.shape[-2]
    value = scores.mean(axis=(-2, -1))
    groups = scores.mean(axis=-1, keepdims=True) if joint else scores
    variances = np.where(_constant(groups), 0.0, groups.var(axis=-2, ddof=1) / seeds)
    total = variances.sum(axis=-1)
    squares = (variances**2).sum(axis=-1) / (seeds - 1)
    freedom = np.divide(total**2, squares, out=np.full_like(total, seeds - 1.0), where=squares > 0)
    half = stats.t.ppf(0.5 + confidence / 2, freedom) * np.sqrt(total) / groups.shape[-1]
    return value, value - half, value + half


def bootstrap_t(
    statistic: Statistic,
    scores: Array,
    confidence: float,
    generator: np.random.Generator,
    resamples: int,
    joint: bool = False,
) -> Bounds:
    """A statistic [...] with its smoothed bootstrap-t interval (Efron 1981; Polansky & Schucany 1997), S >= 2.

    The root (value of a resample - value) / standard error of the resample has quantiles that differ below and above,
    so the interval follows skewed scores. All samples share one set of draws.
    """
    value, sensitivities = statistic(scores)
    scale = np.where(_constant(scores).all(axis=-1), 0.0, _standard_error(scores, sensitivities, joint))
    drawn = _resample(scores, generator, resamples, joint)
    values, sensitivities = statistic(drawn)
    scales = _standard_error(drawn, sensitivities, joint)
    roots = np.divide(values - value[..., None], scales, out=np.zeros_like(values), where=scales > 0)
    tail = (1 - confidence) / 2
    below, above = np.quantile(roots, [tail, 1 - tail], axis=-1, method="weibull")
    return value, value - above * scale, value - below * scale


def _resample(scores: Array, generator: np.random.Generator, resamples: int, joint: bool) -> Array:
    """Resamples [..., R, S, M] of seeds within each task, or of a seed's scores in all tasks if joint.

    They are smoothed by normal noise and then shrunk, so that variances (and covariances, if joint) stay those of the
    scores (Silverman & Young 1987). Without noise, 3 seeds have resamples of no variance at all, one in nine.
    """
    seeds, tasks = scores.shape[-2:]
    width = SMOOTHING / math.sqrt(seeds)
    shrink = 1 / math.sqrt((seeds - 1) / seeds + width**2)
    centre = scores.mean(axis=-2, keepdims=True)
    deviations = shrink * (scores - centre)
    picks = generator.integers(seeds, size=(resamples, seeds, 1 if joint else tasks))
    if joint:
        mixing = generator.normal(size=(resamples, seeds, seeds)) * (width / math.sqrt(seeds - 1))
        noise = mixing @ deviations[..., None, :, :]
    else:
        spread = deviations.std(axis=-2, ddof=1, keepdims=True)[..., None, :, :]
        noise = generator.normal(size=(resamples, seeds, tasks)) * (width * spread)
    noise += (centre + deviations)[..., picks, np.arange(tasks)]
    return noise

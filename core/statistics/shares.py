"""Shares of runs: performance profiles, and the probability that one method's run beats another's.

Both are means over tasks of shares in [0, 1] and have Wilson's interval (1927), which is not empty at 0 and 1 and stays
inside them. A stratified mean varies less than its pooled counts would; the interval's number of runs is raised to
what gives the stratified variance.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from core.statistics.estimates import Estimate
from core.statistics.inputs import Array, as_scores, check_confidence


@dataclass(frozen=True, eq=False)
class Profile:
    """A performance profile: the share of runs above each threshold, with pointwise intervals.

    Attributes:
        thresholds, share, low, high: one entry for each threshold. seeds, tasks: how many the shares are made from.
    """

    thresholds: Array
    share: Array
    low: Array
    high: Array
    seeds: int
    tasks: int
    confidence: float = 0.95


def performance_profile(
    scores: ArrayLike, thresholds: ArrayLike, *, joint: bool = False, confidence: float = 0.95
) -> Profile:
    """Share of runs with a score above each threshold (Agarwal et al. 2021, section 4.2).

    Args:
        scores: [S] or [S, M]. thresholds: [L], in the scores' units. joint: a seed is the same in all tasks.

    Raises:
        ValueError: scores or thresholds that are empty or not finite.
    """
    table = as_scores(scores)
    levels = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
    if levels.ndim != 1 or levels.size == 0 or not np.isfinite(levels).all():
        raise ValueError(f"thresholds are {levels}: give a list of finite scores that is not empty")
    check_confidence(confidence)
    shares = (table > levels[:, None, None]).mean(axis=1)
    low, high = wilson(shares, len(table), joint, confidence)
    seeds, tasks = table.shape
    return Profile(levels, shares.mean(axis=-1), low, high, seeds, tasks, confidence)


def probability_of_improvement(
    x: ArrayLike, y: ArrayLike, *, joint: bool = False, confidence: float = 0.95
) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 of one run of each method, meaned over tasks (Agarwal et al. 2021, section 4.3).

    In a task it is Mann and Whitney's U / (S_x S_y). Whatever the scores' distributions, its variance is at most that
    of a share of min(S_x, S_y) runs (Birnbaum & Klose 1957), which the interval takes. Independent runs are assumed:
    common seeds of x and y usually make it too wide.

    Args:
        x, y: scores [S_x] and [S_y], or [S_x, M] and [S_y, M]. joint: a seed is the same in all tasks.

    Raises:
        ValueError: values that are not finite, or different numbers of tasks.
    """
    first, second = as_scores(x, "x"), as_scores(y, "y")
    check_confidence(confidence)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"x has {first.shape[1]} tasks and y {second.shape[1]}: give the same tasks in the same order")
    wins = (first[:, None] > second[None]) + 0.5 * (first[:, None] == second[None])
    shares = wins.mean(axis=(0, 1))
    seeds = min(len(first), len(second))
    low, high = wilson(shares, seeds, joint, confidence)
    value = float(shares.mean())
    return Estimate(value, float(low), float(high), seeds, first.shape[1], "wilson", confidence)


def wilson(shares: Array, seeds: int, joint: bool, confidence: float) -> tuple[Array, Array]:
    """Interval [...] of the mean over tasks of shares [..., M] of S runs each; (0, 1) for a single seed."""
    share = shares.mean(axis=-1)
    if seeds < 2:
        return np.zeros_like(share), np.ones_like(share)
    runs = np.full_like(share, seeds) if joint else _effective_runs(shares, seeds)
    z2 = float(stats.norm.ppf(0.5 + confidence / 2)) ** 2
    centre = (share + z2 / (2 * runs)) / (1 + z2 / runs)
    half = np.sqrt(z2 * (share * (1 - share) / runs + z2 / (4 * runs**2))) / (1 + z2 / runs)
    return np.clip(centre - half, 0.0, share), np.clip(centre + half, share, 1.0)


def _effective_runs(shares: Array, seeds: int) -> Array:
    """Runs [...] whose pooled share would vary as the stratified one does, at least S M.

    Half a run above and half a run below are added to every task (Jeffreys), so that a task whose runs all agree still
    varies. Joint seeds may all agree between tasks: they count as S runs.
    """
    smooth = (shares * seeds + 0.5) / (seeds + 1)
    pooled = smooth.mean(axis=-1)
    return seeds * shares.shape[-1] * pooled * (1 - pooled) / (smooth * (1 - smooth)).mean(axis=-1)

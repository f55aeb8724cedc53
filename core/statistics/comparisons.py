"""Paired comparisons of methods on common seeds, with p-values that are exact for few seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from core.errors import nearest
from core.statistics.estimates import Estimate, mean
from core.statistics.inputs import Array, as_scores

#: Sign flips: all of them up to this many, else this many drawn at random.
_FLIPS = 2**14


@dataclass(frozen=True)
class Comparison:
    """Scores of one method minus those of another, on the same seeds and tasks.

    Attributes:
        x, y: names of the methods. difference: mean of x - y, with its interval.
        p_value: two-sided, of the sign-flip test of the mean difference. p_wilcoxon: of the signed-rank test.
        p_least: the smallest p-value that this number of differences can have. With 5 seeds it is 0.0625.
        p_holm: `p_value` corrected for all comparisons made together; the same for a single one.
    """

    x: str
    y: str
    difference: Estimate
    p_value: float
    p_wilcoxon: float
    p_least: float
    p_holm: float


def compare(
    x: ArrayLike,
    y: ArrayLike,
    *,
    names: tuple[str, str] = ("x", "y"),
    method: str = "t",
    joint: bool = False,
    confidence: float = 0.95,
    rng: np.random.Generator | int = 0,
) -> Comparison:
    """Paired comparison of scores [S] or [S, M]; row i of both is the same seed, column m the same task.

    Differences of two methods are less skewed than their scores, so the interval is Student's t unless `method` says
    otherwise. If seeds are `joint`, the differences are those of a seed's means over tasks; else each seed and task
    has one, and they are taken as independent. Scores of several tasks should be in one unit: normalise them first.

    Raises:
        ValueError: values that are not finite, different shapes, or an unknown method.
    """
    first, second = as_scores(x, names[0]), as_scores(y, names[1])
    if first.shape != second.shape:
        raise ValueError(
            f"{names[0]} has (seeds, tasks) {first.shape} and {names[1]} {second.shape}: pair the same seeds and tasks"
        )
    table = first - second
    difference = mean(table, method=method, joint=joint, confidence=confidence, rng=rng)
    each = table.mean(axis=1) if joint else table.ravel()
    each = each[each != 0]
    ranks = np.sign(each) * stats.rankdata(np.abs(each))
    p_value, p_wilcoxon = _sign_flip(each, rng), _sign_flip(ranks, rng)
    p_least = min(1.0, 2 / min(2 ** len(each), _FLIPS + 1))
    return Comparison(*names, difference, p_value, p_wilcoxon, p_least, p_value)


def compare_all(
    scores: Mapping[str, ArrayLike],
    reference: str,
    *,
    method: str = "t",
    joint: bool = False,
    confidence: float = 0.95,
    rng: np.random.Generator | int = 0,
) -> tuple[Comparison, ...]:
    """Every other method minus the reference, with Holm's correction over these comparisons; else as `compare`.

    Raises:
        ValueError: `reference` is not among the scores, and as `compare`.
    """
    if reference not in scores:
        raise ValueError(f"reference is {reference!r}: {nearest(reference, scores)}")
    alone = [
        compare(
            scores[name],
            scores[reference],
            names=(name, reference),
            method=method,
            joint=joint,
            confidence=confidence,
            rng=rng,
        )
        for name in scores
        if name != reference
    ]
    corrected = holm([one.p_value for one in alone])
    return tuple(replace(one, p_holm=float(p)) for one, p in zip(alone, corrected))


def holm(p_values: ArrayLike) -> Array:
    """p-values [N] corrected for N tests (Holm 1979), in the order given.

    Raises:
        ValueError: a value outside [0, 1].
    """
    given = np.asarray(p_values, dtype=np.float64).reshape(-1)
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"p_values are {given}: they must lie in [0, 1]")
    order = np.argsort(given, kind="stable")
    steps = given[order] * np.arange(len(given), 0, -1)
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def _sign_flip(values: Array, rng: np.random.Generator | int) -> float:
    """Two-sided p-value of the sum of values [N] among all 2^N changes of their signs, or 2^14 random ones."""
    if len(values) < 2:
        return 1.0
    test = stats.permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_FLIPS,
        batch=1024,
        random_state=np.random.default_rng(rng),
    )
    return float(test.pvalue)

"""A table's numbers from its evaluations: estimates, which rows are best, comparisons with the reference, checks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from core.statistics import Comparison, compare, holm, interquartile_mean, mean, probability_of_improvement
from core.statistics.inputs import Array
from core.tables.checks import check
from core.tables.evaluations import read_frame
from core.tables.results import Cell, Contrast, Effort, Evaluation, Overall, Table
from core.tables.spec import TableSpec

if TYPE_CHECKING:
    import pandas as pd

#: Least probability that the rows marked in a column hold the truly best one.
CONFIDENCE = 0.95


class Scores:
    """Scores of evaluations, by row, column and seed."""

    def __init__(self, evaluations: Sequence[Evaluation]) -> None:
        self._scores: dict[tuple[str, str], dict[int, float]] = {}
        for one in evaluations:
            self._scores.setdefault((one.row, one.column), {})[one.training_seed] = one.score

    def seeds(self, rows: Sequence[str], columns: Sequence[str]) -> tuple[int, ...]:
        """Seeds that all these rows have in all these columns."""
        each = [self._scores.get((row, column), {}).keys() for row in rows for column in columns]
        return tuple(sorted(set(each[0]).intersection(*each[1:])))

    def values(self, row: str, columns: Sequence[str], seeds: Sequence[int]) -> Array:
        """Scores [S, M] of a row: a line for each seed, a column for each of the table's."""
        return np.array([[self._scores[row, column][seed] for column in columns] for seed in seeds], dtype=np.float64)


def assemble(spec: TableSpec, frame: "pd.DataFrame") -> Table:
    """The table of a frame with a line for each evaluation of a trained run.

    Args:
        frame: the columns of `core.tables.results.Evaluation`, without `score` and its interval; `row`, `column`,
            `run`, `training_seed` and the table's score must be there. A normalised score has its interval over
            episodes in `normalised_low` and `normalised_high`.

    A cell is the mean over seeds with its bootstrap-t interval; of a single seed there is none, and the cell has its
    interval over episodes. Over columns, rows that are run in all of them have the stratified mean and interquartile
    mean of the seeds that all columns have, where the score is normalised. Seeds are taken as independent between
    columns, unless one training stands in several columns.

    In a column, the row with the best mean is marked, and every row that is not told apart from it: the paired t
    interval of their difference over common seeds holds 0. It is a 95% interval, and a wider one with more than three
    rows, so that all of them together miss the truly best row with 5% probability at most, were scores normal: on one
    side, 0.05 / (rows - 1) is left out. With fewer than two common seeds, rows whose own intervals overlap are not
    told apart. A single seed is never marked.

    Raises:
        UserError: evaluations that do not fit the table, see `core.tables.evaluations.read_frame`.
    """
    evaluations = read_frame(spec, frame)
    scores, joint = Scores(evaluations), _joint(evaluations)
    columns = list(spec.columns)
    best = {column: _best(spec, scores, [column], joint=False) for column in columns}
    ends = {
        (one.row, one.column): (one.score_low, one.score_high)
        for one in evaluations
        if one.score_low is not None and one.score_high is not None
    }
    cells = tuple(
        _cell(spec, scores, row, column, row in best[column], ends.get((row, column)))
        for row in spec.rows
        for column in columns
    )
    overall: tuple[Overall, ...] = ()
    if spec.averaged:
        marked = _best(spec, scores, columns, joint)
        overall = tuple(_overall(scores, row, columns, joint, row in marked) for row in spec.rows if spec.whole(row))
    efforts = tuple(_effort(row, [one for one in evaluations if one.row == row]) for row in spec.rows)
    checks = check(spec, cells, efforts, evaluations)
    also = tuple(assemble(other, frame) for other in spec.others)
    return Table(spec, cells, overall, _contrasts(spec, scores, joint), efforts, checks, joint, evaluations, also)


def _joint(evaluations: Sequence[Evaluation]) -> bool:
    """Whether one training stands in several columns."""
    columns: dict[str, str] = {}
    return any(columns.setdefault(one.run, one.column) != one.column for one in evaluations)


def _cell(spec: TableSpec, scores: Scores, row: str, column: str, best: bool, ends: tuple[float, float] | None) -> Cell:
    if not spec.asks(row, column):
        return Cell(row, column, (), (), (), None, False, asked=False)
    seeds = scores.seeds([row], [column])
    values = scores.values(row, [column], seeds)
    missing = tuple(seed for seed in spec.seeds_of(column) if seed not in seeds)
    estimate = mean(values) if seeds else None
    over_episodes = ends if len(seeds) == 1 else None
    return Cell(row, column, seeds, tuple(values.ravel().tolist()), missing, estimate, best, over_episodes)


def _overall(scores: Scores, row: str, columns: Sequence[str], joint: bool, best: bool) -> Overall:
    seeds = scores.seeds([row], columns)
    if not seeds:
        return Overall(row, (), None, None, False)
    values = scores.values(row, columns, seeds)
    return Overall(row, seeds, mean(values, joint=joint), interquartile_mean(values, joint=joint), best)


def _best(spec: TableSpec, scores: Scores, columns: Sequence[str], joint: bool) -> set[str]:
    """Rows marked in a column, or over several; see `assemble`."""
    sign = 1 if spec.higher_is_better else -1
    seeds = {row: scores.seeds([row], columns) for row in spec.rows}
    values = {row: sign * scores.values(row, columns, each) for row, each in seeds.items() if len(each) > 1}
    if len(values) < 2:
        return set()
    top = max(values, key=lambda row: float(values[row].mean()))
    confidence = 1 - (1 - CONFIDENCE) * min(1.0, 2 / (len(values) - 1))

    def told_apart(row: str) -> bool:
        common = scores.seeds([row, top], columns)
        if len(common) > 1:
            lead = sign * (scores.values(top, columns, common) - scores.values(row, columns, common))
            return mean(lead, method="t", joint=joint, confidence=confidence).low > 0
        return mean(values[row], joint=joint).high < mean(values[top], joint=joint).low

    return {row for row in values if row == top or not told_apart(row)}


def _contrasts(spec: TableSpec, scores: Scores, joint: bool) -> tuple[Contrast, ...]:
    """Every other row beside the reference, in each column and over all; each of the two is a family of its own."""
    reference = spec.reference
    if reference is None:
        return ()
    others = [row for row in spec.rows if row != reference]
    single = [
        _contrast(spec, scores, row, column, joint)
        for column in spec.columns
        for row in others
        if spec.asks(row, column) and spec.asks(reference, column)
    ]
    averaged = [row for row in others if spec.averaged and spec.whole(row) and spec.whole(reference)]
    overall = [_contrast(spec, scores, row, None, joint) for row in averaged]
    return (*_corrected(single), *_corrected(overall))


def _contrast(spec: TableSpec, scores: Scores, row: str, column: str | None, joint: bool) -> Contrast:
    assert spec.reference is not None
    columns = list(spec.columns) if column is None else [column]
    seeds = scores.seeds([row, spec.reference], columns)
    if not seeds:
        return Contrast(row, column, (), None, None)
    ours, theirs = (scores.values(name, columns, seeds) for name in (row, spec.reference))
    joint = joint and column is None
    comparison = compare(ours, theirs, names=(row, spec.reference), joint=joint)
    better, worse = (ours, theirs) if spec.higher_is_better else (theirs, ours)
    return Contrast(row, column, seeds, comparison, probability_of_improvement(better, worse, joint=joint))


def _corrected(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Holm's correction over those that have a test, which the single difference of one seed has not."""

    def tested(one: Contrast) -> Comparison | None:
        return None if len(one.seeds) == 1 and one.column is not None else one.comparison

    corrected = iter(holm([comparison.p_value for comparison in map(tested, contrasts) if comparison is not None]))
    return [
        one
        if (comparison := tested(one)) is None
        else replace(one, comparison=replace(comparison, p_holm=float(next(corrected))))
        for one in contrasts
    ]


def _effort(row: str, evaluations: Sequence[Evaluation]) -> Effort:
    steps = [one.training_steps for one in evaluations if one.training_steps is not None]
    seconds = [one.training_seconds for one in evaluations if one.training_seconds is not None]
    decisions = [one.seconds_per_decision for one in evaluations if one.seconds_per_decision is not None]
    return Effort(
        row,
        len({one.run for one in evaluations}),
        (min(steps), max(steps)) if steps else None,
        (min(seconds), max(seconds)) if seconds else None,
        sum(decisions) / len(decisions) if decisions else None,
    )

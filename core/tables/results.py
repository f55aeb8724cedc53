"""What a benchmark table holds once its evaluations are in."""

from dataclasses import dataclass

from core.statistics import Check, Comparison, Estimate
from core.tables.spec import TableSpec


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one trained run, as it was given; None where it was not.

    Attributes:
        row, column: labels of its cell. run: folder of the training. training_seed: of the training.
        score: what the table shows of it. score_low, score_high: its 95% interval over the episodes.
        task, rules, dataset, method, algo: of the training. fingerprint: of the data.
        training_steps, training_seconds: of the training.
        sampler, sampler_steps, guidance_scale, returns: what it planned with, and what was asked of it.
        episodes: how many; seed: of the first.
        return_mean, return_low, return_high: over episodes, with its 95% interval.
        normalised_score, cost_mean: of these episodes. violation_rate: share of them with a cost above budget.
        seconds_per_decision: of the policy, for one team, with so many `teams` in one call.
    """

    row: str
    column: str
    run: str
    training_seed: int
    score: float
    task: str | None = None
    rules: str | None = None
    dataset: str | None = None
    method: str | None = None
    algo: str | None = None
    fingerprint: str | None = None
    training_steps: int | None = None
    training_seconds: float | None = None
    sampler: str | None = None
    sampler_steps: float | None = None
    guidance_scale: float | None = None
    returns: float | None = None
    episodes: int | None = None
    seed: int | None = None
    return_mean: float | None = None
    return_low: float | None = None
    return_high: float | None = None
    normalised_score: float | None = None
    cost_mean: float | None = None
    budget: float | None = None
    violation_rate: float | None = None
    teams: int | None = None
    seconds_per_decision: float | None = None
    score_low: float | None = None
    score_high: float | None = None


@dataclass(frozen=True)
class Cell:
    """Scores of a row in a column.

    Attributes:
        seeds: of the trainings that are there. scores: one for each of them.
        missing: seeds that the table asks for and that are not there.
        estimate: their mean, with its interval over seeds; None where nothing is there.
        best: the column's best, or not told apart from it (see `core.tables.assemble`).
        over_episodes: of a single seed, the interval over the episodes of its evaluation; None where it is not known.
        asked: the table asks for it; a row that is not run in a column has an empty cell.
    """

    row: str
    column: str
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    missing: tuple[int, ...]
    estimate: Estimate | None
    best: bool
    over_episodes: tuple[float, float] | None = None
    asked: bool = True


@dataclass(frozen=True)
class Overall:
    """A row over all columns.

    Attributes:
        seeds: those that every column has. mean, middle: stratified mean and interquartile mean, None without seeds.
        best: as of a cell, by the mean.
    """

    row: str
    seeds: tuple[int, ...]
    mean: Estimate | None
    middle: Estimate | None
    best: bool


@dataclass(frozen=True)
class Contrast:
    """A row beside the reference row, on the seeds that both have.

    Attributes:
        column: where; None over all columns.
        comparison: scores of the row minus those of the reference; None without a common seed. Its `p_holm` corrects
            for all contrasts of single columns that have two seeds or more, or for all those over all columns.
        improvement: probability that a training of the row is better than one of the reference.
    """

    row: str
    column: str | None
    seeds: tuple[int, ...]
    comparison: Comparison | None
    improvement: Estimate | None


@dataclass(frozen=True)
class Effort:
    """What a row took.

    Attributes:
        runs: trainings, which rows may share. steps, seconds: least and most of one training; None where not stated.
        decision: mean seconds of one decision of a team.
    """

    row: str
    runs: int
    steps: tuple[int, int] | None
    seconds: tuple[float, float] | None
    decision: float | None


@dataclass(frozen=True)
class Table:
    """A benchmark table.

    Attributes:
        cells: row by row. overall: one for each row that is run in every column; empty if columns are not averaged.
        contrasts: where both rows are run; empty without a reference. efforts: a row each. checks: of the protocol.
        joint: columns share trainings, so a seed is one for all of them.
        evaluations: all that was given, in the table's order. also: the tables of the spec's further scores.
    """

    spec: TableSpec
    cells: tuple[Cell, ...]
    overall: tuple[Overall, ...]
    contrasts: tuple[Contrast, ...]
    efforts: tuple[Effort, ...]
    checks: tuple[Check, ...]
    joint: bool
    evaluations: tuple[Evaluation, ...]
    also: tuple["Table", ...] = ()

    def cell(self, row: str, column: str) -> Cell:
        """The cell with these labels."""
        return next(cell for cell in self.cells if (cell.row, cell.column) == (row, column))

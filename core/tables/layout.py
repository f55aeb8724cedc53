"""What is shown of a table, in words and numbers, whatever the format: blocks of entries with notes and checks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.statistics import Check, Estimate
from core.tables.published import Published
from core.tables.results import Cell, Contrast, Effort, Evaluation, Overall, Table
from core.tables.spec import NORMALISED, TableSpec

NONE = "–"  # noqa: RUF001


@dataclass(frozen=True)
class Entry:
    """A place of a table: its value, what is said of it in smaller print, and whether it is marked."""

    value: str
    detail: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Block:
    """A table as it is printed.

    Attributes:
        heading, caption: above it. header: of its columns; the first `labels` of them hold text, the others numbers.
        body: its lines. notes, checks: below it.
    """

    heading: str
    caption: str
    header: tuple[str, ...]
    body: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    labels: int = 1


def blocks(table: Table) -> list[Block]:
    """The scores with their checks, the comparisons, what the rows took, and last what others have published."""
    found = [_scores(table), *map(_also, table.also)]
    if table.contrasts:
        found.append(_comparisons(table))
    found.append(_efforts(table))
    if table.spec.published is not None:
        found.append(_published(table.spec.published))
    return found


def score_name(spec: TableSpec) -> str:
    """The score in words."""
    return spec.score.replace("_", " ")


def rule(table: Table) -> str:
    """What a marked entry means; "" where nothing is marked."""
    if not any(cell.best for cell in table.cells) and not any(row.best for row in table.overall):
        return ""
    best = "highest" if table.spec.higher_is_better else "lowest"
    return (
        f"Bold: the {best} mean of a column, and every row that is not told apart from it: the paired t interval of "
        "their difference over common seeds holds 0, at 95% jointly for all rows of the column (Bonferroni, one-sided, "
        "and 95% for each at least). A single seed is never marked."
    )


def _scores(table: Table) -> Block:
    spec, form = table.spec, _Form(table)
    over = {one.row: one for one in table.overall}
    body = []
    for row in spec.rows:
        line = [Entry(row)]
        line += [_cell(cell, form) for cell in table.cells if cell.row == row]
        if row in over:
            line += [
                _over(over[row], over[row].mean, form, spec),
                _over(over[row], over[row].middle, form, spec, False),
            ]
        elif over:
            line += [Entry(""), Entry("")]
        body.append(tuple(line))
    better = "" if spec.higher_is_better else ", lower is better"
    header = (score_name(spec) + better, *spec.columns, *(("mean", "IQM") if over else ()))
    return Block(spec.title, spec.caption, header, tuple(body), _score_notes(table), table.checks)


def _also(table: Table) -> Block:
    """Another score of the same evaluations; what is said below the first holds for it."""
    block = _scores(table)
    return replace(block, heading=f"{table.spec.title}: {score_name(table.spec)}", caption="", notes=(), checks=())


def _score_notes(table: Table) -> tuple[str, ...]:
    spec = table.spec
    notes = [f"{_seeds(spec)} Each score is over {_episodes(table.evaluations)}."]
    if spec.score == NORMALISED:
        notes[0] += " Normalised: 0 is random, 100 the task's expert reference."
    if any(cell.over_episodes for cell in table.cells):
        notes.append(
            "Over episodes: the 95% interval of Student's t over the episodes of one training, which holds nothing of "
            "the spread between trainings."
        )
    if not all(cell.asked for cell in table.cells):
        notes.append(f"{NONE}: not run." + (" Such a row has no mean over all columns." if table.overall else ""))
    if table.overall:
        drawn = "joint between columns, which share trainings" if table.joint else "independent between columns"
        which = f" ({', '.join(map(str, spec.common_seeds))})" if len(_seed_groups(spec)) > 1 else ""
        notes.append(
            "Mean and IQM (interquartile mean) are over all columns, of the seeds that every column has"
            f"{which}, {drawn}."
        )
    runs = len({one.run for one in table.evaluations})
    notes.append(
        f"{_count(runs, 'training')} in all; the budget of one is {_count(spec.budget.cpus, 'CPU core')} and "
        f"{spec.budget.minutes:g} minutes."
    )
    return (*notes, rule(table)) if rule(table) else tuple(notes)


def _seeds(spec: TableSpec) -> str:
    groups = _seed_groups(spec)
    each = [f"{_count(len(seeds), 'seed')} ({', '.join(map(str, seeds))})" for seeds in groups]
    if len(groups) > 1:
        each = [f"{words} in {', '.join(columns)}" for words, columns in zip(each, groups.values(), strict=True)]
    if max(map(len, groups)) == 1:
        return f"{'; '.join(each)}, one training a cell: nothing is known of the spread between trainings."
    return f"Means over {'; '.join(each)}, each a training, with 95% bootstrap-t intervals over seeds."


def _seed_groups(spec: TableSpec) -> dict[tuple[int, ...], list[str]]:
    """Columns by their seeds."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for column in spec.columns:
        groups.setdefault(spec.seeds_of(column), []).append(column)
    return groups


def _episodes(evaluations: Sequence[Evaluation]) -> str:
    episodes = sorted({one.episodes for one in evaluations if one.episodes is not None})
    seeds = sorted({one.seed for one in evaluations if one.seed is not None})
    if not episodes:
        return "a number of episodes that is not stated"
    many = _count(episodes[0], "episode") if len(episodes) == 1 else f"{episodes[0]:,} to {episodes[-1]:,} episodes"
    return f"{many} from seed {seeds[0]}" if len(seeds) == 1 else many


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


class _Form:
    """Numbers of one table with equally many decimals: one where normalised, else about four digits of the largest."""

    def __init__(self, table: Table) -> None:
        largest = max((abs(one.score) for one in table.evaluations), default=0.0)
        digits = 3 - math.floor(math.log10(largest)) if largest > 0 else 1
        self.decimals = 1 if table.spec.score == NORMALISED else min(max(digits, 0), 6)

    def __call__(self, value: float, sign: str = "") -> str:
        text = f"{value:{sign},.{self.decimals}f}"
        return text if any(digit in text for digit in "123456789") else text.lstrip("+-")

    def interval(self, estimate: Estimate) -> str:
        return f"({self(estimate.low)} to {self(estimate.high)})"


def _cell(cell: Cell, form: _Form) -> Entry:
    if not cell.asked:
        return Entry(NONE)
    wanted = len(cell.seeds) + len(cell.missing)
    return _estimated(cell.estimate, len(cell.seeds), wanted, cell.best, form, cell.over_episodes)


def _over(overall: Overall, estimate: Estimate | None, form: _Form, spec: TableSpec, mark: bool = True) -> Entry:
    return _estimated(estimate, len(overall.seeds), len(spec.common_seeds), mark and overall.best, form)


def _estimated(
    estimate: Estimate | None,
    seeds: int,
    wanted: int,
    best: bool,
    form: _Form,
    over_episodes: tuple[float, float] | None = None,
) -> Entry:
    """A value with its interval, and how many seeds there are where one is missing or there is only one."""
    if estimate is None:
        return Entry("missing")
    count = f"{seeds} of {wanted} seeds" if seeds < wanted else "1 seed"
    if over_episodes is not None:
        low, high = map(form, over_episodes)
        return Entry(form(estimate.value), f"({low} to {high} over episodes), {count}", best)
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return Entry(form(estimate.value), f"({count})", best)
    detail = form.interval(estimate)
    return Entry(form(estimate.value), f"{detail}, {count}" if seeds < wanted else detail, best)


def _comparisons(table: Table) -> Block:
    spec, form = table.spec, _Form(table)
    body = tuple(_contrast(one, form) for one in table.contrasts)
    notes = [
        "Difference: the mean over common seeds of the row's score minus the reference's, with the 95% interval of "
        "Student's t. p: the two-sided sign-flip test; corrected: by Holm's method, for all single columns, and for "
        "all comparisons over all columns. P(better): the probability that a training of the row has a better score "
        "than one of the reference, with Wilson's 95% interval."
    ]
    least = [one.comparison.p_least for one in table.contrasts if one.comparison and one.column and len(one.seeds) > 1]
    if least and min(least) > 0.05:
        notes.append(f"With so few seeds no p of a single column can be below {min(least):g}.")
    if least and any(one.column and len(one.seeds) == 1 for one in table.contrasts):
        notes.append("One common seed has no test, and does not count in the correction.")
    header = ("column", "row", "difference", "p", "p, corrected", "P(better)")
    return Block(f"Compared with {spec.reference}", "", header, body, tuple(notes), labels=2)


def _contrast(one: Contrast, form: _Form) -> tuple[Entry, ...]:
    labels = (Entry(one.column or "all columns"), Entry(one.row))
    if one.comparison is None or one.improvement is None:
        return (*labels, Entry("missing"), Entry(NONE), Entry(NONE), Entry(NONE))
    difference = one.comparison.difference
    value = form(difference.value, "+")
    if len(one.seeds) < 2:
        return (*labels, Entry(value, "(1 seed)"), Entry(NONE), Entry(NONE), Entry(NONE))
    better = one.improvement
    return (
        *labels,
        Entry(value, form.interval(difference)),
        Entry(_p(one.comparison.p_value)),
        Entry(_p(one.comparison.p_holm)),
        Entry(f"{better.value:.2f}", f"({better.low:.2f} to {better.high:.2f})"),
    )


def _p(value: float) -> str:
    return f"{value:.3g}" if value >= 0.001 else "< 0.001"


def _efforts(table: Table) -> Block:
    header = ("row", "trainings", "steps", "seconds of a training", "ms a decision", "tuning trials")
    body = tuple(_effort(effort, table.spec) for effort in table.efforts)
    return Block("What each row took", "", header, body, ("Rows with the same trainings share them.",))


def _effort(effort: Effort, spec: TableSpec) -> tuple[Entry, ...]:
    trials = spec.rows[effort.row].tuning_trials
    return (
        Entry(effort.row),
        Entry(f"{effort.runs:,}"),
        Entry(_range(effort.steps)),
        Entry(_range(effort.seconds)),
        Entry(NONE if effort.decision is None else f"{1000 * effort.decision:.3g}"),
        Entry("not stated" if trials is None else f"{trials:,}"),
    )


def _range(values: tuple[float, float] | None) -> str:
    if values is None:
        return "not stated"
    low, high = (f"{value:,.0f}" for value in values)
    return low if low == high else f"{low} to {high}"


def _published(published: Published) -> Block:
    table = published.table
    body = tuple(
        (
            Entry(name, "(second-hand)" if row.second_hand else ""),
            *(Entry(NONE if score is None else f"{score:g}") for score in row.scores),
        )
        for name, row in table.rows.items()
    )
    arxiv = f" (arXiv {table.arxiv})" if table.arxiv else ""
    second = " All of it is second-hand: copied from a later paper." if table.second_hand else ""
    lacking = any(score is None for row in table.rows.values() for score in row.scores)
    rows = [
        f"{name}: {'; '.join(filter(None, (row.source, row.note)))}."
        for name, row in table.rows.items()
        if row.source or row.note
    ]
    notes = (
        f"Beside ours: {published.note}",
        f"Source: {table.source}{arxiv}.{second} Unit: {table.unit}. Protocol: {table.protocol}",
        *rows,
        *table.notes,
        *([f"{NONE}: not published, or not known to us."] if lacking else []),
        "Digits as published, trailing zeros left out; no interval, no statistics and no marks are made of them.",
    )
    return Block(f"Published numbers, not ours: {table.title}", "", ("method", *table.columns), body, notes)

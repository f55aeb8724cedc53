"""Evaluations under budgets: what a table says of them, and their figure."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from core.cli.cells import task_of
from core.data import read_dataset, read_provenance
from core.errors import UserError
from core.evaluations import Row
from core.front_figures import Front, costs_and_returns, draw_fronts
from core.runs import Run

Entry = Callable[[Run, Row], str]


def _changes(row: Row) -> bool:
    """Whether the budget changed within the episodes, so that they are held against another one."""
    return "budget x" in row.shift


def _ratio(run: Run, row: Row) -> str:
    scale = None if row.budget is None else task_of(run).budget
    return f"{row.budget / scale:.3g}" if row.budget is not None and scale else ""


def _used(row: Row) -> str:
    return f"{row.cost_mean / row.budget:.2f}" if row.budget and not _changes(row) else ""


def _within(entry: Callable[[Row], str]) -> Entry:
    """An entry of rows with a budget alone."""
    return lambda run, row: "" if row.budget is None else entry(row)


def _interval(row: Row) -> str:
    return "" if row.cost_low is None else f"{row.cost_low:.2f} to {row.cost_high:.2f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


#: What was asked: heading and entry, all of them numbers.
ASKED: list[tuple[str, Entry]] = [("budget", _within(lambda row: f"{row.budget:g}")), ("ratio", _ratio)]

#: What came of it, beside the mean cost.
SPENT: list[tuple[str, Entry]] = [
    ("cost 95%", _within(_interval)),
    ("of budget", _within(_used)),
    ("above", _within(lambda row: _number(row.violation_rate, ".0%"))),
    ("worst tenth", _within(lambda row: _number(row.cost_tail, ".2f"))),
    ("worst", _within(lambda row: _number(row.cost_worst, ".2f"))),
]

#: How those columns are read.
NOTES = (
    " ratio: of the budget to the task's own. of budget: mean cost / budget. above: episodes above it. "
    "worst tenth: mean cost of those episodes (CVaR)."
)


def draw(evaluated: Sequence[tuple[Run, Sequence[Row]]], path: Path, root: Path) -> None:
    """Draw the fronts of evaluations under budgets that did not change, a column for each task and dataset.

    Args:
        root: folder of datasets, whose episodes are drawn where they are those that the runs were trained on.

    Raises:
        UserError: there are no such evaluations, or the figure cannot be written.
    """
    fronts: dict[tuple[str, str], list[tuple[Run, Row]]] = {}
    for run, rows in evaluated:
        for row in rows:
            if row.budget is not None and not _changes(row):
                key = (repr(run.config["task"]), run.config["dataset"]["id"])
                fronts.setdefault(key, []).append((run, row))
    draw_fronts(
        [Front(name, [row for _, row in found], _episodes(found[0][0], root)) for (_, name), found in fronts.items()],
        path,
    )


def _episodes(run: Run, root: Path) -> tuple[Tensor, Tensor] | None:
    """Costs and returns of the episodes that a run was trained on, where they are at hand."""
    dataset = run.config["dataset"]
    try:
        if read_provenance(dataset["id"], root).fingerprint != dataset.get("fingerprint"):
            return None
        return costs_and_returns(read_dataset(dataset["id"], root).trajectories)
    except UserError:
        return None

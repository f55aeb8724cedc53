"""Evaluations as a terminal shows them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from core.cli import fronts
from core.cli.cells import heeds_budgets
from core.evaluations import Row
from core.progress import console
from core.runs import Run
from core.statistics import Facts, mean, protocol, protocol_lines
from core.tables import Evaluation
from core.tables.checks import facts_of

Evaluated = Sequence[tuple[Run, Sequence[Row]]]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _task(run: Run) -> str:
    """Name of a run's task, with its rules where they are not the usual ones."""
    task = run.config["task"]
    rules = task.get("rules") or ""
    return f"{task.get('name')}" + (f" ({rules})" if rules not in ("", "mpe2") else "")


#: Heading, whether it is a number, and a row's entry; "" where it says nothing of the row.
_COLUMNS: list[tuple[str, bool, Callable[[Run, Row], str]]] = [
    ("task", False, lambda run, row: _task(run)),
    ("dataset", False, lambda run, row: row.dataset),
    ("method", False, lambda run, row: row.method),
    ("steps", True, lambda run, row: str(row.training_steps)),
    ("seed", True, lambda run, row: str(run.config["trainer"]["seed"])),
    ("sampler", False, lambda run, row: row.sampler),
    ("scale", True, lambda run, row: _number(row.guidance_scale)),
    ("asked", True, lambda run, row: _number(row.returns)),
    *((heading, True, entry) for heading, entry in fronts.ASKED),
    ("shift", False, lambda run, row: row.shift),
    ("episodes", True, lambda run, row: f"{row.episodes} from {row.seed}"),
    ("return", True, lambda run, row: f"{row.return_mean:.2f}"),
    ("95% interval", True, lambda run, row: f"{row.interval[0]:.2f} to {row.interval[1]:.2f}"),
    ("score", True, lambda run, row: "" if row.normalised_score is None else f"{row.normalised_score:.1f}"),
    ("cost", True, lambda run, row: f"{row.cost_mean:.2f}"),
    *((heading, True, entry) for heading, entry in fronts.SPENT),
    ("ms", True, lambda run, row: "" if row.seconds_per_decision is None else f"{1e3 * row.seconds_per_decision:.3g}"),
]

#: Columns that stand in the table even where all rows agree.
_RESULTS = ("return", "95% interval", "score", "cost", *(heading for heading, _ in fronts.SPENT), "ms")

#: Columns that a narrow terminal does without, the first ones first.
_DISPENSABLE = ("ms", "worst", "of budget", "steps", "asked", "cost 95%", "95% interval", "cost")


def print_rows(evaluated: Evaluated) -> None:
    """Print evaluations, a line for each; what all of them share stands above, and means over seeds below."""
    rows = [(run, row) for run, rows in evaluated for row in rows]
    entries = {heading: [entry(run, row) for run, row in rows] for heading, _, entry in _COLUMNS}
    alike = {heading for heading, values in entries.items() if len(set(values)) == 1 and heading not in _RESULTS}
    shown = [(heading, number) for heading, number, _ in _COLUMNS if heading not in alike and any(entries[heading])]
    shared = ", ".join(f"{name} {entries[name][0]}" for name in entries if name in alike and entries[name][0])
    console.print(shared, markup=False, highlight=False)
    _print_fitting(shown, [[entries[heading][index] for heading, _ in shown] for index in range(len(rows))])
    _print_seeds(rows)
    notes = "95% interval: over episodes. cost: an episode's, of one agent. score: normalised return."
    timed = " ms: of a decision for one team, many at once." if any(entries["ms"]) else ""
    console.print(notes + (fronts.NOTES if any(entries["above"]) else "") + timed, highlight=False)


def _print_fitting(columns: Sequence[tuple[str, bool]], lines: Sequence[Sequence[str]]) -> None:
    """Print a table; on a terminal that is too narrow some columns are left out, and said to be."""
    left_out: list[str] = []
    while True:
        table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
        for heading, number in columns:
            if heading not in left_out:
                table.add_column(heading, justify="right" if number else "left", no_wrap=True)
        for line in lines:
            table.add_row(*(escape(value) for (heading, _), value in zip(columns, line) if heading not in left_out))
        fits = Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width
        more = [heading for heading in _DISPENSABLE if heading in dict(columns) and heading not in left_out]
        if fits or not more:
            break
        left_out.append(more[0])
    console.print(table, crop=False, no_wrap=True, overflow="ignore", width=None if fits else 10_000)
    if left_out:
        console.print(f"too narrow for {', '.join(left_out)}: see convoy results ... out=table.csv", highlight=False)


def _print_seeds(rows: Sequence[tuple[Run, Row]]) -> None:
    """Means over the seeds of each method and cell, where there are several."""
    groups: dict[tuple[Any, ...], dict[int, Row]] = {}
    names = {repr(run.config["task"]): _task(run) for run, _ in rows}
    for run, row in rows:
        # Where nothing heeds a budget, its rows are of the same episodes.
        cell = row.cell if heeds_budgets(run) else replace(row.cell, budget=None)
        groups.setdefault((repr(run.config["task"]), row.dataset, row.method, cell), {})[
            run.config["trainer"]["seed"]
        ] = row
    several = [(names[key[0]], key[3], list(group.values())) for key, group in groups.items() if len(group) > 1]
    if len({task for task, *_ in several}) == 1:
        several = [("", cell, group) for _, cell, group in several]
    if not several:
        return
    columns = [("task", False), ("dataset", False), ("method", False), ("sampler", False), ("shift", False)]
    columns += [("scale", True), ("asked", True), ("budget", True)]
    columns += [("seeds", True), ("score over seeds", True), ("95% interval", True)]
    columns += [("cost over seeds", True), ("cost 95%", True)]
    lines = []
    for task, cell, group in several:
        row = group[0]
        labels = [task, row.dataset, row.method, row.sampler, row.shift]
        labels += [_number(row.guidance_scale), _number(row.returns), _number(cell.budget)]
        over = mean([one.return_mean if one.normalised_score is None else one.normalised_score for one in group])
        spent = mean([one.cost_mean for one in group])
        costs = ["", ""] if row.budget is None else [f"{spent.value:.2f}", f"{spent.low:.2f} to {spent.high:.2f}"]
        lines.append([*labels, str(len(group)), f"{over.value:.1f}", f"{over.low:.1f} to {over.high:.1f}", *costs])
    kept = [index for index in range(len(columns)) if any(line[index] for line in lines)]
    _print_fitting([columns[index] for index in kept], [[line[index] for index in kept] for line in lines])


def print_protocol(evaluated: Evaluated) -> None:
    """Say which points of the protocol the evaluations of some runs meet; a point that nothing states is not met."""
    console.print("Protocol (Formanek et al. 2024):", highlight=False)
    for line in protocol_lines(protocol(protocol_facts(evaluated))):
        console.print(f"  {line}", markup=False, highlight=False)


def protocol_facts(evaluated: Evaluated) -> list[Facts]:
    """What runs and their evaluations state of each method; a task with its data is a column."""
    facts = []
    for method in dict.fromkeys(run.method for run, rows in evaluated if rows):
        mine = [(run, rows) for run, rows in evaluated if rows and run.method == method]
        evaluations = [_evaluation(run, row) for run, rows in mine for row in rows]
        columns = sorted({one.column for one in evaluations})
        cloning = all(_clones(run.config["algo"]) for run, _ in mine)
        facts.append(replace(facts_of(method, evaluations, columns), cloning=cloning))
    return facts


def _evaluation(run: Run, row: Row) -> Evaluation:
    """What the protocol asks of an evaluation."""
    return Evaluation(
        row=row.method,
        column=" ".join(filter(None, (_task(run), row.dataset, row.shift))),
        run=str(run.folder),
        training_seed=run.config["trainer"]["seed"],
        score=row.return_mean,
        fingerprint=run.config["dataset"].get("fingerprint"),
        episodes=row.episodes,
        training_steps=row.training_steps,
    )


def _clones(algo: Mapping[str, Any]) -> bool:
    """Whether a configuration is plain behaviour cloning of all data."""
    return algo.get("name") == "cloning" and not algo.get("condition") and algo.get("best") == 1.0

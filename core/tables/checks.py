"""The protocol's checklist for a table, from what its evaluations and its specification state."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from core.statistics import Check, Facts, protocol
from core.tables.results import Cell, Effort, Evaluation
from core.tables.spec import TableSpec

T = TypeVar("T")

#: Seconds of training within this share of the budget count as the budget: a run ends with a whole step.
SLACK = 0.05


def check(
    spec: TableSpec, cells: Sequence[Cell], efforts: Sequence[Effort], evaluations: Sequence[Evaluation]
) -> tuple[Check, ...]:
    """The protocol's seven points, and three of our own: nothing missing, the same episodes, within the budget."""
    facts = [
        _facts(spec, row, [one for one in evaluations if one.row == row], [cell for cell in cells if cell.row == row])
        for row in spec.rows
    ]
    return (*protocol(facts), _complete(cells), _same_episodes(spec, evaluations), _within_budget(spec, efforts))


def _facts(spec: TableSpec, row: str, evaluations: Sequence[Evaluation], cells: Sequence[Cell]) -> Facts:
    settings = spec.rows[row]
    seconds = _stated([one.training_seconds for one in evaluations])
    return replace(
        facts_of(row, evaluations, [cell.column for cell in cells if cell.asked]),
        seconds=_seconds(spec, seconds) if seconds else None,
        tuning_trials=settings.tuning_trials,
        selected_on_test=spec.selected_on_test,
        cloning=settings.cloning,
    )


def facts_of(method: str, evaluations: Sequence[Evaluation], columns: Sequence[str]) -> Facts:
    """What the evaluations of a method state: its seeds are those that every column has, its episodes the fewest of any
    evaluation, its steps the least and the most of any training."""
    prints = _stated([one.fingerprint for one in evaluations])
    episodes = _stated([one.episodes for one in evaluations])
    steps = _stated([one.training_steps for one in evaluations])
    seeds = [{one.training_seed for one in evaluations if one.column == column} for column in columns]
    return Facts(
        method,
        datasets=tuple(f"{one.column} {text[:12]}" for one, text in zip(evaluations, prints)) if prints else None,
        seeds=tuple(sorted(set.intersection(*seeds))) if seeds else None,
        episodes=min(episodes) if episodes else None,
        steps=(min(steps), max(steps)) if steps else None,
    )


def _stated(values: Sequence[T | None]) -> list[T] | None:
    """The values, where there are some and none of them is None."""
    given = [value for value in values if value is not None]
    return given if given and len(given) == len(values) else None


def _seconds(spec: TableSpec, seconds: Sequence[float]) -> tuple[float, float]:
    budget = 60 * spec.budget.minutes
    spent = all(abs(each - budget) <= SLACK * budget for each in seconds)
    return (budget, budget) if spent else (round(min(seconds), 1), round(max(seconds), 1))


def _complete(cells: Sequence[Cell]) -> Check:
    there, missing = sum(len(cell.seeds) for cell in cells), sum(len(cell.missing) for cell in cells)
    lacking = [f"{cell.row} in {cell.column}" for cell in cells if cell.missing]
    found = f"{there:,} of {there + missing:,} evaluations" + (f", missing of {'; '.join(lacking)}" if lacking else "")
    return Check("nothing missing", not missing, found, "every row, column and seed that the table asks for")


def _same_episodes(spec: TableSpec, evaluations: Sequence[Evaluation]) -> Check:
    """Within a column, since another task may have other episodes."""
    wanted = "all rows of a column evaluated on the same episodes"
    found, met = [], bool(evaluations)
    for column in spec.columns:
        given = {(one.seed, one.episodes) for one in evaluations if one.column == column}
        met = met and len(given) < 2 and not any(None in pair for pair in given)
        found.append(f"{', '.join(sorted(map(_episodes, given))) or 'none'} ({column})")
    alike = {text.rpartition(" (")[0] for text in found}
    return Check("same episodes", met, alike.pop() if len(alike) == 1 else "; ".join(found), wanted)


def _episodes(given: tuple[int | None, int | None]) -> str:
    seed, episodes = given
    return "not stated" if seed is None or episodes is None else f"{episodes:,} from seed {seed}"


def _within_budget(spec: TableSpec, efforts: Sequence[Effort]) -> Check:
    budget = 60 * spec.budget.minutes
    wanted = f"{budget:,.0f} s of training at most"
    longest = [(effort.seconds[1], effort.row) for effort in efforts if effort.seconds is not None]
    if not longest:
        return Check("within the budget", False, "not stated", wanted)
    most, row = max(longest)
    met = most <= (1 + SLACK) * budget and len(longest) == len(efforts)
    return Check("within the budget", met, f"{most:,.0f} s at most ({row})", wanted)

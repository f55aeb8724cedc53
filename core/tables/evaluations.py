"""From a DataFrame to evaluations: what does not fit the table is an error, nothing is dropped."""

import math
from collections.abc import Mapping
from dataclasses import fields
from numbers import Real
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from core.errors import UserError, nearest
from core.tables.results import Evaluation
from core.tables.spec import NORMALISED, TableSpec

if TYPE_CHECKING:
    import pandas as pd

#: Where a frame has the interval over episodes of a score.
_ENDS = {
    NORMALISED: ("normalised_low", "normalised_high"),
    "return_mean": ("return_low", "return_high"),
    "cost_mean": ("cost_low", "cost_high"),
}


def read_frame(spec: TableSpec, frame: "pd.DataFrame") -> tuple[Evaluation, ...]:
    """The evaluations of a frame, in the table's order.

    Raises:
        UserError: a missing column; a label or seed that the table has not, or a row that is not run in that column; a
            score that is no finite number; two evaluations for one row, column and seed; one run that is given as two
            seeds.
    """
    known = [str(column) for column in frame.columns]
    for name in ("row", "column", "run", "training_seed", spec.score):
        if name not in known:
            raise UserError(f"the evaluations of {spec.name} have no column {name!r}: {nearest(name, known)}")
    twice = sorted({name for name in known if known.count(name) > 1})
    if twice:
        raise UserError(f"the evaluations of {spec.name} have {twice[0]!r} in two columns: keep one")
    plain = frame.astype(object).where(frame.notna(), None)
    evaluations = [_evaluation(spec, record) for record in plain.to_dict("records")]
    _check_unique(evaluations)
    rows, columns = list(spec.rows), list(spec.columns)
    return tuple(
        sorted(evaluations, key=lambda one: (rows.index(one.row), columns.index(one.column), one.training_seed))
    )


def _evaluation(spec: TableSpec, record: Mapping[Any, Any]) -> Evaluation:
    for name, labels in (("row", spec.rows), ("column", spec.columns)):
        if record[name] not in labels:
            raise UserError(
                f"an evaluation of {spec.name} has the {name} {record[name]!r}: {nearest(str(record[name]), labels)}"
            )
    where = f"row {record['row']!r}, column {record['column']!r}, seed {record['training_seed']}"
    hints = get_type_hints(Evaluation)
    values = {
        field.name: _value(record.get(field.name), hints[field.name], f"{field.name} of {where}")
        for field in fields(Evaluation)
        if not field.name.startswith("score")
    }
    if values["run"] is None:
        raise UserError(f"run of {where} is missing: expected the training's folder")
    if not spec.asks(record["row"], record["column"]):
        raise UserError(f"{where}: the row's columns leave this one out; add it, or leave out the evaluation")
    seeds = spec.seeds_of(record["column"])
    if values["training_seed"] not in seeds:
        of = "table" if spec.columns[record["column"]].seeds is None else "column"
        raise UserError(
            f"{where}: the {of} has the seeds {', '.join(map(str, seeds))}; add this one, or leave out its row"
        )
    score = record[spec.score]
    if isinstance(score, bool) or not isinstance(score, Real) or not math.isfinite(score):
        mend = "the task has no reference scores, or the run failed" if spec.score == NORMALISED else "mend its run"
        raise UserError(f"{spec.score} of {where} is {score}: expected a finite number; {mend}")
    ends = [_value(record.get(end), float, f"{end} of {where}") for end in _ENDS.get(spec.score, ())]
    known = ends if all(end is not None and math.isfinite(end) for end in ends) else []
    return Evaluation(**values, score=float(score), **dict(zip(("score_low", "score_high"), known)))


def _value(value: Any, kind: Any, name: str) -> Any:
    """A frame's entry as text, a whole number or a number; None where there is none."""
    if value is None:
        return None
    (kind,) = [one for one in get_args(kind) if one is not type(None)] or [kind]
    if kind is str:
        return str(value)
    if isinstance(value, bool) or not isinstance(value, Real) or (kind is int and value % 1 != 0):
        raise UserError(f"{name} is {value!r}: expected a {'whole ' if kind is int else ''}number")
    return kind(value)


def _check_unique(evaluations: list[Evaluation]) -> None:
    cells: dict[tuple[str, str, int], Evaluation] = {}
    seeds: dict[str, int] = {}
    for one in evaluations:
        key = (one.row, one.column, one.training_seed)
        twin = cells.setdefault(key, one)
        if twin is not one:
            raise UserError(
                f"row {one.row!r}, column {one.column!r}, seed {one.training_seed} has two evaluations, of {twin.run} "
                f"and {one.run}: keep one"
            )
        if seeds.setdefault(one.run, one.training_seed) != one.training_seed:
            raise UserError(
                f"{one.run} is given as the seeds {seeds[one.run]} and {one.training_seed}: one training has one seed"
            )

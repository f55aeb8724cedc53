"""Benchmark tables: from a YAML file to trained runs, their evaluations, and the rendered table. All of it resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from core.cli.cells import task_of
from core.cli.collect import collect
from core.cli.commands import Evaluate, Sweep, data_root, register_schemas
from core.cli.evaluate import evaluate_all
from core.cli.sweep import Training, named, run_sweep, runs_of, share_out
from core.cli.trainings import dataset_name
from core.config import compose_config, to_object
from core.data.storage import list_datasets
from core.errors import UserError
from core.frames import as_frame, records_of
from core.progress import bar, console
from core.runs import Run
from core.tables import ColumnSpec, RowSpec, Table, TableSpec, assemble

#: What names a run anyway.
_NAMED = ("algo", "task", "dataset")

#: Where the frame of a table has the interval over episodes of a normalised score.
_ENDS = ("normalised_low", "normalised_high")

#: Options that a table sets, and where it takes them from.
_RESERVED = {
    "train": {
        "trainer.seed": "write them as seeds:",
        "cpus": "write it as budget:",
        "minutes": "write it as budget:",
        "trainer.threads": "it is budget.cpus",
        "method": "a row's label names it",
        **dict.fromkeys(("output", "data", "run"), "give work= on the command line"),
        **dict.fromkeys(("workers", "launcher", "seeds"), "a table trains on this machine, workers= at a time"),
    },
    "evaluate": {
        "run": "a table evaluates its own trainings",
        "threads": "it is budget.cpus",
        "workers": "give it on the command line",
    },
}


def make(spec: TableSpec, work: Path, *, workers: int = 0) -> Table:
    """Collect what data is missing, train what is not trained, evaluate what is not evaluated; the table of it all.

    Args:
        work: folder of the table's datasets and runs. workers: trainings and evaluations at a time; 0 takes as many as
            there are cores for.

    Raises:
        UserError: an option is wrong, data are missing and not said how to make, or a training failed (after all
            others were trained).
    """
    register_schemas()
    _refuse_reserved(spec)
    trainings = {
        (row, column): _training(spec, row, column, work, workers)
        for row in spec.rows
        for column in spec.columns
        if spec.asks(row, column)
    }
    evaluations = {place: _evaluation(spec, *place) for place in trainings}  # mistakes show before anything is trained
    for column in spec.columns:
        row = next(row for row in spec.rows if spec.asks(row, column))
        _collect(spec, column, trainings[row, column][1])
    each = [
        (options, replace(config, trainer=replace(config.trainer, seed=seed)))
        for (_, column), (options, config) in trainings.items()
        for seed in spec.seeds_of(column)
    ]
    run_sweep(share_out(each))
    return assemble(spec, as_frame(_evaluate(spec, trainings, evaluations, workers), ["row", "column", *_ENDS]))


def _training(spec: TableSpec, row: str, column: str, work: Path, workers: int) -> Training:
    own = [*spec.columns[column].train, *spec.rows[row].train]
    names = [option.split("=", 1)[0] for option in own]
    config = to_object(compose_config("sweep", [*spec.train, *own]))
    assert isinstance(config, Sweep)
    output, data, budget = str(work / "runs"), str(work / "datasets"), spec.budget
    config = replace(config, output=output, data=data, workers=workers, cpus=budget.cpus, minutes=float(budget.minutes))
    return own, named(config, [*spec.train, *own], [name for name in names if name not in _NAMED])


def _refuse_reserved(spec: TableSpec) -> None:
    """The table decides these itself; an option that is passed over silently would be worse than none."""
    entries: list[TableSpec | ColumnSpec | RowSpec] = [spec, *spec.columns.values(), *spec.rows.values()]
    for entry in entries:
        for verb, options in (("train", entry.train), ("evaluate", entry.evaluate)):
            for option in options:
                if (name := option.split("=", 1)[0]) in _RESERVED[verb]:
                    raise UserError(f"{spec.name}: {verb} has {option!r}: {_RESERVED[verb][name]}")


def _collect(spec: TableSpec, column: str, training: Sweep) -> None:
    dataset = dataset_name(training)
    options = spec.columns[column].collect
    if dataset in list_datasets(data_root(training.data)):
        return
    if options is None:
        raise UserError(f"{spec.name}: column {column!r} needs dataset {dataset}, and has no collect: to make it by")
    config = replace(to_object(compose_config("collect", options)), data=training.data)
    if config.task.dataset_id(config.quality) != dataset:
        made = config.task.dataset_id(config.quality)
        raise UserError(f"{spec.name}: column {column!r} trains on {dataset}, and its collect: makes {made}")
    with bar(f"collecting {dataset}", config.episodes * config.task.max_cycles) as advance:
        made, score = collect(config, advance)
    console.print(f"collected {made}: mean return {score:.2f}", highlight=False)


def _evaluation(spec: TableSpec, row: str, column: str) -> Evaluate:
    own = [*spec.evaluate, *spec.columns[column].evaluate, *spec.rows[row].evaluate]
    command = to_object(compose_config("evaluate", [*own, "run=any", f"threads={spec.budget.cpus}"]))
    assert isinstance(command, Evaluate)
    return command


def _evaluate(
    spec: TableSpec,
    trainings: dict[tuple[str, str], Training],
    evaluations: dict[tuple[str, str], Evaluate],
    workers: int,
) -> list[dict[str, Any]]:
    """The evaluations of every row, column and seed, as entries of a frame."""
    asked: dict[Path, tuple[Run, list[Evaluate]]] = {}
    places: list[tuple[str, str, Path, int]] = []
    for (row, column), (_, config) in trainings.items():
        command = evaluations[row, column]
        for folder in runs_of(replace(config, seeds=list(spec.seeds_of(column)))):
            _, commands = asked.setdefault(folder, (Run.open(folder), []))
            places.append((row, column, folder, len(commands)))
            commands.append(replace(command, run=str(folder)))
    found = dict(zip(asked, evaluate_all(list(asked.values()), workers=workers), strict=True))
    records = []
    for row, column, folder, place in places:
        run = asked[folder][0]
        (record,) = records_of(run, [found[folder][place]])
        records.append({"row": row, "column": column, **record, **_normalised_ends(run, record)})
    return records


def _normalised_ends(run: Run, record: dict[str, Any]) -> dict[str, float]:
    """The interval over episodes of an evaluation's normalised score, where it has one."""
    references, low, high = task_of(run).references, record["return_low"], record["return_high"]
    if references is None or low is None or high is None or record.get("shift"):
        return {}
    return dict(zip(_ENDS, (references.normalise(low), references.normalise(high)), strict=True))

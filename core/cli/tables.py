"""Benchmark tables: from a YAML file to trained runs, their evaluations, and the rendered table. All of it resumes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from core.cli.collect import collect
from core.cli.commands import Evaluate, Sweep, data_root, register_schemas
from core.cli.evaluate import evaluate_all
from core.cli.sweep import Training, folders_of, named, run_sweep, share_out
from core.config import compose_config, to_object
from core.data.storage import list_datasets
from core.errors import UserError
from core.frames import as_frame, records_of
from core.progress import bar, console
from core.runs import Run
from core.tables import Table, TableSpec, assemble

#: What names a run anyway.
_NAMED = ("algo", "task", "dataset")


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
    trainings = {
        (row, column): _training(spec, row, column, work, workers) for row in spec.rows for column in spec.columns
    }
    for column in spec.columns:
        _collect(spec, column, trainings[next(iter(spec.rows)), column][1])
    once: dict[Path, Training] = {}
    for options, config in trainings.values():
        for seed in spec.seeds:
            one = replace(config, trainer=replace(config.trainer, seed=seed), seeds=[seed])
            once.setdefault(folders_of(one)[0], (options, one))
    run_sweep(share_out(list(once.values())))
    return assemble(spec, as_frame(_evaluate(spec, trainings, workers), ["row", "column"]))


def _training(spec: TableSpec, row: str, column: str, work: Path, workers: int) -> Training:
    own = [*spec.train, *spec.columns[column].train, *spec.rows[row].train]
    budget = [f"cpus={spec.budget.cpus}", f"minutes={spec.budget.minutes}", f"workers={workers}"]
    options = [*own, *budget, f"output='{work / 'runs'}'", f"data='{work / 'datasets'}'"]
    config = to_object(compose_config("sweep", options))
    assert isinstance(config, Sweep)
    return options, named(config, own, [name for name in map(_name, own) if name not in _NAMED])


def _name(option: str) -> str:
    return option.split("=", 1)[0]


def _collect(spec: TableSpec, column: str, training: Sweep) -> None:
    dataset = training.dataset if "/" in training.dataset else training.task.dataset_id(training.dataset)
    options = spec.columns[column].collect
    if dataset in list_datasets(data_root(training.data)):
        return
    if options is None:
        raise UserError(f"{spec.name}: column {column!r} needs dataset {dataset}, and has no collect: to make it by")
    config = to_object(compose_config("collect", [*options, f"data='{training.data}'"]))
    with bar(f"collecting {dataset}", config.episodes * config.task.max_cycles) as advance:
        made, score = collect(config, advance)
    if made != dataset:
        raise UserError(f"{spec.name}: column {column!r} trains on {dataset}, and its collect: makes {made}")
    console.print(f"collected {made}: mean return {score:.2f}", highlight=False)


def _evaluate(spec: TableSpec, trainings: dict[tuple[str, str], Training], workers: int) -> list[dict[str, Any]]:
    """The evaluations of every row, column and seed, as entries of a frame."""
    asked: dict[Path, tuple[Run, list[Evaluate]]] = {}
    places: list[tuple[str, str, Path, int]] = []
    for (row, column), (_, config) in trainings.items():
        own = [*spec.evaluate, *spec.columns[column].evaluate, *spec.rows[row].evaluate]
        command = to_object(compose_config("evaluate", [*own, "run=any", f"threads={spec.budget.cpus}"]))
        for folder in folders_of(replace(config, seeds=list(spec.seeds))):
            _, commands = asked.setdefault(folder, (Run.open(folder), []))
            places.append((row, column, folder, len(commands)))
            commands.append(replace(command, run=str(folder)))
    found = dict(zip(asked, evaluate_all(list(asked.values()), workers=workers), strict=True))
    records = []
    for row, column, folder, place in places:
        (record,) = records_of(asked[folder][0], [found[folder][place]])
        records.append({"row": row, "column": column, **record})
    return records

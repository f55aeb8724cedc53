"""Any number of runs as one table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError, nearest
from core.files import reason, replacing

if TYPE_CHECKING:
    import pandas as pd

    from core.evaluations import Row
    from core.runs import Run

_WORDS = ("run", "task", "rules", "dataset", "fingerprint", "method", "algo", "sampler", "shift", "version")
_COUNTS = ("training_seed", "training_steps", "episodes", "seed", "teams")
_NUMBERS = (
    "training_seconds", "sampler_steps", "guidance_scale", "returns", "budget", "return_mean", "return_low",
    "return_high", "normalised_score", "cost_mean", "cost_low", "cost_high", "cost_worst", "cost_tail",
    "violation_rate", "seconds_per_decision",
)  # fmt: skip


def results(*folders: str | Path, options: Sequence[str] = ()) -> pd.DataFrame:
    """The evaluations of all runs in some folders, one row for each.

    Columns are the run (`run`, its folder), what it was trained on and by (`task`, `rules`, `dataset`, `fingerprint` of
    the data, `method`, `algo`, `training_seed`, `training_steps`, `training_seconds`), what was asked of it (`sampler`,
    `sampler_steps`, `guidance_scale`, `returns`, `shift`, `episodes`, `seed`, `budget`) and what came out
    (`return_mean`, `return_low` and `return_high`, its 95% interval over episodes, `normalised_score`, `cost_mean`,
    with `cost_low`, `cost_high`, `cost_worst` and `cost_tail`, the mean of its worst tenth, `violation_rate`,
    `seconds_per_decision` with `teams` in one call). What does not apply is missing (NaN).

    Args:
        folders: run folders, or folders that hold some at any depth.
        options: entries of the runs' configurations to add as columns, such as "algo.horizon".

    Raises:
        UserError: a folder does not exist or holds no run, a run cannot be read, or an option is in no configuration.
    """
    runs = find_runs(folders)
    configurations = [_flat(run.config) for run in runs]
    known = {name for configuration in configurations for name in configuration}
    for option in options:
        if option not in known:
            raise UserError(f"no run has the option {option!r}: {nearest(option, known)}")
    records = []
    for run, configuration in zip(runs, configurations, strict=True):
        added = {option: configuration.get(option) for option in options}
        records += [{**record, **added} for record in records_of(run, run.rows())]
    return as_frame(records, options)


def records_of(run: Run, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Entries of a table, by the names of its columns, of some evaluations of a run."""
    config = run.config
    facts = {
        "run": str(run.folder),
        "task": config["task"].get("name"),
        "rules": config["task"].get("rules"),
        "fingerprint": config["dataset"].get("fingerprint"),
        "algo": config["algo"].get("name"),
        "training_seed": config["trainer"].get("seed"),
    }
    return [{**facts, **_columns(row.as_json())} for row in rows]


def as_frame(records: Sequence[dict[str, Any]], added: Sequence[str] = ()) -> pd.DataFrame:
    """A table of `records_of` runs, with further columns added."""
    import pandas as pd

    frame = pd.DataFrame(records, columns=[*added, *_WORDS, *_COUNTS, *_NUMBERS])
    return frame.astype(dict.fromkeys(_COUNTS, "int64") | dict.fromkeys(_NUMBERS, "float64"))


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in some folders, each once, in the order of the folders and then of their names.

    Raises:
        UserError: a folder does not exist or holds no run, or a run cannot be read.
    """
    from core.runs import Run

    found: dict[Path, Run] = {}
    for folder in map(Path, folders):
        paths = list(_run_folders(folder.expanduser()))
        if not paths:
            what = "holds no runs" if folder.is_dir() else "is no folder"
            raise UserError(f"{folder} {what}: name a run's folder, or one that has some in it")
        for path in paths:
            found.setdefault(path.resolve(), Run.open(path))
    return list(found.values())


def _run_folders(folder: Path) -> Iterator[Path]:
    """Folders with a run's configuration; what lies within a run is not searched."""
    for path, folders, files in os.walk(folder):
        if {"config.yaml", "versions.json"} <= set(files):
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    low, high = row.pop("interval") or (None, None)
    return {**row, "return_low": low, "return_high": high}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration's entries by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def check_format(path: Path) -> None:
    """Raise a UserError for a name that is neither .parquet nor .csv."""
    if path.suffix not in (".parquet", ".csv"):
        raise UserError(f"cannot tell the format of {path.name!r}: name it .parquet or .csv")


def save_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a table whole, as .parquet or .csv by its name.

    Raises:
        UserError: another name, a full disk or a read-only folder.
    """
    check_format(path)
    write = frame.to_parquet if path.suffix == ".parquet" else frame.to_csv
    try:
        with replacing(path) as temporary:
            write(temporary, index=False)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}; free the disk or choose another folder") from error

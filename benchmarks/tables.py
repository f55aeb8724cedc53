"""A paper's table, or one of ours, from one YAML file: data, trainings, evaluations and the page, all of it resumable.

    python benchmarks/tables.py                           # which tables there are
    python benchmarks/tables.py guidance                  # makes docs/tables/guidance.md, .tex, .json and .png
    python benchmarks/tables.py my/own.yaml docs=my work=/scratch/tables workers=8

Datasets and runs go to WORK/NAME (runs/tables/NAME unless given). The same command goes on where it was stopped, and
makes only what is missing after a row, a column or a seed was added.
"""

import sys
from pathlib import Path

from core.cli.main import guarded
from core.cli.tables import make
from core.errors import UserError, nearest
from core.progress import console
from core.runs import versions
from core.tables import read_spec, render, write

_HERE = Path(__file__).parent
_OPTIONS = {"work": "runs/tables", "docs": str(_HERE.parent / "docs" / "tables"), "workers": "0"}


def main(arguments: list[str]) -> int:
    """Make the tables that are named; exit codes as of `convoy`."""

    def tables() -> None:
        names = [argument for argument in arguments if "=" not in argument]
        given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        for name in given:
            if name not in _OPTIONS:
                raise UserError(f"unknown option {name!r}: {nearest(name, _OPTIONS)}")
        options = {**_OPTIONS, **given}
        if not options["workers"].isdecimal():
            raise UserError(f"workers is {options['workers']!r}: give a number, 0 for as many as there are cores for")
        if not names:
            console.print("Tables: " + ", ".join(_known()), highlight=False)
        for name in names:
            _make(name, options)

    return guarded("tables", tables)


def _known() -> list[str]:
    return sorted(path.stem for path in (_HERE / "tables").glob("*.yaml"))


def _make(name: str, options: dict[str, str]) -> None:
    path = Path(name) if name.endswith((".yaml", ".yml")) else _HERE / "tables" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"there is no table {name!r}: {nearest(name, _known())}")
    spec = read_spec(path)
    table = make(spec, Path(options["work"]).expanduser() / spec.name, workers=int(options["workers"]))
    console.print(render.markdown(table), markup=False, highlight=False)
    made_by = {name: value for name, value in versions().items() if name != "started"}  # the same table, the same bytes
    for written in write(table, Path(options["docs"]).expanduser(), versions=made_by):
        console.print(f"wrote {written}", highlight=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

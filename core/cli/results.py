"""`convoy results`: the evaluations of any runs, as one table."""

from pathlib import Path

from core.cli import fronts
from core.cli.commands import data_root
from core.cli.show import print_protocol, print_rows
from core.errors import UserError
from core.frames import check_format, find_runs, results, save_frame
from core.front_figures import check_figure
from core.progress import console

_USAGE = (
    "convoy results FOLDER...  [out=TABLE.parquet | out=TABLE.csv]  [options=algo.horizon,trainer.steps]\n"
    "    [figure=FRONT.png, return and cost against the budget, before the data's episodes from data=FOLDER]"
)

_NAMES = ("out", "options", "figure", "data")


def command(arguments: list[str]) -> None:
    given: dict[str, list[str]] = {name: [] for name in _NAMES}
    folders: list[str] = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        given.get(name, folders).append(value if name in given else argument)
    options = [name for names in given["options"] for name in names.strip("[]").split(",")]
    if not folders or folders[0] in ("-h", "--help"):
        console.print(_USAGE, markup=False)
        return
    if odd := [folder for folder in folders if "=" in folder or folder.startswith("-")]:
        raise UserError(f"{odd[0]!r} is no folder: write {_USAGE.splitlines()[0]}")
    for out in given["out"]:
        check_format(Path(out))
    for figure in given["figure"]:
        check_figure(Path(figure))
    evaluated = [(run, run.rows()) for run in find_runs(folders)]
    if not any(rows for _, rows in evaluated):
        raise UserError(f"the runs in {', '.join(folders)} have no evaluations yet: convoy evaluate run={folders[0]}")
    for out in given["out"]:
        save_frame(results(*folders, options=options), Path(out).expanduser())
    for figure in given["figure"]:
        fronts.draw(evaluated, Path(figure).expanduser(), data_root("".join(given["data"][-1:])))
    for name in (*given["out"], *given["figure"]):
        console.print(f"wrote {name}", highlight=False)
    if not given["out"] and not given["figure"]:
        print_rows(evaluated)
        print_protocol(evaluated)

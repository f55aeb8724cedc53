"""`convoy results`: the evaluations of any runs, as one table."""

from pathlib import Path

from core.cli.show import table
from core.errors import UserError
from core.frames import find_runs, results, save_frame
from core.progress import console

_USAGE = "convoy results FOLDER...  [out=TABLE.parquet | out=TABLE.csv]"


def command(arguments: list[str]) -> None:
    outs = [argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")]
    folders = [argument for argument in arguments if not argument.startswith("out=")]
    if not folders or folders[0] in ("-h", "--help"):
        console.print(_USAGE, markup=False)
        return
    if odd := [folder for folder in folders if "=" in folder or folder.startswith("-")]:
        raise UserError(f"{odd[0]!r} is no folder: write {_USAGE}")
    runs = find_runs(folders)
    for out in outs:
        save_frame(results(*folders), Path(out).expanduser())
        console.print(f"wrote {out}", highlight=False)
    if not outs:
        console.print(table([row for run in runs for row in run.rows()]))

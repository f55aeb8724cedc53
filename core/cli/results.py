"""`convoy results`: the evaluations of any runs, as one table."""

from pathlib import Path

from core.cli.show import print_protocol, table
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
        evaluated = [(run, run.rows()) for run in runs]
        rows = [row for _, rows in evaluated for row in rows]
        if not rows:
            raise UserError(
                f"the runs in {', '.join(folders)} have no evaluations yet: convoy evaluate run={folders[0]}"
            )
        console.print(table(rows))
        print_protocol(evaluated)

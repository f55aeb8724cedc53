"""`convoy results`: the evaluations of any runs, as one table."""

from pathlib import Path

from core.cli.show import print_protocol, print_rows
from core.errors import UserError
from core.frames import check_format, find_runs, results, save_frame
from core.progress import console

_USAGE = "convoy results FOLDER...  [out=TABLE.parquet | out=TABLE.csv]  [options=algo.horizon,trainer.steps]"


def command(arguments: list[str]) -> None:
    outs = [argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")]
    given = [argument.removeprefix("options=") for argument in arguments if argument.startswith("options=")]
    options = [name for names in given for name in names.strip("[]").split(",")]
    folders = [argument for argument in arguments if not argument.startswith(("out=", "options="))]
    if not folders or folders[0] in ("-h", "--help"):
        console.print(_USAGE, markup=False)
        return
    if odd := [folder for folder in folders if "=" in folder or folder.startswith("-")]:
        raise UserError(f"{odd[0]!r} is no folder: write {_USAGE}")
    for out in outs:
        check_format(Path(out))
    evaluated = [(run, run.rows()) for run in find_runs(folders)]
    if not any(rows for _, rows in evaluated):
        raise UserError(f"the runs in {', '.join(folders)} have no evaluations yet: convoy evaluate run={folders[0]}")
    for out in outs:
        save_frame(results(*folders, options=options), Path(out).expanduser())
        console.print(f"wrote {out}", highlight=False)
    if not outs:
        print_rows(evaluated)
        print_protocol(evaluated)

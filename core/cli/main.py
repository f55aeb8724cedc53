"""`convoy VERB [name=value ...]`."""

import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from core.errors import UserError, nearest
from core.progress import errors

_HELP = """\
Convoy: diffusion planners for teams, and for staying safe.

  convoy demo                                  the whole story in minutes: data, training, plans, report
  convoy collect  task=mpe/spread quality=expert episodes=2000
  convoy data     list | info DATASET [figure=COSTS.png] | import PATH id=mpe/spread/omar/expert-v0
  convoy train    algo=madiff task=mpe/spread dataset=expert [run=FOLDER]
  convoy sweep    algo=madiff,bc dataset=expert,mixed trainer.seed=0,1,2 [cpus=1 minutes=20]
  convoy evaluate run=FOLDER,... [episodes=200 sampler=ddim,dpm sampler.steps=5,10 guidance.scale=0,1.2,2]
  convoy results  FOLDER... [out=table.parquet figure=FRONT.png]
  convoy report   FOLDER...

Options are name=value; commas in `sweep` and `evaluate` make a grid. `convoy VERB --help` lists a verb's options,
`convoy VERB ... --cfg` prints the configuration it would run with.
"""


def _verbs() -> dict[str, Callable[[list[str]], None]]:
    from core.cli import collect, data, demo, evaluate, report, results, sweep, train

    return {
        "demo": demo.command,
        "collect": collect.command,
        "data": data.command,
        "train": train.command,
        "sweep": sweep.command,
        "evaluate": evaluate.command,
        "results": results.command,
        "report": report.command,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. Exit codes: 0 done, 2 a mistake in the input, 130 or 143 stopped by Ctrl-C
    or SIGTERM."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0

    def verb() -> None:
        verbs = _verbs()
        if arguments[0] not in verbs:
            raise UserError(f"unknown verb {arguments[0]!r}: {nearest(arguments[0], verbs)}")
        verbs[arguments[0]](arguments[1:])

    return guarded("convoy", verb)


def guarded(program: str, function: Callable[[], None]) -> int:
    """Run a command's function: mistakes and interruptions are one line and an exit code, as of `main`."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        function()
    except UserError as error:
        errors.print(f"{program}: {error}", markup=False, highlight=False)
        return 2
    except KeyboardInterrupt as interrupt:
        errors.print(f"{program}: stopped; the same command goes on from here", markup=False)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except BrokenPipeError:
        return 0
    return 0


def _interrupt(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(number)

"""Convoy's commands as processes that are killed, and what became of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from core import checkpoints
from core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

#: What a kill leaves of a checkpoint that was being written, and of a stack's that were taking their places.
UNFINISHED, BEFORE = ".checkpoint.safetensors.*", ".checkpoint.*.before"

#: What is started in place of `convoy`. It writes a byte for each training step and each episode that it begins.
PROGRAM = """\
import os, sys
from core.cli import evaluate, main
from core.training import Trainer
count = os.open("count", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
step, rollout = Trainer._train_step, evaluate.rollout
Trainer._train_step = lambda self: (os.write(count, b"."), step(self))[1]
evaluate.rollout = lambda p, m, seeds, **o: (os.write(count, b"." * len(seeds)), rollout(p, m, seeds, **o))[1]
if __name__ == "__main__":
    sys.exit(main())
"""


@dataclass(frozen=True)
class Moment:
    """When to kill: `delay` seconds after the start, the first step, the `number`-th checkpoint that is begun, the
    moment when a stack's checkpoints begin to take their places, or when what that left is mended, as `kind` says."""

    kind: str
    number: int = 0
    delay: float = 0.0


@dataclass(frozen=True)
class Death:
    """What a kill found: steps or cells that stand written and those lost; whether a checkpoint was being written."""

    kind: str
    kept: int
    lost: int
    writing: bool = False
    first: bool = False  # before there was any checkpoint


@dataclass(frozen=True)
class Result:
    """Some work that was killed, in numbers. `lost` is in steps or cells, a kill in the mean; `broken` promises fail
    the benchmark; `more` is what one kind of work alone has."""

    work: str
    kills: int
    while_writing: int
    before_the_first_checkpoint: int
    lost: float
    identical: bool
    left_files: int
    left_kilobytes: int
    broken: list[str]
    more: dict[str, Any]
    deaths: list[Death]

    @staticmethod
    def of(
        work: str, deaths: list[Death], different: list[str], broken: list[str], left: list[Path], **more: Any
    ) -> "Result":
        size = sum(path.stat().st_size for path in left)
        writing, first = sum(death.writing for death in deaths), sum(death.first for death in deaths)
        lost = round(sum(death.lost for death in deaths) / max(1, len(deaths)), 1)
        counts = (len(left), size // 1000)
        wrong = [*different, *broken]
        return Result(work, len(deaths), writing, first, lost, not different, *counts, wrong, more, deaths)


class Work:
    """A command and the runs that it trains."""

    def __init__(self, place: Path, arguments: Sequence[str], runs: Sequence[Path] = ()):
        self.place, self.arguments, self.runs = place, list(arguments), list(runs)
        self.broken: list[str] = []

    def start(self) -> subprocess.Popen[bytes]:
        """The command in a session of its own, so that its workers die with it."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        command = [sys.executable, "convoy.py", *self.arguments]
        with (self.place / "output").open("wb") as output:
            return subprocess.Popen(
                command, cwd=self.place, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def finish(self) -> None:
        """Let the command come to its end.

        Raises:
            RuntimeError: it failed.
        """
        self._check(self.start().wait())

    def _check(self, code: int) -> None:
        if code:
            output = (self.place / "output").read_text()
            raise RuntimeError(f"convoy {' '.join(self.arguments[:4])} ended with {code}:\n{output[-2000:]}")

    def begun(self) -> int:
        """Steps or episodes that were ever begun here."""
        path = self.place / "count"
        return path.stat().st_size if path.exists() else 0

    def checkpoints(self) -> list[Path]:
        return [path for run in self.runs if (path := run / "checkpoint.safetensors").exists()]

    def steps(self) -> int:
        """Steps behind the checkpoints of all runs."""
        found = self.checkpoints()
        return min(int(checkpoints.read_metadata(path)["step"]) for path in found) if found else 0

    def hidden(self, name: str) -> set[str]:
        """Hidden files of that pattern in the runs' folders."""
        return {path for run in self.runs for path in glob(f"{run}/{name}")}  # noqa: PTH207

    def kill(self, sign: Callable[[], bool], delay: float) -> bool:
        """Start, and kill -9 all processes some seconds after the sign; whether that came before the end."""
        process = self.start()
        while process.poll() is None and not sign():
            time.sleep(0.0002)
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        if code != -signal.SIGKILL:
            self._check(code)
            return False
        with suppress(ProcessLookupError):  # the system takes a moment to reap a killed parent's workers
            for _ in range(1000):
                os.killpg(process.pid, 0)
                time.sleep(0.01)
        return True

    def kill_training(self, moment: Moment) -> Death | None:
        """Kill at a moment; None where the work came to its end before."""
        begun, steps, left = self.begun(), self.steps(), self.hidden(UNFINISHED)
        mended = self.hidden(BEFORE)
        seen: set[str] = set()

        def writes() -> bool:
            seen.update(self.hidden(UNFINISHED) - left)
            return len(seen) > moment.number

        signs = {
            "start": lambda: True,
            "step": lambda: self.begun() > begun,
            "writing": writes,
            "replacing": lambda: self.begun() > begun and bool(self.hidden(BEFORE)),
            "mending": lambda: self.hidden(BEFORE) != mended or self.begun() > begun,
        }
        if not self.kill(signs[moment.kind], moment.delay):
            return None
        for path in self.checkpoints():
            try:
                checkpoints.load(path)
            except UserError as error:
                self.broken.append(str(error))
        kept = self.steps()
        writing = bool(self.hidden(UNFINISHED) - left) or bool(self.hidden(BEFORE))
        return Death(moment.kind, kept, self.begun() - begun - (kept - steps), writing, not self.checkpoints())


def left_over(folders: Sequence[Path]) -> list[Path]:
    """Files that no finished work has."""
    hidden = [path for folder in folders for path in folder.glob(".*")]
    return [path for path in hidden if path.name not in (".training", ".evaluating")]

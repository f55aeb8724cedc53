"""Independent jobs on all cores, one process and one CPU thread each: on two cores two small trainings side by side
finish sooner than one after the other with two threads."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from rich.progress import Progress, TaskID

from core.errors import UserError
from core.progress import console, progress_bars

Report = Callable[[int, str], None]  # (amount of the total done so far, note)


@dataclass(frozen=True)
class Job:
    """function(*arguments, report) in a process of its own; `total` is what `report` counts up to."""

    name: str
    total: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_of(workers: int) -> int:
    """How many processes are meant; 0 takes one for each core."""
    return workers or cores()


def run_jobs(jobs: Sequence[Job], workers: int = 0, *, keep_going: bool = False) -> list[Any]:
    """Run jobs, the first ones first, and return their results in order.

    On a terminal each running job has a bar. A line says when one is done.

    Args:
        workers: processes at a time; 0 takes one for each core.
        keep_going: a failure is raised when all other jobs are done; without it, the first one ends all.

    Raises:
        UserError: a job raised one, or its process was killed.
        KeyboardInterrupt: every running job was asked to stop, and did.
    """
    with progress_bars() as bars:
        pool = _Pool(jobs, bars, keep_going)
        try:
            return pool.run(workers_of(workers))
        finally:
            pool.stop()


@dataclass
class _Pool:
    jobs: Sequence[Job]
    bars: Progress
    keep_going: bool
    running: dict[Connection, tuple[int, Any]] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.whole = self.bars.add_task(f"{len(self.jobs)} jobs", total=len(self.jobs), note="")
        self.tasks: dict[int, TaskID] = {}  # of the running jobs: a terminal has no room for all

    def run(self, workers: int) -> list[Any]:
        waiting = list(range(len(self.jobs)))
        while waiting or self.running:
            while waiting and len(self.running) < workers:
                self._start(waiting.pop(0))
            for connection in wait(list(self.running)):
                assert isinstance(connection, Connection)
                self._receive(connection)
        if self.failures:
            others = f" ({len(self.failures) - 1} more failed as well)" if len(self.failures) > 1 else ""
            raise type(self.failures[0])(f"{self.failures[0]}{others}")
        return [self.results[index] for index in range(len(self.jobs))]

    def _start(self, index: int) -> None:
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(self.jobs[index], sender))
        process.start()
        sender.close()  # the child's copy alone stays open, so that its end is the pipe's end
        self.running[receiver] = (index, process)
        self.tasks[index] = self.bars.add_task(self.jobs[index].name, total=self.jobs[index].total, note="")

    def _receive(self, connection: Connection) -> None:
        index, process = self.running[connection]
        job = self.jobs[index]
        try:
            kind, value = connection.recv()
        except EOFError:
            process.join()
            ended = f"{job.name} was ended (exit code {process.exitcode}); run the command again"
            self._fail(connection, UserError(ended))
            return
        if kind == "progress":
            done, note = value
            self.bars.update(self.tasks[index], completed=done, note=note)
            return
        if kind in ("mistake", "failure"):
            mistake = kind == "mistake"
            told = f"{job.name}: {value}" if self.keep_going and job.name not in value else value
            self._fail(connection, UserError(told) if mistake else RuntimeError(f"{job.name} failed:\n{value}"))
            return
        self.results[index] = value
        del self.running[connection]
        process.join()
        self._end(index)
        console.print(f"done: {job.name}", markup=False, highlight=False)

    def _fail(self, connection: Connection, error: Exception) -> None:
        """Raise the error, or keep it until the other jobs are done."""
        if not self.keep_going:
            raise error
        index, process = self.running.pop(connection)
        process.join()
        self.failures.append(error)
        self._end(index)
        console.print(f"failed: {self.jobs[index].name}", markup=False, highlight=False)

    def _end(self, index: int) -> None:
        self.bars.remove_task(self.tasks.pop(index))
        self.bars.advance(self.whole)

    def stop(self) -> None:
        """Ask what still runs to stop, and wait for it."""
        for _, process in self.running.values():
            process.terminate()
        for _, process in self.running.values():
            process.join()


def _work(job: Job, sender: Connection) -> None:
    """A job's process: the parent alone answers Ctrl-C, and passes it on as SIGTERM."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    torch.set_num_threads(1)

    def report(done: int, note: str) -> None:
        try:
            sender.send(("progress", (done, note)))
        except OSError:  # the parent was killed: stop as if it had asked to
            signal.raise_signal(signal.SIGTERM)

    try:
        answer = ("result", job.function(*job.arguments, report))
    except UserError as error:
        answer = ("mistake", str(error))
    except KeyboardInterrupt:
        return
    except Exception:
        answer = ("failure", traceback.format_exc())
    with suppress(OSError):
        sender.send(answer)


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt

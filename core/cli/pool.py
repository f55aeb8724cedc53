"""Independent jobs on all cores, one process and one CPU thread each: on two cores two small trainings side by side
finish sooner than one after the other with two threads."""

import multiprocessing
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from core.progress import console, progress_bars

Report = Callable[[int, str], None]  # (amount of the total done so far, note)


@dataclass(frozen=True)
class Job:
    """function(*arguments, report) in a process of its own; `total` is what `report` counts up to."""

    name: str
    total: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def run_jobs(jobs: Sequence[Job], workers: int = 0) -> list[Any]:
    """Run jobs, the first ones first, and return their results in order. The first failure ends all.

    On a terminal each job has a bar; elsewhere a line says when it is done.
    """
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, progress_bars() as bars:
        messages = manager.Queue()
        tasks = [bars.add_task(job.name, total=job.total, note="waiting") for job in jobs]
        with ProcessPoolExecutor(workers, mp_context=context) as executor:
            futures = [executor.submit(_work, index, job, messages) for index, job in enumerate(jobs)]
            try:
                _watch(futures, messages, lambda i, done, note: bars.update(tasks[i], completed=done, note=note), jobs)
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]


def _watch(futures: list[Future], messages: Any, update: Callable[[int, int, str], None], jobs: Sequence[Job]) -> None:
    """Pass messages on to the bars until every job is done, or one failed."""
    open_jobs = set(range(len(futures)))
    while open_jobs:
        try:
            update(*messages.get(timeout=0.2))
            continue
        except queue.Empty:
            pass
        for index in [i for i in open_jobs if futures[i].done()]:
            futures[index].result()
            open_jobs.discard(index)
            update(index, jobs[index].total, "done")
            if not console.is_terminal:
                console.print(f"done: {jobs[index].name}", markup=False, highlight=False)


def _work(index: int, job: Job, messages: Any) -> Any:
    import torch

    torch.set_num_threads(1)
    return job.function(*job.arguments, lambda done, note: messages.put((index, done, note)))

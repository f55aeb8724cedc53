"""`convoy sweep`: trainings over seeds, algorithms, tasks and datasets."""

import math
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

import marl
from core.cli.commands import Sweep
from core.cli.compose import configure_each
from core.cli.launchers import launch
from core.cli.pool import Job, Report, run_jobs
from core.cli.together import groups, steps_done, train_together
from core.cli.train import build, choice, interruptible, load_dataset, run_name, spec_of
from core.config import swept, to_object
from core.device import device_of
from core.progress import console

#: Stacks are faster on a CPU than their seeds one by one from this many seeds on, and up to this much work for each of
#: the network's tensors: parameters times items of a step, over tensors (benchmarks/stacking.py).
SEEDS, WORK = 3, 64_000

#: What names a run anyway.
_NAMED = ("algo", "task", "dataset", "trainer.seed")


def command(arguments: list[str]) -> None:
    each = configure_each("sweep", arguments)
    if not each:
        return
    extra = [name for name in swept(arguments) if name not in _NAMED]
    trainings = [(options, named(config, options, extra)) for options, config in each]
    jobs = share_out(trainings)
    unfinished = run_sweep(jobs)
    folders = [folder for _, job in jobs for folder in folders_of(job)]
    done = len(folders) - len(unfinished)
    console.print(f"trained {done} of {len(folders)} runs in {each[0][1].output}", highlight=False)
    for folder in unfinished:
        minutes = f"{each[0][1].minutes:g} minutes"
        console.print(f"  {folder} used up its {minutes} at step {steps_done(folder)}", highlight=False)


def named(config: Sweep, options: Sequence[str], extra: Sequence[str]) -> Sweep:
    """The training with its name in tables: the preset, and the swept options that tell it from the others."""
    words = [option for option in options if option.split("=", 1)[0] in extra]
    method = config.method or choice(options, "algo") or config.algo.name
    return replace(config, method=" ".join([method, *words]), trainer=replace(config.trainer, threads=config.cpus))


Training = tuple[list[str], Sweep]


def share_out(trainings: Sequence[Training]) -> list[Training]:
    """Jobs, each of one or several seeds of a configuration, in the order of the trainings."""
    seeds: dict[str, list[Training]] = {}
    for options, config in trainings:
        key = repr(replace(config, trainer=replace(config.trainer, seed=0)))
        seeds.setdefault(key, []).append((options, config))
    jobs = []
    for group in seeds.values():
        each = list({config.trainer.seed: (options, config) for options, config in group}.values())
        size = stack_size(each[0][1], len(each))
        for first in range(0, len(each), size):
            options, config = each[first]
            members = [config.trainer.seed for _, config in each[first : first + size]]
            jobs.append((options, replace(config, seeds=members)))
    return jobs


def stack_size(config: Sweep, seeds: int) -> int:
    """Seeds of a job: all workers get some, where the algorithm allows a stack and the network gains by it."""
    if config.stack or seeds == 1:
        return config.stack or 1
    algorithm = marl.ALGORITHMS[config.algo.name]
    if not algorithm.stackable:
        return 1
    share = math.ceil(seeds / workers_of(config))
    if device_of(config.trainer.device).type == "cuda":
        return share
    network = build(config.algo, spec_of(load_dataset(config)))
    gains = share >= SEEDS and work_of(network) * config.trainer.batch_size <= WORK
    return share if gains else 1


def work_of(network: nn.Module) -> float:
    """Parameters for each tensor of them: the work of an item beside the starting of an operation."""
    sizes = [parameter.numel() for parameter in network.parameters()]
    return sum(sizes) / len(sizes)


def workers_of(config: Sweep) -> int:
    """Jobs at a time."""
    return config.workers or max(1, (os.cpu_count() or 1) // config.cpus)


def run_sweep(jobs: Sequence[Training]) -> list[Path]:
    """Train the jobs; returns the folders of those that ran out of their time.

    Raises:
        UserError: some failed, after all others were trained.
        KeyboardInterrupt: asked to stop; every running training has written a checkpoint.
    """
    first = jobs[0][1]
    jobs = [(options, job) for options, job in jobs if to_do(job)]
    if not jobs:
        return []
    if first.launcher == "local":
        pool = [
            Job(run_name(job), job.trainer.steps, train_job, (replace(job, algo=deepcopy(job.algo)),))
            for _, job in jobs
        ]
        found = run_jobs(pool, workers_of(first), keep_going=True)
    else:
        overrides = [
            [*options, f"seeds={job.seeds}", f"method='{job.method}'", f"trainer.threads={job.cpus}"]
            for options, job in jobs
        ]
        found = launch(
            first.launcher,
            "sweep",
            overrides,
            train_composed,
            folder=Path(first.output).expanduser() / ".launcher",
            workers=workers_of(first),
            cpus=first.cpus,
            minutes=first.minutes * max(len(job.seeds) for _, job in jobs),
            options=first.options,
        )
    return [folder for unfinished in found for folder in unfinished]


def to_do(job: Sweep) -> list[list[Path]]:
    """What a job has still to train."""
    return groups(dict(zip(folders_of(job), seeds_of(job), strict=True)))


def seeds_of(job: Sweep) -> list[Sweep]:
    """The trainings of a job."""
    return [replace(job, trainer=replace(job.trainer, seed=seed)) for seed in job.seeds]


def train_composed(config: DictConfig) -> list[Path]:
    """A job as a launcher's worker gets it."""
    return train_job(to_object(config), lambda done, note: None)


def train_job(job: Sweep, report: Report) -> list[Path]:
    """Train the seeds of a job; returns the folders of those that ran out of their time."""
    with interruptible() as stop:
        seconds = 60 * job.minutes or math.inf
        return train_together(seeds_of(job), folders_of(job), partial(_tell, report), stop, seconds=seconds)


def _tell(report: Report, step: int, metrics: dict[str, float]) -> None:
    report(step, ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith("loss")))


def folders_of(job: Sweep) -> list[Path]:
    """The run folders of a job's seeds."""
    return [Path(job.output).expanduser() / run_name(one) for one in seeds_of(job)]

"""`convoy sweep`: trainings over seeds, algorithms, tasks and datasets."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from core.cli.commands import Sweep, data_root
from core.cli.compose import configure_each
from core.cli.launchers import launch
from core.cli.pool import Job, Report, cores, run_jobs
from core.cli.registry import ALGORITHMS
from core.cli.train import choice
from core.cli.trainings import (
    build,
    chosen,
    dataset_name,
    groups,
    interruptible,
    load_dataset,
    run_name,
    steps_done,
    train_together,
)
from core.config import differences, quoted, swept, to_object
from core.data import read_provenance
from core.device import device_of
from core.errors import UserError
from core.progress import console
from core.runs import Run

#: Stacks are faster on a CPU than their seeds one by one from this many seeds on, and up to this much work for each of
#: the network's tensors: parameters times items of a step, over tensors (benchmarks/stacking.py).
SEEDS, WORK = 3, 64_000

_QUOTES = "'\""

#: What names a run anyway.
_NAMED = ("algo", "task", "dataset", "trainer.seed")


def command(arguments: list[str]) -> None:
    each = configure_each("sweep", arguments)
    if not each:
        return
    extra = [name for name in swept(arguments) if name not in _NAMED]
    if any(argument.startswith("method=") for argument in arguments) and "algo" in swept(arguments):
        extra.append("algo")
    trainings = [(options, named(config, options, extra)) for options, config in each]
    jobs = share_out(trainings)
    unfinished = run_sweep(jobs)
    folders = [folder for _, job in jobs for folder in runs_of(job)]
    done = len(folders) - len(unfinished)
    console.print(f"trained {done} of {len(folders)} runs in {each[0][1].output}", highlight=False)
    for folder in unfinished:
        minutes = f"{each[0][1].minutes:g} minutes"
        console.print(f"  {folder} used up its {minutes} at step {steps_done(folder)}", highlight=False)


def named(config: Sweep, options: Sequence[str], extra: Sequence[str]) -> Sweep:
    """The training with its name in tables: the preset, and the swept options that tell it from the others."""
    values = dict(option.split("=", 1) for option in options)
    words = [f"{name}={value.strip(_QUOTES)}" for name, value in values.items() if name in extra and name != "algo"]
    preset = choice(options, "algo") or config.algo.name
    method = f"{config.method} {preset}" if config.method and "algo" in extra else config.method or preset
    return replace(config, method=" ".join([method, *words]), trainer=replace(config.trainer, threads=config.cpus))


Training = tuple[list[str], Sweep]


def share_out(trainings: Sequence[Training]) -> list[Training]:
    """Jobs, each of one or several seeds of a configuration, in the order of the trainings."""
    seeds: dict[str, list[Training]] = {}
    for options, config in trainings:
        key = repr(replace(config, trainer=replace(config.trainer, seed=0), seeds=[]))
        seeds.setdefault(key, []).append((options, config))
    _refuse_one_folder_for_two([config for _, config in trainings])
    jobs = []
    for group in seeds.values():
        each = list({config.trainer.seed: (options, config) for options, config in group}.values())
        size = stack_size(each[0][1], len(each))
        for first in range(0, len(each), size):
            options, config = each[first]
            members = [config.trainer.seed for _, config in each[first : first + size]]
            jobs.append((options, replace(config, seeds=members)))
    return jobs


def _refuse_one_folder_for_two(configs: Sequence[Sweep]) -> None:
    owner: dict[str, Sweep] = {}
    for config in configs:
        other = owner.setdefault(run_name(config), config)
        if other != config:
            what = differences(chosen(other), chosen(config)) or [f"data was {other.data}, is {config.data}"]
            raise UserError(f"two trainings would share the folder {run_name(config)} ({what[0]}): give each a method=")


def stack_size(config: Sweep, seeds: int) -> int:
    """Seeds of a job: all workers get some, where the algorithm allows a stack and the network gains by it."""
    if seeds == 1 or not ALGORITHMS[config.algo.name].stackable:
        return 1
    if config.stack:
        return config.stack
    share = math.ceil(seeds / workers_of(config))
    if device_of(config.trainer.device).type == "cuda":
        return share
    try:
        network = build(config.algo, load_dataset(config).spec)
    except UserError:  # its own job will say so, and the others go on
        return 1
    gains = share >= SEEDS and work_of(network) * config.trainer.batch_size <= WORK
    return share if gains else 1


def work_of(network: nn.Module) -> float:
    """Parameters for each tensor of them: the work of an item beside the starting of an operation."""
    sizes = [parameter.numel() for parameter in network.parameters()]
    return sum(sizes) / len(sizes)


def workers_of(config: Sweep) -> int:
    """Jobs at a time."""
    return config.workers or max(1, cores() // config.cpus)


def run_sweep(jobs: Sequence[Training]) -> list[Path]:
    """Train the jobs; returns the folders of those that ran out of their time.

    Raises:
        UserError: some failed, after all others were trained.
        KeyboardInterrupt: asked to stop; every running training has written a checkpoint.
    """
    first = jobs[0][1]
    jobs = [(options, job) for options, job in jobs if _is_left(job)]
    if not jobs:
        return []
    if first.launcher == "local":
        pool = [
            Job(_job_name(job), job.trainer.steps, train_job, (replace(job, algo=deepcopy(job.algo)),))
            for _, job in jobs
        ]
        found = run_jobs(pool, workers_of(first), keep_going=True)
    else:
        overrides = [
            [*options, f"seeds={job.seeds}", f"method={quoted(job.method)}", f"trainer.threads={job.cpus}"]
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
            minutes=first.minutes * max(len(job.seeds) for _, job in jobs),  # a stack may take all its runs' time
            options=first.options,
        )
    return [folder for unfinished in found for folder in unfinished]


def _is_left(job: Sweep) -> bool:
    """Whether a job has still something to train; runs that are complete must be its own."""
    config_of = runs_of(job)
    if groups(config_of):
        return True
    algo = ALGORITHMS[job.algo.name].completed(job.algo)
    for folder, config in config_of.items():
        run = Run.open(folder)
        named = dataset_name(config)
        known = read_provenance(named, data_root(config.data)).fingerprint
        data = {**run.config["dataset"], "id": named} | ({"fingerprint": known} if known else {})
        run.refuse_changes({**chosen(replace(config, algo=algo)), "dataset": data})
    return False


def _job_name(job: Sweep) -> str:
    seeds = ", ".join(map(str, job.seeds))
    return f"{run_name(job)}, stacked with seeds {seeds}" if len(job.seeds) > 1 else run_name(job)


def runs_of(job: Sweep) -> dict[Path, Sweep]:
    """The training of each run folder of a job."""
    each = [replace(job, trainer=replace(job.trainer, seed=seed)) for seed in job.seeds]
    return {Path(job.output).expanduser() / run_name(one): one for one in each}


def train_composed(config: DictConfig) -> list[Path]:
    """A job as a launcher's worker gets it."""
    return train_job(to_object(config), lambda done, note: None)


def train_job(job: Sweep, report: Report) -> list[Path]:
    """Train the seeds of a job; returns the folders of those that ran out of their time."""
    with interruptible() as stop:
        seconds = 60 * job.minutes or math.inf
        return train_together(runs_of(job), partial(_tell, report), stop, seconds=seconds)


def _tell(report: Report, step: int, metrics: dict[str, float]) -> None:
    report(step, ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith("loss")))

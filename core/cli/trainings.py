"""Trainings as commands start them: one run, or the runs of several seeds, with their locks, logs and limits."""

import hashlib
import json
import math
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from core.algorithm import Algorithm
from core.checkpoints import read_metadata, settle
from core.cli.commands import Train, data_root
from core.cli.registry import ALGORITHMS
from core.data import CurationConfig, Dataset, Trajectories, read_dataset, read_provenance
from core.device import device_of
from core.environments import TeamSpec
from core.errors import UserError
from core.files import check_writable, locked, remove_leftovers
from core.loggers import open_loggers
from core.runs import Run
from core.stacking import Stack
from core.training import CHECKPOINT, DivergenceError, Trainer

Progress = Callable[[int, dict[str, float]], None]


def run_name(config: Train) -> str:
    """TASK-DATASET-METHOD-sSEED, in letters that every file system takes."""
    dataset = config.dataset.removesuffix("-v0")
    name = re.sub(r"[^A-Za-z0-9=+._-]+", "-", f"{config.task.name}-{dataset}-{config.method}")
    if len(name) > 150:  # file systems take 255 bytes, some less
        name = f"{name[:140]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    return f"{name}-s{config.trainer.seed}"


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a request to stop after the step; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*asked[:1]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_together(
    config_of: Mapping[Path, Train],
    progress: Progress = lambda step, metrics: None,
    stop: Callable[[], bool] = lambda: False,
    *,
    seconds: float = math.inf,
) -> list[Path]:
    """Train runs that differ in their seeds alone, or go on with them; returns the folders that are not complete.

    Runs that are at the same step, such as none of them begun, train as one stack; a single one is none. A stack that
    was stopped or killed goes on as the same stack, to exactly the same weights.

    Args:
        config_of: the training of each run folder. progress: of the first run of the stack that is being trained.
        seconds: of training that each run may take, with those before it was stopped; in a stack it takes its share.

    Raises:
        UserError: the dataset does not exist or is another task's, the network cannot take the configuration, a folder
            cannot be written, holds another run or is in use by another process, or a checkpoint is corrupt.
        KeyboardInterrupt: `stop` asked to; checkpoints were written.
    """
    config = next(iter(config_of.values()))
    device_of(config.trainer.device)
    dataset = load_dataset(config)
    trajectories = curated(config, dataset)
    completed = ALGORITHMS[config.algo.name].completed(config.algo)
    build(completed, dataset.spec)  # before any folder is made
    unfinished: list[Path] = []
    with ExitStack() as locks:
        for folder, one in config_of.items():
            check_writable(folder)
            locks.enter_context(locked(folder / ".training", "training"))
            remove_leftovers(folder)
            one.algo = completed
            Run.create(folder, resolved(one, dataset))
        settle([folder / CHECKPOINT for folder in config_of])
        diverged: list[DivergenceError] = []
        waiting = groups(config_of)
        while waiting:
            group = waiting.pop(0)
            try:
                members = {folder: config_of[folder] for folder in group}
                complete = _train_group(members, dataset.spec, trajectories, progress, stop, seconds)
            except DivergenceError as error:
                if len(group) > 1:  # the others go on without it
                    waiting = [[folder] for folder in group] + waiting
                else:
                    diverged.append(error)
                continue
            if not complete:
                unfinished += group
                if stop():
                    raise KeyboardInterrupt
    if diverged:
        raise diverged[0]
    return unfinished


def groups(config_of: Mapping[Path, Train]) -> list[list[Path]]:
    """The runs that are not complete, those of one step together."""
    found: dict[int, list[Path]] = {}
    for folder, config in config_of.items():
        step = steps_done(folder)
        if step < config.trainer.steps:
            found.setdefault(step, []).append(folder)
    return list(found.values())


def steps_done(folder: Path) -> int:
    """Training steps behind a run's checkpoint, 0 where there is none.

    Raises:
        UserError: it is corrupt.
    """
    path = folder / CHECKPOINT
    return int(read_metadata(path)["step"]) if path.exists() else 0


def curated(config: Train, dataset: Dataset) -> Trajectories:
    """What is learned from of a dataset.

    Raises:
        UserError: nothing is left of it.
    """
    try:
        return config.curation.of(dataset.trajectories)
    except ValueError as error:
        raise UserError(str(error)) from error


def _train_group(
    config_of: Mapping[Path, Train],
    spec: TeamSpec,
    trajectories: Trajectories,
    progress: Progress,
    stop: Callable[[], bool],
    seconds: float,
) -> bool:
    """Train runs of one step as one stack, or one run; whether they are complete."""
    configs = list(config_of.values())
    trainer_config = configs[0].trainer
    torch.set_num_threads(trainer_config.threads)
    device = device_of(trainer_config.device)
    members = []
    for config in configs:
        torch.manual_seed(config.trainer.seed)
        members.append(build(config.algo, spec).to(device))
    for member in members:
        batches = member.prepare(trajectories)
    trainer = Trainer(
        members[0],
        batches,
        trainer_config,
        *config_of,
        stack=Stack(members) if len(members) > 1 else None,
        seeds=[config.trainer.seed for config in configs],
    )
    if trainer.rows:
        progress(trainer.step, trainer.rows[-1])
    with ExitStack() as files:
        loggers = [open_loggers(configs[0].loggers, run, Run.open(run).config, trainer.step) for run in config_of]
        for logger in (logger for each in loggers for logger in each):
            files.callback(logger.close)

        def log(step: int, metrics: dict[str, float]) -> None:
            for each, table in zip(loggers, trainer.tables, strict=True):
                for logger in each:
                    logger.log(step, {name: value for name, value in table[-1].items() if name != "step"})
            progress(step, metrics)

        return trainer.run(log, lambda: stop() or trainer.seconds >= seconds)


def build(config: object, spec: TeamSpec) -> Algorithm:
    """The algorithm that a configuration names.

    Raises:
        UserError: the network cannot take the configuration.
    """
    name = getattr(config, "name", "")
    try:
        return ALGORITHMS[name](config, spec)
    except ValueError as error:
        raise UserError(str(error)) from error


def dataset_name(config: Train) -> str:
    """The id of the training's dataset, which may be given as a quality of the task."""
    return config.task.dataset_id(config.dataset) if "/" not in config.dataset else config.dataset


def load_dataset(config: Train) -> Dataset:
    """The training's dataset: the task's own; or a single agent's that names no task, for an environment that is not
    our own, if it is of the environment's id and spaces, or tells no id and is of its spaces.

    Raises:
        UserError: there is none, it is another task's, or it cannot be read.
    """
    root, named = data_root(config.data), dataset_name(config)
    provenance = read_provenance(named, root)
    made_for, environment_id = (provenance.task, provenance.rules), provenance.environment_id
    alone = config.task.foreign and not provenance.task and len(provenance.agents) < 2
    fits = alone and environment_id in ("", config.task.environment_id)
    if not fits and made_for != (config.task.name, config.task.rules):
        known = f"of environment {environment_id}" if environment_id else "of no known task"
        is_of = f"of task {' under rules '.join(filter(None, made_for))}" if provenance.task else known
        wanted = " under ".join(filter(None, (config.task.name, config.task.rules)))
        raise UserError(f"dataset {named} is {is_of}, not of {wanted}: choose another dataset or task")
    dataset = read_dataset(named, root)
    if fits:
        with config.task.make() as environments:
            spec = environments.spec
        if dataset.spec != spec:
            raise UserError(
                f"dataset {named} is of {dataset.spec}, and {config.task.name} of {spec}: choose another dataset, task "
                "or task.options"
            )
        # Tables tell datasets apart by it.
        dataset = replace(dataset, provenance=replace(dataset.provenance, quality=provenance.quality or named))
    options = provenance.environment.get("options")  # of imported data nobody knows
    if config.task.foreign and options not in (None, config.task.options):
        raise UserError(
            f"dataset {named} is of task.options={options}, and this training of {config.task.options}: give the same"
        )
    if not config.task.foreign:
        with config.task.make() as environments:
            spec = environments.spec
        if dataset.spec.agents != spec.agents:
            raise UserError(
                f"dataset {named} is of {dataset.spec.agents} agents, and task.agents is {config.task.agents}: "
                "choose another dataset or set task.agents"
            )
        made_in, settings = provenance.environment, config.task.settings
        if (made_in and made_in != settings) or (not made_in and set(settings) - {"prey", "prey_description"}):
            raise UserError(
                f"dataset {named} was made with {made_in or 'the usual settings'}, and the task is set to "
                f"{settings or 'the usual ones'}: choose another dataset, or the same settings of task"
            )
        if dataset.spec != spec:
            raise UserError(
                f"dataset {named} is of {dataset.spec}, and the task of {spec}: choose another dataset, or set "
                "task.landmarks or task.entities"
            )
    return dataset


def chosen(config: Train) -> dict[str, object]:
    """What a training's options decide, without its data, as plain data."""
    return {
        "method": config.method,
        "task": asdict(config.task),
        "algo": asdict(config.algo),
        "trainer": asdict(config.trainer),
        **({"curation": asdict(config.curation)} if config.curation != CurationConfig() else {}),
    }


def resolved(config: Train, dataset: Dataset) -> dict[str, object]:
    """Everything that decides what is learned, as plain data."""
    return {
        **chosen(config),
        "dataset": {
            "id": dataset.id,
            "quality": dataset.provenance.quality,
            "fingerprint": dataset.trajectories.fingerprint(),
        },
        "spec": json.loads(json.dumps(asdict(dataset.spec))),  # lists, as they are read back
    }

"""`convoy train`."""

import math
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

import marl
from core.algorithm import Algorithm, TeamSpec
from core.cli.commands import Train, data_root
from core.cli.compose import configure
from core.data import Dataset, read_dataset, read_provenance
from core.device import device_of
from core.errors import UserError
from core.files import check_writable, locked
from core.loggers import open_loggers
from core.progress import console, progress_bars
from core.runs import Run
from core.stacking import Stack
from core.training import Trainer

Progress = Callable[[int, dict[str, float]], None]


def command(arguments: list[str]) -> None:
    config = configure("train", arguments)
    if config is None:
        return
    config.method = config.method or choice(arguments, "algo") or config.algo.name
    folder = run_folder(config)
    with progress_bars() as bars, interruptible() as stop:
        task = bars.add_task(f"training {folder.name}", total=config.trainer.steps, note="reading data")

        tenth = max(1, config.trainer.steps // 10)

        def progress(step: int, metrics: dict[str, float]) -> None:
            note = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.endswith("loss"))
            bars.update(task, completed=step, note=note)
            if not console.is_terminal and step // tenth > (step - config.trainer.log_every) // tenth:
                console.print(f"step {step} of {config.trainer.steps}: {note}", highlight=False)

        run = train(config, folder, progress, stop)
    console.print(f"trained {run.folder}: evaluate it with  convoy evaluate run={run.folder}", highlight=False)


def choice(arguments: Sequence[str], group: str) -> str:
    """The preset that the arguments choose of a group, "" for its default."""
    chosen = [argument.split("=", 1)[1] for argument in arguments if argument.startswith(f"{group}=")]
    return chosen[-1] if chosen else ""


def run_folder(config: Train) -> Path:
    """The run's folder: the given one, or a name of what is trained on what."""
    return Path(config.run).expanduser() if config.run else Path("runs") / run_name(config)


def run_name(config: Train) -> str:
    """TASK-DATASET-METHOD-sSEED, in letters that every file system takes."""
    dataset = config.dataset.removesuffix("-v0")
    name = f"{config.task.name}-{dataset}-{config.method}-s{config.trainer.seed}"
    return re.sub(r"[^A-Za-z0-9=._-]+", "-", name)


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


def train(
    config: Train,
    folder: Path,
    progress: Progress = lambda step, metrics: None,
    stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Train a run in `folder`, or go on with the one that is there. Errors as of `train_seeds`.

    Raises:
        KeyboardInterrupt: `stop` asked to; a checkpoint was written.
    """
    if not train_seeds([config], [folder], folder, progress, stop):
        raise KeyboardInterrupt
    return Run.open(folder)


def train_seeds(
    configs: Sequence[Train],
    folders: Sequence[Path],
    state: Path,
    progress: Progress = lambda step, metrics: None,
    stop: Callable[[], bool] = lambda: False,
    *,
    seconds: float = math.inf,
) -> bool:
    """Train one configuration with S seeds, each in a folder of its own, or go on with what is there.

    A single one trains as it is, several as a stack. Returns whether they are complete; a checkpoint is written either
    way.

    Args:
        configs: equal but for their seeds. state: where the checkpoint of the whole stack is kept.
        seconds: that the training may take in all, with those before it was stopped.

    Raises:
        UserError: the dataset does not exist or is another task's, the network cannot take the configuration, a folder
            cannot be written, holds another run or is in use by another process, or the checkpoint is corrupt.
    """
    first = configs[0]
    torch.set_num_threads(first.trainer.threads)
    device = device_of(first.trainer.device)
    dataset = load_dataset(first)
    spec = spec_of(dataset)
    completed = marl.ALGORITHMS[first.algo.name].completed(first.algo)
    members = []
    for config in configs:
        config.algo = completed
        torch.manual_seed(config.trainer.seed)
        members.append(build(completed, spec).to(device))
    with ExitStack() as locks:
        runs = []
        for config, folder in zip(configs, folders, strict=True):
            check_writable(folder)
            locks.enter_context(locked(folder / ".training", "training"))
            runs.append(Run.create(folder, resolved(config, dataset, spec)))
        batches, *_ = [member.prepare(dataset.trajectories) for member in members]
        stack = Stack(members) if len(members) > 1 else None
        seeds = [config.trainer.seed for config in configs]
        trainer = Trainer(members[0], batches, first.trainer, state, stack=stack, seeds=seeds, runs=folders)
        if trainer.rows:
            progress(trainer.step, trainer.rows[-1])
        loggers = [open_loggers(first.loggers, run.folder, run.config, trainer.step) for run in runs]
        for logger in (logger for each in loggers for logger in each):
            locks.callback(logger.close)

        def log(step: int, metrics: dict[str, float]) -> None:
            for each, table in zip(loggers, trainer.tables, strict=True):
                for logger in each:
                    logger.log(step, {name: value for name, value in table[-1].items() if name != "step"})
            progress(step, metrics)

        complete = trainer.run(log, lambda: stop() or trainer.seconds >= seconds)
        if complete:
            trainer.split()
    return complete


def spec_of(dataset: Dataset) -> TeamSpec:
    """Sizes of the dataset's team."""
    trajectories = dataset.trajectories
    return TeamSpec(trajectories.agents, trajectories.observations.shape[-1], trajectories.actions.shape[-1])


def build(config: object, spec: TeamSpec) -> Algorithm:
    """The algorithm that a configuration names.

    Raises:
        UserError: the network cannot take the configuration.
    """
    name = getattr(config, "name", "")
    try:
        return marl.ALGORITHMS[name](config, spec)
    except ValueError as error:
        raise UserError(str(error)) from error


def load_dataset(config: Train) -> Dataset:
    """The command's dataset, by quality or by id.

    Raises:
        UserError: there is none, it is another task's, or it cannot be read.
    """
    root = data_root(config.data)
    named = config.task.dataset_id(config.dataset) if "/" not in config.dataset else config.dataset
    provenance = read_provenance(named, root)
    made_for = (provenance.task, provenance.rules)
    if made_for != (config.task.name, config.task.rules):
        is_of = f"of task {made_for[0]} under rules {made_for[1]}" if provenance.task else "of no known task"
        raise UserError(
            f"dataset {named} is {is_of}, not of {config.task.name} under {config.task.rules}: "
            "choose another dataset or task"
        )
    if len(provenance.agents) != config.task.agents:
        raise UserError(
            f"dataset {named} is of {len(provenance.agents)} agents, and task.agents is {config.task.agents}: "
            "choose another dataset or set task.agents"
        )
    return read_dataset(named, root)


def chosen(config: Train) -> dict[str, object]:
    """What a training's options decide, without its data, as plain data."""
    return {
        "method": config.method,
        "task": asdict(config.task),
        "algo": asdict(config.algo),
        "trainer": asdict(config.trainer),
    }


def resolved(config: Train, dataset: Dataset, spec: TeamSpec) -> dict[str, object]:
    """Everything that decides what is learned, as plain data."""
    return {
        **chosen(config),
        "dataset": {
            "id": dataset.id,
            "quality": dataset.provenance.quality,
            "fingerprint": dataset.trajectories.fingerprint(),
        },
        "spec": asdict(spec),
    }

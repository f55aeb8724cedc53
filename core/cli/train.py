"""`convoy train`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from core.cli.commands import Train
from core.cli.compose import configure
from core.cli.trainings import Progress, interruptible, run_name, train_together
from core.progress import console, progress_bars
from core.runs import Run


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


def train(
    config: Train,
    folder: Path,
    progress: Progress = lambda step, metrics: None,
    stop: Callable[[], bool] = lambda: False,
) -> Run:
    """Train a run in `folder`, or go on with the one that is there. Errors as of `train_together`."""
    train_together({folder: config}, progress, stop)
    return Run.open(folder)

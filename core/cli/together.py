"""The seeds of one configuration as one job: stacked where they begin together, and resumed as they were stopped."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import marl
from core.checkpoints import read_metadata
from core.cli.commands import Train
from core.cli.train import chosen, train_seeds
from core.errors import UserError
from core.files import write_text
from core.runs import Run

_MEMBERS = "members.json"

Progress = Callable[[int, dict[str, float]], None]


def train_together(
    configs: Sequence[Train],
    folders: Sequence[Path],
    progress: Progress = lambda step, metrics: None,
    stop: Callable[[], bool] = lambda: False,
    *,
    seconds: float = math.inf,
) -> list[Path]:
    """Train configurations that differ in their seeds alone; returns the folders of the runs that are not complete.

    Seeds that begin together are one stack until they are complete, with its state in a hidden folder beside theirs.
    Those that were stopped go on as they were: exactly the same stack gives exactly the same weights.

    Args:
        folders: of the runs, in one parent folder. progress: of the first run of the stack that is being trained.
        seconds: of training that each run may take; a stack of S may take S times that.

    Raises:
        UserError: as `train_seeds`.
    """
    config_of = dict(zip(folders, configs, strict=True))
    unfinished: list[Path] = []
    for group in groups(config_of):
        state = group[0] if len(group) == 1 else state_folder(group)
        members = [config_of[folder] for folder in group]
        if len(group) > 1 and not (state / _MEMBERS).exists():
            shutil.rmtree(state, ignore_errors=True)
            write_text(state / _MEMBERS, json.dumps([folder.name for folder in group]))
        if train_seeds(members, group, state, progress, stop, seconds=seconds * len(group)):
            if len(group) > 1:
                (state / _MEMBERS).unlink()  # first, so that a part of the folder is never taken for a state
                shutil.rmtree(state)
        else:
            unfinished += group
            if stop():
                raise KeyboardInterrupt
    return unfinished


def groups(config_of: Mapping[Path, Train]) -> list[list[Path]]:
    """The runs that are still to be trained: as they were stacked before, alone where they were begun alone, and all
    the others as one stack.

    Raises:
        UserError: a complete run was trained otherwise.
    """
    found: list[list[Path]] = []
    by_name = {folder.name: folder for folder in config_of}
    for file in sorted(next(iter(config_of)).parent.glob(f".together-*/{_MEMBERS}")):
        names = _members(file)
        if set(names) <= by_name.keys():
            # A run's own configuration says whether it is the one that was stopped; without it the state is nobody's.
            if all((by_name[name] / "config.yaml").exists() for name in names):
                found.append([by_name[name] for name in names])
            else:
                shutil.rmtree(file.parent)
    left = [folder for folder in config_of if not any(folder in group for group in found)]
    done = {folder: steps_done(folder) for folder in left}
    begun = [[folder] for folder in left if 0 < done[folder] < config_of[folder].trainer.steps]
    new = [folder for folder in left if not done[folder]]
    for folder in left:
        if done[folder]:
            config = config_of[folder]
            completed = marl.ALGORITHMS[config.algo.name].completed(config.algo)
            Run.open(folder).refuse_changes(chosen(replace(config, algo=completed)))
    return [*found, *begun, *([new] if new else [])]


def steps_done(folder: Path) -> int:
    """Training steps behind a run's checkpoint, 0 where there is none."""
    path = folder / "checkpoint.safetensors"
    return int(read_metadata(path)["step"]) if path.exists() else 0


def state_folder(group: Sequence[Path]) -> Path:
    """Where a stack of runs keeps its state until they are complete."""
    names = hashlib.blake2b("\n".join(folder.name for folder in group).encode(), digest_size=6)
    return group[0].parent / f".together-{names.hexdigest()}"


def _members(file: Path) -> list[str]:
    try:
        names = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; delete {file.parent} to train its seeds anew") from error
    return [str(name) for name in names]

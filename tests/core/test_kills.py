"""Trainings, stacks and grids that are killed with -9, all their processes at once, and run again."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from core import checkpoints
from core.cli import main
from core.evaluations import read_rows
from core.training import read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]
CONVOY = "import sys; from core.cli import main; sys.exit(main())"
TINY = [
    "algo=madiff", "algo.width=16", "algo.horizon=4", "algo.inverse.hidden=16", "data=data", "trainer.batch_size=8",
    "trainer.device=cpu", "trainer.warmup=10", "trainer.checkpoint_every=5", "trainer.log_every=5", "task.max_cycles=5",
]  # fmt: skip
TRAIN = ["train", *TINY, "trainer.steps=120"]
STACK = ["sweep", *TINY, "trainer.steps=30", "trainer.seed=0,1,2", "stack=3"]
GRID = [
    "sampler.steps=1,2", "guidance.scale=0,1.4", "guidance.returns=0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    "episodes=2", "parallel=4", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small dataset and an undisturbed training on it."""
    folder = tmp_path_factory.mktemp("made")
    with chdir(folder):
        assert main(["collect", "quality=expert", "episodes=6", "data=data", "task.max_cycles=5"]) == 0
        assert main([*TRAIN, "run=straight"]) == 0
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """One's own copy of them, as the working directory."""
    folder = shutil.copytree(made, tmp_path / "place")
    monkeypatch.chdir(folder)
    return folder


def killed(arguments, sign, delay=0.0):
    """Start the command, and kill all its processes some seconds after the sign; False where it ended before."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", CONVOY, *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None and not sign():
        time.sleep(0.0005)
    time.sleep(delay)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    assert code in (0, -signal.SIGKILL)
    while alive(process.pid) and time.monotonic() < limit:
        time.sleep(0.01)
    return code != 0


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def on_write(*folders):
    """The sign that a checkpoint is being written in one of the folders, apart from what earlier kills left."""

    def unfinished():
        return {path for folder in folders for path in folder.glob(".checkpoint.*")}

    before = unfinished()
    return lambda: unfinished() - before


def assert_same_run(run, expected):
    """Weights, averages, optimisers and generator, bit for bit; and the table."""
    (found, metadata), (wanted, other) = (checkpoints.load(each / "checkpoint.safetensors") for each in (run, expected))
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert all(metadata[name] == other[name] for name in ("step", "ema_updates"))
    rows, others = ([{**row, "seconds": 0} for row in read_metrics(each / "metrics.csv")] for each in (run, expected))
    assert rows == others


def test_a_training_killed_while_it_writes_a_checkpoint(place):
    run, command = place / "killed", [*TRAIN, "run=killed"]
    checkpoint, writes = run / "checkpoint.safetensors", on_write(run)
    assert killed(command, lambda: checkpoint.exists() and writes())
    assert 0 < int(checkpoints.load(checkpoint)[1]["step"]) < 120
    assert main(command) == 0
    assert_same_run(run, place / "straight")


@pytest.mark.slow
def test_a_training_killed_at_random_moments(place):
    """At its start, then five times in the middle of a write or some steps after one."""
    draw = random.Random(0)
    run, command = place / "killed", [*TRAIN, "run=killed"]
    checkpoint = run / "checkpoint.safetensors"
    assert killed(command, lambda: True, draw.uniform(0, 3))
    for kind in draw.sample(["write", "write", "steps", "steps", "steps"], 5):
        longest = 0.02 if kind == "write" else 0.1
        assert killed(command, on_write(run), draw.uniform(0, longest))
        if checkpoint.exists():
            checkpoints.load(checkpoint)
    assert main(command) == 0
    assert_same_run(run, place / "straight")


@pytest.mark.slow
def test_a_stack_killed_while_it_writes_its_checkpoints(place):
    """In the write of the first and of the last seed's, and while they take the place of the ones before."""
    assert main([*STACK, "output=straight"]) == 0
    straight = sorted((place / "straight").glob("mpe-*"))
    runs, command = [place / "killed" / run.name for run in straight], [*STACK, "output=killed"]
    assert len(runs) == 3
    placing = lambda: list(runs[0].glob(".checkpoint.*.before"))  # noqa: E731
    for sign in (on_write(runs[0]), on_write(runs[-1]), placing):
        assert killed(command, sign)
        for path in (place / "killed").glob("*/checkpoint.safetensors"):
            checkpoints.load(path)
    assert main(command) == 0
    for run, expected in zip(runs, straight, strict=True):
        assert_same_run(run, expected)


@pytest.mark.slow
def test_a_grid_killed_while_it_is_rolled_out(place):
    """Each cell has one row in the end, the one that it would have had."""
    shutil.copytree(place / "straight", place / "killed")
    assert main(["evaluate", "run=straight", *GRID]) == 0
    table, command = place / "killed" / "evaluations.jsonl", ["evaluate", "run=killed", *GRID]
    assert killed(command, table.exists, 0.1)
    assert 0 < len(read_rows(table)) < 40
    assert main(command) == 0
    rows, expected = read_rows(table), read_rows(place / "straight" / table.name)
    assert len(rows) == len(expected) == 40
    returns = {row.cell: row.return_mean for row in rows}
    assert returns == pytest.approx({row.cell: row.return_mean for row in expected}, abs=1e-5)

"""Grids over trained runs: each cell once, whatever it is batched with, killed by or shared out to."""

import os
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pytest

from core.acting import GuidanceConfig
from core.cli import main
from core.cli.cells import cells_of
from core.cli.commands import Evaluate
from core.cli.compose import configure_grid
from core.cli.evaluate import evaluate, evaluate_all, packs
from core.cloning import Cloning
from core.errors import UserError
from core.evaluations import Cell
from core.files import locked
from core.runs import Run
from core.samplers import SamplerConfig
from marl import MADiff

REPOSITORY = Path(__file__).resolve().parents[2]
FAST = [
    "task.max_cycles=4", "data=data", "trainer.steps=30", "trainer.batch_size=16", "trainer.device=cpu",
    "trainer.warmup=0", "trainer.ema=0", "trainer.learning_rate=0.02",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A planner and a return-conditioned clone, hardly trained, on episodes of four steps."""
    folder = tmp_path_factory.mktemp("made")
    with chdir(folder):
        assert main(["collect", "quality=mixed", "episodes=8", "data=data", "task.max_cycles=4"]) == 0
        planner = ["algo=madiff", "algo.width=16", "algo.horizon=4", "algo.inverse.hidden=16"]
        assert main(["train", *planner, "dataset=mixed", *FAST, "run=madiff"]) == 0
        assert main(["train", "algo=bc_returns", "algo.hidden=16", "dataset=mixed", *FAST, "run=bc_returns"]) == 0
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """Runs of one's own, without evaluations, as the working directory."""
    import shutil

    folder = shutil.copytree(made, tmp_path / "place")
    monkeypatch.chdir(folder)
    return folder


GRID = ["sampler.steps=1,2", "guidance.scale=0,1,1.7", "guidance.returns=0.2,0.9", "episodes=3", "device=cpu"]


def values(rows):
    return {row.cell: (row.return_mean, row.interval, row.cost_mean) for row in rows}


@pytest.mark.parametrize("name", ["madiff", "bc_returns"])
def test_a_cell_does_not_depend_on_what_it_is_batched_with(place, name):
    run = Run.open(place / name)
    commands = configure_grid("evaluate", [f"run={name}", *GRID])
    together = evaluate(run, commands)
    run.evaluations.unlink()
    alone = [evaluate(run, [command])[0] for command in commands]
    assert [row.cell for row in together] == [row.cell for row in alone] == cells_of(run, commands)
    for one, other in zip(together, alone, strict=True):
        assert one.return_mean == pytest.approx(other.return_mean, abs=1e-5)
        assert one.interval == pytest.approx(other.interval, abs=1e-5)
    # What is asked makes a hundred times the difference, save at scale 0, which ignores it.
    assert len({round(row.return_mean, 5) for row in together}) == (10 if name == "madiff" else 2)
    assert {row.teams for row in alone} == {3}
    assert {row.teams for row in together} == {18 if name == "madiff" else 6}


def test_packs_fill_a_batch_and_share_a_sampler():
    def command(episodes, steps=5, scale=1.0, **options):
        sampler, guidance = SamplerConfig(steps=steps), GuidanceConfig(scale)
        return Evaluate(sampler, guidance, run="r", episodes=episodes, parallel=10, **options)

    small = [command(4, scale=scale) for scale in (0.0, 1.0, 2.0)]
    large = [command(10), command(25)]
    other = [command(4, steps=2), command(4, temperature=0.5)]
    made = list(packs([*small, *large, *other]))
    assert sorted(map(len, made)) == [1, 1, 1, 1, 1, 2]
    assert sorted((one for pack in made for one in pack), key=repr) == sorted([*small, *large, *other], key=repr)
    assert any(len([one for one in pack if one in small]) == 2 for pack in made)
    for pack in made:
        assert len({(one.sampler.steps, one.temperature) for one in pack}) == 1


def test_a_run_is_loaded_once_for_all_its_cells(place, monkeypatch):
    loads = []
    load = MADiff.load.__func__
    monkeypatch.setattr(MADiff, "load", classmethod(lambda cls, *a: loads.append(a) or load(cls, *a)))
    assert main(["evaluate", "run=madiff", *GRID]) == 0
    assert len(loads) == 1
    assert main(["evaluate", "run=madiff", *GRID]) == 0
    assert len(loads) == 1


def test_only_what_is_missing_is_rolled_out(place, monkeypatch):
    from core.cli import evaluate as module

    asked = []
    rollout = module.rollout
    monkeypatch.setattr(
        module, "rollout", lambda p, m, seeds, **o: asked.append(len(seeds)) or rollout(p, m, seeds, **o)
    )
    assert main(["evaluate", "run=madiff", "guidance.scale=0,1", "episodes=3"]) == 0
    assert main(["evaluate", "run=madiff", "guidance.scale=0,1,2", "episodes=3"]) == 0
    assert main(["evaluate", "run=madiff", "guidance.scale=2,2.0,2", "episodes=3"]) == 0
    assert asked == [6, 3]
    assert len(Run.open(place / "madiff").rows()) == 3


def test_workers_share_a_grid_and_find_the_same(place):
    options = ["run=madiff,bc_returns", *GRID, "seed=5"]
    assert main(["evaluate", *options, "workers=3"]) == 0
    shared = {name: values(Run.open(place / name).rows()) for name in ("madiff", "bc_returns")}
    assert {name: len(found) for name, found in shared.items()} == {"madiff": 12, "bc_returns": 2}
    for name, found in shared.items():
        run = Run.open(place / name)
        assert len(run.rows()) == len(found)
        run.evaluations.unlink()
        one = values(evaluate(run, configure_grid("evaluate", [f"run={name}", *GRID, "seed=5"])))
        assert one.keys() == found.keys()
        assert [one[cell][0] for cell in one] == pytest.approx([found[cell][0] for cell in one], abs=1e-5)


def test_costs_are_held_against_the_cell_s_own_limit(place):
    run = Run.open(place / "bc_returns")
    commands = configure_grid("evaluate", ["run=bc_returns", "episodes=6", "budget=0,100"])
    none, all_of_it = evaluate(run, commands)
    assert (none.budget, all_of_it.budget) == (0, 100)
    assert all_of_it.violation_rate == 0
    assert none.cost_mean == pytest.approx(all_of_it.cost_mean)


def test_a_run_in_use_is_refused(place, capsys):
    with locked(place / "madiff" / ".evaluating", "evaluating it"):
        assert main(["evaluate", "run=bc_returns,madiff", "episodes=2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "madiff is in use" in line
    assert not (place / "bc_returns" / "evaluations.jsonl").exists()
    assert main(["evaluate", "run=bc_returns,madiff", "episodes=2"]) == 0


def test_one_failing_cell_keeps_the_others(place, monkeypatch, capsys):
    """What was rolled out before a failure stands in the table, and the grid goes on from there."""
    from core.cli import evaluate as module

    rollout, calls = module.rollout, []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise UserError("the second batch failed")
        return rollout(*arguments, **options)

    monkeypatch.setattr(module, "rollout", failing)
    command = ["evaluate", "run=madiff", "sampler.steps=1,2,3", "episodes=2"]
    assert main(command) == 2
    assert len(Run.open(place / "madiff").rows()) == 1
    assert main(command) == 0
    assert len(Run.open(place / "madiff").rows()) == 3
    assert len(calls) == 4


def test_a_run_trained_further_during_its_evaluation_gets_no_row(place, monkeypatch):
    """The row would say that the weights it used are those of another step."""
    from core.cli import cells as module

    run, metadata = Run.open(place / "bc_returns"), module.read_metadata
    commands = configure_grid("evaluate", ["run=bc_returns", "episodes=2"])

    def load(cls, folder, device):
        monkeypatch.setattr(module, "read_metadata", lambda path: {**metadata(path), "step": "31"})
        return loaded

    loaded = Cloning.load(run.folder)
    monkeypatch.setattr(Cloning, "load", classmethod(load))
    with pytest.raises(UserError, match="trained further"):
        evaluate(run, commands)
    assert run.rows() == []


HOLD = """
import sys, time
from pathlib import Path
from core.files import locked
with locked(Path(sys.argv[1]), "testing"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_freed_by_kill_9(tmp_path):
    path = tmp_path / "run" / ".training"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {process.pid}, testing"), locked(path, "too"):
        pass
    process.kill()
    process.wait()
    with locked(path, "again"):
        pass


def test_a_second_training_of_a_run_is_refused(place, capsys):
    with locked(place / "new" / ".training", "training"):
        assert main(["train", "algo=bc", "dataset=mixed", *FAST, "run=new"]) == 2
    assert "new is in use" in capsys.readouterr().err
    assert not (place / "new" / "config.yaml").exists()


def test_evaluating_all_keeps_the_order_asked(place):
    runs = [Run.open(place / name) for name in ("bc_returns", "madiff")]
    commands = configure_grid("evaluate", ["run=madiff", "episodes=2", "guidance.returns=0.9,0.1,0.5"])
    found = evaluate_all([(run, commands) for run in runs])
    assert [[row.returns for row in rows] for rows in found] == [[0.9, 0.1, 0.5]] * 2
    assert [rows[0].method for rows in found] == ["bc_returns", "madiff"]
    cell = found[0][0].cell
    assert cell == replace(cell) == Cell(**vars(cell))

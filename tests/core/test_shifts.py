"""Environments that differ from those trained in: known by what differs, and never mistaken for one another."""

from contextlib import chdir

import pytest
import torch

from core.cli import main
from core.cli.cells import cells_of
from core.cli.compose import configure, configure_grid
from core.cli.evaluate import evaluate
from core.cloning import Cloning
from core.rollout import rollout
from core.runs import Run
from marl import TaskConfig

FAST = ["trainer.steps=20", "trainer.batch_size=16", "trainer.device=cpu", "data=data", "algo=bc", "algo.hidden=16"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A clone of the usual task, and data of a slower one."""
    folder = tmp_path_factory.mktemp("shifts")
    with chdir(folder):
        for settings in ([], ["task.speed=0.5"]):
            assert main(["collect", "quality=expert", "episodes=8", "data=data", "task.max_cycles=6", *settings]) == 0
        assert main(["train", *FAST, "task.max_cycles=6", "dataset=expert", "run=bc"]) == 0
    return folder


def test_a_cell_is_known_by_what_differs(place, monkeypatch):
    monkeypatch.chdir(place)
    run = Run.open(place / "bc")
    commands = configure_grid("evaluate", ["run=bc", "episodes=4", "shift.speed=1,0.5", "shift.agents=3"])
    assert [cell.shift for cell in cells_of(run, commands)] == ["", "speed 0.5"]
    usual, slow = evaluate(run, commands)
    assert usual.normalised_score is None  # six steps are not the task that references are of
    seeds = range(1_000_000, 1_000_004)
    policy = Cloning.load("bc").policy(commands[0])
    for row, speed in ((usual, 1.0), (slow, 0.5)):
        with TaskConfig(max_cycles=6, speed=speed).make() as environments:
            scores = rollout(policy, environments, seeds).trajectories.scores
        assert row.return_mean == pytest.approx(scores.mean().item(), abs=1e-5)
    assert usual.return_mean != pytest.approx(slow.return_mean, abs=1e-3)


def test_a_team_of_another_size_is_refused_by_what_cannot_plan_for_it(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["evaluate", "run=bc", "episodes=2", "shift.agents=5"]) == 2
    error = capsys.readouterr().err
    assert "cannot for TeamSpec(agents=5" in error


@pytest.mark.parametrize(
    ("dataset", "settings"),
    [("mpe/spread/mpe2/expert-3x6-speed0-5-v0", []), ("mpe/spread/mpe2/expert-3x6-v0", ["task.speed=0.5"])],
    ids=["slow data for the usual task", "usual data for a slow task"],
)
def test_data_of_a_shifted_task_are_not_the_tasks(dataset, settings, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["train", *FAST, "task.max_cycles=6", f"dataset={dataset}", "run=other", *settings]) == 2
    error = capsys.readouterr().err
    assert dataset in error
    assert "choose another dataset, or the same settings of task" in " ".join(error.split())
    assert not (place / "other").exists()


def test_environments_run_on_the_task_that_is_asked_for():
    command = configure("evaluate", ["run=any", "shift.missing=1", "shift.max_cycles=9"])
    shifted = command.shift.of(TaskConfig())
    assert (shifted.missing, shifted.max_cycles, shifted.agents) == (1, 9, 3)
    with shifted.make() as environments:
        observed = environments.reset([0]).observations
        landmarks = observed[0, :, 4:10].reshape(3, 3, 2)
        assert (landmarks == 0).all(dim=-1).sum(dim=1).tolist() == [1, 1, 1]
        lengths = 0
        while True:
            lengths += 1
            if environments.step(torch.zeros(1, 3, 2)).truncated.all():
                break
    assert lengths == 9


def test_a_run_that_plans_decentralised_alone_has_a_report(place, monkeypatch):
    monkeypatch.chdir(place)
    planner = ["algo=madiff", "algo.known=own", "algo.width=16", "algo.horizon=4", "trainer.warmup=0"]
    assert main(["train", *FAST[:-2], *planner, "task.max_cycles=6", "dataset=expert", "run=own"]) == 0
    assert main(["evaluate", "run=own", "episodes=2", "planning.mode=decentralised", "shift.speed=1,0.5"]) == 0
    assert main(["report", "own"]) == 0
    page = (place / "own" / "report.html").read_text()
    assert "expert, speed 0.5" in page
    assert page.count("decentralised") >= 2
    assert "image/svg" in page or "<svg" in page

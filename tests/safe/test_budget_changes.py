"""The benchmark of budgets that change: its numbers by hand, and a run from end to end."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

from core.cli import main
from core.cli.compose import configure
from core.data import Trajectories
from safe import SafeTaskConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("budget_changes")


def trajectories(*costs):
    """Episodes of two agents by the mean costs of their steps; the agents' costs differ, each step gives 1."""
    lengths = torch.tensor([len(one) for one in costs])
    mean = torch.cat([torch.tensor([*one, 0.0]) for one in costs])
    real = torch.cat([torch.tensor([1.0] * len(one) + [0.0]) for one in costs])
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(lengths + 1, 0)])
    nothing = torch.zeros(len(mean), 2, 1)
    each = torch.stack([0.5 * mean, 1.5 * mean], dim=1)
    over = torch.zeros(len(costs), dtype=torch.bool)
    return Trajectories(nothing, nothing, real[:, None].expand(-1, 2), each, ends, over)


FOUR = ([1.0, 1, 1, 0], [2.0, 2, 0, 0], [0.0, 0, 3, 3], [1.0])


def test_costs_so_far(benchmark):
    spent = benchmark.costs_so_far(trajectories(*FOUR))
    assert spent.tolist() == [[0, 1, 2, 3, 3], [0, 2, 4, 4, 4], [0, 0, 0, 3, 6], [0, 1, 1, 1, 1]]
    moved = benchmark.around(spent[:3], torch.tensor([2, 1, 3]))
    assert moved[0].tolist() == [0, 0, 0, 1, 2, 3, 3, 3, 3]
    assert moved[:, 4].tolist() == [2, 2, 3]


def test_an_outcome_by_hand(benchmark):
    """A budget of 6 halved after two steps: by then 2, 4 and 0 are spent, and 3, 4 and 6 in the end."""
    flags = torch.tensor([False, True, True, True])
    found = benchmark.outcome(trajectories(*FOUR), torch.full((4,), 2), 6.0, 0.5, flags)
    assert (found.budget, found.episodes) == (3.0, 3)
    assert found.feasible[0] == pytest.approx(2 / 3)
    assert found.within[0] == 0.5
    assert (found.before[0], found.after[0]) == (pytest.approx(2), pytest.approx(7 / 3))
    assert found.returns[0] == 4
    assert found.overspent[0] == pytest.approx(2 / 3)
    # Wilson's interval of one of two, by its formula.
    z2 = 1.959963984540054**2
    half = math.sqrt(z2 * (0.25 / 2 + z2 / 16)) / (1 + z2 / 2)
    assert found.within[1:] == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))


def test_a_budget_that_no_episode_can_meet_any_more(benchmark):
    found = benchmark.outcome(trajectories([1.0, 0], [2.0, 0]), torch.tensor([1, 1]), 9.0, 0.0)
    assert (found.feasible[0], found.within, found.overspent) == (0, None, None)
    assert "within -" in str(found)


def test_changes_come_at_the_same_steps_for_every_factor(benchmark):
    command = configure("evaluate", ["run=any", "budget=8", "episodes=20"])
    asked = benchmark.asked_for(command, SafeTaskConfig(), [1.0, 0.5])
    assert [one.budget_factor for one in asked] == [1.0] * 20 + [0.5] * 20
    steps = [one.budget_change for one in asked]
    assert steps[:20] == steps[20:]
    assert len(set(steps)) > 10
    assert all(50 <= step < 150 for step in steps)


def test_runs_are_measured_from_end_to_end(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["task=safe/pendulum", "task.max_cycles=12"]
    assert main(["collect", *small, "quality=front", "episodes=6", "data=data"]) == 0
    tiny = ["data=data", "dataset=front", "trainer.steps=2", "trainer.batch_size=4", "trainer.device=cpu"]
    assert main(["train", "algo=bc_cost", "algo.hidden=8", *small, *tiny, "run=runs/clone"]) == 0
    sizes = ["algo.horizon=4", "algo.width=8", "algo.multipliers=[1]", "algo.value_multipliers=[1]"]
    assert main(["train", "algo=trebi", *sizes, *small, *tiny, "run=runs/planner"]) == 0
    capsys.readouterr()
    benchmark.work(["runs", "budget=4", "factors=0.5,0", "episodes=3", "sampler.steps=1", "output=out"])
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "budget_changes.json").read_text())
    clone, planner = record["runs"]
    assert (clone["method"], planner["method"], record["budget"]) == ("bc_cost", "trebi", 4)
    for run in (clone, planner):
        assert [(one["factor"], one["budget"], one["episodes"]) for one in run["changes"]] == [(0.5, 2, 3), (0, 0, 3)]
        assert f"x0.5 to 2, 3 episodes: feasible {run['changes'][0]['feasible'][0]:.2f}" in printed
    assert clone["changes"][0]["overspent"] is None
    assert planner["changes"][0]["overspent"] is not None
    assert (tmp_path / "out" / "budget_changes.png").read_bytes()[:4] == b"\x89PNG"


def test_mistakes_are_named(benchmark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        ([], "name the folders of trained runs"),
        (["runs"], "budget= is missing"),
        (["runs", "budget=4", "factors=half"], "factors=half cannot be read"),
        (["runs", "budget=4"], "runs is no folder"),
    ):
        with pytest.raises(benchmark.UserError, match=message):
            benchmark.work(arguments)

"""Tasks with a cost: their registry, their configuration, and data that cover costs and returns."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from minari.dataset.minari_dataset import parse_dataset_id

import configs
from core.config import from_dict
from core.data import Trajectories
from core.errors import UserError
from core.rollout import rollout
from core.tasks import Task
from core.uniform import Uniform
from safe import TASKS, SafeTaskConfig, Swing, even, filtered

ANALYTIC = ("safe/pendulum", "safe/point_robot")


def collected(name, quality, episodes, seed=0, **options):
    task = SafeTaskConfig(name, **options)
    with task.make() as environments:
        return task.collect(quality, environments, episodes, seed, parallel=1000)


def costs(data):
    return data.episode_sums(data.costs)[:, 0]


def test_every_task_has_its_preset():
    folder = Path(configs.__file__).parent / "task" / "safe"
    named = {f"safe/{path.stem}": yaml.safe_load(path.read_text())["name"] for path in folder.glob("*.yaml")}
    assert named == {name: name for name in TASKS}


@pytest.mark.parametrize("name", ANALYTIC)
def test_a_task_by_its_configuration(name):
    task = from_dict(SafeTaskConfig, {"name": name}, "a test")
    assert isinstance(task, Task)
    assert (task.rules, task.foreign, task.environment_id, task.settings) == ("", False, "", {})
    assert task.max_cycles == TASKS[name].steps
    assert task.references == TASKS[name].references
    assert task.references.normalise(task.references.expert) == 100
    assert task.budget > 0
    assert parse_dataset_id(task.dataset_id("front")) == (name, "front", 0)
    with task.make() as environments:
        assert environments.max_cycles == task.max_cycles


def test_settings_that_are_not_the_usual():
    shorter = SafeTaskConfig("safe/pendulum", max_cycles=50)
    held = SafeTaskConfig("safe/pendulum", options={"state": [0.0, 0.0]})
    assert shorter.settings == {"max_cycles": 50}
    assert held.settings == {"options": {"state": [0.0, 0.0]}}
    assert shorter.references is held.references is None
    ids = {task.dataset_id("front") for task in (SafeTaskConfig(), SafeTaskConfig(max_cycles=200), shorter, held)}
    assert len(ids) == 3
    assert all(parse_dataset_id(each)[0] == "safe/pendulum" for each in ids)
    with held.make() as environments:
        assert environments.reset([5]).observations.tolist() == [[[1.0, 0.0, 0.0]]]
    assert collected("safe/pendulum", "upright", 3, max_cycles=7).trajectories.steps == 21


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "safe/pendulm"}, "unknown task 'safe/pendulm': did you mean 'safe/pendulum'?"),
        ({"max_cycles": -1}, "at least 1, or 0 for the task's own, got -1"),
        ({"option": {}}, "option"),
    ],
)
def test_what_is_no_task(values, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        from_dict(SafeTaskConfig, values, "a test")


def test_what_the_environment_does_not_take():
    with pytest.raises(UserError, match=r"task.options=.*'gravity'.* do not fit safe/pendulum"):
        SafeTaskConfig(options={"gravity": 9.81}).make()
    with pytest.raises(UserError, match="2 finite numbers"):
        SafeTaskConfig(options={"state": [1.0]}).make()
    with pytest.raises(UserError, match=r"unknown quality 'fronts' of safe/pendulum: did you mean 'front'\?"):
        collected("safe/pendulum", "fronts", 1)


@pytest.mark.parametrize("name", ANALYTIC)
def test_data_of_every_quality(name):
    for quality in TASKS[name].qualities:
        first, again = (collected(name, quality, 8, seed=5, max_cycles=50) for _ in range(2))
        data = first.trajectories
        assert data.episodes == 8
        assert data.fingerprint() == again.trajectories.fingerprint()
        assert 0 <= int(data.tags.min()) <= int(data.tags.max()) < len(first.behaviours)
        assert yaml.safe_load(yaml.safe_dump(first.description | {"controller": ""}))  # plain data
        assert data.actions.abs().max() <= 1
        assert data.actions.dtype == data.observations.dtype == data.costs.dtype == torch.float32


def test_progress_is_of_the_episodes_kept():
    done = []
    task = SafeTaskConfig("safe/pendulum")
    with task.make() as environments:
        task.collect("front", environments, 5, 0, progress=done.append)
    assert sum(done) == 5 * 200


@pytest.mark.parametrize(("name", "expert"), [("safe/pendulum", "upright"), ("safe/point_robot", "straight")])
def test_references_are_what_is_measured(name, expert):
    references = TASKS[name].references
    for quality, stated in (("random", references.random), (expert, references.expert)):
        scores = collected(name, quality, 500, seed=10**6).trajectories.scores
        assert abs(float(scores.mean()) - stated) < 4 * float(scores.std()) / math.sqrt(500)


def test_the_robots_budget_is_what_crossing_a_hazard_costs():
    data = collected("safe/point_robot", "straight", 1000).trajectories
    begin = data.observations[data.offsets[:-1], 0, :2]
    outside = ((begin[:, None] - torch.tensor([[0.4, -1.2], [-0.4, 1.2]])).norm(dim=2) > 0.8).all(dim=1)
    crossing = costs(data)[outside & (costs(data) > 0)]
    error = float(crossing.std()) / math.sqrt(len(crossing))
    assert abs(float(crossing.mean()) - TASKS["safe/point_robot"].budget) < 4 * error


def test_pendulum_data_span_the_budgets():
    """Of ten equal parts of the costs up to a budget's ratio of 1.5, each has episodes, of nearly the best return."""
    made = collected("safe/pendulum", "front", 500).trajectories
    part = (costs(made) / 9).long()
    for each in range(10):
        assert 20 < int((part == each).sum()) < 150
        assert float(made.scores[part == each].max()) > 175


def of(points):
    """Episodes of one step with given (cost, return) of each of their agents, [E, A, 2]."""
    values = torch.zeros(len(points), 2, *points.shape[1:])
    values[:, 0] = points
    rows = values.flatten(0, 1)
    empty = rows[..., :1]
    offsets = 2 * torch.arange(len(points) + 1)
    return Trajectories(empty, empty, rows[..., 1], rows[..., 0], offsets, torch.ones(len(points), dtype=torch.bool))


def test_filters_by_hand():
    """Four cells: episodes 0, 1, 2 and 6 in the first, 3 and 5 in the last, 4 alone in another."""
    points = [(0, 0), (1, 0.1), (2, 0.2), (10, 1), (0, 1), (9, 0.9), (4.9, 0.4)]
    each = torch.tensor(points, dtype=torch.float32)
    data = of(torch.stack([each * 2, each * 0], dim=1))  # by the mean of two agents

    def kept(some):
        return [int(((each - mean).abs().sum(dim=1) < 1e-6).nonzero()) for mean in _points(some)]

    assert kept(filtered(data, (2, 2), 1)) == [0, 3, 4]
    assert kept(filtered(data, (2, 2), 2)) == [0, 1, 3, 4, 5]
    assert kept(filtered(data, (1, 1), 3)) == [0, 1, 2]
    assert kept(even(data, (2, 2), 2)) == [0, 3]
    assert kept(even(data, (2, 2), 4)) == [0, 1, 3, 4]
    assert kept(even(data, (2, 2), 6)) == [0, 1, 2, 3, 4, 5]
    assert kept(even(data, (2, 2), 60)) == list(range(7))


def _points(data):
    return torch.stack([data.episode_sums(data.costs).mean(dim=1), data.scores], dim=1)


@pytest.mark.parametrize("most", [1, 3, 10])
def test_filters_against_a_histogram(most):
    data = of(torch.randn(2000, 1, 2, generator=torch.Generator().manual_seed(0)))
    points = _points(data).double().numpy()
    ends = [(low, high) for low, high in zip(points.min(axis=0), points.max(axis=0), strict=True)]

    def counts(some):
        return np.histogram2d(*_points(some).double().numpy().T, bins=(7, 11), range=ends)[0]

    assert (counts(filtered(data, (7, 11), most)) == np.minimum(counts(data), most)).all()
    some = counts(even(data, (7, 11), 300))
    assert some.sum() == 300
    level = some.max()
    assert (some >= np.minimum(counts(data), level - 1)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: filtered(data, (2, 2), 0), "most must be at least 1, got 0"),
        (lambda data: filtered(data, (0, 2), 1), r"cells must be at least 1 along each axis, got \(0, 2\)"),
        (lambda data: even(data, (2, 2), 0), "episodes must be at least 1, got 0"),
    ],
)
def test_what_is_no_filter(call, message):
    with pytest.raises(ValueError, match=message):
        call(of(torch.zeros(3, 1, 2)))


@pytest.mark.parametrize("habits", [{"noise": -0.1}, {"lapsing": 0.6, "uniform": 0.6}])
def test_habits_that_cannot_be(habits):
    with pytest.raises(ValueError, match="shares at most 1 in all"):
        Swing(**habits)


@pytest.mark.parametrize("name", ANALYTIC)
def test_no_step_waits_for_the_device(name):
    """On a device without values, whatever asked for one would fail."""
    with SafeTaskConfig(name, max_cycles=2).make("meta") as environments:
        assert environments.reset([0, 1]).observations.device.type == "meta"
        for _ in range(2):
            stepped = environments.step(torch.zeros(2, 1, environments.spec.action_dim))
        for values in (stepped.observed.observations, stepped.rewards, stepped.terminated, stepped.truncated):
            assert values.device.type == "meta"
            assert len(values) == 2


def test_uniform_actions():
    with SafeTaskConfig("safe/point_robot").make() as environments:
        data = rollout(Uniform(environments.spec), environments, range(50)).trajectories
    actions = data.actions[data.decisions]
    assert actions.shape[1:] == (1, 2)
    assert torch.allclose(actions.mean(dim=0), torch.zeros(1, 2), atol=0.05)
    assert torch.allclose(actions.std(dim=0), torch.full((1, 2), 1 / math.sqrt(3)), atol=0.03)

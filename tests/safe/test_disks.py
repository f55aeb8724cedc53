"""Disks: their rules by hand, both implementations against each other, plans made consistent, and how they pass."""

import math

import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test
from scipy import stats

from core.errors import UserError
from core.rollout import rollout
from safe import TASKS, SafeTaskConfig, Separation
from safe.disk_controllers import Passing, PassRight, _collision
from safe.disks import FIELD, GOAL, INTERVAL, POSITION, SCENARIOS, VELOCITY, Disks, DisksParallelEnv, recomputed
from safe.qp import project

NAMES = tuple(f"safe/disks-{scenario}" for scenario in SCENARIOS)


def begun(positions, goals, **options):
    environments = Disks(agents=len(positions), **options)
    environments.start(torch.tensor([positions]), torch.tensor([goals]))
    return environments


def test_a_step_by_hand():
    environments = begun([[0.0, 0.0], [1.0, 0.0]], [[3.0, 4.0], [1.0, 0.05]], max_cycles=1)
    stepped = environments.step(torch.tensor([[[1.0, 1.0], [-0.3, -5.0]]]))
    diagonal = math.sqrt(0.5)
    turned = [-0.3 / math.hypot(0.3, 1), -1 / math.hypot(0.3, 1)]
    first, second = [0.1 * diagonal] * 2, [1 + 0.1 * turned[0], 0.1 * turned[1]]
    away = [second[0] - first[0], second[1] - first[1]]
    rows = [[diagonal, diagonal, *first, 3, 4, *away], [*turned, *second, 1, 0.05, -away[0], -away[1]]]
    seen = stepped.observed.observations
    assert seen.tolist() == [[pytest.approx(row) for row in rows]]
    assert stepped.rewards[0, 0] == pytest.approx(5 - math.dist(first, (3, 4)))
    assert stepped.rewards[0, 1] == pytest.approx(0.05 - math.dist(second, (1, 0.05)))
    assert stepped.costs.tolist() == [[0, 0]]
    assert stepped.truncated.tolist() == [True]
    assert stepped.terminated.tolist() == [False]
    assert environments.arrived(seen).tolist() == [[False, False]]
    for places, row in ((VELOCITY, turned), (POSITION, second), (GOAL, (1, 0.05))):
        assert seen[0, 1, list(places)].tolist() == pytest.approx(row)


def test_at_the_goal_and_overlapping():
    """Of four in a row the first two overlap; the last two touch, and the last is at its goal."""
    row = [[0.0, 0.0], [0.19, 0.0], [1.0, 0.0], [1.25, 0.0]]
    environments = begun(row, [[0.5, 0.0], [0.5, 0.0], [1.13, 0.0], [1.25, 0.125]], radius=0.125)
    stepped = environments.step(torch.zeros(1, 4, 2))
    assert stepped.costs.tolist() == [[1, 1, 0, 0]]
    assert stepped.rewards.tolist() == [[0, 0, 0, pytest.approx(0.1)]]
    assert environments.arrived(stepped.observed.observations).tolist() == [[False, False, False, True]]
    assert stepped.truncated.tolist() == [False]


@pytest.mark.parametrize("agents", [2, 3, 8, 16])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_where_episodes_begin(scenario, agents):
    if scenario == "swap" and agents == 3:
        return
    environments = Disks(scenario, agents=agents)
    environments.reset(range(200))
    state = environments.state
    starts, goals = state.positions.numpy(), state.goals.numpy()
    assert not state.velocities.any()
    for points in (starts, goals):
        gaps = np.linalg.norm(points[:, :, None] - points[:, None], axis=3)[:, ~np.eye(agents, dtype=bool)]
        assert gaps.min() >= 0.4 - 1e-9
        assert np.abs(points).max() <= FIELD
    if scenario == "crossing":
        assert np.allclose(np.linalg.norm(starts, axis=2), FIELD)
        assert np.allclose(goals, -starts)
        directions = np.arctan2(starts[:, 0, 1], starts[:, 0, 0]) / math.tau % 1
        assert stats.kstest(directions, stats.uniform.cdf).pvalue > 0.01
        return
    if scenario == "swap":
        assert (goals[:, ::2] == starts[:, 1::2]).all()
        assert (goals[:, 1::2] == starts[:, ::2]).all()
    drawn = (starts[:, 0], goals[:, 0]) if scenario == "random" else (starts[:, 0],)
    for points in drawn:
        for values in (points / FIELD + 1).T / 2:
            assert stats.kstest(values, stats.uniform.cdf).pvalue > 0.01


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_episode_follows_from_its_seed(scenario):
    environments = Disks(scenario)
    together = environments.reset([3, 8, 5]).observations
    assert torch.equal(together[1:2], environments.reset([8]).observations)
    assert not torch.equal(together[0], together[1])


def episodes(scenario, agents, seeds=range(4), cycles=30):
    """Whole episodes of uniform actions, of both implementations."""
    actions = np.random.default_rng(0).uniform(-1.2, 1.2, (cycles, len(seeds), agents, 2)).astype(np.float32)
    actions = 0.5 * actions - 0.5 * np.sign(np.sin(np.arange(cycles)))[:, None, None, None]
    environments = Disks(scenario, agents=agents, max_cycles=cycles)
    first = environments.reset(seeds)
    return actions, first, [environments.step(torch.from_numpy(joint)) for joint in actions]


@pytest.mark.parametrize(("scenario", "agents"), [("crossing", 3), ("swap", 2), ("random", 8)])
def test_both_implementations_step_the_same(scenario, agents):
    actions, first, stepped = episodes(scenario, agents)
    single = DisksParallelEnv(scenario, agents=agents, max_cycles=30)
    for episode in range(4):
        seen, infos = single.reset(seed=episode)
        assert infos == {agent: {} for agent in single.possible_agents}
        assert np.allclose(list(seen.values()), first.observations[episode], atol=1e-6)
        for joint, batch in zip(actions[:, episode], stepped, strict=True):
            seen, rewards, terminations, truncations, infos = single.step(dict(zip(single.agents, joint, strict=True)))
            assert np.allclose(list(seen.values()), batch.observed.observations[episode], atol=1e-5)
            assert list(rewards.values()) == pytest.approx(batch.rewards[episode].tolist(), abs=1e-6)
            assert [info["cost"] for info in infos.values()] == batch.costs[episode].tolist()
            assert set(terminations.values()) == {False} == {bool(batch.terminated[episode])}
            assert set(truncations.values()) == {bool(batch.truncated[episode])}
        assert single.agents == []
        assert single.step({}) == ({}, {}, {}, {}, {})
    if agents == 8:
        assert any(batch.costs.any() for batch in stepped)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_is_a_parallel_environment(scenario, capsys):
    parallel_api_test(DisksParallelEnv(scenario, max_cycles=20), num_cycles=60)
    parallel_seed_test(lambda: DisksParallelEnv(scenario), num_cycles=10)


def test_seeds_of_a_single_episode():
    env = DisksParallelEnv("random")
    starts = [env.reset(seed=seed)[0]["disk_0"] for seed in (3, None, None, 3, None)]
    assert np.array_equal(starts[0], starts[3])
    assert np.array_equal(starts[1], starts[4])
    assert not np.array_equal(starts[1], starts[2])


def test_frames():
    env = DisksParallelEnv(agents=2, render_mode="rgb_array")
    env.reset(seed=0)
    env.positions, env.goals = np.array([[-0.6, 0.0], [0.6, 0.6]]), np.array([[0.6, 0.0], [-0.6, -0.6]])
    image = env.render()
    assert image.shape == (240, 240, 3)
    assert image.dtype == np.uint8

    def pixel(x, y):
        view = 1.2 * FIELD
        return tuple(image[int((view - y) / (2 * view) * 240), int((x + view) / (2 * view) * 240)])

    assert pixel(-0.6, 0.0) == (31, 119, 180)
    assert pixel(0.6, 0.6) == (174, 199, 232)
    assert pixel(0.6, 0.0) == pixel(0.0, -1.0) == (255, 255, 255)
    assert DisksParallelEnv().render() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "crosing"}, r"unknown scenario 'crosing': did you mean 'crossing'\?"),
        ({"agents": 1}, "2 to 16 agents, .* got 1"),
        ({"agents": 17}, "2 to 16 agents, .* got 17"),
        ({"scenario": "swap", "agents": 3}, "an even number where they swap places, got 3"),
        ({"agents": 4, "radius": 0.3}, r"4 disks find room up to a radius of 0.206, got 0.3"),
        ({"radius": 0.0}, "got 0.0"),
        ({"max_cycles": 0}, "max_cycles must be at least 1, got 0"),
    ],
)
def test_what_are_no_disks(options, message):
    for made in (Disks, DisksParallelEnv):
        with pytest.raises(UserError, match=message):
            made(**options)


def test_misuse():
    environments = Disks()
    with pytest.raises(RuntimeError, match="no episode has begun"):
        environments.step(torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match=r"shape \('B', 4, 2\), got \(\(1, 4, 2\), \(1, 3, 2\)\)"):
        environments.start(torch.zeros(1, 4, 2), torch.zeros(1, 3, 2))
    environments.reset([0])
    with pytest.raises(ValueError, match=r"actions must have shape \(1, 4, 2\), got \(1, 4, 3\)"):
        environments.step(torch.zeros(1, 4, 3))
    with pytest.raises(UserError, match="unknown render_mode 'human'"):
        DisksParallelEnv(render_mode="human")
    env = DisksParallelEnv(agents=2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"an action of shape \(2,\) of disk_1, got None"):
        env.step({"disk_0": np.zeros(2)})


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_devices(scenario, device):
    """On a device without values, whatever waited for one would fail."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    environments = Disks(scenario, device=device, max_cycles=2)
    assert environments.reset([0, 1]).observations.device.type == device
    for _ in range(2):
        stepped = environments.step(torch.zeros(2, 4, 2))
    assert {value.device.type for value in (stepped.rewards, stepped.costs, stepped.truncated)} == {device}
    if device == "cuda":
        here = Disks(scenario).reset([0, 1]).observations
        assert torch.allclose(environments.reset([0, 1]).observations.cpu(), here, atol=1e-5)


def test_tokens_for_teams_of_any_size():
    assert Disks(agents=5).spec.entities == ()
    told = Disks(agents=5, entities=True)
    assert told.spec.entities == ((4, 2),)
    assert told.spec.observation_dim == 6 + 4 * 2
    assert torch.equal(told.reset([1]).observations, Disks(agents=5).reset([1]).observations)


@pytest.mark.parametrize("agents", [2, 5])
def test_plans_are_made_to_agree(agents):
    """What was moved, against loops; what was executed stays as it is."""
    made = [each.observed.observations for each in episodes("random" if agents == 5 else "swap", agents)[2]]
    executed = torch.stack(made, dim=1)
    assert torch.allclose(recomputed(executed), executed, atol=1e-5)
    plan = executed[:2].double()
    plan[..., 2:4] += torch.randn(plan[..., 2:4].shape, generator=torch.Generator().manual_seed(0)).double()
    made = recomputed(plan)
    for time in range(plan.shape[1]):
        for agent in range(agents):
            own = plan[0, time, agent]
            velocity = (own[2:4] - plan[0, time - 1, agent, 2:4]) / INTERVAL if time else own[:2]
            away = [plan[0, time, other, 2:4] - own[2:4] for other in range(agents) if other != agent]
            assert torch.allclose(made[0, time, agent], torch.cat([velocity, own[2:6], *away]))
    assert torch.equal(recomputed(plan[0]), made[0])


def test_plans_carry_gradients():
    plan = torch.zeros(3, 2, 8, dtype=torch.float64, requires_grad=True)
    recomputed(plan)[2, 0, [0, 6]].sum().backward()
    x = torch.zeros(3, 2, 8)
    x[2, 0, 2], x[1, 0, 2], x[2, 1, 2] = 1 / INTERVAL - 1, -1 / INTERVAL, 1
    assert torch.allclose(plan.grad.float(), x)


@pytest.mark.parametrize("shape", [(2, 8), (3, 2, 9), (3, 1, 6), (3, 4, 8)])
def test_what_is_no_plan(shape):
    with pytest.raises(ValueError, match=r"a plan of A disks has shape"):
        recomputed(torch.zeros(shape))


def test_a_projected_plan_is_executed_as_it_stands():
    """Two that would overlap are parted by moving positions alone; the velocities that follow lead along the plan."""
    way = torch.linspace(-0.5, 0.5, 31, dtype=torch.float64)
    plan = torch.zeros(31, 2, 8, dtype=torch.float64)
    plan[:, 0, 2], plan[:, 1, 2] = way, -way
    plan[:, 0, 3], plan[:, 1, 3] = 0.06, -0.06
    plan[:, 0, 4], plan[:, 1, 4] = 0.5, -0.5
    linear = Separation(0.2 + 1e-6, POSITION).linearised(plan)
    moves = project(torch.zeros(31, 4, dtype=torch.float64), linear.gradients.flatten(-2), -linear.values).u
    plan[..., 2:4] += moves.unflatten(1, (2, 2))
    assert moves.abs().max() > 0.03
    parted = recomputed(plan)
    environments = begun(plan[0, :, 2:4].tolist(), plan[0, :, 4:6].tolist())
    for waypoint in parted[1:]:
        stepped = environments.step(waypoint[None, :, :2])
        assert torch.allclose(stepped.observed.observations[0].double(), waypoint, atol=1e-5)
        assert not stepped.costs.any()


def driven(scenario, agents, distance, seeds=range(100), **habits):
    """Episodes of one distance, with the cost [E] and the success [E] of each."""
    environments = Disks(scenario, agents=agents)
    policy = PassRight(Passing(distance=(distance, distance), **habits), environments.radius, 50)
    data = rollout(policy, environments, seeds, parallel=len(seeds)).trajectories
    arrived = environments.arrived(data.observations[data.offsets[1:] - 1]).all(dim=1)
    return data, data.episode_sums(data.costs).mean(dim=1), arrived


def test_collisions_against_small_steps():
    generator = torch.Generator().manual_seed(0)
    away, velocity = torch.randn(2, 400, 2, generator=generator).double()
    reach = torch.rand(400, generator=generator).double()
    found = _collision(away, velocity, reach)
    times = torch.arange(0, 20, 0.002, dtype=torch.float64)
    inside = (away[:, None] - velocity[:, None] * times[:, None]).norm(dim=2) < reach[:, None]
    first = torch.where(inside.any(dim=1), times[inside.int().argmax(dim=1)], math.inf)
    parting = inside[:, 0] & ((away * velocity).sum(dim=1) <= 0)
    assert parting.any()
    assert torch.isinf(found[parting]).all()
    clear = ~parting & (torch.isinf(first) == torch.isinf(found))
    assert clear.sum() >= 395 - parting.sum()  # small steps miss those that all but touch
    both = clear & torch.isfinite(first)
    assert both.sum() > 50
    assert (found[both] - first[both]).abs().max() < 0.05
    assert not _collision(away, away * 3, torch.zeros(400)).isfinite().any()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_straight_is_straight(scenario):
    data, costs, arrived = driven(scenario, 4, 0.0)
    assert arrived.all()
    seen, rows = data.observations[data.decisions], data.actions[data.decisions]
    way = (seen[..., 4:6] - seen[..., 2:4]).double() / INTERVAL
    assert torch.allclose(rows.double(), way / way.norm(dim=-1, keepdim=True).clamp(min=1), atol=3e-3)
    first = data.observations[data.offsets[:-1]]
    far = (first[..., 4:6] - first[..., 2:4]).norm(dim=-1)
    steps = torch.ceil((far - 0.1) / INTERVAL).clamp(min=1)  # at the goal from the step that ends there
    assert torch.allclose(data.returns, far + INTERVAL * (51 - steps), atol=5e-3)
    assert float(costs.mean()) > 0.5


@pytest.mark.parametrize(("scenario", "agents"), [("crossing", 2), ("crossing", 3), ("crossing", 8), ("random", 4)])
def test_careful_ones_arrive_and_hardly_touch(scenario, agents):
    _, costs, arrived = driven(scenario, agents, 1.25)
    assert float(arrived.float().mean()) >= 0.98
    assert float(costs.mean()) < 0.03
    assert float((costs == 0).float().mean()) >= 0.95


def test_larger_distances_cost_less():
    means = [float(driven("crossing", 4, distance)[1].mean()) for distance in (0.0, 0.6, 1.2)]
    assert means == sorted(means, reverse=True)
    assert means[0] > 3
    assert means[-1] < 0.1


def test_they_pass_on_the_right():
    """Two of them head-on: each has the other on its left when they are nearest."""
    data, *_ = driven("crossing", 2, 1.25)
    aligned = data.observations[data.offsets[:-1], 0]
    seen = data.observations[:, 0].unflatten(0, (100, 51))
    nearest = seen[:, :, 6:].norm(dim=2).argmin(dim=1)
    away = seen[torch.arange(100), nearest, 6:]
    ahead = aligned[:, 4:6] - aligned[:, 2:4]
    left = ahead[:, 0] * away[:, 1] - ahead[:, 1] * away[:, 0] > 0
    opposite = (aligned[:, 6:] - ahead).norm(dim=1) < 0.5
    assert opposite.sum() >= 5
    assert left[opposite].all()


def test_distances_do_not_depend_on_the_batch():
    habits = {"noise": 0.3, "lapsing": 0.3, "uniform": 0.2}
    data = driven("random", 3, 1.0, **habits)[0]
    alone = driven("random", 3, 1.0, [17], **habits)[0]
    assert torch.allclose(data.subset(torch.tensor([17])).observations, alone.observations, atol=1e-5)


def collected(name, quality, count, seed=0, **options):
    task = SafeTaskConfig(name, **options)
    with task.make() as environments:
        return task.collect(quality, environments, count, seed, parallel=1000)


@pytest.mark.parametrize("name", NAMES)
def test_data_of_every_quality(name):
    for quality in TASKS[name].qualities:
        options = {"agents": 2, "radius": 0.15, "entities": True}
        first, again = (collected(name, quality, 6, seed=5, max_cycles=20, options=options) for _ in range(2))
        assert first.trajectories.fingerprint() == again.trajectories.fingerprint()
        assert first.trajectories.observations.shape == (6 * 21, 2, 8)
        assert first.trajectories.actions.abs().max() <= 1
        assert int(first.trajectories.tags.max()) < len(first.behaviours)


@pytest.mark.parametrize("name", NAMES)
def test_references_and_budgets_are_what_is_measured(name):
    task = TASKS[name]
    for quality, stated in (("random", task.references.random), ("straight", task.references.expert)):
        data = collected(name, quality, 300, seed=3 * 10**6).trajectories
        assert abs(float(data.scores.mean()) - stated) < 4 * float(data.scores.std()) / math.sqrt(300) + 0.005
    costs = data.episode_sums(data.costs).mean(dim=1)
    assert abs(float(costs.mean()) - task.budget) < 4 * float(costs.std()) / math.sqrt(300) + 0.05


def test_data_span_the_budgets():
    """Of eight equal parts of the costs up to the budget, each has episodes, some of a good return."""
    data = collected(NAMES[0], "front", 250).trajectories
    part = (data.episode_sums(data.costs).mean(dim=1) / (TASKS[NAMES[0]].budget / 8)).long()
    for each in range(8):
        assert int((part == each).sum()) > 4
        assert float(data.scores[part == each].max()) > 4.7

"""PointRobot: its rules by hand, both implementations against each other, and what its controllers make of it."""

import math
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy import stats

from core.rollout import rollout
from safe import Detour, GoToGoal, PointRobot, PointRobotEnv
from safe.point_robot import FIXED_START, GOAL, GOAL_RADIUS, HAZARD_RADIUS, HAZARDS


def stepped_from(state, action):
    environments = PointRobot(state=state)
    environments.reset([0])
    return environments, environments.step(torch.tensor([[action]]))


def test_a_step_by_hand():
    environments, stepped = stepped_from((0.0, 0.0, 2.0, math.pi / 3), (0.5, -4.0))
    after = [0.05, 0.05 * math.sqrt(3), 2.025, math.pi / 3 - 0.05]
    assert environments.state.tolist() == [pytest.approx(after)]
    seen = [*after[:3], math.cos(after[3]), math.sin(after[3])]
    assert stepped.observed.observations.tolist() == [[pytest.approx(seen)]]
    nearer = math.hypot(2.2, 2.2) - math.hypot(2.2 - after[0], 2.2 - after[1])
    assert float(stepped.rewards) == pytest.approx(nearer)
    assert not stepped.terminated.any()


@pytest.mark.parametrize(
    ("state", "reward", "cost", "terminated"),
    [
        ((0.4, -2.0, -0.1, 0.0), -0.005 * 1.8 / math.hypot(1.8, 4.2), 0.0, False),  # leaves the lower hazard's edge
        ((0.4, -1.99, 0.0, 0.0), 0.0, 1.0, False),
        ((-0.4, 1.2, 0.0, 0.0), 0.0, 1.0, False),
        ((0.45, 1.2, 0.0, 0.0), 0.0, 0.0, False),
        ((1.86, 2.2, 1.0, 0.0), 1.05, 0.0, True),  # into the goal
        ((1.8, 2.2, 1.0, 0.0), 0.05, 0.0, False),
        ((2.2, 2.98, 1.0, math.pi / 2), -0.05, 0.0, True),  # out of the field
        ((2.2, 2.98, -1.0, math.pi / 2), 0.05, 0.0, False),
    ],
)
def test_rewards_costs_and_ends(state, reward, cost, terminated):
    stepped = stepped_from(state, (0.0, 0.0))[1]
    assert float(stepped.rewards) == pytest.approx(reward, abs=2e-5)
    assert float(stepped.costs) == cost
    assert bool(stepped.terminated) == terminated


def test_episodes_begin_uniformly():
    environments = PointRobot()
    environments.reset(range(5000))
    low, high = torch.tensor([-3, -3, 0.5, math.pi / 4]), torch.tensor([3, 3, 2, 3 * math.pi / 4])
    for values in ((environments.state - low) / (high - low)).T:
        assert stats.kstest(values.numpy(), stats.uniform.cdf).pvalue > 0.01


def test_both_implementations_step_the_same():
    """Whole episodes of each end: out of the field, in the goal, and at the time limit."""
    inward = (-0.1, 0.1, 0.0, 1.0)
    starts = [(0.0, 0.0, 1.0, 0.5), (1.0, 2.2, 0.5, 0.0), inward, (-2.9, -2.9, 1.5, 0.8), FIXED_START]
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1.2, 1.2, (300, len(starts), 2)).astype(np.float32)
    actions[:, 1] *= 0.1
    actions[:, 2] = np.sign(np.sin(np.arange(300)))[:, None] * [1.0, 0.2]  # to and fro
    environments = PointRobot()
    environments.start(torch.tensor(starts, dtype=torch.float64))
    stepped = [environments.step(torch.from_numpy(joint)[:, None]) for joint in actions]
    ends = []
    for episode, start in enumerate(starts):
        single = gymnasium.make("convoy/PointRobot-v0", state=start)
        assert np.allclose(single.reset(seed=0)[0][:3], start[:3])
        for joint, batch in zip(actions, stepped, strict=True):
            seen, reward, terminated, truncated, info = single.step(joint[episode])
            assert np.allclose(seen, batch.observed.observations[episode, 0], atol=1e-5)
            assert reward == pytest.approx(float(batch.rewards[episode]), abs=1e-6)
            assert info == {"cost": float(batch.costs[episode])}
            assert terminated == bool(batch.terminated[episode])
            assert (truncated and not terminated) == bool(batch.truncated[episode])
            if terminated or truncated:
                ends.append("goal" if reward > 0.9 else "out" if terminated else "time")
                break
    assert set(ends) == {"goal", "out", "time"}
    seeded = PointRobotEnv().reset(seed=12)[0]
    assert np.allclose(seeded, environments.reset([12]).observations[0, 0], atol=1e-6)


def test_gymnasiums_own_check():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_env(gymnasium.make("convoy/PointRobot-v0", render_mode="rgb_array").unwrapped)
    assert all("infinity" in str(each.message) for each in told)


def driven(margin, speed, environments=None, seeds=range(300), **habits):
    """Episodes of the controller of one margin and speed."""
    policy = GoToGoal(Detour(margin=(margin, margin), speed=(speed, speed), **habits), 300)
    return rollout(policy, environments or PointRobot(), seeds, parallel=len(seeds)).trajectories


def arrived(data):
    """Which episodes end in the goal [E]."""
    final = data.observations[data.offsets[1:] - 1, 0, :2]
    return (final - torch.tensor(GOAL)).norm(dim=1) < GOAL_RADIUS + 1e-5


def begun(data):
    """Which episodes begin such that the robot can stop, braking straight on, inside the field and no hazard [E]."""
    first = data.observations[data.offsets[:-1], 0]
    stop = first[:, :2] + first[:, 2:3] ** 2 / 2 * first[:, 3:]
    field = (stop.abs() < 3).all(dim=1)
    ways = first[:, None, :2] + torch.linspace(0, 1, 20)[:, None] * (stop - first[:, :2])[:, None]
    clear = ((ways[:, :, None] - torch.tensor(HAZARDS)).norm(dim=3) > HAZARD_RADIUS).all(dim=(1, 2))
    return field, field & clear


def test_rewards_are_the_way_made_and_the_goal():
    data = driven(0.1, 1.5, noise=0.5, lapsing=0.3, uniform=0.2)
    first, final = data.observations[data.offsets[:-1], 0, :2], data.observations[data.offsets[1:] - 1, 0, :2]
    distances = [(places - torch.tensor(GOAL)).norm(dim=1) for places in (first, final)]
    assert torch.allclose(data.scores, distances[0] - distances[1] + arrived(data).float(), atol=1e-4)


@pytest.mark.parametrize(("margin", "speed"), [(-0.8, 1.0), (-0.8, 1.6), (-0.4, 1.2), (0.1, 1.0), (0.4, 1.0)])
def test_the_goal_is_reached(margin, speed):
    """From where braking keeps the robot in the field; from the others, no controller may reach it."""
    data = driven(margin, speed)
    field, _ = begun(data)
    assert float(arrived(data)[field].float().mean()) > 0.96
    assert data.terminated.all()


def test_wider_margins_cost_less():
    costs = []
    for margin in (-0.8, 0.0, 0.2):
        data = driven(margin, 1.2)
        costs.append(float(data.episode_sums(data.costs)[begun(data)[1]].mean()))
    assert costs[0] > 2
    assert costs[1] < 0.3 * costs[0]
    assert costs[2] < 0.05 * costs[0]


def test_straight_through_a_hazard():
    """On the line through a hazard's centre to the goal, at 1 m/s all the way."""
    course = math.atan2(GOAL[1] - HAZARDS[1][1], GOAL[0] - HAZARDS[1][0])
    back = 1.2
    start = (HAZARDS[1][0] - back * math.cos(course), HAZARDS[1][1] - back * math.sin(course), 1.0, course)
    data = driven(-HAZARD_RADIUS, 1.0, PointRobot(state=start), [0])
    assert float(data.costs.sum()) == pytest.approx(2 * HAZARD_RADIUS / 0.05, abs=1.01)
    way = back + math.dist(GOAL, HAZARDS[1]) - GOAL_RADIUS
    assert float(data.scores) == pytest.approx(way + 1, abs=0.05)
    assert data.steps == pytest.approx(way / 0.05, abs=3)


def test_from_the_published_fixed_start():
    """It heads for a hazard at 2 m/s: only to the left is there a way around it."""
    environments = PointRobot(state=FIXED_START)
    careful, straight = (driven(margin, 1.0, environments, [0]) for margin in (0.2, -HAZARD_RADIUS))
    assert arrived(careful).all()
    assert arrived(straight).all()
    assert float(careful.costs.sum()) == 0
    assert float(straight.costs.sum()) > 20
    hazard = torch.tensor(HAZARDS[1])
    passing = (careful.observations[:, 0, :2] - hazard).norm(dim=1).argmin()
    assert (careful.observations[passing, 0, :2] > hazard - HAZARD_RADIUS)[1]
    assert float(careful.observations[:, 0, 1].max()) > HAZARDS[1][1] + HAZARD_RADIUS

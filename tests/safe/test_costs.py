"""Costs against what MuJoCo's state says, step by step."""

import math
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from pettingzoo import ParallelEnv
from pettingzoo.test import parallel_api_test

from core.errors import UserError
from core.mujoco import import_mujoco
from safe.costs import CostWrapper, Disc, Hazards, HeightLimit, TeamCostWrapper, VelocityLimit


def state(positions, velocities=()):
    return SimpleNamespace(qpos=np.array(positions), qvel=np.array(velocities))


def test_a_velocity_at_the_threshold_is_free():
    limit = VelocityLimit(2.0)
    assert [limit(None, {"x_velocity": v, "y_velocity": 9.0}) for v in (-3.0, 2.0, 2.1)] == [0.0, 0.0, 1.0]
    planar = VelocityLimit(5.0, planar=True)
    assert [planar(None, {"x_velocity": -3.0, "y_velocity": v}) for v in (3.9, 4.0, -4.1)] == [0.0, 0.0, 1.0]


def test_a_height_counts_its_velocity():
    assert HeightLimit(1.5)(state([0, 1.6], [0, -9]), {}) == 1
    assert HeightLimit(1.6, seconds=0.1)(state([0, 1.6], [0, -0.1]), {}) == 0
    assert HeightLimit(1.6, seconds=0.1)(state([0, 1.5], [0, 1.1]), {}) == 1
    assert HeightLimit(1.0, place=2)(state([9, 9, 0.9], [9, 9, 9]), {}) == 0


def test_hazards_end_at_their_radius():
    hazards = Hazards((Disc(0, 0, 1), Disc(3, 4, 0.5)))
    places = [(1.0, 0.0), (0.7, 0.7), (0.8, 0.7), (3.0, 3.51), (3.0, 3.5), (-3.0, -4.0)]
    assert [hazards(state(place), {}) for place in places] == [0, 1, 0, 1, 0, 0]
    with pytest.raises(ValueError, match="-1"):
        Disc(0, 0, -1)


class Empty(ParallelEnv):
    """A team of nobody."""


def test_what_has_no_mujoco_state_is_refused():
    with pytest.raises(UserError, match="CartPoleEnv has none"):
        CostWrapper(gymnasium.make("CartPole-v1"), VelocityLimit(1.0))
    with pytest.raises(UserError, match="Empty is not of it"):
        TeamCostWrapper(Empty(), VelocityLimit(1.0))
    with pytest.raises(UserError, match="x_velocity"):
        VelocityLimit(1.0)(None, {})


def steps(environment, count, seed=0):
    """Infos of an episode of random actions, each with the state after it."""
    environment.reset(seed=seed)
    environment.action_space.seed(seed)
    for _ in range(count):
        info = environment.step(environment.action_space.sample())[4]
        yield info["cost"], environment.unwrapped


@pytest.mark.extra
def test_the_velocity_is_the_way_over_the_time():
    """Of HalfCheetah's first joint, and of Ant's torso as the step before left it and this one found it."""
    import_mujoco()
    cheetah = CostWrapper(gymnasium.make("HalfCheetah-v5"), VelocityLimit(0.3))
    before, found = None, []
    for cost, robot in steps(cheetah, 80):
        if before is not None:
            found.append((cost, float((robot.data.qpos[0] - before) / 0.05 > 0.3)))
        before = robot.data.qpos[0]
    assert [cost for cost, _ in found] == [other for _, other in found]
    assert 5 < sum(cost for cost, _ in found) < 75
    ant = CostWrapper(gymnasium.make("Ant-v5"), VelocityLimit(0.6, planar=True))
    before, found = None, []
    for cost, robot in steps(ant, 80):
        place = robot.data.body("torso").xpos[:2].copy()
        if before is not None:
            found.append((cost, float(np.hypot(*(place - before)) / 0.05 > 0.6)))
        before = place
    assert [cost for cost, _ in found] == [other for _, other in found]
    assert 5 < sum(cost for cost, _ in found) < 75


@pytest.mark.extra
@pytest.mark.parametrize("robot", ["Hopper", "Walker2d"])
def test_the_height_is_the_torsos(robot):
    import_mujoco()
    import mujoco

    found = []
    for cost, environment in steps(CostWrapper(gymnasium.make(f"{robot}-v5"), HeightLimit(1.2, seconds=0.05)), 40):
        model, data = environment.model, environment.data
        mujoco.mj_forward(model, data)  # a step leaves bodies where its last part began
        found.append((cost, float(data.body("torso").xpos[2] + 0.05 * data.qvel[1] > 1.2)))
    assert [cost for cost, _ in found] == [other for _, other in found]
    assert 3 < sum(cost for cost, _ in found) < 37


@pytest.mark.extra
def test_costs_add_up():
    import_mujoco()
    free, always = VelocityLimit(math.inf), HeightLimit(-math.inf)
    environment = CostWrapper(CostWrapper(gymnasium.make("Hopper-v5"), always), always)
    assert [cost for cost, _ in steps(environment, 3)] == [2.0] * 3
    assert [cost for cost, _ in steps(CostWrapper(gymnasium.make("Hopper-v5"), free), 3)] == [0.0] * 3


@pytest.mark.extra
@pytest.mark.parametrize(("robot", "parts", "agents"), [("HalfCheetah", "2x3", 2), ("Swimmer", "2x1", 2)])
def test_a_team_bears_what_its_body_costs(robot, parts, agents):
    """As the single agent's does that makes the same moves from the same seed."""
    import_mujoco()
    from gymnasium_robotics import mamujoco_v1

    limit = VelocityLimit(0.1)
    team = TeamCostWrapper(mamujoco_v1.parallel_env(robot, parts), limit)
    body = CostWrapper(gymnasium.make(f"{robot}-v5"), limit)
    team.reset(seed=3)
    body.reset(seed=3)
    body.action_space.seed(3)
    costs = []
    for _ in range(40):
        action = body.action_space.sample()
        infos = team.step(team.map_global_action_to_local_actions(action))[4]
        costs.append(body.step(action)[4]["cost"])
        assert [info["cost"] for info in infos.values()] == [costs[-1]] * agents
    assert 3 < sum(costs) < 37


@pytest.mark.extra
def test_a_team_is_still_a_parallel_env():
    import_mujoco()
    from gymnasium_robotics import mamujoco_v1

    team = TeamCostWrapper(mamujoco_v1.parallel_env("Hopper", "3x1"), VelocityLimit(0.9613))
    assert team.metadata["name"] == "MaMuJoCo"
    parallel_api_test(team, num_cycles=30)

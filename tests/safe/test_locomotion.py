"""Robots with costs: what is published of them, and a search in the fastest."""

import sys

import gymnasium
import pytest
import torch

from core.environments import TeamSpec
from core.errors import UserError
from core.mujoco import import_mujoco
from core.rollout import Reactive, rollout
from safe.locomotion import LOCOMOTION, locomotion_of
from safe.search import SearchConfig, search

#: Safety-Gymnasium's thresholds in metres a second, of single agents and of teams, and SafeDiffuser's heights.
PUBLISHED = {
    "ant": 2.6222,
    "halfcheetah": 3.2096,
    "hopper": 0.7402,
    "swimmer": 0.2282,
    "walker2d": 2.3415,
    "ant-2x4": 2.522,
    "ant-4x2": 2.418,
    "halfcheetah-2x3": 3.227,
    "halfcheetah-6x1": 2.932,
    "hopper-3x1": 0.9613,
    "swimmer-2x1": 0.04891,
    "walker2d-2x3": 1.641,
    "humanoid-9-8": 0.58,
}


class Uniform(Reactive):
    """The same uniform actions for every batch."""

    def __init__(self, spec):
        self.spec = spec

    def act(self, observations, context):
        generator = torch.Generator().manual_seed(context.step)
        return 2 * torch.rand(len(observations), self.spec.agents, self.spec.action_dim, generator=generator) - 1


def test_limits_are_the_published_ones():
    assert {name: LOCOMOTION[name].cost.threshold for name in PUBLISHED} == PUBLISHED
    planar = {name for name in PUBLISHED if LOCOMOTION[name].cost.planar}
    assert planar == {"ant", "ant-2x4", "ant-4x2", "humanoid-9-8"}
    assert {name: LOCOMOTION[name].cost.limit for name in LOCOMOTION.keys() - PUBLISHED} == {
        "hopper-height": 1.5,
        "walker2d-height": 1.3,
    }
    assert locomotion_of("ant") is LOCOMOTION["ant"]
    with pytest.raises(UserError, match="did you mean 'hopper'"):
        locomotion_of("hoper")


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match=r"convoy-rl\[mamujoco\]"):
        LOCOMOTION["ant"].make()


@pytest.mark.extra
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("halfcheetah", TeamSpec(1, 17, 6)),
        ("hopper", TeamSpec(1, 11, 3)),
        ("walker2d", TeamSpec(1, 17, 6)),
        ("swimmer", TeamSpec(1, 8, 2)),
        ("ant", TeamSpec(1, 27, 8)),
        ("hopper-height", TeamSpec(1, 11, 3)),
    ],
)
def test_a_robot_is_gymnasiums(name, spec):
    """Step by step the same as Gymnasium's own loop, the cost aside."""
    robot = LOCOMOTION[name]
    with robot.make(20) as environments:
        assert environments.spec == spec
        done = rollout(Uniform(spec), environments, [5, 6]).trajectories
    single = gymnasium.make(f"{robot.robot}-v5", **robot.options)
    seen, _ = single.reset(seed=5)
    for step in range(int(done.offsets[1]) - 1):
        assert torch.equal(done.observations[step, 0], torch.from_numpy(seen).float())
        seen, reward, over, _, info = single.step(done.actions[step, 0].numpy())
        assert float(done.rewards[step]) == pytest.approx(reward, abs=1e-6)
        assert float(done.costs[step]) == robot.cost(single.unwrapped.data, info)
    assert over or step == 19


@pytest.mark.extra
@pytest.mark.parametrize("name", [name for name, robot in LOCOMOTION.items() if robot.team])
def test_a_team_can_be_made(name):
    with LOCOMOTION[name].make(4) as environments:
        done = rollout(Uniform(environments.spec), environments, [0]).trajectories
        assert (done.costs == done.costs[:, :1]).all()
        assert done.steps == 4 or done.terminated.all()


@pytest.mark.extra
def test_an_episode_takes_a_thousand_steps():
    import_mujoco()
    environment = LOCOMOTION["swimmer"].parallel_env().environment
    assert environment.get_wrapper_attr("_max_episode_steps") == 1000
    assert environment.spec.id == "Swimmer-v5"


@pytest.mark.extra
def test_swimmer_learns_to_swim():
    """By a second of search, in short episodes."""
    with LOCOMOTION["swimmer"].make(100) as environments:
        found = search(environments, SearchConfig(12, directions=4, best=4, step=0.05, noise=0.05))
        reached, before = (
            rollout(policy, environments, range(2)).trajectories.scores.mean()
            for policy in (found.policy, Uniform(environments.spec))
        )
    assert reached > before + 10

import numpy as np
import pytest
from mpe2 import simple_spread_v3
from pettingzoo.test import parallel_api_test

import marl
from core.errors import UserError
from marl.environments import REFERENCES, TaskConfig


def forces(env, seed, steps=25):
    """Random forces for a whole episode."""
    generator = np.random.default_rng(seed)
    return [
        {agent: generator.uniform(-1, 1, 2).astype(np.float32) for agent in env.possible_agents} for _ in range(steps)
    ]


def positions(env):
    return np.stack([agent.state.p_pos for agent in env.unwrapped.world.agents])


@pytest.mark.filterwarnings("error")
def test_it_is_a_parallel_environment(capsys):
    parallel_api_test(marl.parallel_env("mpe/spread"), num_cycles=100)


@pytest.mark.parametrize("agents", [1, 3, 5])
def test_spaces(agents):
    env = marl.parallel_env("mpe/spread", agents=agents, max_cycles=7)
    observations, _ = env.reset(seed=0)
    assert env.possible_agents == [f"agent_{k}" for k in range(agents)]
    for agent in env.possible_agents:
        # Velocity, position, landmarks, the others' positions and what they say.
        assert observations[agent].shape == (2 + 2 + 2 * agents + 4 * (agents - 1),)
        assert env.observation_space(agent).shape == observations[agent].shape
        space = env.action_space(agent)
        assert (space.shape, space.low.min(), space.high.max()) == ((2,), -1, 1)
    steps = 0
    while env.agents:
        _, _, terminations, truncations, _ = env.step({agent: np.zeros(2, np.float32) for agent in env.agents})
        steps += 1
    assert steps == 7
    assert all(truncations.values())
    assert not any(terminations.values())


def test_the_action_is_the_native_one():
    """u = (x, y) moves the agents as mpe2's own (no-op, left, right, down, up) does."""
    env = marl.parallel_env("mpe/spread")
    native = simple_spread_v3.parallel_env(N=3, max_cycles=25, continuous_actions=True)
    observations, expected = (e.reset(seed=11)[0] for e in (env, native))
    for actions in forces(env, seed=0):
        five = {}
        for agent, (x, y) in actions.items():
            five[agent] = np.array([0, max(-x, 0), max(x, 0), max(-y, 0), max(y, 0)], np.float32)
        observations, rewards, *_ = env.step(actions)
        expected, expected_rewards, *_ = native.step(five)
        for agent in actions:
            assert np.array_equal(observations[agent], expected[agent])
        assert rewards == expected_rewards


def test_each_direction():
    """A positive first entry moves to the right, a positive second one up; beyond the box counts as its edge."""
    for action, direction in (([1, 0], [1, 0]), ([-1, 0], [-1, 0]), ([0, 1], [0, 1]), ([0, -3], [0, -1])):
        env = marl.parallel_env("mpe/spread", agents=1)
        env.reset(seed=0)
        before = positions(env)
        env.step({"agent_0": np.array(action, np.float32)})
        observations, *_ = env.step({"agent_0": np.zeros(2, np.float32)})
        moved = positions(env)[0] - before[0]
        assert np.allclose(moved / np.linalg.norm(moved), direction)
        assert np.allclose(np.sign(np.round(observations["agent_0"][:2], 6)), direction)


def test_cost_counts_contacts():
    env, total = marl.parallel_env("mpe/spread", agents=5), 0
    for seed in range(6):
        _, infos = env.reset(seed=seed)
        for actions in forces(env, seed):
            *_, infos = env.step(actions)
            where = positions(env)
            for i, agent in enumerate(env.possible_agents):
                contacts = sum(1 for j in range(5) if j != i and ((where[i] - where[j]) ** 2).sum() ** 0.5 < 2 * 0.15)
                assert infos[agent]["cost"] == contacts
                total += contacts
    assert total > 20


def test_same_seed_same_episode():
    runs = []
    for _ in range(2):
        env = marl.parallel_env("mpe/spread")
        observations, _ = env.reset(seed=5)
        runs.append([observations["agent_1"], *(env.step(actions)[0]["agent_1"] for actions in forces(env, 1))])
    assert np.array_equal(*runs)
    other, _ = env.reset(seed=6)
    assert not np.array_equal(other["agent_1"], runs[0][0])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mpe/spred", {}, "unknown task 'mpe/spred': did you mean 'mpe/spread'"),
        ("atari/pong", {}, "unknown task 'atari/pong': choose one of: mpe/spread"),
        ("mpe/spread", {"rules": "omer"}, "unknown task.rules 'omer': choose one of mpe2"),
        ("mpe/spread", {"agents": 0}, "must be at least 1, got 0, 25"),
        ("mpe/spread", {"max_cycles": 0}, "must be at least 1, got 3, 0"),
    ],
)
def test_unknown_tasks_and_rules(name, options, message):
    with pytest.raises(UserError, match=message):
        marl.parallel_env(name, **options)


def test_dataset_ids_and_references():
    task = TaskConfig()
    assert task.dataset_id("expert") == "mpe/spread/mpe2/expert-v0"
    assert task.references is REFERENCES["mpe/spread", "mpe2"]
    assert task.references.normalise(task.references.random) == 0
    assert task.references.normalise(task.references.expert) == 100
    other = TaskConfig(agents=5)
    assert other.dataset_id("expert") == "mpe/spread/mpe2/expert-5x25-v0"
    assert other.references is None

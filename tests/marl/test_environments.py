from pathlib import Path

import numpy as np
import pytest
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
        ("mpe/spread", {"rules": "omer"}, "unknown task.rules 'omer': choose one of mpe2, omar"),
        ("mpe/spread", {"agents": -1}, "task.agents must be at least 0"),
        ("mpe/spread", {"max_cycles": 0}, "task.max_cycles at least 1, got 0, 0"),
        ("mpe/spread", {"missing": 3}, "leave one of 3 goals, got 3"),
        ("mpe/tag", {"entities": True}, "are for spread, but the scenario is 'tag'"),
        ("mpe/tag", {"prey": "fligt"}, "fligt"),
        ("mpe/tag", {"prey": "no/such.npz"}, "no/such.npz"),
        ("mpe/spread", {"options": {"N": 4}}, "task.options is for environments that are not our own"),
        ("mpe/spread", {"agent": 4}, "unexpected keyword argument 'agent'"),
    ],
)
def test_unknown_tasks_and_settings(name, options, message):
    with pytest.raises(UserError, match=message):
        marl.parallel_env(name, **options)


def test_dataset_ids():
    def name(*names, **settings):
        return TaskConfig(*names, **settings).dataset_id("expert")

    assert name() == "mpe/spread/mpe2/expert-v0"
    assert name("mpe/tag", "omar") == "mpe/tag/omar/expert-v0"
    assert name(agents=5) == "mpe/spread/mpe2/expert-5x25-v0"
    assert name(entities=True) == "mpe/spread/mpe2/expert-entities-v0"
    assert name(circle=6, missing=1, speed=0.5) == "mpe/spread/mpe2/expert-circle6-missing1-speed0-5-v0"
    assert name("mpe2.simple_tag_v3") == "mpe2-simple_tag_v3/expert-v0"
    assert name("my.module:make") == "my-module-make/expert-v0"


def test_references_are_of_the_task_as_it_is_published():
    """The published numbers belong to the omar rules, and in tag and world to the published prey alone."""
    spread = TaskConfig(rules="omar").references
    assert (spread.random, spread.expert) == (159.8, 516.8)
    assert spread.normalise(spread.random) == 0
    assert spread.normalise(spread.expert) == 100
    assert TaskConfig().references is REFERENCES["mpe/spread", "mpe2", ""]
    assert TaskConfig(agents=5).references is None
    assert TaskConfig(speed=0.5).references is None
    for (_, rules, prey), references in REFERENCES.items():
        published = "published" in references.source
        assert not published or (rules == "omar" and prey in ("", "published"))


@pytest.mark.parametrize("scenario", ["tag", "world"])
def test_the_published_prey_has_the_published_references(scenario):
    path = (
        Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mpe_prey" / f"mpe_prey_simple_{scenario}.npz"
    )
    if not path.is_file():
        pytest.skip(f"needs the published prey at {path}")
    task = TaskConfig(f"mpe/{scenario}", "omar", prey=str(path))
    assert task.prey_name == "published"
    assert task.references is REFERENCES[f"mpe/{scenario}", "omar", "published"]
    assert task.dataset_id("expert") == f"mpe/{scenario}/omar/expert-published-v0"
    assert task.settings["prey"] == "published"
    assert TaskConfig(f"mpe/{scenario}", "omar").settings["prey"] == "flight"

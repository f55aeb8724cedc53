"""Environments and datasets of a single agent, against Gymnasium's own loop."""

import json
import sys
import warnings
from contextlib import chdir
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from pettingzoo.test import parallel_api_test

from core.cli import main
from core.data import read_dataset, read_provenance
from core.environments import TeamSpec
from core.errors import UserError
from core.single import SingleAgentEnv
from marl import TaskConfig, parallel_env

TRACKS = '''
import gymnasium
import numpy as np
from gymnasium import spaces


class Track(gymnasium.Env):
    """A cart is pushed and braked along a track; too fast costs, and the end of the track ends the episode."""

    observation_space = spaces.Box(-np.inf, np.inf, (2, 2), np.float64)
    action_space = spaces.Box(np.array([0, -4], np.float32), np.array([10, 4], np.float32))

    def __init__(self, limit=1.0):
        self.limit = limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.speed = self.np_random.random(), 0.0
        return self.see(), {}

    def step(self, action):
        push, brake = map(float, action)
        self.speed += push / 8 - brake / 16
        self.place += self.speed
        info = {"cost": self.speed - self.limit} if self.speed > self.limit else {}
        return self.see(), -self.speed, self.place > 6, False, info

    def see(self):
        return np.array([[self.place, self.speed], [self.limit, 1.0]])


class Doors(gymnasium.Env):
    """One of the places 3 to 6, and moves -1, 0, 1."""

    observation_space = spaces.Discrete(4, start=3)
    action_space = spaces.Discrete(3, start=-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(3, 7))
        return self.place, {}

    def step(self, action):
        self.place = min(max(self.place + int(action), 3), 6)
        return self.place, float(self.place), False, False, {}


gymnasium.register("Tracks/Track-v0", Track, max_episode_steps=3)
gymnasium.register("Tracks/Doors-v0", "tracks:Doors", max_episode_steps=5)


class Bag(Track):
    observation_space = spaces.Sequence(spaces.Discrete(2))


class Bagged(Track):
    observation_space = spaces.Dict(bag=spaces.Graph(spaces.Discrete(2), None))


class Many(Track):
    action_space = spaces.MultiDiscrete([2, 2])


class Endless(Track):
    action_space = spaces.Box(-np.inf, np.inf, (1,))


class Blind(Track):
    observation_space = None


class Seedless(Track):
    def reset(self):
        return self.see(), {}


class Old(Track):
    def step(self, action):
        return super().step(action)[:4]
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a module of environments, to work in."""
    folder = tmp_path_factory.mktemp("tracks")
    (folder / "tracks.py").write_text(TRACKS)
    known = dict(gymnasium.registry)
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "tracks", raising=False)
        yield folder
        sys.modules.pop("tracks", None)
        for added in gymnasium.registry.keys() - known.keys():
            gymnasium.registry.pop(added)


def drawn(spec, episodes, steps):
    """Actions [T, B, 1, U] whose scaled values float32 holds exactly, from corner to corner; or choices, one-hot."""
    generator = torch.Generator().manual_seed(0)
    if spec.discrete:
        chosen = torch.randint(spec.action_dim, (steps, episodes, 1), generator=generator)
        return torch.nn.functional.one_hot(chosen, spec.action_dim).float()
    return torch.randint(-64, 65, (steps, episodes, 1, spec.action_dim), generator=generator) / 64


def by_hand(environment, seed, actions):
    """One episode in Gymnasium's own loop: its observations, and what its steps gave."""
    observation, _ = environment.reset(seed=seed)
    seen, given = [observation], []
    for action in actions:
        observation, *rest = environment.step(action)
        seen.append(observation)
        given.append(rest)
        if rest[1] or rest[2]:
            break
    return seen, given


def assert_parity(task, make, spec, act, see, steps):
    """The task's batch, step by step, is Gymnasium's own loop: `act` makes its action of ours, `see` our row of its
    observation. Returns the ends of the episodes."""
    seeds, ends = [3, 11, 12], []
    actions = drawn(spec, len(seeds), steps)
    with task.make() as environments:
        assert environments.spec == spec
        assert environments.agents == ("agent",)
        observed, stepped = [environments.reset(seeds)], []
        for joint in actions:
            stepped.append(environments.step(joint))
            observed.append(stepped[-1].observed)
    assert all(each.legal is None and each.present is None for each in observed)
    for episode, seed in enumerate(seeds):
        seen, given = by_hand(make(), seed, [act(joint[episode, 0].numpy()) for joint in actions])
        for time, value in enumerate(seen):
            assert torch.equal(observed[time].observations[episode, 0], torch.from_numpy(see(value)).float()), time
        for step, (reward, terminated, truncated, info) in zip(stepped, given, strict=False):
            assert step.rewards[episode, 0] == np.float32(reward)
            assert step.costs[episode, 0] == np.float32(info.get("cost", 0))
            assert step.terminated[episode] == terminated
            assert step.truncated[episode] == (truncated and not terminated)
        ends.append((len(given), bool(terminated), bool(truncated)))
        assert terminated or truncated
    return ends


@pytest.mark.parametrize(
    ("name", "options", "spec", "act"),
    [
        ("Pendulum-v1", {}, TeamSpec(1, 3, 1), lambda row: 2 * row),
        ("Pendulum-v1", {"g": 2.5, "max_episode_steps": 7}, TeamSpec(1, 3, 1), lambda row: 2 * row),
        ("CartPole-v1", {}, TeamSpec(1, 4, 2, discrete=True), lambda row: int(row.argmax())),
        ("CartPole-v1", {"max_episode_steps": 12}, TeamSpec(1, 4, 2, discrete=True), lambda row: int(row.argmax())),
    ],
)
def test_gymnasiums_own(name, options, spec, act):
    ends = assert_parity(
        TaskConfig(f"gym/{name}", options=options),
        lambda: gymnasium.make(name, **options),
        spec,
        act,
        np.asarray,
        options.get("max_episode_steps", 200),
    )
    if name == "Pendulum-v1":
        assert ends == [(options.get("max_episode_steps", 200), False, True)] * 3
    elif options:
        assert (12, False, True) in ends
    else:
        assert all(terminated and not truncated and 7 < steps < 200 for steps, terminated, truncated in ends)


@pytest.mark.parametrize("name", ["gym/tracks:Tracks/Track-v0", "tracks:Track"])
def test_an_environment_of_ones_own(name, place):
    """Its observation is a matrix, its action has bounds of its own, and its info tells a cost in some steps."""
    tracks = TaskConfig(name).parallel_env().environment.unwrapped  # the module is imported
    ends = assert_parity(
        TaskConfig(name, options={"limit": 0.5}),
        lambda: gymnasium.wrappers.TimeLimit(type(tracks)(limit=0.5), 3 if name.startswith("gym/") else 100),
        TeamSpec(1, 4, 2),
        lambda row: np.array([5 + 5 * row[0], 4 * row[1]]),
        np.ravel,
        30,
    )
    assert all(terminated != truncated for _, terminated, truncated in ends)
    assert name.startswith("gym/") == any(truncated for *_, truncated in ends)
    # A step at speed 1.125 where 1 is the limit, after one that tells no cost.
    environment = parallel_env(name)
    _, infos = environment.reset(seed=0)
    assert infos == {"agent": {"cost": 0.0}}
    *_, infos = environment.step({"agent": np.array([9, 0], np.float32)})
    assert infos == {"agent": {"cost": 0.125}}


def test_discrete_observations_are_one_hot(place):
    """Places and moves that do not begin at 0."""
    ends = assert_parity(
        TaskConfig("gym/tracks:Tracks/Doors-v0"),
        lambda: gymnasium.make("Tracks/Doors-v0"),
        TeamSpec(1, 4, 3, discrete=True),
        lambda row: int(row.argmax()) - 1,
        lambda seen: np.eye(4)[seen - 3],
        5,
    )
    assert ends == [(5, False, True)] * 3


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1"])
def test_it_is_a_parallel_env(name, capsys):
    """By PettingZoo's own test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parallel_api_test(SingleAgentEnv(gymnasium.make(name)), num_cycles=60)


def test_frames():
    environment = parallel_env("gym/CartPole-v1", render_mode="rgb_array")
    environment.reset(seed=0)
    own = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    own.reset(seed=0)
    assert np.array_equal(environment.render(), own.render())
    environment.close()
    own.close()


def test_collected_is_what_gymnasium_gives(place):
    task = ["task.name=gym/Pendulum-v1", "task.options.max_episode_steps=6"]
    assert main(["collect", *task, "quality=random", "episodes=3", "data=data", "seed=5"]) == 0
    dataset = read_dataset("gym-Pendulum-v1/random-max_episode_steps6-v0", place / "data")
    data = dataset.trajectories
    assert dataset.spec == TeamSpec(1, 3, 1)
    assert dataset.provenance.task == "gym/Pendulum-v1"
    assert data.offsets.tolist() == [0, 7, 14, 21]
    assert not data.terminated.any()
    environment = gymnasium.make("Pendulum-v1", max_episode_steps=6)
    for episode in range(3):
        rows = slice(7 * episode, 7 * episode + 6)
        seen, given = by_hand(environment, 5 + episode, 2 * data.actions[rows, 0].numpy())
        assert torch.allclose(data.observations[7 * episode : 7 * episode + 7, 0], torch.from_numpy(np.stack(seen)))
        assert data.rewards[rows, 0].tolist() == pytest.approx([reward for reward, *_ in given], abs=1e-5)


# Datasets of others


def pushed(torque, episodes, steps):
    """Episodes of the pendulum under torques of one size, by Gymnasium's own loop."""
    environment = gymnasium.make("Pendulum-v1", max_episode_steps=steps)
    for seed in range(episodes):
        actions = [np.array([torque(time)], np.float32) for time in range(steps)]
        seen, given = by_hand(environment, seed, actions)
        ends = [truncated for _, _, truncated, _ in given]
        rewards = [float(reward) for reward, *_ in given]
        yield EpisodeBuffer(
            id=seed, observations=seen, actions=actions, rewards=rewards, terminations=[False] * steps, truncations=ends
        )


def write_minari(name, buffers, root, **options):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for an author
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        minari.create_dataset_from_buffers(name, buffers, data_format="hdf5", **options)


@pytest.fixture(scope="module")
def pendulum(place):
    """Minari's datasets of a constant torque 1 of at most 2: by its environment's name, and without one."""
    root = place / "minari"
    root.mkdir()
    own = gymnasium.make("Pendulum-v1")
    named = {"observation_space": own.observation_space, "action_space": own.action_space}
    write_minari("pendulum/constant-v0", list(pushed(lambda time: 1.0, 8, 20)), root, env="Pendulum-v1")
    write_minari("pendulum/nameless-v0", list(pushed(lambda time: time / 2 - 2, 2, 9)), root, **named)
    return root


def test_actions_are_scaled_by_their_space(pendulum):
    assert read_provenance("pendulum/constant-v0", pendulum).environment_id == "Pendulum-v1"
    assert read_provenance("pendulum/nameless-v0", pendulum).environment_id == ""
    dataset = read_dataset("pendulum/nameless-v0", pendulum)
    data = dataset.trajectories
    assert dataset.spec == TeamSpec(1, 3, 1)
    assert data.actions[:10, 0, 0].tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 0]
    # Scaled again by the environment, they lead to what was recorded.
    with TaskConfig("gym/Pendulum-v1").make() as environments:
        environments.reset([0, 1])
        for time in range(9):
            stepped = environments.step(data.actions[[time, time + 10]])
            assert torch.equal(stepped.observed.observations, data.observations[[time + 1, time + 11]])
            assert torch.equal(stepped.rewards, data.rewards[[time, time + 10]])


def test_spaces_of_a_dataset(tmp_path):
    """Bounds that differ, numbers without bounds, and choices that begin elsewhere than at 0."""
    end = {"rewards": [0.0, 0.0], "terminations": [False, True], "truncations": [False, False]}
    seen = [np.zeros((2, 2), np.float32), np.arange(4, dtype=np.float32).reshape(2, 2), np.ones((2, 2), np.float32)]
    matrix = spaces.Box(-9, 9, (2, 2))
    uneven = spaces.Box(np.array([0, -4, 3], np.float32), np.array([10, 4, 3], np.float32))
    actions = [np.array(row, np.float32) for row in ([2.5, 1, 3], [10, -4, 3])]
    write_minari(
        "spaces/uneven-v0",
        [EpisodeBuffer(id=0, observations=seen, actions=actions, **end)],
        tmp_path,
        observation_space=matrix,
        action_space=uneven,
    )
    data = read_dataset("spaces/uneven-v0", tmp_path).trajectories
    assert data.actions[:2, 0].tolist() == [[-0.5, 0.25, -1], [1, -1, -1]]
    assert data.observations[:, 0].tolist() == [[0, 0, 0, 0], [0, 1, 2, 3], [1, 1, 1, 1]]
    write_minari(
        "spaces/unbounded-v0",
        [EpisodeBuffer(id=0, observations=seen, actions=actions, **end)],
        tmp_path,
        observation_space=matrix,
        action_space=spaces.Box(-np.inf, np.inf, (3,)),
    )
    assert torch.equal(
        read_dataset("spaces/unbounded-v0", tmp_path).trajectories.actions[:2, 0], torch.tensor(np.stack(actions))
    )
    write_minari(
        "spaces/choices-v0",
        [EpisodeBuffer(id=0, observations=[3, 5, 6], actions=[-1, 1], **end)],
        tmp_path,
        observation_space=spaces.Discrete(4, start=3),
        action_space=spaces.Discrete(3, start=-1),
    )
    dataset = read_dataset("spaces/choices-v0", tmp_path)
    assert dataset.spec == TeamSpec(1, 4, 3, discrete=True)
    assert dataset.trajectories.observations[:, 0].tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert dataset.trajectories.actions[:, 0].tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


TINY = ["algo=bc", "algo.hidden=16", "trainer.batch_size=64", "trainer.ema=0.9", "trainer.device=cpu", "data=minari"]


def test_what_is_cloned_acts_as_it_was_recorded(pendulum, place):
    """A constant torque, in the file's units and in the environment's: the returns are those of that torque."""
    task = ["task.name=gym/Pendulum-v1", "task.options.max_episode_steps=20"]
    run = ["trainer.steps=300", "dataset=pendulum/constant-v0", "run=runs/constant"]
    assert main(["train", *TINY, *task, *run]) == 0
    assert main(["evaluate", "run=runs/constant", "episodes=8", "device=cpu"]) == 0
    row = json.loads((place / "runs/constant/evaluations.jsonl").read_text().splitlines()[-1])
    environment = gymnasium.make("Pendulum-v1", max_episode_steps=20)

    def mean_return(torque):
        episodes = [by_hand(environment, 1_000_000 + each, [np.float32([torque])] * 20)[1] for each in range(8)]
        return np.mean([sum(reward for reward, *_ in given) for given in episodes])

    assert abs(mean_return(2.0) - mean_return(1.0)) > 10
    assert row["return_mean"] == pytest.approx(mean_return(1.0), abs=1)
    assert row["dataset"] == "pendulum/constant-v0"


def test_a_dataset_without_an_environment_is_taken_by_its_spaces(pendulum, place):
    for name in ("gym/Pendulum-v1", "gymnasium.envs.classic_control:PendulumEnv"):
        run = [
            f"task.name={name}",
            "dataset=pendulum/nameless-v0",
            "trainer.steps=2",
            f"run=runs/{name[:3]}-{name[-3:]}",
        ]
        assert main(["train", *TINY, *run]) == 0


# Mistakes

COLLECT = "collect quality=random episodes=1 data=new task.name="
TRAIN = f"train {' '.join(TINY)} trainer.steps=2 run=new task.name="
MISTAKES = [
    (f"{COLLECT}gym/Pendulm-v1", "Gymnasium has no environment 'Pendulm-v1', unless", "did you mean 'Pendulum-v1'?"),
    (f"{COLLECT}gym/Pendulum", "Gymnasium has no environment 'Pendulum', unless", "did you mean 'Pendulum-v1'?"),
    (f"{COLLECT}gym/tracks:Tracks/Trak-v0", "no environment 'Tracks/Trak-v0'", "did you mean 'Tracks/Track-v0'?"),
    (f"{COLLECT}gym/nowhere_at_all:Track-v0", "there is no module 'nowhere_at_all'; install its package", ""),
    (f"{COLLECT}gym/Pendulum-v1 task.options.mass=3", "task.options={'mass': 3}: TypeError", "argument 'mass'"),
    (f"{COLLECT}gym/Pendulum-v1 quality=expert", "only quality=random can be collected in gym/Pendulum-v1", ""),
    (f"{COLLECT}gym/Pendulum-v1 task.agents=2", "gym/Pendulum-v1 takes task.options alone", ""),
    (f"{COLLECT}gum/Pendulum", "unknown task 'gum/Pendulum'", "Gymnasium's such as gym/Pendulum-v1"),
    (f"{COLLECT}tracks:Bag", "Bag: agent observes a Sequence, which has no fixed number of entries", ""),
    (f"{COLLECT}tracks:Bagged", "Bagged: agent observes a Dict, which has no fixed number of entries", ""),
    (f"{COLLECT}tracks:Many", "Many: agent acts in a MultiDiscrete; Box and Discrete are supported", ""),
    (f"{COLLECT}tracks:Endless", "Endless: the actions of agent have no bounds; give its Box a finite range", ""),
    (f"{COLLECT}tracks:Blind", "Blind has no observation_space: set self.observation_space", ""),
    (f"{COLLECT}tracks:Seedless", "Seedless.reset takes no seed: write reset(self, *, seed=None", ""),
    (f"{COLLECT}tracks:Old", "Old.step returned 4 values; a gymnasium.Env's returns observation, reward, term", ""),
    (
        f"{TRAIN}gym/CartPole-v1 dataset=pendulum/constant-v0",
        "dataset pendulum/constant-v0 is of environment Pendulum-v1, not of gym/CartPole-v1: choose another",
        "",
    ),
    (f"{TRAIN}tracks:Track dataset=pendulum/constant-v0", "is of environment Pendulum-v1, not of tracks:Track", ""),
    (f"{TRAIN}mpe/spread dataset=pendulum/constant-v0", "Pendulum-v1, not of mpe/spread under mpe2: choose", ""),
    (f"{TRAIN}mpe/spread dataset=pendulum/nameless-v0", "is of no known task, not of mpe/spread under mpe2", ""),
    (
        f"{TRAIN}gym/CartPole-v1 dataset=pendulum/nameless-v0",
        "is of TeamSpec(agents=1, observation_dim=3, action_dim=1,",
        "and gym/CartPole-v1 of TeamSpec(agents=1, observation_dim=4, action_dim=2, discrete=True",
    ),
]


@pytest.mark.parametrize(
    ("command", "message", "further"),
    MISTAKES,
    ids=[command.removeprefix(COLLECT).removeprefix(TRAIN) for command, *_ in MISTAKES],
)
def test_a_mistake_is_one_line(command, message, further, pendulum, place, capfd):
    assert main(command.split()) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("convoy: ")
    assert message in line
    assert further in line
    assert not list(Path("new").glob("**/*.*"))


@pytest.mark.extra
def test_mujoco_leaves_no_log(tmp_path, monkeypatch):
    """It would write down, where it runs, what is deprecated in Gymnasium's models."""
    engine = pytest.importorskip("mujoco", reason="needs the extra 'mujoco'")
    monkeypatch.chdir(tmp_path)
    engine.set_mju_user_warning(None)
    assert_parity(
        TaskConfig("gym/InvertedPendulum-v5", options={"max_episode_steps": 4}),
        lambda: gymnasium.make("InvertedPendulum-v5", max_episode_steps=4),
        TeamSpec(1, 4, 1),
        lambda row: 3 * row,
        np.asarray,
        4,
    )
    TaskConfig("gym/HalfCheetah-v5").make().close()
    assert engine.get_mju_user_warning() is not None
    assert not list(tmp_path.iterdir())


def test_a_step_after_the_end_and_a_reset_in_its_midst():
    environment = SingleAgentEnv(gymnasium.make("Pendulum-v1", max_episode_steps=2))
    environment.reset(seed=0)
    rest = {"agent": np.zeros(1, np.float32)}
    environment.step(rest)
    assert environment.agents == ["agent"]
    environment.step(rest)
    assert environment.agents == []
    assert environment.step(rest) == ({}, {}, {}, {}, {})
    again, _ = environment.reset(seed=0)
    assert np.array_equal(again["agent"], gymnasium.make("Pendulum-v1").reset(seed=0)[0])
    with pytest.raises(UserError, match=r"Pendulum-v1.reset returned a list; a gymnasium.Env's returns observation, i"):
        environment._answer([1, 2], "reset")

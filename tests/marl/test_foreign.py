"""Environments made elsewhere, from the command line: a module that is written here, mpe2, PettingZoo's, MaMuJoCo."""

import importlib
import json
import sys
from contextlib import chdir
from functools import partial
from pathlib import Path

import numpy as np
import pettingzoo
import pytest
import torch

from core.actions import execute
from core.cli import main
from core.data import read_dataset
from core.environments import TeamSpec
from core.errors import UserError
from core.noise import normal
from core.rollout import Reactive, rollout
from marl import TaskConfig
from marl.foreign import foreign_env

LANES = '''
import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv

EPISODES = []
NUMBER = 3


class Lane(ParallelEnv):
    """Two agents walk on a lane of nine places; the further from its goal, the less an agent gets. The walker tells its
    legal moves in infos, the runner beside what it sees, and the runner leaves when it reaches its goal."""

    metadata = {"name": "lane"}
    possible_agents = ["walker", "runner"]
    moves = {"walker": (-1, 0, 1), "runner": (-2, -1, 0, 1, 2)}

    def __init__(self, steps=8):
        if steps < 1:
            raise ValueError(f"a lane of {steps} steps")
        self.steps = steps

    def observation_space(self, agent):
        if agent == "walker":
            return spaces.Box(-9, 9, (2,), np.float64)
        return spaces.Dict(observation=spaces.Box(-9, 9, (4,)), action_mask=spaces.MultiBinary(5))

    def action_space(self, agent):
        return spaces.Discrete(len(self.moves[agent]))

    def reset(self, seed=None, options=None):
        random = np.random.default_rng(seed)
        self.agents, self.time = list(self.possible_agents), 0
        self.place = dict(zip(self.agents, random.integers(9, size=2).tolist()))
        self.goal = dict(zip(self.agents, random.integers(9, size=2).tolist()))
        self.log = {"seed": seed, "illegal": 0, "rewards": {agent: [] for agent in self.agents}}
        EPISODES.append(self.log)
        return self.see(), self.tell()

    def step(self, actions):
        self.time += 1
        rewards, terminations, truncations = {}, {}, {}
        for agent, action in actions.items():
            self.log["illegal"] += not self.legal(agent)[action]
            self.place[agent] += self.moves[agent][action]
            away = abs(self.goal[agent] - self.place[agent])
            rewards[agent] = -float(away)
            terminations[agent] = agent == "runner" and away == 0
            truncations[agent] = self.time == self.steps
            self.log["rewards"][agent].append(rewards[agent])
        seen, infos = self.see(), self.tell()
        self.agents = [agent for agent in actions if not (terminations[agent] or truncations[agent])]
        return seen, rewards, terminations, truncations, infos

    def legal(self, agent):
        return np.array([0 <= self.place[agent] + move < 9 for move in self.moves[agent]], np.int8)

    def see(self):
        seen = {}
        for agent in self.agents:
            seen[agent] = np.array([self.place[agent] / 4 - 1, (self.goal[agent] - self.place[agent]) / 4])
            if agent == "runner":
                seen[agent] = np.append(seen[agent], [self.place["walker"] / 4 - 1, self.time / self.steps])
                seen[agent] = {"observation": seen[agent], "action_mask": self.legal(agent)}
        return seen

    def tell(self):
        return {agent: {"action_mask": self.legal(agent)} for agent in self.agents if agent == "walker"}


class Bag(Lane):
    def observation_space(self, agent):
        return spaces.Sequence(spaces.Discrete(2))


class Many(Lane):
    def action_space(self, agent):
        return spaces.MultiDiscrete([2, 2])


class Endless(Lane):
    def action_space(self, agent):
        return spaces.Box(-np.inf, np.inf, (1,))


class Turns(AECEnv):
    possible_agents = ["a"]


class Plain:
    pass
'''

TRAIN = ["task.name=lanes:Lane", "dataset=random", "data=data", "trainer.device=cpu", "trainer.ema=0.9"]
PLANNER = ["algo=madiff", "algo.known=random", "algo.network=transformer", "algo.layers=1", "algo.width=32"]
PLANNER += ["algo.horizon=4", "algo.inverse.hidden=32", "trainer.steps=120", "trainer.warmup=10"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A module with environments, data of one of them, a planner and a clone, by the command line."""
    folder = tmp_path_factory.mktemp("lanes")
    (folder / "lanes.py").write_text(LANES)
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "lanes", raising=False)
        assert main(["collect", *TRAIN[:1], "quality=random", "episodes=200", "data=data"]) == 0
        (folder / "collected.json").write_text(json.dumps(episodes()))
        assert main(["train", *PLANNER, *TRAIN, "run=runs/planner"]) == 0
        assert main(["train", "algo=bc", "algo.hidden=16", "trainer.steps=20", *TRAIN, "run=runs/clone"]) == 0
        yield folder
        sys.modules.pop("lanes", None)


@pytest.fixture
def place(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def episodes():
    """What the environments wrote down, by seed; they begin anew."""
    written = importlib.import_module("lanes").EPISODES
    found = {entry["seed"]: entry for entry in written}
    assert len(found) == len(written)
    written.clear()
    return [found[seed] for seed in sorted(found)]


def score(entry):
    """Mean over agents of what each was given in its own steps."""
    return sum(map(sum, entry["rewards"].values())) / 2


def test_collected_is_what_the_environment_wrote_down(place, capsys):
    written = json.loads((place / "collected.json").read_text())
    dataset = read_dataset("lanes-Lane/random-v0", place / "data")
    data = dataset.trajectories
    assert dataset.spec == TeamSpec(2, 4, 5, discrete=True, sizes=(2, 4))
    assert dataset.provenance.agents == ["walker", "runner"]
    assert [entry["seed"] for entry in written] == list(range(200)) == [*range(data.episodes)]
    assert not any(entry["illegal"] for entry in written)
    for name, agent in (("walker", 0), ("runner", 1)):
        rewards = [entry["rewards"][name] for entry in written]
        assert data.returns[:, agent].tolist() == [sum(values) for values in rewards]
        here = data.present[data.decisions, agent]
        assert here.sum() == sum(map(len, rewards))
        assert data.rewards[data.decisions, agent][here].tolist() == [value for values in rewards for value in values]
    steps = torch.tensor([len(entry["rewards"]["runner"]) for entry in written])
    assert (data.offsets.diff() == 9).all()
    assert 20 < (steps < 8).sum() < 180
    # A place is seen as place / 4 - 1: legal is what stays on the lane.
    for agent, moves in ((0, [-1, 0, 1]), (1, [-2, -1, 0, 1, 2])):
        rows = data.present[:, agent]
        after = (data.observations[rows, agent, :1] + 1) * 4 + torch.tensor(moves)
        assert torch.equal(data.legal[rows, agent, : len(moves)], (after >= 0) & (after <= 8))
    assert not data.legal[:, 0, 3:].any()
    assert not data.observations[:, 0, 2:].any()
    assert main(["data", "info", "lanes-Lane/random-v0", "data=data"]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "lanes:Lane",
        "2: walker, runner",
        "4, 5 an agent",
        f"{data.scores.double().mean():.3f}, 95% interval",
    ):
        assert expected in printed


@pytest.mark.parametrize(
    ("run", "options"),
    [
        ("planner", ["guidance.scale=2"]),
        ("planner", ["guidance.scale=2", "planning.mode=decentralised"]),
        ("clone", []),
    ],
)
def test_evaluations_are_what_the_environment_wrote_down(run, options, place):
    episodes()
    assert main(["evaluate", f"run=runs/{run}", "episodes=60", "device=cpu", *options]) == 0
    row = json.loads((place / "runs" / run / "evaluations.jsonl").read_text().splitlines()[-1])
    written = episodes()
    assert [entry["seed"] for entry in written] == list(range(1_000_000, 1_000_060))
    assert not any(entry["illegal"] for entry in written)
    scores = [score(entry) for entry in written]
    assert row["return_mean"] == pytest.approx(np.mean(scores), abs=1e-4)
    if run == "planner":
        # Two thirds of the way from random to 0, which only who begins at its goal could get; measured: -11.
        random = [score(entry) for entry in json.loads((place / "collected.json").read_text())]
        assert np.mean(scores) > np.mean(random) / 1.5


def test_modules_of_the_working_directory_are_found(tmp_path, monkeypatch):
    """The installed command looks in its own folder, not where it is run."""
    (tmp_path / "beside.py").write_text(
        "from pettingzoo import ParallelEnv\n\n\nclass Outer:\n    Inner = ParallelEnv\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert type(foreign_env("beside:Outer.Inner", {})).__name__ == "ParallelEnv"
    assert sys.path[-1] == str(tmp_path)
    foreign_env("beside:Outer.Inner", {})
    assert sys.path.count(str(tmp_path)) == 1


# Environments of others


class Random(Reactive):
    """Any legal action."""

    def __init__(self, spec):
        self.spec = spec

    def reset(self, seeds):
        self.keys = torch.tensor(seeds)

    def act(self, observations, context):
        drawn = normal(self.keys, (self.spec.agents, self.spec.action_dim), stream=context.step)
        return execute(drawn, self.spec.discrete, context.legal)


OTHERS = {
    "continuous": ("mpe2.simple_spread_v3", {"continuous_actions": True, "max_cycles": 25}),
    "discrete": ("mpe2.simple_spread_v3", {"continuous_actions": False, "max_cycles": 7}),
    "different agents": ("mpe2.simple_speaker_listener_v4", {"max_cycles": 5}),
    "knights": ("butterfly/knights_archers_zombies-v11", {"line_death": True, "max_cycles": 60}),
    "stone": ("classic/rps-v2", {"max_cycles": 4}),
}
SPECS = {
    "continuous": TeamSpec(3, 18, 5),
    "discrete": TeamSpec(3, 18, 5, discrete=True),
    "different agents": TeamSpec(2, 11, 5, discrete=True, sizes=(3, 11)),
    "knights": TeamSpec(4, 135, 6, discrete=True),
    "stone": TeamSpec(2, 4, 3, discrete=True),
}


def own_maker(name):
    """What makes the environment, as its package says."""
    if "/" in name:
        return partial(pettingzoo.make, "parallel", name)
    return importlib.import_module(name).parallel_env


@pytest.mark.parametrize("which", OTHERS)
def test_environments_of_others_against_their_own_loop(which):
    """The actions that were recorded, in PettingZoo's own loop, lead to what was recorded."""
    name, options = OTHERS[which]
    try:
        foreign_env(name, options).close()
    except UserError as error:
        pytest.skip(f"{error}")
    seeds = [3, 4, 5]
    with TaskConfig(name, options=options).make() as environments:
        spec = environments.spec
        data = rollout(Random(spec), environments, seeds).trajectories
    assert spec == SPECS[which]
    if which == "knights":
        assert data.present is not None
        assert not data.present.all()
    for episode, seed in enumerate(seeds):
        environment = own_maker(name)(**options)
        observations, _ = environment.reset(seed=seed)
        total = dict.fromkeys(environment.possible_agents, 0.0)
        first, end = data.offsets[episode : episode + 2].tolist()
        for row in range(first, end - 1):
            taken = {}
            for place, agent in enumerate(environment.possible_agents):
                here = agent in environment.agents
                assert here == (data.present is None or bool(data.present[row, place]))
                if not here:
                    continue
                seen = np.atleast_1d(observations[agent])
                if which == "stone":
                    seen = np.eye(4)[seen[0]]
                assert torch.equal(data.observations[row, place, : seen.size], torch.from_numpy(seen).float().ravel())
                chosen = data.actions[row, place].numpy()
                taken[agent] = int(chosen.argmax()) if spec.discrete else (chosen + 1) / 2
            observations, rewards, *_ = environment.step(taken)
            for agent, reward in rewards.items():
                total[agent] += reward
        assert not environment.agents
        assert data.returns[episode].tolist() == pytest.approx(list(total.values()), abs=1e-3)


def test_mpe2_by_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for choice in ("true", "false"):
        task = ["task.name=mpe2.simple_spread_v3", f"task.options={{continuous_actions: {choice}, max_cycles: 6}}"]
        run = [f"run=runs/{choice}", "data=data", "dataset=random", "trainer.steps=2", "algo.width=16"]
        assert main(["collect", *task, "quality=random", "episodes=4", "data=data"]) == 0
        assert main(["train", *task, *run, "algo.horizon=4", "trainer.batch_size=4", "trainer.device=cpu"]) == 0
    assert main(["evaluate", "run=runs", "episodes=2", "device=cpu", "sampler.steps=1"]) == 0
    for choice, discrete in (("true", False), ("false", True)):
        dataset_id = f"mpe2-simple_spread_v3/random-continuous_actions{choice.title()}-max_cycles6-v0"
        dataset = read_dataset(dataset_id, tmp_path / "data")
        assert dataset.spec == TeamSpec(3, 18, 5, discrete=discrete)
        assert dataset.provenance.environment == {"options": {"continuous_actions": not discrete, "max_cycles": 6}}
        assert len((tmp_path / "runs" / choice / "evaluations.jsonl").read_text().splitlines()) == 1


# Multi-agent MuJoCo


@pytest.fixture
def mujoco():
    pytest.importorskip("gymnasium_robotics", reason="needs the extra 'mamujoco'")


@pytest.mark.extra
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("HalfCheetah-2x3", TeamSpec(2, 12, 3)),
        ("Ant-2x4", TeamSpec(2, 63, 4)),
        ("Humanoid-9|8", TeamSpec(2, 242, 9, sizes=(242, 170))),
        ("HalfCheetah", TeamSpec(1, 17, 6)),
    ],
)
def test_mamujoco_against_its_own_loop(name, spec, mujoco, capfd, tmp_path, monkeypatch):
    from gymnasium_robotics import mamujoco_v1

    monkeypatch.chdir(tmp_path)
    task = TaskConfig(f"mamujoco/{name}", options={"max_episode_steps": 6})
    with task.make() as environments:
        assert environments.spec == spec
        data = rollout(Random(spec), environments, [1, 2]).trajectories
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.iterdir())  # MuJoCo would write a log
    assert data.present is None
    scenario, _, configuration = name.partition("-")
    environment = mamujoco_v1.parallel_env(scenario, configuration or None, max_episode_steps=6)
    high = environment.action_space("agent_0").high[0]
    for episode, seed in enumerate([1, 2]):
        observations, _ = environment.reset(seed=seed)
        first, end = data.offsets[episode : episode + 2].tolist()
        assert end - first == 7
        assert not data.terminated[episode]
        for row in range(first, end):
            for place, agent in enumerate(environment.possible_agents):
                expected = torch.zeros(spec.observation_dim)
                expected[: len(observations[agent])] = torch.from_numpy(observations[agent])
                assert torch.allclose(data.observations[row, place], expected, rtol=1e-5, atol=1e-5)
            if row < end - 1:
                actions = {
                    agent: data.actions[row, place, : environment.action_space(agent).shape[0]].numpy() * high
                    for place, agent in enumerate(environment.possible_agents)
                }
                observations, rewards, *_ = environment.step(actions)
                assert data.rewards[row].tolist() == pytest.approx(list(rewards.values()), abs=1e-4)


@pytest.mark.extra
def test_mamujoco_by_the_command_line(tmp_path, monkeypatch, mujoco):
    monkeypatch.chdir(tmp_path)
    task = ["task.name=mamujoco/Humanoid-9|8", "task.options.max_episode_steps=5"]
    assert main(["collect", *task, "quality=random", "episodes=3", "data=data"]) == 0
    tiny = ["data=data", "dataset=random", "trainer.steps=2", "trainer.batch_size=4", "trainer.device=cpu"]
    assert main(["train", *task, *tiny, "algo.width=16", "algo.horizon=4", "run=planner"]) == 0
    assert main(["train", "algo=bc", *task, *tiny, "run=clone"]) == 0
    assert main(["evaluate", "run=planner,clone", "episodes=2", "device=cpu", "sampler.steps=1"]) == 0
    assert read_dataset("mamujoco-Humanoid-9-8/random-max_episode_steps5-v0", tmp_path / "data").spec.sizes == (
        242,
        170,
    )


@pytest.mark.extra
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Cheetah-2x3", {}, "no task.options: NotImplementedError .*; names are as mamujoco/HalfCheetah-2x3"),
        ("HalfCheetah-5x5", {}, "no task.options: Exception UNKNOWN partitioning config: 5x5; names"),
        ("ManySegmentAnt", {}, "Exception UNKNOWN partitioning config: None"),
        ("Ant-2x4", {"max_steps": 3}, "task.options={'max_steps': 3}: TypeError .* unexpected keyword argument"),
        ("Ant-2x4", {"agent_obsk": -1}, "IndexError"),
        ("Ant-2x4", {"xml_file": "none.xml"}, "OSError .*none.xml does not exist"),
    ],
)
def test_mamujoco_that_cannot_be(name, options, message, mujoco):
    with pytest.raises(UserError, match=f"^task.name=mamujoco/{name} .*{message}"):
        TaskConfig(f"mamujoco/{name}", options=options).make()


@pytest.mark.extra
def test_what_mujoco_warns_of_is_a_warning(mujoco, recwarn):
    """Its instabilities are told, and what it deprecates in Gymnasium's models is not."""
    TaskConfig("mamujoco/HalfCheetah-2x3").make().close()
    assert not recwarn.list
    import mujoco as engine

    engine.get_mju_user_warning()("Nan, Inf or huge value in QACC")
    assert [str(warning.message) for warning in recwarn.list] == ["MuJoCo: Nan, Inf or huge value in QACC"]


def test_a_name_without_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymunk", None)
    monkeypatch.delitem(sys.modules, "pettingzoo.butterfly.pistonball_v6", raising=False)
    with pytest.raises(UserError, match=r"^task.name=butterfly/pistonball-v6 cannot be made .*pymunk"):
        foreign_env("butterfly/pistonball-v6", {})
    monkeypatch.delattr(pettingzoo, "parallel_registry")
    with pytest.raises(UserError, match=r"names need pettingzoo 1.27 or newer"):
        foreign_env("classic/rps-v2", {})


def test_mamujoco_without_its_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    assert main(["collect", "task.name=mamujoco/Ant-2x4", "quality=random", "data=data"]) == 2
    expected = "convoy: MuJoCo's tasks need the mamujoco extra: pip install 'convoy-rl[mamujoco]'\n"
    assert " ".join(capsys.readouterr().err.split()) == expected.strip()


# Mistakes

COLLECT = "collect quality=random episodes=1 data=new task.name="
MISTAKES = [
    (
        f"{COLLECT}nowhere_at_all:make",
        "task.name=nowhere_at_all:make: there is no module 'nowhere_at_all'; install its",
    ),
    (f"{COLLECT}mpe2.simple_spread_v9", "there is no module 'mpe2.simple_spread_v9'"),
    (f"{COLLECT}needy:make", "task.name=needy:make: there is no module 'what_it_needs'; install its package"),
    (f"{COLLECT}moved:make", "task.name=moved:make: moved cannot be imported: it has moved"),
    (f"{COLLECT}.lanes:make", "task.name=.lanes:make: .lanes cannot be imported"),
    (f"{COLLECT}lanes", "unknown task 'lanes': "),
    (
        f"{COLLECT}classic/rsp-v2",
        "no environment of that name in which agents act at once: did you mean 'classic/rps-v2'",
    ),
    (f"{COLLECT}classic/chess-v6", "task.name=classic/chess-v6: PettingZoo has no environment of that name"),
    (f"{COLLECT}lanes:Road", "module lanes has no 'Road'; write MODULE:CALLABLE, which returns a ParallelEnv"),
    (f"{COLLECT}lanes:", "module lanes has no 'parallel_env'; write"),
    (f"{COLLECT}turns:", "module turns has no 'parallel_env'; its env is for agents in turns; write"),
    (f"{COLLECT}lanes:NUMBER", "'NUMBER' is a int, which cannot be called"),
    (f"{COLLECT}lanes:Plain", "makes a Plain, not a PettingZoo ParallelEnv or gymnasium.Env: wrap it"),
    (
        f"{COLLECT}lanes:Turns",
        "makes a Turns, not a PettingZoo ParallelEnv or gymnasium.Env: its agents act in turns; if",
    ),
    (f"{COLLECT}lanes:Bag", "lane: walker observes a Sequence, which has no fixed number of entries"),
    (f"{COLLECT}lanes:Many", "lane: walker acts in a MultiDiscrete; Box and Discrete are supported"),
    (f"{COLLECT}lanes:Endless", "lane: the actions of walker have no bounds; give its Box a finite range"),
    (f"{COLLECT}lanes:Lane task.options.stpes=3", "cannot be made with task.options={'stpes': 3}: TypeError Lane"),
    (f"{COLLECT}lanes:Lane task.options.steps=0", "task.options={'steps': 0}: ValueError a lane of 0 steps"),
    (f"{COLLECT}lanes:Lane quality=expert", "only quality=random can be collected in lanes:Lane"),
    (f"{COLLECT}lanes:Lane task.agents=5", "task.agents is of our own tasks, lanes:Lane takes task.options alone"),
    (f"{COLLECT}mpe/spread task.options.N=5", "task.options is for environments that are not our own"),
    ("train task.name=lanes:Lane dataset=random data=data run=new", "train with algo.known=random, which tells who is"),
    (
        "train algo=bc task.name=lanes:Lane task.options.steps=4 dataset=lanes-Lane/random-v0 data=data run=new",
        "is of task.options={}, and this training of {'steps': 4}",
    ),
    ("evaluate run=runs/clone shift.agents=5", "agents 5 makes no task of lanes:Lane: task.agents is of our own tasks"),
]


@pytest.mark.parametrize(
    ("command", "message"), MISTAKES, ids=[command.removeprefix(COLLECT) for command, _ in MISTAKES]
)
def test_a_mistake_is_one_line(command, message, place, capfd):
    Path("needy.py").write_text("import what_it_needs\n")
    Path("moved.py").write_text("raise ImportError('it has moved')\n")
    Path("turns.py").write_text("from lanes import Turns as env\n")
    assert main(command.split()) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("convoy: ")
    assert message in line
    assert not list(Path("new").glob("**/*.hdf5"))

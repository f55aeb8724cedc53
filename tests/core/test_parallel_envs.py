"""ParallelEnvs that say what they are told to, against tables written by hand."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

from core.environments import TeamSpec
from core.errors import UserError
from core.parallel_envs import ParallelEnvironments
from core.rollout import Reactive, rollout

ONE = spaces.Box(-np.inf, np.inf, (1,))
PUSH = spaces.Box(-1, 1, (1,))


@dataclass
class Said:
    """What an environment says after a reset or a step; agents are letters."""

    agents: str
    seen: dict = field(default_factory=dict)
    rewards: dict = field(default_factory=dict)
    terminated: str = ""
    truncated: str = ""
    infos: dict | None = field(default_factory=dict)


class Scripted(ParallelEnv):
    """Says one line after another and remembers what it was given."""

    metadata = {"name": "scripted"}  # noqa: RUF012

    def __init__(self, *lines, seen=ONE, acted=PUSH):
        self.lines, self.possible_agents = lines, sorted({letter for line in lines for letter in line.agents})
        self.seen, self.acted = seen, acted
        self.given, self.seeds, self.closed = [], [], 0

    def observation_space(self, agent):
        return self.seen[agent] if isinstance(self.seen, dict) else self.seen

    def action_space(self, agent):
        return self.acted[agent] if isinstance(self.acted, dict) else self.acted

    def reset(self, seed=None, options=None):
        self.seeds.append(seed)
        self.time = 0
        return self._say()[::4]

    def step(self, actions):
        assert self.agents, "stepped after its end"
        self.given.append(actions)
        self.time += 1
        return self._say()

    def _say(self):
        line = self.lines[self.time]
        self.agents = list(line.agents)
        known = set(line.seen) | set(line.rewards) | set(line.terminated + line.truncated)
        flags = ({agent: agent in letters for agent in known} for letters in (line.terminated, line.truncated))
        return line.seen, line.rewards, *flags, line.infos

    def close(self):
        self.closed += 1


class Constant(Reactive):
    """Gives every agent the same action."""

    def __init__(self, *action):
        self.action = torch.tensor(action, dtype=torch.float32)

    def act(self, observations, context):
        return self.action.expand(*observations.shape[:2], -1)


def at(**values):
    """Observations of one entry each."""
    return {agent: np.array([value]) for agent, value in values.items()}


def rolled(environment, action=(0.5,)):
    return rollout(Constant(*action), ParallelEnvironments(lambda: environment), [7]).trajectories


# Who takes part

LEAVES = (
    Said("ab", at(a=1.0, b=2.0)),
    Said("ab", at(a=3.0, b=4.0), {"a": 1, "b": 10}, infos={"a": {"cost": 5}}),
    Said("b", at(a=5.0, b=6.0), {"a": 2, "b": 20}, terminated="a", infos={"a": {"cost": 6}, "b": {"cost": 7}}),
    Said("b", at(b=8.0), {"b": 40}),
    Said("", at(b=9.0), {"b": 80}, terminated="b"),
)


def test_an_agent_that_leaves_early():
    environment = Scripted(*LEAVES)
    data = rolled(environment)
    assert data.observations[..., 0].tolist() == [[1, 2], [3, 4], [5, 6], [5, 8], [5, 9]]
    assert data.present.tolist() == [[True, True], [True, True], [False, True], [False, True], [False, True]]
    assert data.rewards.tolist() == [[1, 10], [2, 20], [0, 40], [0, 80], [0, 0]]
    assert data.costs.tolist() == [[5, 0], [6, 7], [0, 0], [0, 0], [0, 0]]
    assert data.returns.tolist() == [[3, 150]]
    assert data.terminated.tolist() == [True]
    assert [sorted(given) for given in environment.given] == [["a", "b"], ["a", "b"], ["b"], ["b"]]
    assert data.legal is None


def test_what_is_said_of_agents_that_left_does_not_count():
    """Some environments go on telling of all agents; nothing of it is a step of theirs."""
    lines = list(LEAVES)
    lines[3] = Said("b", at(a=70.0, b=8.0), {"a": 500, "b": 40}, infos={"a": {"cost": 500}})
    lines[4] = Said("", at(a=90.0, b=9.0), {"a": 900, "b": 80}, terminated="ab", infos={"a": {"cost": 900}})
    expected, data = rolled(Scripted(*LEAVES)), rolled(Scripted(*lines))
    for name in ("rewards", "costs", "present", "terminated", "offsets"):
        assert torch.equal(getattr(data, name), getattr(expected, name)), name


@pytest.mark.parametrize("flags", [("a", "a", "ab"), ("a", "", "b")])
def test_an_environment_that_goes_on_listing_whom_it_ended(flags):
    """It is given an action of each that it lists, as PettingZoo says, and the ended take no part."""
    lines = (LEAVES[0], LEAVES[1], *(Said("ab", at(a=5.0, b=6.0), {"a": 2, "b": 20}, ends) for ends in flags))
    environment = Scripted(*lines)
    data = rolled(environment)
    assert data.present.tolist() == [[True, True], [True, True], [False, True], [False, True], [False, True]]
    assert data.returns.tolist() == [[1 + 2, 10 + 20 + 20 + 20]]
    assert data.terminated.tolist() == [True]
    assert all(sorted(given) == ["a", "b"] for given in environment.given)


def test_an_agent_that_joins_late():
    environment = Scripted(
        Said("a", at(a=1.0)),
        Said("a", at(a=2.0), {"a": 1}),
        Said("ab", at(a=3.0, b=4.0), {"a": 1, "b": 99}),
        Said("ab", at(a=5.0, b=6.0), {"a": 1, "b": 10}, infos={"b": {"cost": 2}}),
        Said("", at(a=7.0, b=8.0), {"a": 1, "b": 10}, truncated="ab"),
    )
    data = rolled(environment)
    assert environment.possible_agents == ["a", "b"]
    assert data.observations[..., 0].tolist() == [[1, 0], [2, 0], [3, 4], [5, 6], [7, 8]]
    assert data.present.tolist() == [[True, False], [True, False], [True, True], [True, True], [True, True]]
    # The 99 came before b's first action.
    assert data.rewards.tolist() == [[1, 0], [1, 0], [1, 10], [1, 10], [0, 0]]
    assert data.costs.tolist() == [[0, 0], [0, 0], [0, 2], [0, 0], [0, 0]]
    assert [sorted(given) for given in environment.given] == [["a"], ["a"], ["a", "b"], ["a", "b"]]
    assert data.terminated.tolist() == [False]


def test_an_agent_that_comes_back():
    environment = Scripted(
        Said("ab", at(a=1.0, b=1.0)),
        Said("b", at(a=2.0, b=2.0), {"a": 1, "b": 1}, terminated="a"),
        Said("ab", at(a=3.0, b=3.0), {"b": 1}),
        Said("", at(a=4.0, b=4.0), {"a": 1, "b": 1}, truncated="ab"),
    )
    data = rolled(environment)
    assert data.present.tolist() == [[True, True], [False, True], [True, True], [True, True]]
    assert data.returns.tolist() == [[2, 3]]
    # The last that was said of a is that its time was up.
    assert data.terminated.tolist() == [False]


def test_one_who_takes_over_keeps_the_episode_going():
    environment = Scripted(
        Said("a", at(a=1.0)),
        Said("b", at(a=2.0, b=3.0), {"a": 1}, terminated="a"),
        Said("", at(b=4.0), {"b": 1}, terminated="b"),
    )
    data = rolled(environment)
    assert data.present.tolist() == [[True, False], [False, True], [False, True]]
    assert data.rewards.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert data.terminated.tolist() == [True]


@pytest.mark.parametrize(
    ("early", "late", "terminated"),
    [
        ({"terminated": "a"}, {"terminated": "b"}, True),
        ({"terminated": "a"}, {"truncated": "b"}, False),
        ({"truncated": "a"}, {"terminated": "b"}, False),
        ({"truncated": "a"}, {"truncated": "b"}, False),
        ({"terminated": "a", "truncated": "a"}, {"terminated": "b", "truncated": "b"}, True),
        ({"terminated": "a"}, {}, False),
    ],
)
def test_an_episode_is_terminated_if_all_who_took_part_were(early, late, terminated):
    """c never takes part; the last row is an environment that says nothing of why b is gone."""
    environment = Scripted(
        Said("ab", at(a=1.0, b=1.0)),
        Said("b", at(a=1.0, b=1.0), {"a": 1, "b": 1}, **early),
        Said("", at(b=1.0), {"b": 1}, **late),
    )
    environment.possible_agents = ["a", "b", "c"]
    data = rolled(environment)
    assert data.terminated.tolist() == [terminated]
    assert data.present.tolist() == [[True, True, False], [False, True, False], [False, True, False]]


def test_an_end_without_last_observations():
    """Nobody is there in the last row, so that nothing is learned from a row that repeats the one before."""
    data = rolled(Scripted(LEAVES[0], Said("", {}, {"a": 1, "b": 2}, truncated="ab", infos=None)))
    assert data.present.tolist() == [[True, True], [False, False]]
    assert data.returns.tolist() == [[1, 2]]


class Counting(ParallelEnv):
    """Seed k ends after 1 + k % 3 steps, where an odd seed's agent 0 leaves one step earlier; agents are numbers."""

    metadata = {}  # noqa: RUF012
    possible_agents = (0, 1)

    def __init__(self):
        self.seeds = []

    def reset(self, seed=None, **options):
        self.seeds.append(seed)
        self.seed, self.time, self.agents = seed, 0, [0, 1]
        return {agent: np.array([seed, agent]) for agent in self.agents}, {}

    def step(self, actions):
        assert list(actions) == self.agents != []
        self.time += 1
        length = 1 + self.seed % 3
        ends = {0: length - self.seed % 2, 1: length}
        over = {agent: self.time >= ends[agent] for agent in self.agents}
        seen = {agent: np.array([self.seed, self.time]) for agent in self.agents}
        rewards = {agent: np.array([self.seed + 100.0 * agent]) for agent in self.agents}
        self.agents = [agent for agent in self.agents if not over[agent]]
        return seen, rewards, over, dict.fromkeys(over, False), {}

    def observation_space(self, agent):
        return spaces.Box(-np.inf, np.inf, (2,))

    def action_space(self, agent):
        return spaces.Discrete(2)


@pytest.mark.parametrize("parallel", [1, 4, 100])
def test_episodes_of_all_lengths_in_any_batch(parallel):
    seeds = [4, 5, 6, 7, 8, 10, 11]
    made = []

    def make():
        made.append(Counting())
        return made[-1]

    with ParallelEnvironments(make) as environments:
        assert environments.agents == ("0", "1")
        data = rollout(Constant(1.0, 0.0), environments, seeds, parallel=parallel).trajectories
    lengths = torch.tensor([1 + seed % 3 for seed in seeds])
    own = lengths - torch.tensor([seed % 2 for seed in seeds])  # steps of agent 0
    assert (data.offsets.diff() - 1).tolist() == lengths.tolist()
    keys = torch.tensor(seeds)
    assert torch.equal(data.returns, torch.stack([own * keys, lengths * (keys + 100)], dim=1).float())
    assert data.terminated.all()
    assert torch.equal(data.observations[data.decisions, 1, 0], keys.float().repeat_interleave(lengths))
    assert sorted(seed for environment in made for seed in environment.seeds) == sorted(seeds)
    assert len(made) == min(parallel, len(seeds))


def test_an_environment_that_ignores_its_seed():
    """Its episodes are its own, and recorded as they were."""

    class Deaf(Counting):
        begun = 0
        log = ()

        def reset(self, seed=None, **options):
            Deaf.begun += 1
            return super().reset(Deaf.begun)

        def step(self, actions):
            answer = super().step(actions)
            Deaf.log = (*Deaf.log, (self.seed, sum(float(reward[0]) for reward in answer[1].values())))
            return answer

    data = rollout(Constant(1.0, 0.0), ParallelEnvironments(Deaf), [3] * 6, parallel=3).trajectories
    begun = data.observations[data.offsets[:-1], 0, 0].tolist()
    assert begun == [1, 2, 3, 4, 5, 6]
    logged = [sum(reward for seed, reward in Deaf.log if seed == key) for key in begun]
    assert data.returns.sum(dim=1).tolist() == logged


def test_batches_may_grow_and_shrink():
    environments = ParallelEnvironments(Counting)
    for seeds in ([1, 2], [3, 4, 5, 6, 7], [8]):
        observed = environments.reset(seeds)
        assert observed.observations[:, 1, 0].tolist() == seeds
        stepped = environments.step(torch.zeros(len(seeds), 2, 2))
        assert stepped.rewards[:, 1].tolist() == [seed + 100 for seed in seeds]


# What is legal


def masked(*masks, where, start=0):
    """An episode of agent a alone, with a mask for each line and where it stands."""
    inner = {"observation": ONE, "action_mask": spaces.MultiBinary(3)}
    lines = []
    for time, mask in enumerate(masks):
        seen = np.array([float(time)])
        value = {"observation": seen, "action_mask": np.array(mask, np.int8)} if where == "observation" else seen
        infos = {"a": {"action_mask": mask}} if where == "infos" and mask is not None else {}
        last = time == len(masks) - 1
        lines.append(Said("" if last else "a", {"a": value}, {"a": 1.0}, truncated="a" if last else "", infos=infos))
    space = spaces.Dict(inner) if where == "observation" else ONE
    return Scripted(*lines, seen=space, acted=spaces.Discrete(3, start=start))


class Legal(Reactive):
    """Takes the last legal choice, and remembers what it was told of them."""

    def __init__(self):
        self.told = []

    def act(self, observations, context):
        self.told.append(context.legal)
        legal = torch.ones(*observations.shape[:2], 3) if context.legal is None else context.legal
        last = 2 - legal.flip(-1).int().argmax(dim=-1)
        return torch.nn.functional.one_hot(last, 3).float()


@pytest.mark.parametrize("where", ["observation", "infos"])
def test_masks_of_either_place(where):
    environment = masked([1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1], where=where, start=5)
    data = rollout(Legal(), ParallelEnvironments(lambda: environment), [0]).trajectories
    assert data.legal[:, 0].int().tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1]]
    assert [int(given["a"]) for given in environment.given] == [5 + 1, 5 + 0, 5 + 2]
    assert all(environment.acted.contains(given["a"]) for given in environment.given)
    assert data.observations[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert data.actions[:, 0].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_a_mask_that_comes_later():
    environment = masked(None, None, [0, 1, 0], None, where="infos")
    policy = Legal()
    with ParallelEnvironments(lambda: environment) as environments:
        data = rollout(policy, environments, [0]).trajectories
        assert data.legal[:, 0].int().tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 0], [1, 1, 1]]
        assert [legal is None for legal in policy.told] == [True, True, False]
        environment.lines = environment.lines[:2] + environment.lines[3:]
        assert rollout(policy, environments, [0]).trajectories.legal is None


def test_no_masks_where_there_are_none():
    assert rolled(masked(None, None, where="infos"), (0, 1, 0)).legal is None
    assert rolled(Scripted(*LEAVES)).legal is None
    # Continuous actions have none, whatever is said.
    lines = [Said(line.agents, line.seen, line.rewards, line.terminated, "") for line in LEAVES]
    for line in lines:
        line.infos = {"a": {"action_mask": [1, 0]}}
    assert rolled(Scripted(*lines)).legal is None


def test_agents_with_different_numbers_of_choices():
    counts = {"a": spaces.Discrete(2, start=-1), "b": spaces.Discrete(4)}
    lines = (
        Said("a", at(a=1.0)),
        Said("ab", at(a=2.0, b=3.0), {"a": 1.0}, infos={"b": {"action_mask": np.array([0, 1, 1, 0], bool)}}),
        Said("", at(a=2.0, b=3.0), {"a": 1.0, "b": 1.0}, truncated="ab"),
    )
    environment = Scripted(*lines, acted=counts)
    environments = ParallelEnvironments(lambda: environment)
    assert environments.spec == TeamSpec(2, 1, 4, discrete=True)
    data = rollout(Constant(0.0, 0.6, 0.9, 1.0), environments, [0]).trajectories
    wide = [True] * 4
    assert data.legal.tolist() == [
        [[True, True, False, False], row] for row in (wide, [False, True, True, False], wide)
    ]
    # Of its own two choices, a has taken the second.
    assert [{agent: int(value) for agent, value in given.items()} for given in environment.given] == [
        {"a": 0},
        {"a": 0, "b": 3},
    ]


# Numbers


@pytest.mark.parametrize(
    ("space", "given", "expected"),
    [
        (spaces.Box(-1, 1, (2,)), [0.25, -3.0], [0.25, -1.0]),
        (spaces.Box(0, 1, (3,)), [-1.0, 0.0, 1.0], [0.0, 0.5, 1.0]),
        (spaces.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32)), [0.5, 0.5], [1.0, 7.5]),
        (spaces.Box(-0.4, 0.4, (2, 2)), [-1.0, 0.0, 0.5, 2.0], [[-0.4, 0.0], [0.2, 0.4]]),
        (spaces.Box(-2, 6, (), np.float64), [0.5], 4.0),
        (spaces.Box(0, 10, (4,), np.int32), [-1.0, 1.0, 0.5, -0.02], [0, 10, 8, 5]),
        (spaces.Box(-1, 1, (3,), np.int64), [0.9, -0.9, 0.2], [1, -1, 0]),
        (spaces.Box(0.1, 0.1, (1,)), [0.3], [0.1]),
    ],
)
def test_actions_reach_their_bounds(space, given, expected):
    environment = Scripted(LEAVES[0], LEAVES[4], acted=space)
    with ParallelEnvironments(lambda: environment) as environments:
        assert environments.spec.action_dim == len(given)
        assert not environments.spec.discrete
        environments.reset([0])
        environments.step(torch.tensor(given).expand(1, 2, -1))
    for action in environment.given[0].values():
        assert action.dtype == space.dtype
        assert action.shape == space.shape
        assert np.allclose(action, expected, atol=1e-7)
        assert space.contains(np.asarray(action))


def test_no_rounding_leaves_the_bounds():
    space = spaces.Box(np.float32(-0.1), np.float32(0.7), (501,))
    environment = Scripted(LEAVES[0], LEAVES[4], acted=space)
    environments = ParallelEnvironments(lambda: environment)
    environments.reset([0])
    unit = torch.linspace(-1, 1, 501)
    environments.step(unit.expand(1, 2, -1))
    action = environment.given[0]["a"]
    assert space.contains(action)
    assert (action[0], action[-1]) == (space.low[0], space.high[0])
    assert np.allclose(action, -0.1 + 0.8 * np.arange(501) / 500, atol=1e-6)


@pytest.mark.parametrize(
    ("space", "value", "row"),
    [
        (spaces.Box(-np.inf, np.inf, (2,), np.float64), np.array([0.1, -2e300]), [np.float32(0.1), -np.inf]),
        (spaces.Box(0, 255, (2, 1, 2), np.uint8), np.array([[[1, 2]], [[3, 255]]], np.uint8), [1, 2, 3, 255]),
        (spaces.Box(-1, 1, ()), np.float32(0.5), [0.5]),
        (spaces.Discrete(3, start=2), 4, [0, 0, 1]),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (spaces.Tuple([spaces.Discrete(2), ONE]), (1, np.array([7.0])), [0, 1, 7]),
        (
            spaces.Dict({"near": ONE, "action_mask": spaces.MultiBinary(2), "far": spaces.Discrete(2)}),
            {"near": np.array([3.0]), "far": 1, "action_mask": np.array([1, 1])},
            [0, 1, 3],  # Gymnasium sorts the entries
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_observations_of_any_space(space, value, row):
    environment = Scripted(Said("a", {"a": value}), seen=space)
    environments = ParallelEnvironments(lambda: environment)
    assert environments.spec.observation_dim == len(row)
    observed = environments.reset([0])
    assert observed.observations.dtype == torch.float32
    assert observed.observations[0, 0].tolist() == row


def test_observations_of_different_sizes():
    seen = {"a": spaces.Discrete(2), "b": spaces.Box(-1, 1, (2, 2))}
    environment = Scripted(Said("ab", {"a": 1, "b": np.array([[0.5, 1], [-1, 0.25]])}), seen=seen)
    environments = ParallelEnvironments(lambda: environment)
    assert environments.spec == TeamSpec(2, 4, 1, sizes=(2, 4))
    assert environments.reset([0]).observations.tolist() == [[[0, 1, 0, 0], [0.5, 1, -1, 0.25]]]


# Mistakes


def odd(**changes):
    """A scripted environment with something else in it."""
    environment = Scripted(*LEAVES)
    for name, value in changes.items():
        setattr(environment, name, value)
    return environment


class Deaf(Scripted):
    """Its reset knows no seed."""

    def reset(self):
        return super().reset()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (Scripted(*LEAVES, seen=spaces.Graph(ONE, None)), "scripted: a observes a Graph, which has no fixed number"),
        (Scripted(*LEAVES, seen=None), "a observes a NoneType"),
        (Scripted(*LEAVES, acted=spaces.MultiDiscrete([2, 2])), "a acts in a MultiDiscrete; Box and Discrete are"),
        (Scripted(*LEAVES, acted=spaces.Box(0, np.inf, (1,))), "the actions of a have no bounds"),
        (Scripted(*LEAVES, acted={"a": PUSH, "b": spaces.Discrete(2)}), "scripted mixes discrete and continuous"),
        (Scripted(*LEAVES, acted={"a": PUSH}), "does not tell the spaces of each of its possible_agents: KeyError 'b'"),
        (odd(possible_agents=[]), "does not name its possible_agents"),
        (Deaf(*LEAVES), r"scripted.reset takes no seed: write reset\(self, seed=None, options=None\)"),
    ],
)
def test_environments_that_cannot_be(environment, message):
    with pytest.raises(UserError, match=message):
        ParallelEnvironments(lambda: environment)
    assert environment.closed == 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (odd(reset=lambda seed: at(a=1.0, b=2.0)), "scripted.reset returned a dict; a ParallelEnv's returns obs"),
        (odd(step=lambda actions: ({}, {}, {}, {})), "scripted.step returned 4 values; a ParallelEnv's returns obs"),
        (Scripted(Said("", {}), Said("a")), "scripted has no agents after its reset"),
        (Scripted(Said("ab", at(a=1.0))), "scripted lists b and gave it no observation"),
        (
            odd(lines=(LEAVES[0], Said("az", at(a=1.0, z=1.0)))),
            "scripted lists z, which is none of its possible_agents",
        ),
        (odd(lines=(LEAVES[0], Said("ab", {"a": np.zeros(3), "b": np.zeros(1)}))), "a observed 3 entries, .* has 1"),
        (masked([1, 1], None, where="infos"), "the action_mask of a has 2 entries for 3 actions"),
    ],
)
def test_environments_that_are_not_as_pettingzoo_has_them(environment, message):
    with pytest.raises(UserError, match=message):
        rollout(Constant(0.0), ParallelEnvironments(lambda: environment), [0])

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

from core.data import Trajectories
from core.noise import normal
from core.parallel_envs import ParallelEnvironments
from core.rollout import Context, Reactive, policy_keys, rollout

SEEDS = [3, 8, 1, 14, 6, 0, 11]


class Drift(ParallelEnv):
    """Two agents drift with their actions; seed k ends after 1 + k % 5 steps, by termination where k is even."""

    metadata = {}  # noqa: RUF012
    possible_agents = ("left", "right")

    def __init__(self, ends="together"):
        self.ends = ends
        self.closed = False

    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        self.random = np.random.default_rng(seed)
        self.seed, self.time = seed, 0
        self.state = self.random.random((2, 3))
        return self._all(self.state), self._all([{}, {}])

    def step(self, actions):
        assert self.agents, "stepped after its end"
        assert list(actions) == self.agents
        assert all(action.shape == (2,) and action.dtype == np.float32 for action in actions.values())
        self.time += 1
        moves = np.stack(list(actions.values()))
        self.state = self.state + 0.1 * np.pad(moves, ((0, 0), (0, 1))) + 0.01 * self.random.random((2, 3))
        over, by_termination = self.time == 1 + self.seed % 5, self.seed % 2 == 0
        terminated, truncated = over and by_termination, over and not by_termination
        flags = [[terminated, terminated], [truncated, truncated]]
        if over and self.ends == "one each":
            flags = [[True, False], [False, True]]
        if over and self.ends == "both at once":
            flags = [[True, True], [True, True]]
        if over:
            self.agents = []
        # Only the first agent's infos have a cost.
        infos = [{"cost": self.time + moves[0, 0]}, {}]
        observations, rewards = self._all(self.state), self._all([self.state[0].sum(), -float(self.time)])
        return observations, rewards, self._all(flags[0]), self._all(flags[1]), self._all(infos)

    def close(self):
        self.closed = True

    def observation_space(self, agent):
        return spaces.Box(-np.inf, np.inf, (3,))

    def action_space(self, agent):
        return spaces.Box(-1, 1, (2,))

    def _all(self, values):
        return dict(zip(self.possible_agents, values, strict=True))


class Noisy(Reactive):
    """Acts on its observation, its episode's seed and the step, and remembers what it was told."""

    def __init__(self):
        self.told = []

    def reset(self, seeds):
        self.keys = torch.tensor(seeds)

    def act(self, observations, context):
        self.context = context
        return torch.tanh(observations[..., :2] + normal(self.keys, (2, 2), stream=context.step))

    def observe(self, rewards, costs, done):
        self.told.append((self.context.step, self.context.active.tolist(), rewards, costs, done.tolist()))


def one_by_one(seed):
    """Rows of one episode, stepped by hand."""
    env, policy = Drift(), Noisy()
    policy.reset([seed])
    observations, _ = env.reset(seed=seed)
    rows, ended = [], {}
    while not (ended and all(ended.values())):
        observed = np.stack(list(observations.values())).astype(np.float32)
        action = policy.act(torch.from_numpy(observed)[None], Context(len(rows), torch.tensor([True])))[0].numpy()
        observations, rewards, terminations, truncations, infos = env.step(
            dict(zip(env.possible_agents, action, strict=True))
        )
        rows.append((observed, action, list(rewards.values()), [info.get("cost", 0.0) for info in infos.values()]))
        ended = {agent: terminations[agent] or truncations[agent] for agent in terminations}
    rows.append((np.stack(list(observations.values())), np.zeros((2, 2)), [0.0, 0.0], [0.0, 0.0]))
    observations, actions, rewards, costs = (
        torch.from_numpy(np.stack(column)).float() for column in zip(*rows, strict=True)
    )
    offsets = torch.tensor([0, len(rows)])
    terminated = torch.tensor([terminations["left"]])
    return Trajectories(observations, actions, rewards, costs, offsets, terminated, torch.tensor([-1]))


EXPECTED = Trajectories.concatenate([one_by_one(seed) for seed in SEEDS])


def assert_same(found, expected):
    for name in ("observations", "actions", "rewards", "costs", "offsets", "terminated", "tags"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name


@pytest.mark.parametrize("parallel", [1, 2, 3, 7, 100])
def test_trajectories_are_those_of_one_environment_at_a_time(parallel):
    made, progress = [], []

    def make():
        made.append(Drift())
        return made[-1]

    with ParallelEnvironments(make) as environments:
        result = rollout(Noisy(), environments, SEEDS, parallel=parallel, progress=progress.append)
    assert_same(result.trajectories, EXPECTED)
    assert len(made) == min(parallel, len(SEEDS))
    assert all(env.closed for env in made)
    assert sum(progress) == result.trajectories.steps
    assert result.seconds_per_decision > 0


def test_what_the_toy_gives():
    """The reference itself: lengths, ends and costs are what the toy's rules say."""
    lengths = (EXPECTED.offsets.diff() - 1).tolist()
    assert lengths == [1 + seed % 5 for seed in SEEDS]
    assert EXPECTED.terminated.tolist() == [seed % 2 == 0 for seed in SEEDS]
    rows = EXPECTED.decisions
    assert torch.allclose(EXPECTED.costs[rows, 0], EXPECTED.time[rows] + 1 + EXPECTED.actions[rows, 0, 0])
    assert not EXPECTED.costs[:, 1].any()
    assert EXPECTED.rewards[rows, 1].tolist() == [-time - 1 for time in EXPECTED.time[rows].tolist()]


def test_a_policy_is_told_of_rewards_costs_and_ends():
    policy = Noisy()
    data = rollout(policy, ParallelEnvironments(Drift), SEEDS, parallel=len(SEEDS)).trajectories
    lengths = data.offsets.diff() - 1
    assert [told[0] for told in policy.told] == list(range(int(lengths.max())))
    for step, active, rewards, costs, done in policy.told:
        assert active == (step < lengths).tolist()
        assert done == (step + 1 >= lengths).tolist()
        for episode, first in enumerate(data.offsets[:-1].tolist()):
            running = step < lengths[episode]
            assert torch.equal(rewards[episode], data.rewards[first + step] if running else torch.zeros(2))
            assert torch.equal(costs[episode], data.costs[first + step] if running else torch.zeros(2))


def test_an_end_by_both_counts_as_terminated():
    data = rollout(Noisy(), ParallelEnvironments(lambda: Drift("both at once")), SEEDS).trajectories
    assert data.terminated.all()


def test_environments_are_closed_even_when_the_policy_fails():
    made = []

    def make():
        made.append(Drift())
        return made[-1]

    class Failing(Noisy):
        def act(self, observations, context):
            raise RuntimeError("no plan")

    with pytest.raises(RuntimeError, match="no plan"), ParallelEnvironments(make) as environments:
        rollout(Failing(), environments, range(3))
    assert [environment.closed for environment in made] == [True] * 3


def test_agents_may_end_in_different_ways():
    """One agent terminated and the other truncated: PettingZoo's episode is over, and it was no termination of all."""
    data = rollout(Noisy(), ParallelEnvironments(lambda: Drift("one each")), SEEDS).trajectories
    assert torch.equal(data.offsets, EXPECTED.offsets)
    assert not data.terminated.any()


def test_a_policy_may_reuse_its_buffer():
    class Buffered(Noisy):
        def act(self, observations, context):
            if context.step == 0:
                self.buffer = torch.empty(len(observations), 2, 2)
            return self.buffer.copy_(super().act(observations, context))

    assert_same(rollout(Buffered(), ParallelEnvironments(Drift), SEEDS).trajectories, EXPECTED)


def test_a_policys_noise_is_not_the_environments():
    """An environment begins by the noise of its seed; whoever acts in it by chance must have another."""
    keys = policy_keys([0, 1, 2, 10**9])
    assert (keys < 0).all()
    assert len(set(keys.tolist())) == 4
    begun, acted = normal([0, 1, 2], (1000,)), normal(policy_keys([0, 1, 2]), (1000,))
    assert abs(float((begun * acted).mean())) < 0.06

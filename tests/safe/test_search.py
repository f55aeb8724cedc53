"""The search and its policies, on problems whose best linear policies are known."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch

from core.environments import Environments, Observed, Stepped, TeamSpec
from core.errors import UserError
from core.noise import normal
from core.rollout import Reactive, rollout
from safe.search import Linear, LinearPolicy, SearchConfig, search, spanning


class DoubleIntegrator(Environments):
    """B masses on a line: reward -(p^2 + v^2 / 10 + u^2 / 2), dt 0.1 s, 60 steps."""

    agents = ("mass",)
    spec = TeamSpec(1, 2, 1)
    dynamics = np.array([[1.0, 0.1], [0.0, 1.0]])
    push = np.array([[0.0], [0.1]])

    def reset(self, seeds):
        self.state, self.time = 0.2 * normal(list(seeds), (1, 2)), 0
        return Observed(self.state)

    def step(self, actions):
        position, velocity = self.state.unbind(-1)
        rewards = -(position**2 + velocity**2 / 10 + actions[..., 0] ** 2 / 2)
        self.state = self.state @ torch.tensor(self.dynamics.T).float() + actions @ torch.tensor(self.push.T).float()
        self.time += 1
        over = torch.full((len(actions),), self.time >= 60)
        return Stepped(Observed(self.state), rewards, torch.zeros_like(rewards), torch.zeros_like(over), over)


class Sign(Environments):
    """A agents of one step each: each sees x = +-1; reward x u, cost 2 max(|u| - 0.3, 0)."""

    def __init__(self, agents=1):
        self.agents = tuple(f"agent {index}" for index in range(agents))
        self.spec = TeamSpec(agents, 1, 1)

    def reset(self, seeds):
        self.seen = normal(list(seeds), (len(self.agents), 1)).sign()
        return Observed(self.seen)

    def step(self, actions):
        over = torch.ones(len(actions), dtype=torch.bool)
        costs = 2 * (actions[..., 0].abs() - 0.3).clamp(min=0)
        return Stepped(Observed(self.seen), (self.seen * actions)[..., 0], costs, over, ~over)


def test_it_finds_the_linear_quadratic_regulator():
    problem = DoubleIntegrator()
    states, inputs = np.diag([1.0, 0.1]), np.array([[0.5]])
    riccati = scipy.linalg.solve_discrete_are(problem.dynamics, problem.push, states, inputs)
    gain = problem.push.T @ riccati
    gain = np.linalg.solve(inputs + gain @ problem.push, gain @ problem.dynamics)

    class Regulator(Reactive):
        def act(self, observations, context):
            return -observations @ torch.tensor(gain.T).float()

    found = search(problem, SearchConfig(80, directions=8, best=8, step=0.02, noise=0.02, episodes=16))
    best, reached = (rollout(each, problem, range(1000), parallel=1000) for each in (Regulator(), found.policy))
    best, reached = (float(each.trajectories.scores.mean()) for each in (best, reached))
    assert best > reached > 1.08 * best
    controller = found.controllers[-1]
    np.testing.assert_allclose((controller.weights / controller.deviation[:, None])[0], -gain, rtol=0.25)
    assert found.steps.tolist() == [(k + 1) * 2 * 8 * 16 * 60 for k in range(80)]
    assert found.returns[-10:].mean() > found.returns[:10].mean()
    assert not found.costs.any()


@pytest.mark.parametrize("agents", [1, 2])
@pytest.mark.parametrize(("penalty", "best"), [(0.0, 1.0), (0.4, 1.0), (0.6, 0.3), (5.0, 0.3)])
def test_the_penalty_weighs_the_cost(agents, penalty, best):
    """From |u| = 0.3 on a unit more of u is worth 1 and costs 2: a penalty above 0.5 keeps it there."""
    config = SearchConfig(120, directions=4, best=4, step=0.01, noise=0.03, episodes=8, penalty=penalty)
    found = search(Sign(agents), config)
    seen = torch.ones(1, agents, 1)
    assert found.controllers[-1].act(seen).flatten().tolist() == pytest.approx([best] * agents, abs=0.06)


def test_an_iteration_is_that_of_the_paper():
    """The first update, from returns that are worked out with loops."""
    config = SearchConfig(2, directions=5, best=2, step=0.1, noise=0.2, episodes=3, penalty=0.7, alive=0.25, seed=4)
    directions = normal([4], (5, 1, 1, 1), dtype=torch.float64)[0].flatten().tolist()
    worth = np.zeros((2, 5))
    for side, sign in enumerate((1, -1)):
        for number, direction in enumerate(directions):
            for episode in range(3):
                x = float(normal([4_000_000 + 5 * episode + number], (1, 1)).sign())
                u = np.clip(sign * 0.2 * direction * x, -1, 1)
                worth[side, number] += (x * u - 0.7 * 2 * max(abs(u) - 0.3, 0) - 0.25) / 3
    kept = np.argsort(-worth.max(axis=0))[:2]
    update = sum((worth[0, k] - worth[1, k]) * directions[k] for k in kept) * 0.1 / (2 * worth[:, kept].std())
    found = search(Sign(), config)
    assert float(found.controllers[1].weights) == pytest.approx(update, rel=1e-5)
    assert float(found.returns[0]) == pytest.approx(float((worth.mean() + 0.25) + 0.7 * found.costs[0]), abs=1e-6)
    # Both ways along a direction see the same 15 signs.
    signs = normal(range(4_000_000, 4_000_015), (1, 1)).sign().double()
    assert float(found.controllers[1].mean) == pytest.approx(float(signs.mean()))
    assert float(found.controllers[1].deviation) == pytest.approx(float(signs.std(correction=0)))


def test_the_moments_are_those_of_all_that_was_seen():
    """Of the three batches of observations together, which the directions alone do not change."""
    config = SearchConfig(3, directions=3, best=2, episodes=2, seed=1)
    signs = normal(range(1_000_000, 1_000_018), (1, 1)).sign().double()
    last = search(Sign(), config).controllers[-1]
    assert float(last.mean) == pytest.approx(float(signs.mean()))
    assert float(last.deviation) == pytest.approx(float(signs.std(correction=0)))


def test_where_nothing_makes_a_difference_nothing_moves():
    class Idle(Sign):
        def step(self, actions):
            stepped = super().step(actions)
            return replace(stepped, rewards=torch.zeros_like(stepped.rewards))

    assert not search(Idle(), SearchConfig(2, directions=2, best=1)).controllers.weights.any()


def test_the_same_seed_searches_the_same_way():
    config = SearchConfig(4, directions=3, best=2, episodes=2)
    first, again, other = (search(Sign(), each) for each in (config, config, replace(config, seed=1)))
    assert torch.equal(first.controllers.weights, again.controllers.weights)
    assert not torch.equal(first.controllers.weights, other.controllers.weights)


def test_controllers_take_turns():
    weights = torch.arange(6.0).reshape(6, 1, 1, 1) / 10
    policy = LinearPolicy(Linear(weights, torch.zeros(6, 1, 1), torch.ones(6, 1, 1)), behaviours=("slow", "fast"))
    problem = Sign()
    done = rollout(policy, problem, range(4, 11)).trajectories
    gains = (done.actions / done.observations)[done.decisions].flatten()
    assert gains.tolist() == pytest.approx([0.4, 0.5, 0.0, 0.1, 0.2, 0.3, 0.4])
    assert policy.tags(range(4, 11)).tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_noise_is_each_episodes_own():
    still = Linear(torch.zeros(1, 1, 2), torch.zeros(1, 2), torch.ones(1, 2))
    problem = DoubleIntegrator()
    done = rollout(LinearPolicy(still, noise=0.2), problem, range(3000), parallel=3000).trajectories
    actions = done.actions[done.decisions].reshape(3000, 60)
    assert torch.equal(actions[7:8], rollout(LinearPolicy(still, 0.2), problem, [7]).trajectories.actions[:60, 0].T)
    level = actions.square().mean(dim=1).sqrt()
    # Uniform in [0, 0.2]: mean 0.1, deviation 0.2 / sqrt(12), widened a little by estimating it from 60 numbers.
    assert float(level.mean()) == pytest.approx(0.1, rel=0.05)
    assert float(level.std()) == pytest.approx(0.2 / 12**0.5, rel=0.06)


def test_few_episodes_span_the_penalties():
    config = SearchConfig(10, directions=2, best=2, episodes=2)
    policy = spanning(Sign(), config, (0.0, 5.0), stages=3)
    assert policy.behaviours == ("penalty 0", "penalty 5")
    assert policy.description["stages"] == [3, 7, 10]
    assert (policy.description["noise"], policy.description["search"]["noise"]) == (0.2, 0.03)
    assert policy.tags(range(4)).tolist() == [0, 1, 0, 1]
    last = [search(Sign(), replace(config, penalty=penalty)).controllers[-1].weights for penalty in (0.0, 5.0)]
    assert torch.equal(policy.controllers.weights[-2:], torch.stack(last))


def test_choices_are_refused():
    class Doors(Sign):
        def __init__(self):
            super().__init__()
            self.spec = TeamSpec(1, 1, 2, discrete=True)

    with pytest.raises(UserError, match="2 choices"):
        search(Doors(), SearchConfig(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"iterations": 0}, "at least 1"), ({"best": 17}, "16 directions"), ({"step": 0.0}, "positive")],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**settings)

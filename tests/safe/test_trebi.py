"""TREBI against models whose returns and costs are known, and by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from core.acting import Acting, GuidanceConfig, MoveConfig, PlanningConfig, SelectionConfig
from core.data import Trajectories
from core.environments import TeamSpec
from core.errors import UserError
from core.rollout import Context
from core.samplers import DDIM, SamplerConfig
from safe import Trebi, TrebiConfig
from safe.trebi import Worth
from safe.windows import BudgetWindows, ranks_at_cost

A, SEEN, U, T = 2, 3, 1, 16
SPEC = TeamSpec(A, SEEN, U)


def episodes(count=4, steps=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = count * (steps + 1)
    last = torch.arange(1, count + 1) * (steps + 1) - 1

    def drawn(*shape):
        values = torch.rand(rows, *shape, generator=generator)
        values[last] = 0
        return values

    offsets = torch.arange(count + 1) * (steps + 1)
    observations = torch.randn(rows, A, SEEN, generator=generator)
    return Trajectories(
        observations, 2 * drawn(A, U) - 1, drawn(A), drawn(A), offsets, torch.zeros(count, dtype=torch.bool)
    )


def made(**settings):
    torch.manual_seed(0)
    settings = {"horizon": T, "width": 8, "value_width": 8, "value_multipliers": [1, 1], **settings}
    trebi = Trebi(TrebiConfig(**settings), SPEC)
    trebi.prepare(episodes())
    return trebi.eval()


class Sums(nn.Module):
    """Says that a plan returns its first action a, and costs 2 a and the share of the episode that is left."""

    def forward(self, x, t, cond=None):
        first = x[:, 0, 0, 0]
        return torch.stack([first, 2 * first + cond[:, 0, 0]], dim=1)


class Still(nn.Module):
    """A denoiser whose clean estimate is what it is given."""

    def forward(self, x, t, cond=None):
        return x


def known(trebi):
    """The same planner with models of return and cost that are known: R = a, C = 2 a + remaining, in data's units."""
    trebi.values = Sums()
    trebi.denoiser.network = Still()
    for name, value in (("return_mean", 0.0), ("return_scale", 1.0), ("cost_scale", 1.0), ("length", 20.0)):
        getattr(trebi, name).fill_(value)
    return trebi


# Data


def test_costs_to_go_by_hand():
    data = episodes(2, 5)
    costs = data.costs.mean(dim=1).double().numpy()
    for episode in range(2):
        for step in range(6):
            rows = episode * 6 + np.arange(step, 6)
            wanted = (costs[rows] * 0.9 ** np.arange(len(rows))).sum()
            assert data.costs_to_go(0.9).mean(dim=1)[episode * 6 + step].item() == pytest.approx(wanted, abs=1e-5)


def test_ranks_are_among_neighbours_in_cost():
    """Of each step, by brute force."""
    generator = torch.Generator().manual_seed(1)
    time = torch.randint(0, 3, (60,), generator=generator)
    returns, costs = torch.rand(2, 60, generator=generator)
    found = ranks_at_cost(returns, costs, time, neighbours=5)
    for step in range(3):
        rows = torch.nonzero(time == step).flatten()
        rows = rows[costs[rows].argsort()]
        for first in range(0, len(rows), 5):
            group = rows[first : first + 5]
            for row in group:
                rank = int((returns[group] <= returns[row]).sum()) / len(group)
                assert found[row].item() == pytest.approx(rank)


def test_a_window_knows_what_follows_to_the_end():
    data = episodes()
    windows = BudgetWindows(data, data.observations, T, 20)
    batch = windows.gather(torch.tensor([0, 19, 20, 33]))
    rows = data.decisions[[0, 19, 20, 33]]
    assert torch.equal(batch.returns, data.returns_to_go().mean(dim=1)[rows])
    assert torch.equal(batch.costs, data.costs_to_go().mean(dim=1)[rows])
    assert batch.remaining.tolist() == pytest.approx([1, 0.05, 1, 0.35])
    assert batch.window.observations.shape == (4, T, A, SEEN)


# Gradient moves


@pytest.mark.parametrize(("gate", "action"), [("hard", 0.1), ("hard", 0.9), ("soft", 0.9), ("soft", 0.1)])
def test_what_a_move_climbs_by_hand(gate, action):
    """grad R - n g grad C, where C exceeds the budget; softly by exp of the excess."""
    trebi, move = known(made()), MoveConfig(gate=gate, cost=3.0)
    x = torch.zeros(1, T, 1, trebi.acted + trebi.seen)
    x[0, 0, 0, 0] = action
    x.requires_grad_()
    worth = Worth(trebi, torch.tensor([1.0]), torch.tensor([0.25]), move)
    (slope,) = torch.autograd.grad(worth(x, torch.tensor(0.5)).sum(), x)
    excess = 2 * action + 0.25 - 1.0
    factor = 0.0 if excess <= 0 else 1.0 if gate == "hard" else math.exp(min(excess, 1.0))
    assert slope[0, 0, 0, 0].item() == pytest.approx(1 - 3.0 * factor * 2, abs=1e-5)
    assert slope.count_nonzero() == 1


def test_moves_take_a_plan_into_its_budget():
    """With C = 2 a + 1 and budget 1.4, actions rise until 0.2 and no further; without moves they stay as drawn."""
    trebi, observations = known(made()), torch.zeros(64, A, SEEN)

    def actions(**move):
        settings = {"sampler": DDIM(20), "candidates": 1, "temperature": 0.1}
        return trebi.plan(observations, 1.4, move=MoveConfig(**move), **settings).actions[:, 0, 0, 0]

    still, moved = actions(scale=0.0), actions(scale=0.05, cost=5.0, until=1)
    assert (still > 0.2).float().mean() > 0.02
    assert moved.mean() > still.mean() + 0.05
    assert (moved < 0.35).all()


# Selection


def test_the_best_candidate_within_the_budget_is_taken():
    trebi, observations = known(made()), torch.zeros(50, A, SEEN)
    noise = (
        torch.randn(50, 6, *trebi.plan_shape, generator=torch.Generator().manual_seed(3)) / 5
    )  # no action at a bound
    each = [
        trebi.plan(observations, math.inf, move=MoveConfig(scale=0), candidates=1, noise=noise[:, [n]])
        for n in range(6)
    ]
    returns, costs = (torch.stack([getattr(one, name) for one in each]) for name in ("returns", "costs"))
    budgets = torch.linspace(0.5, 1.5, 50)
    plan = trebi.plan(observations, budgets, move=MoveConfig(scale=0), candidates=6, noise=noise)
    for index, budget in enumerate(budgets.tolist()):
        fits = [(returns[n, index], n) for n in range(6) if costs[n, index] <= budget]
        chosen = max(fits)[1] if fits else int(costs[:, index].argmin())
        assert bool(plan.feasible[index]) == bool(fits)
        assert torch.allclose(plan.actions[index], each[chosen].actions[index], atol=1e-6)
    assert 0 < plan.feasible.float().mean() < 1
    free = trebi.plan(observations, budgets, move=MoveConfig(scale=0, gate="none"), candidates=6, noise=noise)
    assert torch.equal(free.returns, returns.amax(dim=0))


def test_what_is_planned_begins_where_the_team_is():
    observations = torch.randn(3, A, SEEN, generator=torch.Generator().manual_seed(2)) / 3
    plan = made().plan(observations, 1.0)
    assert torch.allclose(plan.observations[:, 0], observations, atol=1e-5)
    assert plan.actions.shape == (3, T, A, U)
    assert plan.actions.abs().max() <= 1
    assert not plan.faults.any()


# Acting


def context(step, batch=2):
    return Context(step, torch.ones(batch, dtype=torch.bool))


def test_a_policy_plans_within_what_is_left(monkeypatch):
    """The budget of each plan is what the episode was given less what its steps cost."""
    trebi, told = made(), []
    inner = trebi.plan
    monkeypatch.setattr(trebi, "plan", lambda *a, **k: told.append((a[1].tolist(), a[2])) or inner(*a, **k))
    acting = Acting(SamplerConfig(steps=2), planning=PlanningConfig(every=2), selection=SelectionConfig(2))
    asked = [GuidanceConfig(budget=4.0), GuidanceConfig(budget=2.0, budget_factor=2.0, budget_change=3)]
    policy = trebi.policy(acting, asked)
    policy.reset([0, 1])
    for step in range(5):
        actions = policy.act(torch.zeros(2, A, SEEN), context(step))
        assert actions.shape == (2, A, U)
        policy.observe(torch.zeros(2, A), torch.tensor([[1.0, 0.0], [1.5, 0.5]]), torch.zeros(2, dtype=torch.bool))
    assert told == [([4.0, 2.0], 0), ([3.0, 0.0], 2), ([2.0, 0.0], 4)]


def test_an_overspent_budget_is_flagged_and_the_cheapest_plan_taken():
    trebi = known(made())
    acting = Acting(SamplerConfig(steps=2), GuidanceConfig(budget=0.0), selection=SelectionConfig(4))
    policy = trebi.policy(acting)
    policy.reset([0, 1])
    policy.act(torch.zeros(2, A, SEEN), context(0))
    policy.observe(torch.zeros(2, A), torch.ones(2, A), torch.zeros(2, dtype=torch.bool))
    policy.act(torch.zeros(2, A, SEEN), context(1))
    assert policy.overspent.all()
    free = trebi.policy(Acting(SamplerConfig(steps=2), selection=SelectionConfig(4)))
    free.reset([0, 1])
    free.act(torch.zeros(2, A, SEEN), context(0))
    assert not free.overspent.any()


def test_an_episode_does_not_depend_on_its_batch():
    trebi, seen = made(), torch.randn(3, A, SEEN, generator=torch.Generator().manual_seed(2)) / 3
    acting = Acting(SamplerConfig("ddpm", 3), GuidanceConfig(budget=3.0), selection=SelectionConfig(3))

    def acted(seeds):
        policy = trebi.policy(acting)
        policy.reset(seeds)
        return policy.act(seen[seeds], context(0, len(seeds)))

    assert torch.allclose(acted([0, 1, 2])[1:2], acted([1]), atol=1e-5)


# Mistakes


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="multiple of 8"):
        TrebiConfig(horizon=12)
    with pytest.raises(ValueError, match="observations must be"):
        made().plan(torch.zeros(1, A, SEEN + 1))
    with pytest.raises(ValueError, match="budget must be at least 0, got -1"):
        made().plan(torch.zeros(1, A, SEEN), -1.0)
    with pytest.raises(UserError, match=r"planning\.every=17"):
        made().policy(Acting(planning=PlanningConfig(every=17)))
    data = episodes()
    with pytest.raises(UserError, match="agents leave early"):
        made().prepare(replace(data, present=torch.ones(len(data.observations), A, dtype=torch.bool)))
    with pytest.raises(ValueError, match="choices"):
        Trebi(TrebiConfig(), TeamSpec(1, 3, 2, discrete=True))

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core import checkpoints
from core.acting import Acting, GuidanceConfig
from core.cloning import Cloning, CloningConfig
from core.data import Trajectories, return_ranks
from core.environments import TeamSpec
from core.errors import UserError
from core.rollout import Context
from core.stacking import Stack
from core.training import Trainer, TrainerConfig

STEPS = 12
SPEC = TeamSpec(1, 2, 1)
TRAINER = TrainerConfig(steps=600, batch_size=128, learning_rate=1e-2, warmup=10, ema=0.95, device="cpu")


def taking_risks(episodes=600):
    """Episodes that take a risk, action 1 at cost 1 and reward 1, or none, action -1, each at a rate of its own.

    Risks that are as likely at any step are as likely in any order: with a cost of C to go in n steps, the next one is
    taken with probability C / n, whatever the rates.
    """
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(episodes, 1, generator=generator)
    risks = torch.zeros(episodes, STEPS + 1)
    risks[:, :STEPS] = (torch.rand(episodes, STEPS, generator=generator) < rates).float()
    actions = 2 * risks - 1
    actions[:, STEPS] = 0
    observations = torch.randn(episodes * (STEPS + 1), 1, 2, generator=generator)
    return Trajectories(
        observations,
        actions.reshape(-1, 1, 1),
        risks.reshape(-1, 1),
        risks.reshape(-1, 1),
        torch.arange(episodes + 1) * (STEPS + 1),
        torch.zeros(episodes, dtype=torch.bool),
    )


def pairs(costs, returns=None, lengths=None, **masks):
    """Episodes of two agents; each pays and earns its agents' costs and returns at its first step."""
    lengths = lengths or [2] * len(costs)
    offsets = torch.tensor([0, *np.cumsum([length + 1 for length in lengths])])
    rows = int(offsets[-1])
    paid, earned = torch.zeros(rows, 2), torch.zeros(rows, 2)
    paid[offsets[:-1]] = torch.tensor(costs)
    earned[offsets[:-1]] = torch.tensor(returns or costs)
    actions = torch.arange(rows).float()[:, None, None].repeat(1, 2, 1) / rows
    observations = torch.randn(rows, 2, 2, generator=torch.Generator().manual_seed(1))
    return Trajectories(observations, actions, earned, paid, offsets, torch.zeros(len(costs)).bool(), **masks)


def trained(config, data, folder, spec=SPEC, **training):
    torch.manual_seed(0)
    algorithm = Cloning(config, spec)
    trainer = Trainer(algorithm, algorithm.prepare(data), replace(TRAINER, **training), folder)
    trainer.run()
    trainer.ema.copy_to(algorithm)
    return algorithm.eval()


def context(batch, step=0, legal=None):
    return Context(step, torch.ones(batch, dtype=torch.bool), legal)


def acting(budget=None, returns=0.9):
    return Acting(guidance=GuidanceConfig(returns=returns, budget=budget))


# Which episodes


def test_only_episodes_within_the_limit_are_cloned():
    """Mean costs of the agents 3, 1, 2 and 6."""
    data = pairs([[4.0, 2.0], [0.0, 2.0], [2.0, 2.0], [12.0, 0.0]], lengths=[2, 1, 3, 2])
    for limit, episodes in ((1.0, [1]), (2.5, [1, 2]), (6.0, [0, 1, 2, 3]), (None, [0, 1, 2, 3])):
        cloning = Cloning(CloningConfig(cost_limit=limit), TeamSpec(2, 2, 1))
        chosen = data.subset(torch.tensor(episodes))
        batches = cloning.prepare(data)
        assert torch.equal(batches.actions, chosen.actions[chosen.decisions])
        assert torch.allclose(batches.inputs, cloning.normaliser(chosen.observations[chosen.decisions]))
        assert batches.inputs.mean(dim=(0, 1)).abs().max() < 1e-6


def test_the_best_are_those_of_the_safe():
    costs = [[float(cost)] * 2 for cost in (0, 5, 1, 9, 2, 3)]
    data = pairs(costs, [[value, 0.0] for value in (1.0, 9.0, 3.0, 8.0, 2.0, 4.0)])
    cloning = Cloning(CloningConfig(cost_limit=3.0, best=0.5), TeamSpec(2, 2, 1))
    chosen = data.subset(torch.tensor([2, 5]))
    assert torch.equal(cloning.prepare(data).actions, chosen.actions[chosen.decisions])


def test_a_limit_that_no_episode_meets():
    data = pairs([[4.0, 2.0], [2.5, 2.0]])
    with pytest.raises(
        UserError, match=r"no episode of the data costs at most algo.cost_limit=2: the least costs 2.25"
    ):
        Cloning(CloningConfig(cost_limit=2.0), TeamSpec(2, 2, 1)).prepare(data)


# Budgets


def test_what_the_policy_is_told_of_the_data():
    """Against sums over each row's episode; steps to go are those to the end of the longest."""
    data = pairs([[4.0, 2.0], [0.0, 2.0], [9.0, 9.0]], lengths=[2, 4, 1])
    data = replace(data, costs=data.costs + 0.5 * (data.actions[..., 0] > 0.4))
    to_go, steps = [], []
    for start, end in zip(data.offsets[:-1].tolist(), data.offsets[1:].tolist(), strict=True):
        to_go += [data.costs[row:end].double().sum().item() / 2 for row in range(start, end - 1)]
        steps += [4 - (row - start) for row in range(start, end - 1)]
    to_go, steps = np.array(to_go), np.array(steps)
    assert data.costs_to_go().mean(dim=1)[data.decisions].tolist() == pytest.approx(to_go)
    ranks = return_ranks(data)[data.decisions]
    for budget, expected in (
        ("rate", (to_go / steps / (to_go / steps).max())[:, None]),
        ("to_go", np.stack([to_go / to_go.max(), steps / 4], axis=1)),
    ):
        cloning = Cloning(CloningConfig(budget=budget, condition=True), TeamSpec(2, 2, 1))
        inputs = cloning.prepare(data).inputs
        assert inputs.shape == (7, 2, 3 + expected.shape[1])
        assert torch.equal(inputs[..., 2], ranks)
        for agent in range(2):
            assert np.abs(inputs[:, agent, 3:].numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("budget", ["rate", "to_go"])
def test_it_spends_its_budget(budget, tmp_path):
    cloning = trained(CloningConfig(hidden=32, budget=budget), taking_risks(), tmp_path, steps=1000)
    observations = torch.randn(200, 1, 2, generator=torch.Generator().manual_seed(1))
    for left, step in ((0.0, 0), (3.0, 0), (9.0, 0), (2.0, 6), (5.0, 6), (1.0, 9)):
        expected = 2 * left / (STEPS - step) - 1
        assert cloning.act(observations, budget=left, step=step).mean().item() == pytest.approx(expected, abs=0.12)
    # A world where risks can be taken in part: all of the budget is spent, and no more.
    budgets = [0.0, 2.0, 6.0, 10.0, 12.0]
    policy = cloning.policy(Acting(), [GuidanceConfig(budget=each) for each in budgets])
    policy.reset(range(5))
    spent = torch.zeros(5, 1)
    for step in range(STEPS):
        actions = policy.act(observations[step : step + 5], context(5, step))
        costs = (actions[..., 0] + 1) / 2
        spent += costs
        policy.observe(costs, costs, torch.zeros(5, dtype=torch.bool))
    assert spent[:, 0].tolist() == pytest.approx(budgets, abs=0.4)


def test_the_budget_is_kept_account_of():
    """Averaged over the agents, and never below 0; each episode has its own, or none."""
    torch.manual_seed(0)
    cloning = Cloning(CloningConfig(hidden=8, budget="to_go"), TeamSpec(2, 2, 1))
    cloning.prepare(pairs([[4.0, 2.0], [8.0, 8.0]], lengths=[4, 4]))
    policy = cloning.policy(Acting(), [GuidanceConfig(budget=budget) for budget in (3.0, 0.5, None)])
    policy.reset([1, 2, 3])
    costs = torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]])
    policy.observe(torch.zeros(3, 2), costs, torch.zeros(3, dtype=torch.bool))
    observations = torch.randn(3, 2, 2)
    actions = policy.act(observations, context(3, 1))
    # Without a budget, as much as the data ever spent in all, or in as many steps: 8 of 4, and so 6 of 3.
    for each, left in enumerate((1.0, 0.0, 6.0)):
        assert torch.equal(actions[each], cloning.act(observations, budget=left, step=1)[each])
    assert not torch.equal(actions[2], cloning.act(observations, budget=5.9, step=1)[2])
    assert torch.equal(actions[0], cloning.act(observations, budget=torch.tensor([1.0, 2.0, 3.0]), step=1)[0])
    alone = cloning.policy(acting(budget=3.0))
    alone.reset([1])
    alone.observe(torch.zeros(1, 2), costs[:1], torch.zeros(1, dtype=torch.bool))
    assert torch.allclose(alone.act(observations[:1], context(1, 1)), actions[:1], atol=1e-6)


def test_returns_and_budgets_are_told_apart(tmp_path):
    """An action is 0.75 where the return is high, and -0.25 where it is not; 0.25 more where a cost may arise."""
    generator = torch.Generator().manual_seed(2)
    high, costly = (torch.rand(200, generator=generator) < 0.5 for _ in range(2))
    rows = torch.arange(200).repeat_interleave(3)
    alive = torch.arange(600) % 3 < 2
    sums = (alive * (high[rows].float() - 0.25 + 0.25 * costly[rows]))[:, None, None]
    data = Trajectories(
        torch.zeros(600, 1, 2), sums, (alive & high[rows]).float()[:, None], (alive & costly[rows]).float()[:, None],
        torch.arange(201) * 3, torch.zeros(200, dtype=torch.bool),
    )  # fmt: skip
    config = CloningConfig(hidden=16, condition=True, budget="rate")
    cloning = trained(config, data, tmp_path, steps=300)
    # Half of the episodes have a high return, and a rank of 1; the others one of a half.
    for returns, budget, expected in ((1.0, 2.0, 1.0), (1.0, 0.0, 0.75), (0.5, 2.0, 0.0), (0.5, 0.0, -0.25)):
        policy = cloning.policy(acting(budget, returns))
        policy.reset([0])
        assert policy.act(torch.zeros(1, 1, 2), context(1)).item() == pytest.approx(expected, abs=0.1)


# Choices, agents of different sizes, agents that are not there, seeds, files

CHOOSING = TeamSpec(2, 3, 4, discrete=True, sizes=(1, 3))


def choices(episodes=6, steps=5):
    """Two agents of 1 and 3 entries; agent 1 leaves each episode at its third row."""
    generator = torch.Generator().manual_seed(3)
    rows = episodes * (steps + 1)
    legal = torch.rand(rows, 2, 4, generator=generator) < 0.6
    legal[..., 3] = True
    chosen = torch.rand(rows, 2, 4, generator=generator).masked_fill(~legal, -1).argmax(dim=-1)
    time = torch.arange(rows) % (steps + 1)
    present = torch.ones(rows, 2, dtype=torch.bool)
    present[time > 2, 1] = False
    actions = F.one_hot(chosen, 4).float()
    actions[time == steps] = 0
    costs = torch.rand(rows, 2, generator=generator) * (time < steps)[:, None]
    observations = torch.randn(rows, 2, 3, generator=generator)
    offsets = torch.arange(episodes + 1) * (steps + 1)
    ends = torch.zeros(episodes, dtype=torch.bool)
    return Trajectories(observations, actions, -costs, costs, offsets, ends, legal=legal, present=present)


def test_rows_without_an_agent_and_padding_teach_nothing():
    data = choices()
    gone = ~data.present[..., None] | torch.tensor([[False, True, True], [False, False, False]])
    spoilt = replace(data, observations=torch.where(gone, 1e6, data.observations))
    losses = []
    for one in (data, spoilt):
        torch.manual_seed(1)
        cloning = Cloning(CloningConfig(hidden=8, budget="rate"), CHOOSING)
        batches = cloning.prepare(one)
        loss = cloning.phases()[0].loss(batches.gather(torch.arange(len(batches))), torch.Generator())["loss"]
        losses.append([loss.detach(), *torch.autograd.grad(loss, list(cloning.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


def test_seeds_stack():
    data = choices()
    members = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        members.append(Cloning(CloningConfig(hidden=8, budget="to_go", cost_limit=3.0), CHOOSING))
    batches = [member.prepare(data) for member in members][-1]
    index = torch.stack([torch.arange(9), torch.arange(3, 12)])
    phase = members[0].phases()[0]
    alone = [
        member.phases()[0].loss(batches.gather(rows), torch.Generator())["loss"].item()
        for member, rows in zip(members, index, strict=True)
    ]
    together = Stack(members).losses(phase, batches, index, [torch.Generator(), torch.Generator()])["loss"]
    assert together.tolist() == pytest.approx(alone, rel=1e-6)


def test_what_it_learned_is_in_its_checkpoint(tmp_path):
    config = CloningConfig(hidden=8, budget="rate", condition=True)
    first = trained(config, choices(), tmp_path, CHOOSING, steps=3)
    second = Cloning(config, CHOOSING)
    checkpoints.load_trained(second, tmp_path / "checkpoint.safetensors")
    observations, legal = torch.randn(9, 2, 3), torch.rand(9, 2, 4) < 0.7
    legal[..., 0] |= ~legal.any(dim=-1)
    actions = [each.act(observations, 0.7, legal, budget=1.5, step=2) for each in (first, second)]
    assert torch.equal(*actions)
    assert (actions[0].bool() & legal).sum(dim=-1).eq(1).all()


def test_what_its_policy_uses():
    assert Cloning.uses(CloningConfig(cost_limit=1.0)) == frozenset()
    assert Cloning.uses(CloningConfig(budget="rate")) == {"budget"}
    assert Cloning.uses(CloningConfig(budget="to_go", condition=True)) == {"budget", "returns"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost_limit": -1.0}, r"algo.cost_limit is a cost of at least 0, or none for any, got -1.0"),
        ({"budget": "left"}, r"unknown algo.budget 'left': choose one of none, rate, to_go"),
        ({"best": 0.0}, r"algo.best is a share in \(0, 1\], got 0.0"),
        ({"discount": 0.0}, "algo.discount"),
        ({"hidden": 0}, "algo.hidden and algo.layers must be at least 1, got 0 and 2"),
        ({"name": "madiff"}, "algo.name is cloning here"),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        CloningConfig(**options)

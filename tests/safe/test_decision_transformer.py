from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal

from core import checkpoints
from core.acting import Acting, GuidanceConfig
from core.environments import TeamSpec
from core.rollout import Context
from core.stacking import Stack
from core.training import Trainer, TrainerConfig
from safe.decision_transformer import CDT, DecisionNetwork, Frontier, infeasible_targets
from safe.decision_transformer_config import CDTConfig
from tests.core.test_cloning_budgets import CHOOSING, SPEC, STEPS, choices, pairs, taking_risks

SMALL = CDTConfig(context=3, actions=True, width=8, layers=2, heads=2)
TRAINER = TrainerConfig(batch_size=64, learning_rate=1e-2, warmup=10, ema=0.95, gradient_clip=1.0, device="cpu")


def made(config=SMALL, spec=SPEC, seed=0):
    torch.manual_seed(seed)
    return CDT(config, spec).eval()


def trained(algorithm, data, folder, steps):
    trainer = Trainer(algorithm, algorithm.prepare(data), replace(TRAINER, steps=steps), folder)
    trainer.run()
    trainer.ema.copy_to(algorithm)
    return algorithm.eval()


def context(batch, step=0, legal=None):
    return Context(step, torch.ones(batch, dtype=torch.bool), legal)


# The network


@pytest.mark.parametrize("told", [True, False])
def test_what_comes_later_changes_nothing_before_it(told):
    """Tokens in the order return, cost, observation, and action where it is told."""
    torch.manual_seed(0)
    net = DecisionNetwork(replace(SMALL, actions=told), observation_dim=2, action_dim=1, outputs=2)
    seen, actions = torch.randn(1, 5, 2, 5), torch.randn(1, 5, 2, 1)
    seen[..., 0] = torch.arange(5.0)[:, None]
    before = net(seen, actions)
    # Columns: 0 the step's number, 1 the return, 2 the cost, 3 and 4 the observation.
    for step in range(5):
        for column in range(1, 5):
            changed = seen.clone()
            changed[:, step, 0, column] += 1
            gap = (net(changed, actions) - before).abs().amax(dim=(0, 3))
            assert not gap[:step].any()
            assert (gap[step:, 0] > 0).all() and not gap[:, 1].any()  # and agents do not meet
        acted = actions.clone()
        acted[:, step, 0] += 1
        gap = (net(seen, acted) - before).abs().amax(dim=(0, 3))
        assert not gap[: step + 1].any() and not gap[:, 1].any()
        assert (gap[step + 1 :, 0] > 0).all() if told else not gap.any()
    for length in range(1, 5):
        assert torch.allclose(net(seen[:, :length], actions[:, :length]), before[:, :length], atol=1e-6)


def test_dropout_follows_its_generator():
    algorithm = made(replace(SMALL, dropout=0.5))
    batch = algorithm.prepare(taking_risks(4)).gather(torch.arange(6))
    loss = [algorithm._loss(batch, torch.Generator().manual_seed(seed))["surprise"].item() for seed in (1, 1, 2)]
    assert loss[0] == loss[1] != loss[2]
    calm = algorithm.net(batch.observations, batch.actions)
    assert torch.equal(calm, algorithm.train().net(batch.observations, batch.actions))


# Targets


def test_the_frontier_by_hand():
    frontier = Frontier()
    frontier.fit(torch.tensor([2.0, 1.0, 4.0, 3.0]), torch.tensor([1.0, 0.0, 5.0, 2.0]))

    def reached(rank, budget):
        return frontier(torch.tensor([rank]), torch.tensor([budget])).item()

    # Within 0: the return 1; within 1: 1 and 2; within 2: 1, 2 and 3; within 5: all. Nothing is within -1.
    for budget, best in ((-1.0, 1), (0.0, 1), (0.99, 1), (1.0, 2), (1.5, 2), (2.0, 3), (4.9, 3), (5.0, 4), (99.0, 4)):
        assert reached(1.0, budget) == best
        assert reached(0.0, budget) == 1
        assert reached(0.5, budget) == pytest.approx((1 + best) / 2)
    assert reached(0.875, 99.0) == pytest.approx(1 + 3 * 0.875)  # between the table's ranks
    many = torch.rand(2, 3000, generator=torch.Generator().manual_seed(0))
    frontier.fit(*many)
    for rank, budget in ((0.9, 0.3), (0.33, 0.71), (0.5, 0.98)):
        expected = np.quantile(many[0][many[1] <= budget].numpy(), rank)
        assert reached(rank, budget) == pytest.approx(expected, abs=0.05)


def test_targets_that_no_episode_meets():
    """Against a search of all episodes for each target."""
    generator = torch.Generator().manual_seed(0)
    returns, costs = torch.rand(50, generator=generator), torch.rand(50, generator=generator)
    returns += 0.5 * costs
    episodes, raised = infeasible_targets(returns, costs, 40)
    wanted = torch.stack([returns, costs], dim=-1)[episodes] + raised
    assert np.allclose(wanted[:, 1], np.linspace(costs.min().item(), costs.max().item(), 40), atol=1e-6)
    shares = []
    for episode, (target, budget) in zip(episodes.tolist(), wanted.tolist(), strict=True):
        within = [other for other in range(50) if costs[other] <= budget + 1e-6]
        assert episode == max(within, key=lambda other: returns[other])
        assert returns[episode] - 1e-6 <= target <= returns.max() + 1e-6
        if returns[episode] < returns.max():
            shares.append(((target - returns[episode]) / (returns.max() - returns[episode])).item())
    assert len(shares) > 20
    assert np.histogram(shares, bins=4, range=(0, 1))[0].min() >= len(shares) // 6


def test_what_the_network_is_shown():
    """Steps, the team's returns and costs to go, and of relabelled episodes what exceeds them."""
    costs, returns = [[4.0, 2.0], [0.0, 2.0], [9.0, 9.0]], [[1.0, 3.0], [2.0, 0.0], [8.0, 6.0]]
    data = pairs(costs, returns, lengths=[2, 4, 1])
    algorithm = made(replace(SMALL, relabelled=1.0), TeamSpec(2, 2, 1))
    windows = algorithm.prepare(data)
    batch = windows.gather(torch.arange(len(windows)))
    assert len(windows) > 7 and batch.observations.shape[1:] == (3, 2, 5)
    targets = algorithm.scale.invert(batch.observations[..., 1:3])
    assert torch.allclose(targets[:, :, 0], targets[:, :, 1])
    assert batch.observations[:7, 0, 0, 0].tolist() == [0, 1, 0, 1, 2, 3, 0]
    assert targets[:7, 0, 0, 0].tolist() == pytest.approx([2, 0, 1, 0, 0, 0, 7], abs=1e-5)
    assert targets[:7, 0, 0, 1].tolist() == pytest.approx([3, 0, 1, 0, 0, 0, 9], abs=1e-5)
    # Budgets 1, 5 and 9 are of the second, the first and the third episode; their costs are 1, 3 and 9.
    first = batch.observations[7:, 0, 0, 0] == 0
    assert targets[7:, 0, 0, 1][first].tolist() == pytest.approx([1, 5, 9], abs=1e-5)
    share = (5**0.5 - 1) / 2
    assert targets[7:, 0, 0, 0][first].tolist() == pytest.approx([1, 2 + share * 5, 7], abs=1e-5)
    assert torch.equal(batch.actions[7:, 0][first], data.actions[[3, 0, 8]])
    assert batch.valid[[0, 1, 2, 6]].tolist() == [
        [True, True, False],
        [True, False, False],
        [True] * 3,
        [True, False, False],
    ]


# The loss


def test_likelihoods_against_torch_s_own():
    generator = torch.Generator().manual_seed(0)
    algorithm = made(spec=TeamSpec(1, 2, 3))
    outputs, actions = torch.randn(7, 6, generator=generator), torch.randn(7, 3, generator=generator)
    law = Normal(outputs[:, :3], (5 * (outputs[:, 3:] / 5).tanh()).exp())
    surprise, entropy = algorithm.likelihood(outputs, actions, None)
    assert torch.allclose(surprise, -law.log_prob(actions).mean(dim=-1), rtol=1e-5)
    assert torch.allclose(entropy, law.entropy().mean(dim=-1), rtol=1e-5)
    assert torch.equal(algorithm.executed(outputs, None), outputs[:, :3].clamp(-1, 1))
    algorithm = made(spec=CHOOSING)
    logits, legal = torch.randn(9, 4, generator=generator), torch.rand(9, 4, generator=generator) < 0.6
    legal[:, 0] = True
    law = Categorical(logits=logits.masked_fill(~legal, -1e9))
    chosen = law.sample()
    surprise, entropy = algorithm.likelihood(logits, torch.nn.functional.one_hot(chosen, 4).float(), legal)
    assert torch.allclose(surprise, -law.log_prob(chosen), rtol=1e-5)
    assert torch.allclose(entropy, law.entropy(), rtol=1e-5, atol=1e-6)


def test_the_temperature_rises_where_entropy_is_missing():
    """d loss / d log T = T (H - wanted), and no other gradient is of it; the policy's is of L - T H."""
    algorithm = made()
    batch = algorithm.prepare(taking_risks(4)).gather(torch.arange(9))
    for wanted in (-3.0, 3.0):
        algorithm.config = replace(SMALL, entropy=wanted)
        found = algorithm._loss(batch, torch.Generator())
        parameters = list(algorithm.net.parameters())
        slope, *both = torch.autograd.grad(found["loss"], [algorithm.log_temperature, *parameters], retain_graph=True)
        entropy, temperature = found["entropy"].item(), found["temperature"].item()
        assert temperature == pytest.approx(0.1)
        assert slope.item() == pytest.approx(0.1 * (entropy - wanted), rel=1e-5)
        alone = torch.autograd.grad(found["surprise"] - 0.1 * found["entropy"], parameters)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(both, alone, strict=True))


def test_padding_and_absent_agents_teach_nothing():
    data = choices()
    gone = ~data.present[..., None] | torch.tensor([[False, True, True], [False, False, False]])
    wild = torch.where(~data.present[..., None], data.actions.roll(1, dims=-1), data.actions)
    spoilt = replace(data, observations=torch.where(gone, 1e6, data.observations), actions=wild)
    losses = []
    for one in (data, spoilt):
        algorithm = made(spec=CHOOSING)
        batch = algorithm.prepare(one).gather(torch.arange(30))
        # Agents never meet, and agent 1 stays away once it has left.
        loss = algorithm._loss(batch, torch.Generator())["loss"]
        losses.append([loss.detach(), *torch.autograd.grad(loss, list(algorithm.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


# Acting


@pytest.fixture(scope="module")
def risky(tmp_path_factory):
    """Learned where the next risk is taken with probability C / n, C the cost to go and n the steps."""
    config = CDTConfig(context=3, width=32, layers=1, heads=2, relabelled=0.0)
    return trained(made(config), taking_risks(), tmp_path_factory.mktemp("run"), steps=600)


def test_it_acts_by_the_cost_to_go_and_spends_its_budget(risky):
    budgets = [0.0, 2.0, 6.0, 10.0, 12.0]
    policy = risky.policy(Acting(), [GuidanceConfig(budget=budget, returns=1.0) for budget in budgets])
    policy.reset(range(5))
    observations, spent = torch.randn(STEPS, 5, 1, 2, generator=torch.Generator().manual_seed(1)), torch.zeros(5, 1)
    for step in range(STEPS):
        costs = (policy.act(observations[step], context(5, step))[..., 0] + 1) / 2  # as if risks came in parts
        if not step:
            assert costs[:, 0].tolist() == pytest.approx([budget / STEPS for budget in budgets], abs=0.2)
        spent += costs
        policy.observe(costs, costs, torch.zeros(5, dtype=torch.bool))
    assert spent[:, 0].tolist() == pytest.approx(budgets, abs=0.9)


def test_a_policy_sees_its_last_steps():
    """Against the network's words on windows put together episode by episode."""
    algorithm = made()
    algorithm.prepare(taking_risks(40))
    guidance = [GuidanceConfig(budget=4.0, returns=1.0), GuidanceConfig(), GuidanceConfig(budget=2.5, returns=0.5)]
    generator = torch.Generator().manual_seed(1)
    observations, rewards, costs = (torch.randn(6, 3, *shape, generator=generator) for shape in ((1, 2), (1,), (1,)))
    costs = costs.abs()
    policy = algorithm.policy(Acting(), guidance)
    policy.reset([5, 6, 7])
    acted = []
    for step in range(6):
        acted.append(policy.act(observations[step], context(3, step)))
        policy.observe(rewards[step], costs[step], torch.zeros(3, dtype=torch.bool))
    most = algorithm.frontier.costs[-1].item()
    assert most > 9
    for episode, asked in enumerate(guidance):
        budget = most if asked.budget is None else asked.budget
        aim = algorithm.frontier(torch.tensor([asked.returns]), torch.tensor([budget])).item()
        rows, done = [], []
        for step in range(6):
            gone = [values[:step, episode, 0].sum().item() for values in (rewards, costs)]
            target = torch.tensor([aim - gone[0], max(0, budget - gone[1])])
            scaled = (target - algorithm.scale.shift) / algorithm.scale.scale
            seen = (observations[step, episode, 0] - algorithm.normaliser.shift) / algorithm.normaliser.scale
            rows.append(torch.cat([torch.tensor([float(step)]), scaled, seen]))
            window = torch.stack(rows[-3:])[None, :, None]
            before = torch.tensor([*done[-2:], 0.0] if step else [0.0])[None, :, None, None]
            mean = algorithm.net(window, before)[0, -1, 0, 0].clamp(-1, 1).item()
            assert acted[step][episode].item() == pytest.approx(mean, abs=1e-5)
            done.append(mean)


def test_a_budget_that_changes_changes_what_is_aimed_at():
    algorithm = made()
    algorithm.prepare(taking_risks(200))
    asked = GuidanceConfig(budget=8.0, returns=1.0, budget_factor=0.5, budget_change=1)
    policy = algorithm.policy(Acting(guidance=asked))
    policy.reset([1])
    assert policy.targets()[0].tolist() == pytest.approx([8, 8])  # a return of as many
    policy.observe(torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.tensor([False]))
    assert policy.targets()[0].tolist() == pytest.approx([4 - 3, 4 - 1])
    policy.observe(torch.tensor([[0.0]]), torch.tensor([[5.0]]), torch.tensor([False]))
    assert policy.targets()[0].tolist() == pytest.approx([4 - 3, 0])


# Seeds and files


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_seeds_stack(dropout):
    data, config = choices(), replace(SMALL, dropout=dropout)
    members = [made(config, CHOOSING, seed).train() for seed in (1, 2)]
    batches = [member.prepare(data) for member in members][-1]
    index = torch.stack([torch.arange(9), torch.arange(3, 12)])
    alone = [
        member.phases()[0].loss(batches.gather(rows), torch.Generator().manual_seed(seed))["loss"].item()
        for seed, (member, rows) in enumerate(zip(members, index, strict=True))
    ]
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    phase = members[0].phases()[0]
    together = Stack(members).losses(phase, batches, index, generators)["loss"]
    assert together.tolist() == pytest.approx(alone, rel=1e-5)


def test_what_it_learned_is_in_its_checkpoint(tmp_path):
    first = trained(made(spec=CHOOSING), choices(), tmp_path, steps=2)
    second = made(spec=CHOOSING, seed=1)
    checkpoints.load_trained(second, tmp_path / "checkpoint.safetensors")
    legal = torch.rand(9, 2, 4) < 0.5
    legal[..., 1] |= ~legal.any(dim=-1)
    actions = []
    observations = torch.randn(2, 9, 2, 3)
    for algorithm in (first, second):
        policy = algorithm.policy(Acting(guidance=GuidanceConfig(budget=1.0)))
        policy.reset(range(9))
        for step in range(2):
            actions.append(policy.act(observations[step], context(9, step, legal)))
            policy.observe(torch.ones(9, 2), torch.ones(9, 2), torch.zeros(9, dtype=torch.bool))
    assert torch.equal(actions[0], actions[2]) and torch.equal(actions[1], actions[3])
    assert (actions[1].bool() & legal).sum(dim=-1).eq(1).all()
    assert CDT.uses(SMALL) == {"returns", "budget"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30}, "algo.width must be even and a multiple of the 4 heads, got 30"),
        ({"context": 0}, "algo.context must be at least 1, got 0"),
        ({"dropout": 1.0}, r"algo.dropout lies in \[0, 1\), got 1.0"),
        ({"entropy": float("nan")}, "algo.entropy must be finite"),
        ({"relabelled": -0.1}, "algo.relabelled is a share of at least 0"),
        ({"name": "dt"}, "algo.name is cdt here"),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        CDTConfig(**options)

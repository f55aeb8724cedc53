from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from core import checkpoints
from core.acting import Acting, SelectionConfig
from core.critics import CriticConfig
from core.data import Trajectories, Transitions
from core.environments import TeamSpec
from core.errors import UserError
from core.rollout import Context
from core.stacking import Stack
from core.training import Trainer, TrainerConfig
from safe.bcq_lagrangian import PID, BCQLagrangian, BCQLagrangianConfig

A, SEEN, U = 2, 3, 2
SPEC = TeamSpec(A, SEEN, U)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawing():
    return torch.Generator().manual_seed(7)


def made(spec=SPEC, critic=None, seed=0, **settings):
    torch.manual_seed(seed)
    judges = CriticConfig(**({"hidden": 8, "candidates": 3, "polyak": 0.005} | (critic or {})))
    return BCQLagrangian(BCQLagrangianConfig(**{"hidden": 8, "critic": judges} | settings), spec)


def batch(count=6, **changes):
    actions = random(count, A, U, seed=1).clamp(-1, 1)
    given = {
        "observations": random(count, A, SEEN),
        "actions": actions,
        "rewards": random(count, A, seed=2),
        "costs": random(count, A, seed=4).abs(),
        "following": random(count, A, SEEN, seed=3),
        "discount": torch.full((count, A), 0.5),
    }
    return Transitions(**(given | changes))


class Sums(nn.Module):
    """Q1 = w o1 + a1 and Q2 = 1 - a2 of each agent, of [..., 2, 5]."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, judged):
        first = self.weight * judged[..., 0, 0] + judged[..., 0, SEEN]
        return torch.stack([first, 1 - judged[..., 1, SEEN + 1]], dim=-1)[..., None]


def heeding(algorithm):
    """Its critics of rewards and costs by hand."""
    for critics, weight in ((algorithm.critics, 3.0), (algorithm.cost_critics, -2.0)):
        critics.q = critics.target = Sums(weight)
    return algorithm


def twins(weight, seen, acted):
    return weight * seen[..., 0] + acted[..., 0], 1 - acted[..., 1]


def double(*tensors):
    return [tensor.detach().double().numpy() for tensor in tensors]


# The multiplier


def test_the_multiplier_by_hand():
    """Gains 0.5, 0.1 and 2: errors 1, 3, -1, -5 and 0.5."""
    pid = PID(0.5, 0.1, 2.0)
    expected = [
        (1.0, 0.5 * 1 + 0.1 * 1 + 2 * 1),
        (3.0, 0.5 * 3 + 0.1 * 4 + 2 * 2),
        (-1.0, 0.0),  # -0.5 + 0.1 * 3 is below 0, and nothing is added for a fall
        (-5.0, 0.0),  # the total is 0 from here on, not -2
        (0.5, 0.5 * 0.5 + 0.1 * 0.5 + 2 * 5.5),
    ]
    for error, multiplier in expected:
        pid.follow(torch.tensor(error))
        assert pid.multiplier.item() == pytest.approx(multiplier)


@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_the_limit_of_an_episode_is_one_of_discounted_sums(discount):
    """Episodes of 2 and 4 steps; a cost of 6, spread evenly over 3 steps, and summed in units of the deviation."""
    costs = torch.tensor([1.0, 3, 0, 5, 1, 3, 5, 0])[:, None].repeat(1, A)
    data = Trajectories(
        random(8, A, SEEN), random(8, A, U), -costs, costs, torch.tensor([0, 3, 8]), torch.tensor([False, True])
    )
    algorithm = made(critic={"discount": discount}, cost_limit=6.0)
    transitions = algorithm.prepare(data)
    deviation = np.std([1, 3, 5, 1, 3, 5])
    assert algorithm.cost_limit.item() == pytest.approx((2 + 2 * discount + 2 * discount**2) / deviation, rel=1e-5)
    assert transitions.costs[:, 0].tolist() == pytest.approx(np.array([1, 3, 5, 1, 3, 5]) / deviation, rel=1e-5)


@pytest.mark.parametrize("limit", [0.0, 1e3])
def test_the_multiplier_follows_the_estimate(limit, tmp_path):
    """It rises while the estimate is above the limit, and stays or comes back to 0 below."""
    costs = random(30, A).abs()
    data = Trajectories(
        random(30, A, SEEN), random(30, A, U).clamp(-1, 1), -costs, costs, torch.arange(4) * 10, torch.zeros(3).bool()
    )
    algorithm = made(critic={"polyak": 0.5}, cost_limit=limit, integral=0.1)
    training = TrainerConfig(
        steps=20, batch_size=16, learning_rate=2e-2, log_every=1, warmup=0, decay="none", ema=0.0, device="cpu"
    )
    algorithm.pid.total.fill_(0.5)
    trainer = Trainer(algorithm, algorithm.prepare(data), training, tmp_path)
    trainer.run()
    found = [row["policy.multiplier"] for row in trainer.rows]
    estimates = [row["cost.estimate"] for row in trainer.rows]
    threshold = algorithm.cost_limit.item()
    before, total = 0.0, 0.5
    for step in range(19):
        error = estimates[step] - threshold
        total = max(0.0, total + error)
        expected = max(0.0, 0.1 * error + 0.1 * total + 0.001 * max(0.0, error - before))
        assert found[step + 1] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        before = error
    if limit:
        assert max(found) == 0
    else:
        assert min(estimates[10:]) > 0 and found[-1] > found[10] > 0


# The losses


def test_actions_stay_within_the_range_of_the_proposals():
    algorithm = made(range=0.05)
    for parameter in algorithm.target.parameters():
        parameter.data.mul_(50.0)
    seen, noise = random(40, A, SEEN), 3 * random(40, 5, A, U)
    actions = algorithm.propose(seen, noise)
    known = seen[:, None].expand(-1, 5, -1, -1)
    proposed = algorithm.decoder(torch.cat([known, noise.clamp(-0.5, 0.5)], dim=-1)).tanh()
    moved = (actions - proposed).abs()
    assert moved.max() <= 0.05 + 1e-6 and (moved > 0.049).float().mean() > 0.5
    assert actions.abs().max() <= 1
    far = algorithm.perturbed(algorithm.target, seen, torch.ones(40, A, U))
    assert ((far >= 0.95 - 1e-6) & (far <= 1)).all()


def test_what_the_critics_learn_by_hand():
    """c + discount max(Qc1, Qc2), and r + discount min(Qr1, Qr2), of the proposal that is best by 1.5 times Qc."""
    algorithm, items = heeding(made(range=0.5)), batch(discount=torch.tensor([0.5, 0, 1])[:, None].repeat(2, A))
    algorithm.pid.multiplier.fill_(1.5)
    actions = algorithm.propose(items.following, torch.randn(6, 3, A, U, generator=drawing()))
    after, acted, costs, rewards, discount = double(
        items.following[:, None], actions, items.costs, items.rewards, items.discount
    )
    reward, cost = np.minimum(*twins(3.0, after, acted)), np.maximum(*twins(-2.0, after, acted))
    best = (reward - 1.5 * cost).argmax(axis=1)[:, None]
    assert len(np.unique(best)) > 1
    reward, cost = (np.take_along_axis(values, best, axis=1)[:, 0] for values in (reward, cost))
    known = twins(-2.0, *double(items.observations, items.actions))
    expected = sum(((one - costs - discount * cost) ** 2).mean() for one in known)
    assert algorithm.cost_loss(items, drawing())["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert algorithm.estimate.item() == pytest.approx(cost.mean(), rel=1e-5)
    assert np.allclose(algorithm.targets(items, drawing()), rewards + discount * reward, atol=1e-5)


def test_the_autoencoder_s_loss_by_hand():
    """Squared error and the divergence of N(m, s^2) from N(0, 1), against torch's own."""
    algorithm, items = made(divergence=0.3), batch()
    mean, log_deviation = algorithm.encoder(torch.cat([items.observations, items.actions], dim=-1)).chunk(2, dim=-1)
    law = torch.distributions.Normal(mean, log_deviation.exp())
    divergence = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0)).mean()
    latents = mean + log_deviation.exp() * torch.randn(6, A, U, generator=drawing())
    error = (algorithm.proposed(items.observations, latents) - items.actions).square().mean()
    found = algorithm.proposal_loss(items, drawing())
    assert found["error"].item() == pytest.approx(error.item(), rel=1e-5)
    assert found["loss"].item() == pytest.approx((error + 0.3 * divergence).item(), rel=1e-5)


@pytest.mark.parametrize("multiplier", [0.0, 2.5])
def test_the_policy_s_loss_by_hand(multiplier):
    """multiplier max(Qc1, Qc2) - min(Qr1, Qr2), no gradient in the proposals."""
    algorithm, items = heeding(made(range=0.5)), batch()
    algorithm.pid.multiplier.fill_(multiplier)
    latents = torch.randn(6, A, U, generator=drawing()).clamp(-0.5, 0.5)
    proposed = algorithm.proposed(items.observations, latents)
    own = algorithm.perturbed(algorithm.perturbation, items.observations, proposed)
    seen, acted = double(items.observations, own)
    reward = np.minimum(*twins(3.0, seen, acted)).mean()
    cost = np.maximum(*twins(-2.0, seen, acted)).mean()
    found = algorithm.policy_loss(items, drawing())
    assert found["loss"].item() == pytest.approx(multiplier * cost - reward, rel=1e-5)
    others = [*algorithm.encoder.parameters(), *algorithm.decoder.parameters()]
    assert not any(torch.autograd.grad(found["loss"], others, allow_unused=True, retain_graph=True))


@pytest.mark.parametrize("view", ["independent", "centralised"])
def test_the_best_candidate_is_by_both(view):
    """Against a search of all of them; a team that is judged together chooses together."""
    algorithm = made(critic={"view": view})
    seen, candidates = random(9, A, SEEN), random(9, 5, A, U, seed=1).clamp(-1, 1)
    chosen = []
    for multiplier in (0.0, 3.0):
        algorithm.pid.multiplier.fill_(multiplier)
        chosen.append(algorithm.choose(seen, candidates, SelectionConfig(5), torch.zeros(9, 5, A)))
        values = []
        for n in range(5):
            rewards = algorithm.critics.values(seen, candidates[:, n]).amin(dim=0)
            values.append(rewards - multiplier * algorithm.cost_critics.values(seen, candidates[:, n]).amax(dim=0))
        values = torch.stack(values)
        if view == "centralised":
            values = values.mean(dim=-1, keepdim=True).expand(-1, -1, A)
        for item, agent in np.ndindex(9, A):
            best = candidates[item, values[:, item, agent].argmax(), agent]
            assert torch.equal(chosen[-1][item, agent], best)
    assert not torch.equal(*chosen)


def test_absent_agents_change_nothing():
    algorithm = made()
    present = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1], [1, 1], [1, 0]], dtype=torch.bool)
    items = batch(present=present)
    there = present[..., None]
    wild = replace(
        items,
        observations=torch.where(there, items.observations, 7.0),
        actions=torch.where(there, items.actions, -items.actions),
        rewards=torch.where(present, items.rewards, 1e6),
        costs=torch.where(present, items.costs, 1e6),
        following=torch.where(there, items.following, -7.0),
    )
    algorithm.pid.multiplier.fill_(0.7)
    for phase in algorithm.phases():
        calm, stirred = (phase.loss(one, drawing())["loss"].item() for one in (items, wild))
        assert calm == pytest.approx(stirred, rel=1e-6)


# Learning


def bandit(episodes=100, steps=10):
    """Uniform actions a that earn a - a^2 / 4 and cost (a + 1) / 2; nothing else matters."""
    generator = torch.Generator().manual_seed(0)
    rows = episodes * (steps + 1)
    actions = 2 * torch.rand(rows, 1, 1, generator=generator) - 1
    alive = (torch.arange(rows) % (steps + 1) < steps)[:, None]
    a = actions[..., 0]
    return Trajectories(
        torch.ones(rows, 1, 1),
        torch.where(alive[..., None], actions, 0.0),
        torch.where(alive, a - a**2 / 4, 0.0),
        torch.where(alive, (a + 1) / 2, 0.0),
        torch.arange(episodes + 1) * (steps + 1),
        torch.zeros(episodes, dtype=torch.bool),
    )


@pytest.mark.parametrize("limit", [3.0, pytest.param(6.0, marks=pytest.mark.slow)])
def test_it_earns_what_the_limit_allows(limit, tmp_path):
    """Rewards rise with costs, so that all of the limit is spent: a = limit / 5 - 1 at each of ten steps. There the
    reward's slope 1 - a / 2 is the multiplier times the cost's 1 / 2, both in units of their deviations."""
    critic = {"hidden": 16, "layers": 1, "discount": 0.5, "polyak": 0.1, "candidates": 2}
    gains = {"proportional": 2.0, "integral": 0.005}
    sizes = {"hidden": 16, "layers": 1, "range": 1.0, "polyak": 0.1}
    algorithm = made(TeamSpec(1, 1, 1), critic, cost_limit=limit, **sizes, **gains)
    training = TrainerConfig(
        steps=600, batch_size=32, learning_rate=2e-3, warmup=0, decay="none", ema=0.0, log_every=100, device="cpu"
    )
    data = bandit()
    trainer = Trainer(algorithm, algorithm.prepare(data), training, tmp_path)
    trainer.run()
    policy = algorithm.eval().policy(Acting(selection=SelectionConfig(1)))
    policy.reset(range(50))
    actions = policy.act(torch.ones(50, 1, 1), Context(0, torch.ones(50, dtype=torch.bool)))
    assert (5 * (actions + 1)).mean().item() == pytest.approx(limit, abs=0.4)
    units = data.costs[data.decisions].std() / data.rewards[data.decisions].std()
    expected = 2 * (1 - (limit / 5 - 1) / 2) * units.item()
    assert trainer.rows[-1]["policy.multiplier"] == pytest.approx(expected, rel=0.2)


# Seeds and files


def team_data():
    costs = random(30, A).abs()
    return Trajectories(
        random(30, A, SEEN), random(30, A, U).clamp(-1, 1), -costs, costs, torch.arange(4) * 10, torch.zeros(3).bool()
    )


def test_seeds_learn_together_what_they_learn_alone(tmp_path):
    """The multiplier with them."""
    data = team_data()
    training = TrainerConfig(steps=4, batch_size=8, learning_rate=1e-3, ema=0.0, checkpoint_every=4, device="cpu")
    alone = {seed: made(seed=seed, cost_limit=0.1) for seed in (1, 2)}
    for seed, learner in alone.items():
        Trainer(learner, learner.prepare(data), replace(training, seed=seed), tmp_path / f"alone-{seed}").run()
    members = [made(seed=seed, cost_limit=0.1) for seed in (1, 2)]
    batches = [member.prepare(data) for member in members][-1]
    folders = [tmp_path / f"stacked-{seed}" for seed in (1, 2)]
    Trainer(members[0], batches, training, *folders, stack=Stack(members), seeds=[1, 2]).run()
    for seed, folder in zip((1, 2), folders, strict=True):
        second = made(cost_limit=0.1)
        checkpoints.load_trained(second, folder / "checkpoint.safetensors")
        for name, value in alone[seed].state_dict().items():
            assert torch.allclose(second.state_dict()[name], value, rtol=1e-4, atol=1e-5), name
        assert second.pid.multiplier > 0 and second.pid.total > 0


def test_what_it_learned_is_in_its_checkpoint(tmp_path):
    first = made(cost_limit=0.1)
    training = TrainerConfig(steps=3, batch_size=8, ema=0.0, device="cpu")
    Trainer(first, first.prepare(team_data()), training, tmp_path).run()
    second = made(cost_limit=0.1, seed=1)
    checkpoints.load_trained(second, tmp_path / "checkpoint.safetensors")
    actions = []
    for algorithm in (first, second):
        policy = algorithm.policy(Acting())
        policy.reset(range(4))
        actions.append(policy.act(random(4, A, SEEN), Context(0, torch.ones(4, dtype=torch.bool))))
    assert torch.equal(*actions)
    assert BCQLagrangian.uses(first.config) == {"selection"}


# What cannot be


def test_choices_and_softmaxes_are_refused():
    with pytest.raises(ValueError, match="bcq_lagrangian moves actions a little, which choices cannot"):
        made(TeamSpec(1, 2, 3, discrete=True))
    with pytest.raises(UserError, match=r"takes the best proposal: leave out selection.pick=softmax"):
        made().policy(Acting(selection=SelectionConfig(4, "softmax")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost_limit": -1.0}, "algo.cost_limit must be finite and at least 0, got -1.0"),
        ({"range": float("inf")}, "algo.range must be finite"),
        ({"latent_bound": 0.0}, r"algo.latent_bound must be positive and algo.polyak in \(0, 1\], got 0.0 and 0.05"),
        ({"hidden": 0}, "algo.hidden and algo.layers must be at least 1"),
        ({"critic": CriticConfig(conservative=1.0)}, "algo.critic.conservative and algo.critic.expectile are 0 here"),
        ({"name": "bcq"}, "algo.name is bcq_lagrangian here"),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        BCQLagrangianConfig(**options)

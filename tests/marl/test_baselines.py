"""MA-TD3+BC, MA-CQL, ICQ and OMAR: their losses by hand, their agents' independence, their seeds, and choices."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import marl
from core.acting import Acting, SelectionConfig
from core.cli.compose import configure
from core.critics import CriticConfig
from core.data import Trajectories, Transitions
from core.environments import TeamSpec
from core.rollout import Context, rollout
from core.stacking import Stack
from core.training import Trainer, TrainerConfig
from marl import CQL, ICQ, OMAR, TD3BC

A, SEEN, U = 2, 3, 2
SPEC = TeamSpec(A, SEEN, U)
CHOICES = TeamSpec(A, SEEN, 4, discrete=True)
ALL = [TD3BC, CQL, ICQ, OMAR]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawing():
    return torch.Generator().manual_seed(7)


def made(algorithm, spec=SPEC, critic=None, **settings):
    torch.manual_seed(settings.pop("seed", 0))
    judges = {"hidden": 8, "conservative": 1.0 if algorithm is CQL else 0.0} | (critic or {})
    config = algorithm.config_class(
        **{"hidden": 8, "shared": False, "critic": CriticConfig(**({"shared": False} | judges))} | settings
    )
    return algorithm(config, spec)


def batch(count=6, spec=SPEC, **changes):
    actions = [random(count, A, spec.action_dim, seed=seed).clamp(-1, 1) for seed in (1, 4)]
    if spec.discrete:
        actions = [nn.functional.one_hot(one.argmax(dim=-1), spec.action_dim).float() for one in actions]
    given = {
        "observations": random(count, A, SEEN),
        "actions": actions[0],
        "rewards": random(count, A, seed=2),
        "costs": torch.zeros(count, A),
        "following": random(count, A, SEEN, seed=3),
        "discount": torch.full((count, A), 0.5),
        "following_actions": actions[1],
        "followed": torch.ones(count, A, dtype=torch.bool),
    }
    return Transitions(**(given | changes))


class Values(nn.Module):
    """Q1 = 3 o1 + a1 and Q2 = 1 - a2 of both agents, of [..., 4, 5]."""

    def forward(self, judged):
        first, second = judged.split(A, dim=-2)
        return torch.cat([3 * first[..., :1] + first[..., SEEN : SEEN + 1], 1 - second[..., SEEN + 1 : SEEN + 2]], -2)


class Hill(nn.Module):
    """Q = -sharpness |a - goal|^2 of every critic, the goal [A, U]."""

    def __init__(self, goal, sharpness=1.0):
        super().__init__()
        self.goal = goal.repeat(2, 1)
        self.sharpness = sharpness

    def forward(self, judged):
        return -self.sharpness * ((judged[..., SEEN:] - self.goal) ** 2).sum(dim=-1, keepdim=True)


def heeding(algorithm, critic=Values):
    algorithm.critics.q, algorithm.critics.target = critic(), critic()
    return algorithm


def double(*tensors):
    return [tensor.detach().double().numpy() for tensor in tensors]


def test_td3_bc_s_loss_by_hand():
    """(pi - a)^2 - alpha Q1 / mean |Q1|, each agent's mean its own."""
    algorithm, items = heeding(made(TD3BC, alpha=1.5)), batch()
    said = algorithm.actor_loss(items, drawing())
    own, seen, acted = double(algorithm.actor(items.observations).tanh(), items.observations, items.actions)
    values = 3 * seen[..., 0] + own[..., 0]
    weight = 1.5 / np.abs(values).mean(axis=0)
    assert abs(own).max() < 1 and weight.max() > 1.2 * weight.min()
    assert said["cloning"].item() == pytest.approx(((own - acted) ** 2).mean(), rel=1e-5)
    assert said["loss"].item() == pytest.approx(((own - acted) ** 2).mean() - (weight * values).mean(), rel=1e-5)
    # No gradient in the weight: that of the actor's last bias, by the chain rule.
    (gradient,) = torch.autograd.grad(said["loss"], [algorithm.actor[-1].bias])
    slope = 2 * (own - acted) / own.size
    slope[..., 0] -= weight / values.size
    assert np.abs(gradient.numpy() - (slope * (1 - own**2)).sum(axis=0)).max() < 1e-6


def test_critics_learn_from_smoothed_actions():
    """y = r + discount min Q'(o', clip(pi'(o') + clip(0.2 noise, 0.5))); an evaluation has no noise."""
    algorithm, items = heeding(made(TD3BC, smoothing=2.0)), batch()
    for parameter in algorithm.target.parameters():
        parameter.data.mul_(2.0)
    noise = torch.randn(6, 1, A, U, generator=drawing())
    start, drawn, following, rewards = double(
        algorithm.target(items.following).tanh(), noise[:, 0], items.following, items.rewards
    )
    actions = np.clip(start + np.clip(2 * drawn, -0.5, 0.5), -1, 1)
    wanted = rewards + 0.5 * np.minimum(3 * following[..., 0] + actions[..., 0], 1 - actions[..., 1])
    assert np.abs(algorithm.targets(items, drawing()).numpy() - wanted).max() < 1e-5
    proposed = algorithm.propose(items.following, random(6, 3, A, U), Acting())
    assert torch.equal(proposed, algorithm.target(items.following).tanh()[:, None].expand(-1, 3, -1, -1))


@pytest.mark.parametrize("negatives", ["uniform", "data"])
def test_cql_s_losses_by_hand(negatives):
    """Squared errors and 0.7 times logmeanexp Q - Q(o, a) over proposed actions and others, uniform or of the batch's
    other steps; the actor's is -Q1 and its restraint."""
    penalty = {"conservative": 0.7, "samples": 3, "candidates": 2, "negatives": negatives}
    algorithm = heeding(made(CQL, critic=penalty, restraint=0.3))
    items = batch()
    generator = drawing()
    torch.randn(6, 2, A, U, generator=generator)  # of the backup
    drawn = torch.rand(6, 3, A, U, generator=generator)
    others = 2 * drawn - 1
    if negatives == "data":
        for item, other, agent in np.ndindex(6, 3, A):
            others[item, other, agent] = items.actions[int(drawn[item, other, agent, 0] * 6), agent]
    noise = torch.randn(6, 2, A, U, generator=generator)
    start = algorithm.target(items.observations).tanh()[:, None]
    proposed = (start + (0.2 * noise).clamp(-0.5, 0.5)).clamp(-1, 1)
    tried, seen, acted, wanted = double(
        torch.cat([others, proposed], dim=1), items.observations, items.actions, algorithm.targets(items, drawing())
    )
    total = 0
    for known, other in (
        (3 * seen[..., 0] + acted[..., 0], 3 * seen[:, None, :, 0] + tried[..., 0]),
        (1 - acted[..., 1], 1 - tried[..., 1]),
    ):
        total += ((known - wanted) ** 2).mean() + 0.7 * (np.log(np.exp(other).mean(axis=1)) - known).mean()
    assert algorithm.critic_loss(items, drawing())["loss"].item() == pytest.approx(total, rel=1e-5)
    (outputs,) = double(algorithm.actor(items.observations))
    loss = 0.3 * (outputs**2).mean() - (3 * seen[..., 0] + np.tanh(outputs[..., 0])).mean()
    assert algorithm.actor_loss(items, drawing())["loss"].item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_icq_s_losses_by_hand(masked):
    """Softmax weights over the steps of an agent that count: of cloning, those it takes part in; of the targets, those
    of whose next action the data tell."""
    algorithm = heeding(made(ICQ, beta=0.5, target_beta=2.0))
    present = followed = np.ones((6, A), dtype=bool)
    discount = np.full((6, A), 0.5)
    masks = {}
    if masked:
        present = np.array([[1, 1], [1, 0], [1, 1], [1, 1], [1, 1], [0, 1]], dtype=bool)
        # The third step was cut off, and the fourth ended.
        followed = np.array([1, 1, 0, 0, 1, 1], dtype=bool)[:, None].repeat(A, axis=1)
        discount[3] = 0
        masks = {"present": torch.tensor(present)}
    items = batch(followed=torch.tensor(followed), discount=torch.tensor(discount).float(), **masks)
    seen, acted, own = double(items.observations, items.actions, algorithm.actor(items.observations).tanh())
    after, then, rewards = double(items.following, items.following_actions, items.rewards)

    def weights(values, there):
        large = np.where(there, np.exp(values), 0)
        return there.sum(axis=0) * large / large.sum(axis=0)

    first, second = 3 * seen[..., 0] + acted[..., 0], 1 - acted[..., 1]
    weight = weights(np.minimum(first, second) / 0.5, present)
    cloning = (weight * ((own - acted) ** 2).mean(axis=-1)).sum() / present.sum()
    assert algorithm.actor_loss(items, drawing())["loss"].item() == pytest.approx(cloning, rel=1e-5)
    following = np.minimum(3 * after[..., 0] + then[..., 0], 1 - then[..., 1])
    wanted = rewards + discount * weights(following / 2, present & followed) * following
    known = present & (followed | (discount == 0))
    assert known.sum() == (8 if masked else 12)
    total = sum(((one - wanted) ** 2)[known].mean() for one in (first, second))
    assert algorithm.critic_loss(items, drawing())["loss"].item() == pytest.approx(total, rel=1e-5)


def test_icq_s_critics_without_any_next_action_learn_rewards():
    items = batch(followed=torch.zeros(6, A, dtype=torch.bool), discount=torch.zeros(6, A))
    assert torch.equal(made(ICQ).targets(items, drawing()), items.rewards)


def test_omar_s_search_by_hand():
    """Three rounds of ten around the softmax's mean and deviation; the best of all of them and the actor's own."""
    goal = torch.tensor([[0.3, -0.6], [0.9, 0.1]])
    algorithm, items = heeding(made(OMAR, sharpness=3.0, restraint=0.3), lambda: Hill(goal)), batch()
    outputs = algorithm.actor(items.observations).detach()
    own = outputs.tanh()
    generator = drawing()
    drawn = [torch.randn(10, 6, A, U, generator=generator).double().numpy() for _ in range(3)]
    (start,) = double(own)
    mean, deviation, tried = start, 2.0, [start[None]]
    for noise in drawn:
        actions = np.clip(mean + deviation * noise, -1, 1)
        weight = np.exp(-3 * ((actions - goal.double().numpy()) ** 2).sum(axis=-1, keepdims=True))
        weight /= weight.sum(axis=0)
        mean = (weight * actions).sum(axis=0)
        deviation = np.sqrt((weight * (actions - mean) ** 2).sum(axis=0))
        tried.append(actions)
    every = np.concatenate(tried)
    best = ((every - goal.double().numpy()) ** 2).sum(axis=-1).argmin(axis=0)
    expected = np.take_along_axis(every, best[None, ..., None], axis=0)[0]
    assert np.abs(algorithm.best(items, own, drawing()).numpy() - expected).max() < 1e-5
    said = algorithm.actor_loss(items, drawing())
    value = -((start - goal.double().numpy()) ** 2).sum(axis=-1).mean()
    loss = 0.5 * ((start - expected) ** 2).mean() - 0.5 * value + 0.3 * (outputs**2).mean().item()
    assert said["loss"].item() == pytest.approx(loss, rel=1e-5)


def test_omar_s_search_finds_the_hill_and_nothing_worse_than_the_actor():
    goal = torch.tensor([[0.3, -0.6], [0.9, 0.1]])
    usual = heeding(made(OMAR), lambda: Hill(goal))
    items = batch(400)
    own = random(400, A, U, seed=5).clamp(-1, 1)
    near = goal + 0.01 * random(400, A, U, seed=6)  # hardly anything is better
    for start in (own, near.clamp(-1, 1)):
        found = usual.best(items, start, drawing())
        assert ((found - goal).norm(dim=-1) <= (start - goal).norm(dim=-1) + 1e-6).all()
    # The nearest of thirty uniform points is half the root of 4 / 30 away on average.
    assert (usual.best(items, own, drawing()) - goal).norm(dim=-1).mean() < 0.18
    thorough = heeding(made(OMAR, rounds=6, samples=300, sharpness=5.0), lambda: Hill(goal))
    few = batch(20)
    assert (thorough.best(few, own[:20], drawing()) - goal).norm(dim=-1).max() < 0.02


def test_omar_tries_every_legal_choice():
    algorithm = made(OMAR, CHOICES)
    legal = random(30, A, 4) > 0
    legal[..., 0] |= ~legal.any(dim=-1)
    items = batch(30, CHOICES, legal=legal)
    values = torch.stack(
        [algorithm.critics.values(items.observations, torch.eye(4)[choice].expand(30, A, 4))[0] for choice in range(4)],
        dim=-1,
    )
    best = algorithm.best(items, items.actions, drawing())
    assert torch.equal(best.argmax(dim=-1), values.masked_fill(~legal, -1e9).argmax(dim=-1))
    assert (best.sum(dim=-1) == 1).all()


def gradients(algorithm, items):
    loss = algorithm.actor_loss(items, drawing())["loss"]
    return torch.autograd.grad(loss, list(algorithm.actor.parameters()))


@pytest.mark.parametrize("algorithm", ALL)
def test_agents_of_their_own_learn_from_their_own(algorithm):
    """An agent's loss moves its own weights alone, whatever the other one saw and did."""
    learner, items = made(algorithm), batch()
    scale = torch.tensor([1.0, -0.5])[:, None]
    changed = replace(items, observations=scale * items.observations, actions=scale * items.actions)
    alone = replace(items, present=torch.tensor([True, False]).expand(6, A))
    for first, second, lone in zip(*(gradients(learner, one) for one in (items, changed, alone)), strict=True):
        assert torch.allclose(first[0], second[0], atol=1e-6)
        assert (first[1] - second[1]).abs().max() > 0
        assert torch.allclose(lone[0], 2 * first[0], atol=1e-6) and lone[0].any() and not lone[1].any()
    one = made(algorithm, shared=True)
    both = one.actor(items.observations)
    assert torch.allclose(both[:, 1], one.actor(items.observations[:, 1:2])[:, 0], atol=1e-6)


@pytest.mark.parametrize("spec", [SPEC, CHOICES], ids=["numbers", "choices"])
@pytest.mark.parametrize("algorithm", ALL)
def test_absent_agents_change_nothing(algorithm, spec):
    learner = made(algorithm, spec, {"conservative": 1.0}, shared=True)
    present = torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1]], dtype=torch.bool)
    items = batch(4, spec, present=present)
    there = present[..., None]
    wild = replace(
        items,
        observations=torch.where(there, items.observations, 7.0),
        actions=torch.where(there, items.actions, items.actions.roll(1, dims=-1)),
        rewards=torch.where(present, items.rewards, 1e6),
        following=torch.where(there, items.following, -7.0),
        following_actions=torch.where(there, items.following_actions, items.following_actions.roll(1, dims=-1)),
    )
    for loss in (learner.critic_loss, learner.actor_loss):
        calm, stirred = loss(items, drawing()), loss(wild, drawing())
        assert calm["loss"].item() == pytest.approx(stirred["loss"].item(), rel=1e-6)
    for first, second in zip(gradients(learner, items), gradients(learner, wild), strict=True):
        assert torch.allclose(first, second, atol=1e-6)


@pytest.mark.parametrize("algorithm", ALL)
def test_choices_are_legal_and_judged_as_such(algorithm):
    learner = made(algorithm, CHOICES)
    legal = random(50, A, 4) > 0.3
    legal[..., 0] |= ~legal.any(dim=-1)
    acting = learner.policy(Acting())
    acting.reset(range(50))
    seen = random(50, A, SEEN)
    chosen = acting.act(seen, Context(0, torch.ones(50, dtype=torch.bool), legal=legal))
    assert (chosen.sum(dim=-1) == 1).all() and legal[chosen.bool()].all()
    outputs = learner.actor(learner.normalised(seen))
    assert torch.equal(chosen.argmax(dim=-1), outputs.masked_fill(~legal, -1e9).argmax(dim=-1))
    relaxed = learner.relaxed(outputs, legal)
    (large,) = double(outputs.exp() * legal)
    assert np.abs(relaxed.detach().numpy() - large / large.sum(axis=-1, keepdims=True)).max() < 1e-6
    nowhere = learner.relaxed(outputs, torch.zeros_like(legal))
    assert torch.allclose(nowhere, outputs.softmax(dim=-1))


def choosing(episodes=8, steps=5):
    """Episodes of choices, some illegal, half of them cut off."""
    rows = episodes * (steps + 1)
    legal = random(rows, A, 4) > -0.5
    legal[..., 0] = True
    actions = nn.functional.one_hot(random(rows, A, 4, seed=1).masked_fill(~legal, -9).argmax(dim=-1), 4).float()
    ends = torch.arange(1, episodes + 1) * (steps + 1)
    actions[ends - 1] = 0
    rewards = random(rows, A, seed=2)
    rewards[ends - 1] = 0
    return Trajectories(
        random(rows, A, SEEN, seed=3),
        actions,
        rewards,
        torch.zeros(rows, A),
        torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
        torch.arange(episodes) % 2 == 0,
        legal=legal,
        present=random(rows, A, seed=4) > -1,
    )


@pytest.mark.parametrize("discrete", [False, True], ids=["numbers", "choices"])
@pytest.mark.parametrize("algorithm", ALL)
def test_seeds_learn_together_what_they_learn_alone(algorithm, discrete, tmp_path):
    spec, data = CHOICES, choosing()
    if not discrete:
        data = rollout(marl.scripted_team("mpe/spread", "expert"), marl.TaskConfig().make(), range(4)).trajectories
        spec = TeamSpec(3, 18, 2)
    training = TrainerConfig(steps=4, batch_size=8, learning_rate=1e-3, ema=0.0, checkpoint_every=4, device="cpu")
    critic = {"view": "centralised" if discrete else "independent", "conservative": 1.0, "shared": True}

    def one(seed):
        return made(algorithm, spec, critic, seed=seed, shared=discrete)

    alone = {seed: one(seed) for seed in (1, 2)}
    for seed, learner in alone.items():
        Trainer(learner, learner.prepare(data), replace(training, seed=seed), tmp_path / f"alone-{seed}").run()
    members = [one(1), one(2)]
    batches, _ = [member.prepare(data) for member in members]
    folders = [tmp_path / "first", tmp_path / "second"]
    Trainer(members[0], batches, training, *folders, stack=Stack(members), seeds=[1, 2]).run()
    for index, learner in enumerate(alone.values()):
        for name, value in learner.state_dict().items():
            assert torch.allclose(members[0].state_dict()[name][index], value, atol=2e-5), name


def test_the_slow_actor_acts():
    algorithm = made(TD3BC, polyak=0.25)
    before = algorithm.target[0].weight.clone()
    algorithm.actor[0].weight.data += 1
    algorithm.after_step()
    assert torch.allclose(algorithm.target[0].weight, before + 0.25, atol=1e-6)
    assert {id(parameter) for parameter in algorithm.phases()[1].parameters} == {
        id(parameter) for parameter in algorithm.actor.parameters()
    }
    assert algorithm.phases()[1].every == 2 and TD3BC.uses(algorithm.config) == frozenset()


@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        (TD3BC, {"name": "td3"}, "algo.name is td3_bc here, got 'td3': choose another algorithm with algo="),
        (TD3BC, {"hidden": 0}, "algo.hidden must be at least 1, got 0"),
        (TD3BC, {"polyak": 0.0}, r"algo.polyak lies in \(0, 1\], got 0.0"),
        (TD3BC, {"smoothing": -0.1}, "algo.smoothing must be finite and at least 0, got -0.1"),
        (TD3BC, {"alpha": float("nan")}, "algo.alpha must be finite and at least 0, got nan"),
        (CQL, {"selection": SelectionConfig(4)}, "set algo.selection.candidates=1, got 4"),
        (CQL, {"critic": CriticConfig()}, "algo.critic.conservative must be positive for cql"),
        (ICQ, {"beta": 0.0}, "algo.beta and algo.target_beta must be positive, got 0.0 and"),
        (ICQ, {"critic": CriticConfig(expectile=0.7)}, "icq has targets of its own: set algo.critic.expectile=0"),
        (OMAR, {"rectification": 1.5}, r"algo.rectification is a share in \[0, 1\], got 1.5"),
        (OMAR, {"samples": 0}, "algo.samples must be finite and at least 1, got 0"),
    ],
)
def test_refusals(algorithm, settings, message):
    with pytest.raises(ValueError, match=message):
        algorithm.config_class(**settings)


def test_presets_are_what_they_say():
    for algorithm in ALL:
        config = configure("train", [f"algo={algorithm.config_class().name}"])
        assert config.algo == algorithm.config_class()
        assert (config.trainer.steps, config.trainer.batch_size, config.trainer.ema) == (12000, 128, 0.0)
    config = configure("train", ["algo=td3_bc_published"])
    algo, critic = config.algo, config.algo.critic
    assert (algo.alpha, algo.every, algo.smoothing, algo.smoothing_clip, algo.polyak) == (2.5, 2, 0.2, 0.5, 0.005)
    assert (algo.hidden, critic.hidden, critic.discount, critic.polyak) == (256, 256, 0.99, 0.005)
    assert (config.trainer.batch_size, config.trainer.learning_rate, config.trainer.decay) == (256, 3e-4, "none")
    config = configure("train", ["algo=omar_published"])
    algo, critic = config.algo, config.algo.critic
    assert (algo.rounds, algo.samples, algo.deviation, algo.hidden, critic.hidden) == (3, 10, 2.0, 64, 64)
    assert (critic.discount, critic.polyak, config.trainer.batch_size) == (0.95, 0.01, 1024)
    assert config.trainer.learning_rate == 0.01


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALL)
def test_a_better_action_than_the_data_s_is_learned(algorithm, tmp_path):
    """One step, reward -(a - 0.5)^2, data around 0 of deviation 0.3: the best action is 0.5."""
    count = 2000
    actions = torch.zeros(2 * count, A, 1)
    actions[::2] = (0.3 * random(count, A, 1)).clamp(-1, 1)
    rewards = -((actions[..., 0] - 0.5) ** 2)
    rewards[1::2] = 0
    data = Trajectories(
        torch.ones(2 * count, A, 1),
        actions,
        rewards,
        torch.zeros_like(rewards),
        torch.arange(0, 2 * count + 1, 2),
        torch.ones(count, dtype=torch.bool),
    )
    learner = made(algorithm, TeamSpec(A, 1, 1), {"hidden": 32, "conservative": 0.1 if algorithm is CQL else 0.0})
    training = TrainerConfig(
        steps=1500, batch_size=128, learning_rate=3e-3, ema=0.0, checkpoint_every=1500, device="cpu"
    )
    Trainer(learner, learner.prepare(data), training, tmp_path).run()
    acting = learner.policy(Acting())
    acting.reset([0])
    chosen = acting.act(torch.ones(1, A, 1), Context(0, torch.ones(1, dtype=torch.bool)))
    least, most = {TD3BC: (0.3, 0.6), CQL: (0.2, 0.6), ICQ: (0.1, 0.5), OMAR: (0.4, 0.6)}[algorithm]
    assert chosen.min() > least and chosen.max() < most

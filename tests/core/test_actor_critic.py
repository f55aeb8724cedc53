from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from core.acting import Acting, SelectionConfig
from core.actor_critic import ActorCritic
from core.algorithm import Phase
from core.critics import CriticConfig
from core.data import Trajectories, Transitions
from core.environments import TeamSpec
from core.errors import UserError
from core.rollout import Context
from core.training import Trainer, TrainerConfig

PAIR = TeamSpec(2, 1, 1)


@dataclass
class FixedConfig:
    critic: CriticConfig | None = field(default_factory=lambda: CriticConfig(hidden=32, shared=False, discount=0.5))
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(1))
    name: str = "fixed"


class Fixed(ActorCritic):
    """A policy that does what the noise says."""

    config_class = FixedConfig

    def propose(self, observations, noise, acting=None, scales=None):
        return noise.clamp(-1, 1)

    def actor_phases(self):
        idle = nn.Parameter(torch.zeros(()))
        return [Phase("none", [idle], lambda batch, generator: {"loss": 0 * idle})]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fixed(spec=PAIR, **settings):
    torch.manual_seed(0)
    return Fixed(FixedConfig(**settings), spec)


def episodes(terminated=(False, False), rewards=(1.0, 2.0, 4.0, 0.0, 8.0, 16.0, 0.0), **masks):
    rewards = torch.tensor(rewards)[:, None] * torch.tensor([1.0, -1.0])
    return Trajectories(
        torch.arange(14.0).reshape(7, 2, 1),
        torch.zeros(7, 2, 1),
        rewards,
        torch.zeros_like(rewards),
        torch.tensor([0, 4, 7]),
        torch.tensor(terminated),
        **masks,
    )


class Sums(nn.Module):
    """Q1 = o + 2 a and Q2 = 3 o for both of two agents, of [..., 4, 2]."""

    def forward(self, judged):
        weights = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 0.0], [3.0, 0.0]])
        return (judged * weights).sum(dim=-1, keepdim=True)


def test_rewards_are_scaled_and_centred_where_nothing_terminates():
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])[:, None] * torch.tensor([1.0, -1.0])
    std = rewards.std(correction=0)
    learned = fixed().prepare(episodes()).rewards
    assert torch.allclose(learned, (rewards - rewards.mean()) / std, atol=1e-6)
    # A termination is worth the rewards that it spares: there, they keep their zero.
    assert torch.allclose(fixed().prepare(episodes((True, False))).rewards, rewards / std, atol=1e-6)


def test_every_step_ahead_is_centred():
    """Rewards 5 and 1 by turns: sums over two steps, or one at an end, less as many discounted means."""
    data = episodes(rewards=(5.0, 1.0, 5.0, 0.0, 1.0, 5.0, 0.0))
    data = replace(data, rewards=data.rewards.abs())
    learned = fixed(critic=CriticConfig(shared=False, discount=0.5, lookahead=2)).prepare(data).rewards[:, 0]
    mean, std = 17 / 5, np.std([5, 1, 5, 1, 5])
    expected = [5.5 - 1.5 * mean, 3.5 - 1.5 * mean, 5 - mean, 3.5 - 1.5 * mean, 5 - mean]
    assert np.abs(learned.numpy() - np.array(expected) / std).max() < 1e-5


def test_observations_are_normalised_and_padding_is_zero():
    spec = TeamSpec(2, 2, 1, sizes=(2, 1))
    data = episodes()
    data = replace(data, observations=random(7, 2, 2))
    algorithm = fixed(spec)
    seen = algorithm.prepare(data).observations
    real = torch.cat([seen[:, 0, 0], seen[:, 1, 0]])
    assert abs(real.mean()) < 1e-6 and abs(real.std(correction=0) - 1) < 1e-5
    assert (seen[:, 1, 1] == 0).all() and (algorithm.normalised(random(3, 2, 2))[:, 1, 1] == 0).all()


def batch(count=6, **changes):
    given = {
        "observations": random(count, 2, 1),
        "actions": random(count, 2, 1, seed=1).clamp(-1, 1),
        "rewards": random(count, 2, seed=2),
        "costs": torch.zeros(count, 2),
        "following": random(count, 2, 1, seed=3),
        "discount": torch.full((count, 2), 0.5),
    }
    return Transitions(**(given | changes))


def test_the_critics_loss_by_hand():
    """(Q1 - y)^2 + (Q2 - y)^2 with y = r + discount min(Q1, Q2)(o', a'), a' the noise that was drawn."""
    algorithm, items = fixed(), batch()
    algorithm.critics.q, algorithm.critics.target = Sums(), Sums()
    drawn = torch.randn(6, 1, 2, 1, generator=torch.Generator().manual_seed(4)).clamp(-1, 1)[:, 0, :, 0]
    following = items.following[..., 0]
    wanted = items.rewards + 0.5 * torch.minimum(following + 2 * drawn, 3 * following)
    seen, acted = items.observations[..., 0], items.actions[..., 0]
    expected = ((seen + 2 * acted - wanted) ** 2 + (3 * seen - wanted) ** 2).mean()
    loss = algorithm.critic_loss(items, torch.Generator().manual_seed(4))
    assert loss["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_targets_by_v_draw_nothing():
    """y = r + discount V(o'), as Q would be beyond the data (IQL, equation 6)."""
    algorithm, items = fixed(critic=CriticConfig(hidden=8, shared=False, expectile=0.7)), batch()
    algorithm.critics.state_values = lambda seen: 3 * seen[..., 0]
    generator = torch.Generator().manual_seed(4)
    before = generator.get_state()
    expected = items.rewards + 0.5 * 3 * items.following[..., 0]
    assert torch.allclose(algorithm.targets(items, generator), expected, atol=1e-6)
    assert torch.equal(generator.get_state(), before)


def test_those_who_take_no_part_teach_nothing():
    present = torch.tensor([[True, True], [True, False]])
    items = batch(2, present=present)
    wild = replace(items, rewards=torch.where(present, items.rewards, 1e6))
    algorithm = fixed(critic=CriticConfig(hidden=8, shared=False, conservative=1.0))
    first, second = (
        algorithm.critic_loss(one, torch.Generator().manual_seed(0))["loss"].item() for one in (items, wild)
    )
    assert first == second


@pytest.mark.parametrize("level", [0.5, 0.7, 0.9])
def test_the_value_network_learns_an_expectile(level):
    """Where V does not depend on the observation, the loss is least at scipy's expectile of Q over the data."""
    algorithm = fixed(critic=CriticConfig(hidden=8, shared=False, expectile=level))
    algorithm.critics.q, algorithm.critics.target = Sums(), Sums()
    items = batch(500)
    value = nn.Parameter(torch.zeros(()))
    algorithm.critics.state_values = lambda seen: value.expand(seen.shape[:-1])
    optimiser = torch.optim.LBFGS([value], max_iter=50)

    def closure():
        optimiser.zero_grad()
        loss = algorithm.critic_loss(items, torch.Generator().manual_seed(0))["value"]
        loss.backward()
        return loss

    optimiser.step(closure)
    seen, acted = items.observations[..., 0], items.actions[..., 0]
    known = torch.minimum(seen + 2 * acted, 3 * seen).flatten().double().numpy()
    assert value.item() == pytest.approx(stats.expectile(known, level), abs=1e-3)


def test_values_of_a_small_process(tmp_path):
    """Two agents on a ring of three places, moving on with probability 1: their values solve v = r + 0.5 P v."""
    place = torch.arange(3).repeat_interleave(40)
    seen = torch.nn.functional.one_hot(place, 3).float()[:, None].expand(-1, 2, -1)
    after = torch.nn.functional.one_hot((place + 1) % 3, 3).float()[:, None].expand(-1, 2, -1)
    rewards = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    data = Transitions(
        seen, 2 * torch.rand(120, 2, 1) - 1, rewards[place], torch.zeros(120, 2), after, torch.full((120, 2), 0.5)
    )
    torch.manual_seed(0)
    algorithm = Fixed(FixedConfig(CriticConfig(hidden=32, shared=False, discount=0.5, polyak=0.05)), TeamSpec(2, 3, 1))
    config = TrainerConfig(
        steps=600, batch_size=120, learning_rate=5e-3, ema=0.0, checkpoint_every=10_000, device="cpu"
    )
    Trainer(algorithm, data, config, tmp_path).run()
    ring = np.eye(3)[[1, 2, 0]]
    exact = np.linalg.solve(np.eye(3) - 0.5 * ring, rewards.double().numpy())
    values = algorithm.critics.values(torch.eye(3)[:, None].expand(-1, 2, -1), torch.zeros(3, 2, 1))
    assert np.abs(values.detach().numpy() - exact).max() < 0.1


def test_the_best_and_the_softmax_of_candidates():
    algorithm = fixed()
    algorithm.critics.q = Sums()
    seen = torch.ones(4000, 2, 1)
    candidates = torch.tensor([[-0.5, 0.1], [0.25, -0.3], [0.5, 0.6]]).T.reshape(1, 2, 3, 1).transpose(1, 2)
    candidates = candidates.expand(4000, -1, -1, -1)  # of the agents -0.5, 0.25, 0.5 and 0.1, -0.3, 0.6
    noise = random(4000, 3, 2)
    best = algorithm.choose(seen, candidates, SelectionConfig(3), noise)
    assert best[0].flatten().tolist() == pytest.approx([0.5, 0.6])
    drawn = algorithm.choose(seen, candidates, SelectionConfig(3, "softmax", 2.0), noise)[..., 0]
    for agent in range(2):
        options = candidates[0, :, agent, 0]
        values = np.minimum(1 + 2 * options.double().numpy(), 3)  # the lower of the critics'
        chances = np.exp(2 * values) / np.exp(2 * values).sum()
        counts = [(drawn[:, agent] - option).abs().lt(1e-6).sum().item() for option in options]
        assert stats.chisquare(counts, 4000 * chances).pvalue > 1e-3


def test_a_team_that_is_judged_together_chooses_together():
    algorithm = fixed(critic=CriticConfig(hidden=8, shared=False, view="centralised"))
    seen, candidates, noise = random(9, 2, 1), random(9, 5, 2, 1, seed=1), random(9, 5, 2, seed=2)
    chosen = algorithm.choose(seen, candidates, SelectionConfig(5), noise)
    values = torch.stack(
        [algorithm.critics.values(seen, candidates[:, n]).amin(dim=0).mean(dim=1) for n in range(5)], dim=1
    )
    assert torch.equal(chosen, candidates[torch.arange(9), values.argmax(dim=1)])


def test_what_is_done_in_an_episode_follows_from_its_seed():
    algorithm = fixed()
    policy = algorithm.policy(Acting(selection=SelectionConfig(4)))
    seen, context = random(3, 2, 1), Context(2, torch.ones(3, dtype=torch.bool))
    policy.reset([5, 6, 7])
    together = policy.act(seen, context)
    policy.reset([6])
    assert torch.allclose(policy.act(seen[1:2], context), together[1:2])
    policy.reset([8])
    assert not torch.allclose(policy.act(seen[1:2], context), together[1:2])


def test_candidates_need_critics():
    with pytest.raises(UserError, match=r"selection\.candidates above 1 needs critics to choose by"):
        fixed(critic=None).policy(Acting(selection=SelectionConfig(4)))
    assert [phase.name for phase in fixed(critic=None).phases()] == ["none"]
    for settings, message in (
        ({"candidates": -1}, "selection.candidates must be at least 0"),
        ({"sharpness": 0.0}, "selection.sharpness positive"),
        ({"pick": "worst"}, "unknown selection.pick 'worst': choose one of best, softmax"),
    ):
        with pytest.raises(ValueError, match=message):
            SelectionConfig(**settings)
    assert [str(SelectionConfig(*given)) for given in ((), (8,), (8, "softmax", 2.0))] == [
        "", "best of 8", "softmax 2 of 8"
    ]  # fmt: skip

from dataclasses import replace

import pytest
import torch

from core.algorithm import Acting, GuidanceConfig, TeamSpec
from core.data import Trajectories
from core.rollout import Context
from core.training import Trainer, TrainerConfig
from marl import Cloning, CloningConfig

SPEC = TeamSpec(2, 3, 2)
TRAINER = TrainerConfig(steps=400, batch_size=64, learning_rate=1e-2, warmup=10, ema=0.9, device="cpu")
WEIGHT = torch.tensor([[0.3, -0.2], [0.1, 0.0], [0.0, 0.25]])


def team_data(policy, episodes=60, steps=10):
    """Random observations of uneven scale; `policy` gives each episode's actions [T, A, U] and rewards [T, A]."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for episode in range(episodes):
        observations = torch.randn(steps + 1, 2, 3, generator=generator) * torch.tensor([1.0, 10.0, 0.1]) + 2
        actions, rewards = policy(episode, observations)
        actions[-1], rewards[-1] = 0, 0
        offsets, terminated = torch.tensor([0, steps + 1]), torch.tensor([False])
        parts.append(
            Trajectories(observations, actions, rewards, 0 * rewards, offsets, terminated, torch.tensor([episode]))
        )
    return Trajectories.concatenate(parts)


def linear(scale):
    """u = (x - 2) W * scale, in units of the observations' scales."""
    return lambda observations: scale * ((observations - 2) / torch.tensor([1.0, 10.0, 0.1])) @ WEIGHT


def halves(episode, observations):
    """Odd episodes act as linear(1) and earn 1 a step, even ones as linear(-1) and earn 0."""
    good = episode % 2
    return linear(1 if good else -1)(observations), torch.full((11, 2), float(good))


def trained(config, data, folder, steps=400):
    torch.manual_seed(0)
    algorithm = Cloning(config, SPEC)
    trainer = Trainer(algorithm, algorithm.prepare(data), replace(TRAINER, steps=steps), folder)
    trainer.run()
    trainer.ema.copy_to(algorithm)
    return algorithm.eval()


def fresh():
    return torch.randn(200, 2, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 10.0, 0.1]) + 2


def error(actions, expected):
    """Relative to what acting 0 would give."""
    return ((actions - expected).pow(2).mean() / expected.pow(2).mean()).item()


def acting(returns):
    return Acting(guidance=GuidanceConfig(returns=returns))


def test_it_learns_a_linear_policy(tmp_path):
    data = team_data(lambda episode, x: (linear(1)(x), torch.zeros(11, 2)))
    cloning = trained(CloningConfig(hidden=32), data, tmp_path)
    expected = linear(1)(fresh()).clamp(-1, 1)
    assert error(cloning.act(fresh(), 0.9), expected) < 0.02
    policy = cloning.policy(acting(0.9))
    context = Context(0, torch.ones(200, dtype=torch.bool))
    assert torch.equal(policy.act(fresh(), context), cloning.act(fresh(), 0.9))
    assert torch.equal(policy.act(fresh(), context), cloning.act(fresh(), 0.1))
    assert cloning.act(100 * fresh(), 0.9).abs().max() == 1


def test_agents_act_on_their_own_observations_with_shared_weights(tmp_path):
    cloning = trained(CloningConfig(hidden=16), team_data(halves, episodes=4), tmp_path, steps=5)
    observations = fresh()
    actions = cloning.act(observations, 0.9)
    assert torch.allclose(cloning.act(observations.flip(1), 0.9), actions.flip(1), atol=1e-6)
    observations[:, 0] += 1
    assert torch.equal(cloning.act(observations, 0.9)[:, 1], actions[:, 1])


def test_returns_decide_where_the_data_depends_on_them(tmp_path):
    cloning = trained(CloningConfig(hidden=32, condition=True), team_data(halves), tmp_path)
    expected = linear(1)(fresh()).clamp(-1, 1)
    assert error(cloning.act(fresh(), 1.0), expected) < 0.1
    assert error(cloning.act(fresh(), 0.5), -expected) < 0.1
    context = Context(0, torch.ones(200, dtype=torch.bool))
    assert torch.equal(cloning.policy(acting(1.0)).act(fresh(), context), cloning.act(fresh(), 1.0))


def test_plain_cloning_averages_what_the_data_mixes(tmp_path):
    cloning = trained(CloningConfig(hidden=32), team_data(halves), tmp_path)
    assert cloning.act(fresh(), 1.0).pow(2).mean() < 0.1 * linear(1)(fresh()).pow(2).mean()


def test_best_uses_the_best_episodes_alone(tmp_path):
    def policy(episode, x):
        """Six of the 60 episodes are the best, by the mean over agents."""
        best = episode in (3, 14, 15, 41, 58, 59)
        return linear(1 if best else -1)(x), torch.tensor([3.0, 0.0] if best else [1.5, 1.0]).repeat(11, 1)

    data = team_data(policy)
    cloning = Cloning(CloningConfig(best=0.1), SPEC)
    batches = cloning.prepare(data)
    assert len(batches) == 6 * 10
    chosen = data.subset(torch.tensor([3, 14, 15, 41, 58, 59]))
    assert torch.equal(batches.actions, chosen.actions[chosen.decisions])
    assert torch.equal(batches.inputs, cloning.normaliser(chosen.observations[chosen.decisions]))
    learned = trained(CloningConfig(hidden=32, best=0.1), data, tmp_path)
    assert error(learned.act(fresh(), 0.9), linear(1)(fresh()).clamp(-1, 1)) < 0.2


@pytest.mark.parametrize(("best", "episodes"), [(0.1, 1), (0.5, 2), (0.99, 4), (1.0, 4)])
def test_at_least_one_episode_is_cloned(best, episodes):
    cloning = Cloning(CloningConfig(best=best), SPEC)
    assert len(cloning.prepare(team_data(halves, episodes=4))) == 10 * episodes


def test_what_its_policy_uses():
    assert Cloning.uses(CloningConfig()) == frozenset()
    assert Cloning.uses(CloningConfig(condition=True)) == {"returns"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best": 0.0}, r"algo.best is a share in \(0, 1\], got 0.0"),
        ({"best": 1.5}, "algo.best"),
        ({"discount": 0.0}, "algo.discount"),
        ({"hidden": 0}, "algo.hidden and algo.layers must be at least 1, got 0 and 2"),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        CloningConfig(**options)

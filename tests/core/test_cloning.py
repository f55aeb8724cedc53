from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from core.acting import Acting, GuidanceConfig
from core.cloning import Cloning, CloningConfig
from core.data import Trajectories
from core.environments import TeamSpec
from core.rollout import Context
from core.stacking import Stack
from core.training import Trainer, TrainerConfig

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


def trained(config, data, folder, steps=400, spec=SPEC):
    torch.manual_seed(0)
    algorithm = Cloning(config, spec)
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
    policy.reset(range(200))
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
    policy = cloning.policy(acting(1.0))
    policy.reset(range(200))
    assert torch.equal(policy.act(fresh(), context), cloning.act(fresh(), 1.0))


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


# Choices, agents of different sizes, agents that are not there

CHOOSING = TeamSpec(2, 3, 4, discrete=True, sizes=(1, 3))


def choices(episodes=40, steps=5):
    """Two agents of 1 and 3 entries; agent 1 leaves each episode at its third row. All but choice 3 may be illegal."""
    generator = torch.Generator().manual_seed(3)
    rows = episodes * (steps + 1)
    observations = torch.randn(rows, 2, 3, generator=generator)
    observations[:, 0, 1:] = 0
    legal = torch.rand(rows, 2, 4, generator=generator) < 0.6
    legal[..., 3] = True
    chosen = torch.rand(rows, 2, 4, generator=generator).masked_fill(~legal, -1).argmax(dim=-1)
    time = torch.arange(rows) % (steps + 1)
    present = torch.ones(rows, 2, dtype=torch.bool)
    present[time > 2, 1] = False
    actions = F.one_hot(chosen, 4).float()
    actions[time == steps] = 0
    offsets = torch.arange(episodes + 1) * (steps + 1)
    rewards = torch.zeros(rows, 2)
    return Trajectories(
        observations, actions, rewards, rewards, offsets, torch.zeros(episodes).bool(), legal=legal, present=present
    )


def test_the_loss_is_the_entropy_of_what_was_chosen_among_the_legal():
    """Against torch's own, one decision at a time, of the agents that are there."""
    data = choices(episodes=4)
    torch.manual_seed(1)
    cloning = Cloning(CloningConfig(hidden=8), CHOOSING)
    batches = cloning.prepare(data)
    index = torch.tensor([0, 3, 4, 11, 19, 2])
    losses = []
    for row in data.decisions[index].tolist():
        for agent, size in enumerate(CHOOSING.sizes):
            if not data.present[row, agent]:
                continue
            seen = (data.observations[row, agent] - cloning.normaliser.shift) / cloning.normaliser.scale
            logits = cloning.net(torch.cat([seen[:size], torch.zeros(3 - size)]))
            legal = torch.nonzero(data.legal[row, agent]).flatten().tolist()
            taken = legal.index(int(data.actions[row, agent].argmax()))
            losses.append(F.cross_entropy(logits[legal], torch.tensor(taken)))
    assert 6 < len(losses) < 12
    found = cloning.phases()[0].loss(batches.gather(index), torch.Generator())["loss"]
    assert found.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_statistics_are_of_real_entries_alone():
    data = choices()
    cloning = Cloning(CloningConfig(), CHOOSING)
    cloning.prepare(data)
    rows = data.decisions
    here = rows[data.present[rows, 1]]
    first = torch.cat([data.observations[rows, 0, 0], data.observations[here, 1, 0]])
    others = data.observations[here, 1, 1:]
    mean = torch.cat([first.mean()[None], others.mean(dim=0)])
    deviation = torch.cat([first.std(correction=0)[None], others.std(dim=0, correction=0)])
    assert torch.allclose(cloning.normaliser.shift, mean, atol=1e-6)
    assert torch.allclose(cloning.normaliser.scale, deviation, rtol=1e-5)


def test_rows_without_an_agent_teach_nothing():
    data = choices()
    gone = ~data.present
    spoilt = replace(
        data,
        observations=torch.where(gone[..., None], 1e6, data.observations),
        actions=torch.where(gone[..., None], 0.25, data.actions),
    )
    losses = []
    for one in (data, spoilt):
        torch.manual_seed(1)
        cloning = Cloning(CloningConfig(hidden=8), CHOOSING)
        batches = cloning.prepare(one)
        loss = cloning.phases()[0].loss(batches.gather(torch.arange(len(batches))), torch.Generator())["loss"]
        loss.backward()
        losses.append([loss.detach(), *(parameter.grad for parameter in cloning.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


def test_it_learns_the_share_of_each_choice(tmp_path):
    """Legal are 0, 1 and 3, chosen 1, 2 and 5 times in eight: a constant policy's logits differ by the logs of that."""
    rows = 81
    chosen = torch.tensor([0, 1, 1, 3, 3, 3, 3, 3]).repeat(11)[:rows]
    actions = F.one_hot(chosen, 4).float()[:, None].repeat(1, 2, 1)
    actions[-1] = 0
    legal = torch.tensor([True, True, False, True]).expand(rows, 2, 4)
    zeros = torch.zeros(rows, 2)
    data = Trajectories(
        torch.ones(rows, 2, 1), actions, zeros, zeros, torch.tensor([0, rows]), torch.tensor([True]), legal=legal
    )
    cloning = trained(CloningConfig(hidden=8), data, tmp_path, spec=TeamSpec(2, 1, 4, discrete=True))
    logits = cloning.net(torch.zeros(1))
    shares = torch.softmax(logits[[0, 1, 3]], dim=0)
    assert torch.allclose(shares, torch.tensor([1, 2, 5]) / 8, atol=0.01)


def test_nothing_illegal_is_chosen():
    torch.manual_seed(2)
    cloning = Cloning(CloningConfig(hidden=8), CHOOSING)
    observations = torch.randn(50, 2, 3)
    free = cloning.act(observations, 0.9)
    assert torch.equal(free.sum(dim=-1), torch.ones(50, 2))
    legal = free < 0.5  # all but the best
    policy = cloning.policy(acting(0.9))
    policy.reset(range(50))
    forced = policy.act(observations, Context(0, torch.ones(50, dtype=torch.bool), legal=legal))
    assert not (forced * free).any()
    assert torch.equal(forced.sum(dim=-1), torch.ones(50, 2))
    seen = torch.cat([observations[:, :1] * torch.tensor([1.0, 0, 0]), observations[:, 1:]], dim=1)
    second = cloning.net(seen).topk(2).indices[..., 1]
    assert torch.equal(forced.argmax(dim=-1), second)


def test_seeds_stack_with_masks():
    data = choices(episodes=6)
    members = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        members.append(Cloning(CloningConfig(hidden=8), CHOOSING))
    batches = [member.prepare(data) for member in members][-1]
    index = torch.stack([torch.arange(9), torch.arange(3, 12)])
    alone = [
        member.phases()[0].loss(batches.gather(rows), torch.Generator())["loss"].item()
        for member, rows in zip(members, index, strict=True)
    ]
    stack = Stack(members)
    together = stack.losses(members[0].phases()[0], batches, index, [torch.Generator(), torch.Generator()])["loss"]
    assert together.tolist() == pytest.approx(alone, rel=1e-6)
    assert alone[0] != alone[1]


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

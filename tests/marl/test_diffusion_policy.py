"""Diffusion policies: their losses by hand, their agents' independence, their seeds, and what they learn of bandits."""

import copy
import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from core.acting import Acting, GuidanceConfig, SelectionConfig
from core.critics import CriticConfig
from core.data import Transitions
from core.environments import TeamSpec
from core.rollout import Context, rollout
from core.samplers import SamplerConfig
from core.stacking import Stack
from core.training import Trainer, TrainerConfig
from marl import SRPO, DiffusionPolicy, DiffusionPolicyConfig, SRPOConfig, TaskConfig, scripted_team

ROOT = Path(__file__).parents[2]
SPEC = TeamSpec(2, 3, 2)
SMALL = {"hidden": 8, "layers": 1, "shared": False, "prediction": "noise", "eta": 1.0}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def policy(spec=SPEC, **settings):
    torch.manual_seed(0)
    return DiffusionPolicy(
        DiffusionPolicyConfig(**(SMALL | {"critic": CriticConfig(hidden=8, shared=False)} | settings)), spec
    )


def batch(count=6, agents=2, **changes):
    given = {
        "observations": random(count, agents, 3),
        "actions": random(count, agents, 2, seed=1).clamp(-1, 1),
        "rewards": random(count, agents, seed=2),
        "costs": torch.zeros(count, agents),
        "following": random(count, agents, 3, seed=3),
        "discount": torch.full((count, agents), 0.5),
    }
    return Transitions(**(given | changes))


def gradients(algorithm, items):
    loss = algorithm._loss(items, torch.Generator().manual_seed(7))["loss"]
    names, parameters = zip(*algorithm.actor.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return dict(zip(names, found, strict=True))


class Linear(nn.Module):
    """A network that says w x + o's first two entries: linear in the action, so that a chain has a closed form."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3))

    def forward(self, x, t, cond):
        return self.w * x + 0.1 * cond[..., :2]


class Values(nn.Module):
    """Q1 = 3 + a1 and Q2 = 1 - a2 of both agents, of [..., 4, 5]."""

    def forward(self, judged):
        first, second = judged.split(2, dim=-2)
        return torch.cat([3 + first[..., 3:4], 1 - second[..., 4:5]], dim=-2)


class Tilt(nn.Module):
    """Prefers actions by their first entry, of [B, A, 2] -> [B, A, 1]."""

    def forward(self, x, t, cond):
        return x[..., :1]


def test_the_chain_s_loss_by_hand():
    """Cloning - eta Q(o, a) / |Q'|, a by two DDIM steps: x' = sigma'/sigma x + (alpha' - alpha sigma'/sigma) x0."""
    algorithm = policy(prediction="x0", eta=0.7)
    algorithm.actor.network, algorithm.critics.q = Linear(), Values()
    items = batch()
    generator = torch.Generator().manual_seed(7)
    said = algorithm._loss(items, generator)
    # The same draws in the same order: the loss's own times and noise, then the chain's noise, then the coin.
    generator = torch.Generator().manual_seed(7)
    cloning, _ = algorithm._cloning(items, generator)
    x = torch.randn(6, 1, 2, 2, generator=generator)[:, 0]
    coin = torch.rand((), generator=generator) < 0.5
    schedule = algorithm.actor.schedule
    grid = algorithm.sampler.grid(schedule, 1.0)
    for step in grid:
        x0 = (0.3 * x + 0.1 * items.observations[..., :2]).clamp(-1, 1)
        keep = step.end.sigma / step.start.sigma
        x = keep * x + (step.end.alpha - step.start.alpha * keep) * x0
    x = x.clamp(-1, 1)
    first, second = 3 + x[..., 0], 1 - x[..., 1]
    first, second = (one.mean(dim=0) / other.abs().mean(dim=0) for one, other in ((first, second), (second, first)))
    value = (first if coin else second).mean()
    assert said["value"].item() == pytest.approx(value.item(), rel=1e-4)
    assert said["loss"].item() == pytest.approx((cloning - 0.7 * value).item(), rel=1e-4)


def test_the_estimate_s_gradient_is_one_call_s():
    """EDP: Q of the clean estimate of the data's noisy action; nothing is sampled."""
    algorithm = policy(prediction="x0", improvement="estimate")
    algorithm.critics.q = Values()
    items = batch()
    calls = []
    algorithm.actor.network.register_forward_hook(lambda *told: calls.append(told[2]))
    said = algorithm._loss(items, torch.Generator().manual_seed(7))
    assert len(calls) == 1
    own = calls[0].clamp(-1, 1)
    first, second = 3 + own[..., 0], 1 - own[..., 1]
    either = [(one.mean(dim=0) / other.abs().mean(dim=0)).mean() for one, other in ((first, second), (second, first))]
    assert min(abs(said["value"] - value) for value in either) < 1e-4


@pytest.mark.parametrize("network", ["mlp", "unet", "residual"])
@pytest.mark.parametrize("improvement", ["chain", "estimate"])
def test_agents_of_their_own_learn_from_their_own(network, improvement):
    """What the second agent saw and did changes nothing of the first one's gradient."""
    algorithm = policy(network=network, improvement=improvement)
    items = batch()
    changed = replace(items, actions=items.actions * torch.tensor([1.0, -0.5])[:, None])
    first, second = gradients(algorithm, items), gradients(algorithm, changed)
    for name, gradient in first.items():
        if gradient is not None and gradient.shape[0] == 2 and "time" not in name:
            assert torch.allclose(gradient[0], second[name][0], atol=1e-8), name
            assert (gradient[1] - second[name][1]).abs().max() > 0, name


def test_nothing_is_drawn_beyond_the_box_and_choices_are_legal():
    assert policy().propose(random(5, 2, 3), 9 * random(5, 4, 2, 2)).abs().max() <= 1
    spec = TeamSpec(2, 3, 4, discrete=True)
    algorithm = policy(spec, critic=None, improvement="none")
    acting = algorithm.policy(Acting())
    acting.reset(range(50))
    legal = torch.rand(50, 2, 4) < 0.4
    legal[..., 0] |= ~legal.any(dim=-1)
    chosen = acting.act(random(50, 2, 3), Context(0, torch.ones(50, dtype=torch.bool), legal=legal))
    assert (chosen.sum(dim=-1) == 1).all() and legal[chosen.bool()].all()


def test_absent_agents_teach_nothing():
    present = torch.tensor([[True, True], [True, False], [False, True]])
    items = batch(3, present=present)
    wild = replace(items, actions=torch.where(present[..., None], items.actions, 0.9))
    for consistency in ("none", "reconstruction", "training"):
        algorithm = policy(consistency=consistency)
        for name, gradient in gradients(algorithm, items).items():
            assert gradient is None or torch.allclose(gradient, gradients(algorithm, wild)[name], atol=1e-6), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"improvement": "estimate", "network": "residual", "shared": True},
        {"improvement": "none", "critic": CriticConfig(hidden=8, shared=False, expectile=0.7)},
        {
            "critic": CriticConfig(
                hidden=8, shared=False, view="centralised", conservative=1.0, backup="max", candidates=3
            )
        },
        {"consistency": "training"},
        {"consistency": "reconstruction", "divergence": 0.1},
        {"divergence": 0.1, "every": 2, "warmup": 2, "network": "unet"},
        {
            "improvement": "energy",
            "contrast": 2,
            "critic": CriticConfig(hidden=8, shared=False, candidates=2, backup="softmax"),
        },
    ],
    ids=str,
)
def test_seeds_learn_together_what_they_learn_alone(settings, tmp_path):
    data = rollout(scripted_team("mpe/spread", "expert"), TaskConfig().make(), range(6)).trajectories
    training = TrainerConfig(steps=4, batch_size=8, learning_rate=1e-3, ema=0.0, checkpoint_every=4, device="cpu")

    def made(seed):
        torch.manual_seed(seed)
        return DiffusionPolicy(
            DiffusionPolicyConfig(**(SMALL | {"critic": CriticConfig(hidden=8, shared=False)} | settings)),
            TeamSpec(3, 18, 2),
        )

    alone = {}
    for seed in (1, 2):
        alone[seed] = made(seed)
        Trainer(alone[seed], alone[seed].prepare(data), replace(training, seed=seed), tmp_path / f"a{seed}").run()
    members = [made(1), made(2)]
    batches = members[0].prepare(data)
    members[1].prepare(data)
    folders = [tmp_path / "s1", tmp_path / "s2"]
    for folder in folders:
        folder.mkdir()
    stack = Stack(members)
    Trainer(members[0], batches, training, *folders, stack=stack, seeds=[1, 2]).run()
    for index, seed in enumerate((1, 2)):
        state = alone[seed].state_dict()
        for name, value in members[0].state_dict().items():
            assert torch.allclose(value[index], state[name], atol=2e-5), name


def test_a_warm_up_clones_alone():
    algorithm = policy(warmup=2, eta=5.0)
    items = batch()
    before = algorithm._loss(items, torch.Generator().manual_seed(7))
    assert before["loss"].item() == before["cloning"].item()
    for _ in range(2):
        algorithm.after_step()
    after = algorithm._loss(items, torch.Generator().manual_seed(7))
    assert after["loss"].item() == pytest.approx((after["cloning"] - 5 * after["value"]).item(), rel=1e-5)


def test_the_weight_of_cloning_rises_while_its_loss_is_too_high():
    """Dual ascent's gradient is the allowed loss less the loss (DiffCPS, equation 12)."""
    algorithm = policy(divergence=0.2)
    items = batch()
    found = algorithm._weight_loss(items, torch.Generator().manual_seed(7))
    (gradient,) = torch.autograd.grad(found["loss"], [algorithm.log_weight])
    cloning, _ = algorithm._cloning(items, torch.Generator().manual_seed(7))
    assert gradient.item() == pytest.approx(0.2 - cloning.item(), rel=1e-5)
    algorithm.log_weight.data.fill_(1.2)
    said = algorithm._loss(items, torch.Generator().manual_seed(7))
    expected = torch.tensor(1.2).exp() * said["cloning"] - said["value"]
    assert said["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_energy_s_loss_by_hand():
    """-sum softmax(eta min Q(a_m)) log softmax(f(a_m,t)) over the actions, averaged over steps and agents."""
    algorithm = policy(improvement="energy", eta=2.0, contrast=3)
    algorithm.critics.q = Values()
    items = batch()
    found = algorithm._energy_loss(items, torch.Generator().manual_seed(7))["loss"]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        actions = algorithm._draw(algorithm.target, items.observations, torch.randn(6, 3, 2, 2, generator=generator))
        t = torch.rand(6, generator=generator)
        noise = torch.randn(6, 3, 2, 2, generator=generator)
        total = 0.0
        for b in range(6):
            alpha, sigma = (float(f(t[b])) for f in (algorithm.actor.schedule.alpha, algorithm.actor.schedule.sigma))
            x = alpha * actions[b] + sigma * noise[b]
            said = algorithm.energy(x, t[b].expand(3), items.observations[b].expand(3, -1, -1))[..., 0]
            for agent in range(2):
                values = torch.minimum(3 + actions[b, :, agent, 0], 1 - actions[b, :, agent, 1])
                total -= (torch.softmax(2 * values, 0) * torch.log_softmax(said[:, agent], 0)).sum().item() / 12
    assert found.item() == pytest.approx(total, rel=1e-4)


def test_an_evaluation_is_guided_as_strongly_as_it_says():
    """What is preferred rises in proportion to the scale, and nothing else moves."""
    algorithm = policy(improvement="energy", prediction="x0", schedule="cosine/20")
    seen, noise = random(5, 2, 3), 0.01 * random(5, 1, 2, 2, seed=1)
    algorithm.target.network = Linear()
    algorithm.energy = Tilt()
    acting = Acting(SamplerConfig("ddim", 20))
    found = [algorithm.propose(seen, noise, acting, torch.full((5,), scale)) for scale in (0.0, 1e-4, 2e-4)]
    assert torch.allclose(found[0], algorithm._draw(algorithm.target, seen, noise, acting.sampler.build()), atol=1e-6)
    first, second = found[1] - found[0], found[2] - found[0]
    assert (first[..., 0] > 1e-5).all() and (
        first[..., 1].abs() < 1e-6
    ).all()  # towards larger first entries, which the energy prefers
    assert torch.allclose(second, 2 * first, rtol=0.02, atol=1e-6)  # all is linear, and far from the box
    assert "scale" in DiffusionPolicy.uses(algorithm.config)
    assert "scale" not in DiffusionPolicy.uses(DiffusionPolicyConfig())


def test_episodes_of_one_batch_are_guided_each_as_asked():
    algorithm = policy(improvement="energy", prediction="x0")
    seen, context = random(3, 2, 3), Context(0, torch.ones(3, dtype=torch.bool))
    asked = [GuidanceConfig(scale) for scale in (0.0, 1.0, 2.0)]
    together = algorithm.policy(Acting(selection=SelectionConfig(2)), asked)
    together.reset([5, 5, 5])
    actions = together.act(seen[:1].expand(3, -1, -1), context)
    for index, guidance in enumerate(asked):
        alone = algorithm.policy(Acting(guidance=guidance, selection=SelectionConfig(2)))
        alone.reset([5])
        assert torch.allclose(alone.act(seen[:1], context), actions[index : index + 1], atol=1e-5)
    assert (actions[0] - actions[2]).abs().max() > 1e-3


def test_srpo_s_slope_on_gaussian_data():
    """Of data N(0, s^2), eps(x) = sigma x / (alpha^2 s^2 + sigma^2): the mean slope at a is the integral over t of
    alpha sigma^3 a / (alpha^2 s^2 + sigma^2)."""
    std = 0.5
    algorithm = SRPO(SRPOConfig(hidden=8), TeamSpec(1, 3, 2))
    schedule = algorithm.behaviour.schedule

    def exact(x, t, cond):
        alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
        return (alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x.double()).to(x)

    algorithm.behaviour.forward = exact
    count = 200_000
    actions = torch.tensor([0.3, -0.6]).expand(count, 1, 2)
    slopes = algorithm.score_gap(torch.zeros(count, 1, 3), actions, torch.Generator().manual_seed(0))
    t = torch.linspace(0.02, 0.98, 20_001, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    weight = (alpha * sigma**3 / (alpha**2 * std**2 + sigma**2)).mean().item()
    error = slopes.std(dim=0) / count**0.5
    assert (slopes.mean(dim=0) - weight * actions[0]).abs().max() < 4 * error.max()
    with pytest.raises(ValueError, match="SRPO needs actions that noise can be added to"):
        SRPO(SRPOConfig(), TeamSpec(1, 3, 2, discrete=True))


def test_a_consistency_policy_acts_in_one_call():
    algorithm = policy(consistency="training")
    calls = []
    algorithm.target.denoiser.network.register_forward_hook(lambda *told: calls.append(1))
    algorithm.propose(random(5, 2, 3), random(5, 4, 2, 2))
    assert len(calls) == 1


def test_the_slow_policy_acts():
    algorithm = policy(polyak=0.25)
    before = copy.deepcopy(algorithm.target.state_dict())
    for parameter in algorithm.actor.parameters():
        parameter.data += 1
    algorithm.after_step()
    for name, value in algorithm.target.state_dict().items():
        assert torch.allclose(value, before[name] + 0.25, atol=1e-6), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "cnn"}, "unknown algo.network 'cnn': choose one of unet, mlp, residual"),
        ({"improvement": "all"}, "unknown algo.improvement 'all': choose one of none, chain, estimate, energy"),
        ({"hidden": 0}, "algo.hidden must be at least 1, got 0"),
        ({"schedule": "steep"}, "algo.schedule: unknown schedule 'steep'"),
        ({"eta": -1.0}, "must be at least 0, got -1.0"),
        ({"polyak": 0.0}, "algo.dropout and algo.polyak lie in"),
        ({"critic": None}, "algo.critic=null clones alone: set algo.improvement=none"),
        ({"selection": SelectionConfig(0)}, r"algo.selection.candidates must be at least 1"),
        ({"consistency": "training", "improvement": "estimate"}, "set algo.improvement=chain or none"),
        ({"name": "dom2"}, "algo.name is diffusion_policy here, got 'dom2'"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffusionPolicyConfig(**settings)


@pytest.fixture(scope="module")
def bandits():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("bandits")


@pytest.mark.slow
def test_a_diffusion_policy_has_all_modes_and_critics_choose_the_best(bandits):
    """Four corners: a Gaussian is near none of them. 4 deviations hold 99.97% of a mode."""
    corners = bandits.BANDITS["four corners"]
    data = bandits.data_of(corners)
    shares = {}
    for name, how in bandits.POLICIES.items():
        shares[name], nowhere = corners.shares(bandits.learned(data, *how, 8000))
        assert nowhere < 0.1, name
    flat, _ = corners.shares(bandits.gaussian(data.actions[data.decisions][:, 0]))
    assert sum(flat) < 0.1
    cloning, *heeding = shares.values()
    assert min(cloning) > 0.15 and max(cloning) < 0.35
    assert all(one[3] > 0.9 for one in heeding)  # the corner of reward 5


def test_the_recorded_bandits_are_the_page_s(bandits):
    """Shares of the committed figures: all modes by cloning, the best one with critics, hardly any by a Gaussian."""
    rows = json.loads((ROOT / "benchmarks" / "bandits.json").read_text())["rows"]
    assert {row["bandit"] for row in rows} == set(bandits.BANDITS)
    for row in rows:
        bandit = bandits.BANDITS[row["bandit"]]
        reward = sum(share * worth for share, worth in zip(row["shares"], bandit.rewards, strict=True))
        assert reward == pytest.approx(row["reward"], abs=1e-6)
        assert sum(row["shares"]) + row["nowhere"] == pytest.approx(1, abs=1e-3)

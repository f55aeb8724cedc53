"""The architecture's proof: published systems are configurations of the engine, equal in every iterate to plain loops.

The loops follow the papers' formulas with coefficients of their own and know nothing of the engine. Both are given the
same noise. From t = 1 the engine starts with the forward process's noise, sigma times the given one, where the papers
start with that one itself.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import core
from core.noise import keys_of

B = 4


class Mix(nn.Module):
    """A tanh network over the last `dims` dimensions of a sample, told the time [B] and perhaps a condition of as many
    dimensions, where NaN says that there is none."""

    def __init__(self, size, dims, condition=0, seed=0):
        super().__init__()
        weights = core.normal([seed, seed + 1], (size + condition + 1, 16), dtype=torch.float64) / math.sqrt(size)
        self.inward, self.outward = nn.Parameter(weights[0]), nn.Parameter(weights[1, :size].T.contiguous())
        self.dims = dims

    def forward(self, x, t, cond=None):
        features = [x.flatten(-self.dims), t.reshape(-1, *[1] * (x.ndim - self.dims)).expand(*x.shape[: -self.dims], 1)]
        if cond is not None:
            features.append(cond.nan_to_num(nan=-3.0).flatten(-self.dims))
        return (torch.tanh(torch.cat(features, -1) @ self.inward) @ self.outward).reshape(x.shape)


def cosine_bars(steps):
    """abar_0 = 1, ..., abar_T of Nichol and Dhariwal's cosine schedule, betas clipped at 0.999."""
    f = [math.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(steps + 1)]
    bars = [1.0]
    for before, now in pairwise(f):
        bars.append(bars[-1] * (1 - min(1 - now / before, 0.999)))
    return bars


def draws(noise, count):
    """What stochastic samplers draw after the first noise."""
    return [core.normal(keys_of(noise), noise.shape[1:], stream, noise.dtype) for stream in range(count)]


def assert_equal(iterates, expected, tolerance=1e-10):
    assert len(iterates) == len(expected)
    for k, (ours, theirs) in enumerate(zip(iterates, expected, strict=True)):
        assert (ours - theirs).abs().max() < tolerance, f"iterate {k}"


# MADiff: joint plans of observations by DDIM, classifier-free guidance on returns, the present clamped.


def madiff(network, noise, returns, present, timesteps):
    bars, iterates = cosine_bars(200), []
    x = 0.5 * (math.sqrt(1 - bars[-1]) if timesteps[0] == 200 else 1.0) * noise
    for now, then in pairwise([*timesteps, 0]):
        x = torch.cat([present[:, None], x[:, 1:]], dim=1)
        iterates.append(x)
        t = torch.full((B,), now / 200, dtype=torch.float64)
        eps_u, eps_c = network(x, t, returns * torch.nan), network(x, t, returns)
        eps = eps_u + 1.2 * (eps_c - eps_u)
        x0 = ((x - math.sqrt(1 - bars[now]) * eps) / math.sqrt(bars[now])).clamp(-1, 1)
        eps = (x - math.sqrt(bars[now]) * x0) / math.sqrt(1 - bars[now])
        x = math.sqrt(bars[then]) * x0 + math.sqrt(1 - bars[then]) * eps
    return [*iterates, torch.cat([present[:, None], x[:, 1:]], dim=1)]


@pytest.mark.parametrize(
    ("spacing", "steps", "timesteps"),
    [("leading", 15, range(183, 0, -13)), ("time", 20, range(200, 0, -10)), ("time", 200, range(200, 0, -1))],
)
def test_madiff(spacing, steps, timesteps):
    time, agents, observation = 6, 3, 2
    network = Mix(time * agents * observation, 3, condition=agents)
    noise = core.normal(range(B), (time, agents, observation), dtype=torch.float64)
    present = torch.tanh(core.normal(range(B), (agents, observation), 5, torch.float64))
    returns = torch.linspace(0.5, 1.0, B * agents, dtype=torch.float64).reshape(B, 1, agents, 1)

    first = torch.arange(time)[:, None, None] == 0
    denoiser = core.ClassifierFree(core.NetworkDenoiser(network, core.VPTable.cosine(200), "noise"), 1.2)
    edits = [core.Clamp(first, present[:, None].expand_as(noise)), core.Box(-1, 1)]
    sampler = core.DDIM(steps, spacing)
    plan = core.sample(denoiser, noise, sampler, cond=returns, edits=edits, temperature=0.5, trace=True)

    assert_equal(plan.trace, madiff(network, noise, returns, present, list(timesteps)))
    assert torch.equal(plan.x[:, 0], present)


# DOM2: every agent's own policy by the first-order DPM-Solver, with the gradient of Q through the chain.


def dom2(network, noise, observations, times):
    def alpha_sigma(t):
        log_alpha = -(t**2) * (20 - 0.1) / 4 - t * 0.1 / 2
        return math.exp(log_alpha), math.sqrt(1 - math.exp(2 * log_alpha))

    a, iterates = alpha_sigma(times[0])[1] * noise, []
    for before, now in pairwise(times):
        iterates.append(a)
        (alpha, sigma), (alpha_i, sigma_i) = alpha_sigma(before), alpha_sigma(now)
        h = math.log(alpha_i / sigma_i) - math.log(alpha / sigma)
        eps = network(a, torch.full((B,), before, dtype=torch.float64), observations)
        bounded = ((a - sigma * eps) / alpha).clamp(-1, 1)
        eps = (a - alpha * bounded) / sigma
        a = (alpha_i / alpha) * a - sigma_i * (math.exp(h) - 1) * eps
    return [*iterates, a.clamp(-1, 1)]


@pytest.mark.parametrize("steps", [5, 10])
def test_dom2(steps):
    agents, observation, action = 3, 4, 2
    network = Mix(action, 1, condition=observation)  # the same for every agent, none of which sees another
    noise = core.normal(range(B), (agents, action), dtype=torch.float64).requires_grad_()
    observations = core.normal(range(B), (agents, observation), 5, torch.float64)

    denoiser = core.NetworkDenoiser(network, core.VPLinear(), "noise")
    sampler = core.DPMSolver(steps, "time", stop=1e-3, order=1)
    ours = core.sample(denoiser, noise, sampler, cond=observations, edits=[core.Box()], grad=True, trace=True)

    expected = dom2(network, noise, observations, torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64).tolist())
    assert_equal(ours.trace, expected)
    inputs = [noise, *network.parameters()]
    value = [torch.cos(2 * actions + observations[..., :2]).sum() for actions in (ours.x, expected[-1])]
    gradients = [torch.autograd.grad(q, inputs) for q in value]
    assert_equal(*gradients)
    assert all(slope.abs().max() > 1e-3 for slope in gradients[0])


# TREBI: windows by DDPM, moved before every network call up the return and, above the budget, down the cost.

ALPHA, WEIGHT, STOPGRAD, BUDGET = 0.1, 3.0, 2, 0.1


def trebi(network, reward, cost, noise, known, values, fresh):
    bars, iterates = cosine_bars(20), []
    x = math.sqrt(1 - bars[20]) * noise
    for k in range(20, 0, -1):
        beta, t = 1 - bars[k] / bars[k - 1], torch.full((B,), k / 20, dtype=torch.float64)
        variance = beta * (1 - bars[k - 1]) / (1 - bars[k])
        x = torch.where(known, values, x)
        for _ in range(2 if k > STOPGRAD else 0):  # timesteps k - 1 < t_stopgrad are left alone
            x = x.detach().requires_grad_()
            r, c = reward(x, t), cost(x, t)
            g = torch.autograd.grad(r.sum(), x)[0]
            g = g - WEIGHT * (c > BUDGET)[:, None, None] * torch.autograd.grad(c.sum(), x)[0]
            x = torch.where(known, values, x + ALPHA * variance * g).detach()
        iterates.append(x)
        mean = math.sqrt(bars[k - 1]) * beta / (1 - bars[k]) * network(x, t).detach()
        mean = mean + math.sqrt(1 - beta) * (1 - bars[k - 1]) / (1 - bars[k]) * x
        x = mean + math.sqrt(variance) * fresh.pop(0) if k > 1 else mean
    return [*iterates, torch.where(known, values, x)]


def test_trebi():
    time, action, state = 5, 2, 3
    size = time * (action + state)
    network, judges = Mix(size, 2), [Mix(size, 2, seed=seed) for seed in (7, 9)]
    noise = core.normal(range(B), (time, action + state), dtype=torch.float64)
    reward, cost = ((lambda x, t, judge=judge: judge(x, t.expand(B)).square().mean((1, 2))) for judge in judges)
    gates = []

    def value(x, t):
        c = cost(x, t)
        gates.extend((c > BUDGET).tolist())
        return reward(x, t) - WEIGHT * (c > BUDGET) * c

    known = (torch.arange(time)[:, None] == 0) & (torch.arange(action + state) >= action)
    clamp = core.Clamp(known, core.normal(range(B), (time, action + state), 5, torch.float64))
    move = core.GradientMove(value, ALPHA, steps=2, stop=STOPGRAD / 20, mask=clamp.free)
    denoiser = core.NetworkDenoiser(network, core.VPTable.cosine(20), "x0")
    plan = core.sample(denoiser, noise, core.DDPM(20), edits=[clamp, move], trace=True)

    assert_equal(plan.trace, trebi(network, reward, cost, noise, known, clamp.values, draws(noise, 19)))
    assert 0 < sum(gates) < len(gates) == 2 * 18 * B
    still = core.sample(denoiser, noise, core.DDPM(20), edits=[clamp]).x
    assert (plan.x - still).abs().max() > 1e-3


# SafeDiffuser, robust: after every step, the least change of u_ref = x_after - x_before that keeps n . x >= b.

NORMAL, OFFSET = torch.tensor([0.6, -1.7], dtype=torch.float64), 0.25


def safe_diffuser(network, noise, values, fresh):
    bars, iterates = cosine_bars(20), []
    x = math.sqrt(1 - bars[20]) * noise
    for k in range(20, 0, -1):
        x = torch.cat([values[:, :1], x[:, 1:]], dim=1)
        iterates.append(x)
        eps = network(x, torch.full((B,), k / 20, dtype=torch.float64)).detach()
        beta = 1 - bars[k] / bars[k - 1]
        if fresh is None:  # DDIM
            x0 = (x - math.sqrt(1 - bars[k]) * eps) / math.sqrt(bars[k])
            after = math.sqrt(bars[k - 1]) * x0 + math.sqrt(1 - bars[k - 1]) * eps
        else:  # DDPM
            after = (x - beta / math.sqrt(1 - bars[k]) * eps) / math.sqrt(1 - beta)
            if k > 1:
                after = after + math.sqrt(beta * (1 - bars[k - 1]) / (1 - bars[k])) * fresh.pop(0)
        depth = OFFSET - after @ NORMAL  # of a waypoint in the unsafe half
        x = torch.where(depth[..., None] > 0, after + depth[..., None] * NORMAL / (NORMAL @ NORMAL), after)
    return [*iterates, torch.cat([values[:, :1], x[:, 1:]], dim=1)]


@pytest.mark.parametrize("sampler", [core.DDPM(20), core.DDIM(20)], ids=["ddpm", "ddim"])
def test_safe_diffuser(sampler):
    class HalfPlane(core.Edit):
        def after(self, x_new, x_old, step):
            u_ref, barrier = x_new - x_old, x_old @ NORMAL - OFFSET
            short = torch.relu(-(u_ref @ NORMAL + barrier)) / (NORMAL @ NORMAL)
            return x_old + u_ref + short[..., None] * NORMAL

    network = Mix(6 * 2, 2)
    noise = core.normal(range(B), (6, 2), dtype=torch.float64)
    values = torch.tensor([1.0, -0.5], dtype=torch.float64).expand(B, 6, 2)
    clamp = core.Clamp(torch.arange(6)[:, None] == 0, values)
    denoiser = core.NetworkDenoiser(network, core.VPTable.cosine(20), "noise")
    plan = core.sample(denoiser, noise, sampler, edits=[clamp, HalfPlane()], trace=True)

    assert_equal(plan.trace, safe_diffuser(network, noise, values, draws(noise, 19) if sampler.eta else None), 1e-9)
    assert (plan.x @ NORMAL).min() > OFFSET - 1e-9
    unsafe = core.sample(denoiser, noise, sampler, edits=[clamp]).x @ NORMAL < OFFSET
    assert unsafe.any()
    assert not unsafe.all()

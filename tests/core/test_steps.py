"""Every sampler's iterates, on data whose clean estimate is not linear, against its paper's formulas."""

import math
from itertools import count, product

import pytest
import torch

from core.denoiser import wrap
from core.noise import keys_of, normal
from core.samplers import DDIM, DDPM, SPACINGS, Consistency, DPMSolver, Euler, EulerAncestral, Heun
from core.sampling import WarmStart, sample
from core.schedules import VE, Flow, VPCosine, VPLinear
from tests.core import published
from tests.core.every import SCHEDULES, TABLES
from tests.core.mixture import Mixture

NOISE = normal(range(8), (2,), dtype=torch.float64)
PRESERVING = [schedule for schedule in SCHEDULES if not isinstance(schedule, (VE, Flow))]
UNEVEN = [spacing for spacing in SPACINGS if spacing != "leading"]
clean = Mixture.at


def draws():
    return (normal(keys_of(NOISE), NOISE.shape[1:], k, NOISE.dtype) for k in count())


def traced(schedule, sampler, start=1.0):
    """The iterates, their levels (alpha, sigma), and the levels inside the steps."""
    warm = None if start == 1 else WarmStart(torch.zeros_like(NOISE), start)
    grid = sampler.grid(schedule, start)
    levels = [(step.start.alpha, step.start.sigma) for step in grid]
    levels.append((grid[-1].end.alpha, grid[-1].end.sigma))
    middles = [step.inner and (step.inner.start.alpha, step.inner.start.sigma) for step in grid]
    return sample(Mixture(schedule), NOISE, sampler, start=warm, trace=True).trace, levels, middles


def assert_same(iterates, expected, tolerance=1e-10):
    assert len(iterates) == len(expected)
    for got, right in zip(iterates, expected, strict=True):
        assert (got - right).abs().max() < tolerance * max(1.0, right.abs().max().item())


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("schedule", PRESERVING, ids=str)
def test_ddim(schedule, eta):
    for spacing in UNEVEN:
        iterates, levels, _ = traced(schedule, DDIM(9, spacing, eta=eta))
        assert_same(iterates, published.ddim(clean, iterates[0], levels, draws(), eta))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("schedule", PRESERVING, ids=str)
def test_ddpm(schedule, large):
    for spacing in UNEVEN:
        iterates, levels, _ = traced(schedule, DDPM(9, spacing, large=large))
        assert_same(iterates, published.ddpm(clean, iterates[0], levels, draws(), large))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("steps", [7, 200])
def test_ddpm_on_the_steps_of_a_table(steps, large):
    # Indices and betas of the papers' code, without the engine's levels.
    table = TABLES[1]
    abars = torch.cumprod(1 - torch.tensor(table.betas, dtype=torch.float64), dim=0).tolist()
    kept = [abars[i * (200 // steps)] for i in range(steps)][::-1]
    levels = [(math.sqrt(bar), math.sqrt(1 - bar)) for bar in [*kept, 1.0]]
    iterates, _, _ = traced(table, DDPM(steps, "leading", large=large))
    first = NOISE if steps == 7 else levels[0][1] * NOISE  # standard normal below t = 1, as in the papers' code
    assert_same(iterates, published.ddpm(clean, first, levels, draws(), large))


@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_multistep_dpm_solver(schedule, order, sde):
    for spacing, stop in product(UNEVEN, (0.0, 0.02)):
        iterates, levels, _ = traced(schedule, DPMSolver(9, spacing, stop, order=order, sde=sde))
        assert_same(iterates, published.dpm(clean, iterates[0], levels, order, draws() if sde else None))


@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_single_step_dpm_solver(schedule, sde):
    for spacing, stop in product(UNEVEN, (0.0, 0.02)):
        iterates, levels, middles = traced(schedule, DPMSolver(9, spacing, stop, singlestep=True, sde=sde))
        assert_same(iterates, published.dpm_2s(clean, iterates[0], levels, middles, draws() if sde else None))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_middle_of_a_single_step_is_half_way_in_lambda(schedule):
    for spacing, start in product(UNEVEN, (1.0, 0.7)):
        grid = DPMSolver(9, spacing, singlestep=True).grid(schedule, start)
        halved = [step for step in grid if step.inner is not None]
        assert len(halved) == 9 - (start == 1 and isinstance(schedule, Flow)) - (grid[-1].end.sigma == 0)
        for step in halved:
            middle = step.inner.start
            alpha = schedule.alpha(torch.tensor(middle.t, dtype=torch.float64))
            assert middle.lam == pytest.approx((step.start.lam + step.end.lam) / 2, abs=1e-9)
            assert middle.alpha == pytest.approx(alpha.item(), rel=1e-12)


CHURNS = [
    {},
    {"churn": 4.0},
    {"churn": 200.0},  # more than sqrt(2) - 1 a step, and above the start
    {"churn": 8.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003},
]


@pytest.mark.parametrize("options", CHURNS, ids=str)
@pytest.mark.parametrize("steps", [9, 40])
def test_edm_heun(steps, options):
    # The levels too are the paper's, eq. 5.
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigmas = [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]
    expected = published.heun(lambda x, t: clean(x, 1.0, t), 80 * NOISE, sigmas, draws(), **options)
    for spacing in ("karras", "time"):
        iterates, _, _ = traced(VE(), Heun(steps, spacing, **options))
        assert_same(iterates, expected)


@pytest.mark.parametrize("options", CHURNS, ids=str)
@pytest.mark.parametrize("schedule", PRESERVING, ids=str)
def test_heun_in_the_frame_of_edm(schedule, options):
    # For y = x / alpha over sigma / alpha, any schedule is EDM's.
    sampler = Heun(12, frame="edm", **options)
    kappas = [sigma / alpha for alpha, sigma in traced(schedule, Heun(12))[1]]
    expected = published.heun(lambda y, t: clean(y, 1.0, t), kappas[0] * NOISE, kappas, draws(), **options)
    iterates, levels, _ = traced(schedule, sampler)
    alphas = [alpha for alpha, _ in levels]
    assert_same([x / alpha for x, alpha in zip(iterates, alphas, strict=True)], expected, 1e-8)


@pytest.mark.parametrize("spacing", UNEVEN)
def test_heun_on_the_flow(spacing):
    # dx/dt = (x - x0) / t.
    iterates, levels, _ = traced(Flow(), Heun(9, spacing))
    times = [sigma for _, sigma in levels]
    assert_same(iterates, published.heun(lambda x, t: clean(x, 1 - t, t), NOISE, times))
    below, levels, _ = traced(Flow(), Heun(9, spacing, frame="edm"), start=0.9)
    kappas = [sigma / alpha for alpha, sigma in levels]
    expected = published.heun(lambda y, t: clean(y, 1.0, t), 9.0 * NOISE, kappas)
    assert_same([x / alpha for x, (alpha, _) in zip(below, levels, strict=True)], expected)


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), VE()], ids=str)
def test_heun_in_the_frame_of_the_flow(schedule):
    # For y = x / (alpha + sigma) over sigma / (alpha + sigma), any schedule is a flow.
    iterates, levels, _ = traced(schedule, Heun(12, frame="flow"))
    times = [sigma / (alpha + sigma) for alpha, sigma in levels]
    expected = published.heun(lambda y, t: clean(y, 1 - t, t), times[0] * NOISE, times)
    assert_same([x / sum(level) for x, level in zip(iterates, levels, strict=True)], expected)


def test_euler_on_the_flow_is_ddim():
    x, iterates = NOISE, [NOISE]
    for k in range(10, 0, -1):
        x = x - 0.1 * (x - clean(x, 1 - k / 10, k / 10)) / (k / 10)
        iterates.append(x)
    assert_same(traced(Flow(), Euler(10))[0], iterates)


@pytest.mark.parametrize("spacing", UNEVEN)
def test_euler_ancestral_is_ddpm(spacing):
    iterates, levels, _ = traced(VE(), EulerAncestral(9, spacing))
    sigmas = [sigma for _, sigma in levels]
    assert_same(iterates, published.euler_ancestral(lambda x, s: clean(x, 1.0, s), 80 * NOISE, sigmas, draws()))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_consistency(schedule):
    sampler = Consistency(4)
    levels = [(step.start.alpha, step.start.sigma) for step in sampler.grid(schedule)]

    def function(x, alpha, sigma):
        return torch.sin(x + alpha) / (1 + sigma)

    denoiser = wrap(lambda x, t: function(x, schedule.alpha(t), schedule.sigma(t)), schedule)
    expected = published.consistency(function, levels[0][1] * NOISE, levels, draws())
    assert_same(sample(denoiser, NOISE, sampler, trace=True).trace, expected)

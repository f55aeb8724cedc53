import math
from itertools import pairwise

import pytest
import torch

from core.noise import normal
from core.samplers import DDIM, DDPM, SPACINGS, DPMSolver, SamplerConfig
from core.sampling import sample
from core.schedules import SCHEDULES, VPCosine, VPLinear
from tests.core.gaussian import correlated

VARIANCE_PRESERVING = [VPLinear(), VPCosine()]
EVERY = [make() for make in SCHEDULES.values()]
NOISE = normal(range(16), (3,), dtype=torch.float64)
ORDERS = [(DDIM, {}, 1), (DPMSolver, {"order": 1}, 1), (DPMSolver, {"order": 2}, 2)]


def times_of(grid):
    return [step.start.t for step in grid] + [grid[-1].end.t]


def lambdas_of(grid):
    return [step.start.lam for step in grid] + [grid[-1].end.lam]


@pytest.mark.parametrize(("make", "options", "order"), ORDERS)
@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=str)
def test_convergence_to_the_probability_flow(schedule, make, options, order):
    data, stop = correlated(schedule), 0.05
    start = schedule.sigma(torch.tensor(1.0)) * NOISE
    exact = data.flow(start, 1.0, stop)

    def error(steps):
        return (sample(data, NOISE, make(steps, spacing="lambda", stop=stop, **options)).x - exact).abs().max().item()

    errors = [error(steps) for steps in (80, 160, 320)]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert slopes == pytest.approx([order] * 2, abs=0.15)
    assert errors[-1] < (0.03 if order == 1 else 3e-4)


def ddpm_law(data, times):
    """Mean and covariance of textbook ancestral sampling over the given times, by its recursion in the eigenbasis."""
    abars = (data.schedule.alpha(times) ** 2).tolist()
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.full((3,), 1 - abars[0], dtype=torch.float64)
    target = data.mean @ data.basis
    for abar, abar_prev in pairwise(abars):
        beta = 1 - abar / abar_prev
        on_x0 = math.sqrt(abar_prev) * beta / (1 - abar)
        on_x = math.sqrt(1 - beta) * (1 - abar_prev) / (1 - abar)
        gain = math.sqrt(abar) * data.variances / (abar * data.variances + 1 - abar)
        factor = on_x + on_x0 * gain
        mean = factor * mean + on_x0 * (1 - gain * math.sqrt(abar)) * target
        variance = factor**2 * variance + beta * (1 - abar_prev) / (1 - abar)
    return data.basis @ mean, data.basis * variance @ data.basis.T


def assert_moments(x, mean, covariance, deviations=4.0):
    """Within so many standard errors of the sample mean and, for Gaussian samples, the sample covariance."""
    variances = covariance.diag()
    assert ((x.mean(dim=0) - mean).abs() < deviations * (variances / len(x)).sqrt()).all()
    error = ((torch.outer(variances, variances) + covariance**2) / len(x)).sqrt()
    assert ((torch.cov(x.T) - covariance).abs() < deviations * error).all()


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=str)
def test_ancestral_sampling_reproduces_mean_and_covariance(schedule):
    # A few hundred steps leave a bias of the order of the standard error. So the samples are held against the exact
    # law of the chain, and that law against the data's, which it approaches with slope 1.
    data, steps = correlated(schedule), 200
    x = sample(data, normal(range(20_000), (3,), dtype=torch.float64), DDPM(steps)).x
    laws = [ddpm_law(data, torch.linspace(1, 0, n + 1, dtype=torch.float64)) for n in (steps, 2 * steps, 4 * steps)]
    assert_moments(x, *laws[0])
    gaps = [(covariance - data.covariance).abs().max().item() for _, covariance in laws]
    assert gaps[0] < 0.06
    assert gaps[1] / gaps[0] == pytest.approx(0.5, abs=0.05)
    assert (2 * laws[2][1] - laws[1][1] - data.covariance).abs().max() < 2e-3
    assert (laws[0][0] - data.mean).abs().max() < 1e-4


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=str)
def test_deterministic_sampling_reproduces_mean_and_covariance(schedule):
    data = correlated(schedule)
    x = sample(data, normal(range(4000), (3,), dtype=torch.float64), DDIM(500)).x
    assert_moments(x, data.mean, data.covariance)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("skip", [1, 4])
@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=str)
def test_step_is_the_textbook_formula(schedule, skip, eta):
    # Betas of a chain of 40 steps; a grid that skips some of them has their compound, as in Song et al. 2021, eq. 12.
    fine = schedule.alpha(torch.linspace(0, 1, 41, dtype=torch.float64)) ** 2
    abars = torch.cat([torch.ones(1), torch.cumprod(fine[1:] / fine[:-1], dim=0)]).flip(0)[::skip].tolist()
    sampler = DDIM(40 // skip, eta=eta)
    x, x0 = NOISE[:4], NOISE[4:8]
    steps = sampler.grid(schedule)
    for step, abar, abar_prev in zip(steps, abars[:-1], abars[1:], strict=True):
        deviation = eta * math.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
        noise = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
        mean = math.sqrt(abar_prev) * x0 + math.sqrt(max(0.0, 1 - abar_prev - deviation**2)) * noise
        got = sampler.step(x, lambda _: x0, step, None, lambda: torch.zeros_like(x))[0]
        noisy = sampler.step(x, lambda _: x0, step, None, lambda: torch.ones_like(x))[0]
        assert (got - mean).abs().max() < 1e-7
        assert (noisy - got - deviation).abs().max() < 1e-7


@pytest.mark.parametrize("skip", [1, 4])
@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=str)
def test_ancestral_step_is_the_ddpm_posterior(schedule, skip):
    # Ho et al. 2020, eq. 6 and 7, with beta = 1 - abar / abar_prev.
    sampler = DDPM(40 // skip)
    x, x0 = NOISE[:4], NOISE[4:8]
    for step in sampler.grid(schedule):
        times = torch.tensor([step.start.t, step.end.t], dtype=torch.float64)
        abar, abar_prev = (schedule.alpha(times) ** 2).tolist()
        beta = 1 - abar / abar_prev
        mean = math.sqrt(abar_prev) * beta / (1 - abar) * x0 + math.sqrt(1 - beta) * (1 - abar_prev) / (1 - abar) * x
        variance = beta * (1 - abar_prev) / (1 - abar)
        assert step.variance == pytest.approx(variance, abs=1e-14)
        got = sampler.step(x, lambda _: x0, step, None, lambda: torch.zeros_like(x))[0]
        noisy = sampler.step(x, lambda _: x0, step, None, lambda: torch.ones_like(x))[0]
        assert (got - mean).abs().max() < 1e-12
        assert (noisy - got - math.sqrt(variance)).abs().max() < 1e-7


@pytest.mark.parametrize("spacing", SPACINGS)
def test_second_order_step_is_the_published_formula(spacing):
    # DPM-Solver++(2M) of Lu et al. 2022, algorithm 2; where lambda is not uniform its steps differ in length.
    sampler, x = DPMSolver(9, spacing, stop=0.02, order=2), NOISE[:4]
    previous, memory = None, None
    for step in sampler.grid(VPCosine()):
        x0 = torch.roll(NOISE, step.index, dims=0)[4:8]
        h = step.end.lam - step.start.lam
        estimate = x0
        if previous is not None:
            r = (step.start.lam - previous[0].start.lam) / h
            estimate = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous[1]
        expected = step.end.sigma / step.start.sigma * x - step.end.alpha * math.expm1(-h) * estimate
        got, memory = sampler.step(x, lambda _, x0=x0: x0, step, memory, None)
        assert (got - expected).abs().max() < 1e-12
        previous = (step, x0)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_ddim_is_dpm_solver_of_order_one(schedule, spacing):
    data = correlated(schedule)
    ddim = sample(data, NOISE, DDIM(12, spacing), trace=True).trace
    dpm = sample(data, NOISE, DPMSolver(12, spacing, order=1), trace=True).trace
    assert len(ddim) == len(dpm) == 13
    for a, b in zip(ddim, dpm, strict=True):
        assert (a - b).abs().max() < 1e-13
    assert (ddim[-1] - sample(data, NOISE, DPMSolver(12, spacing, order=2)).x).abs().max() > 1e-3


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("make", [DDIM, DDPM, DPMSolver])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_one_call_of_the_denoiser_a_step_at_the_levels_of_the_grid(make, spacing, steps):
    data, seen = correlated(VPCosine()), []

    class Counting:
        schedule = data.schedule

        def __call__(self, x, t, cond=None):
            seen.append((t.item(), data(x, t)))
            return seen[-1][1]

    sampler = make(steps, spacing=spacing)
    result = sample(Counting(), NOISE, sampler)
    assert [t for t, _ in seen] == times_of(sampler.grid(data.schedule))[:-1]
    assert len(seen) == steps
    assert torch.allclose(result.x, seen[-1][1], atol=1e-14)  # the step to t = 0 ends at the clean estimate


@pytest.mark.parametrize("start", [1.0, 0.4])
@pytest.mark.parametrize("stop", [0.0, 0.05])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_grid(schedule, spacing, stop, start):
    grid = DDIM(15, spacing, stop).grid(schedule, start)
    times = times_of(grid)
    assert len(grid) == 15
    assert times[0] == start
    assert times[-1] == pytest.approx(stop, abs=1e-12)
    assert all(earlier > later for earlier, later in pairwise(times))
    # Below t = 1e-3 lambda grows without bound: its grids end there when they go on to t = 0.
    inner = grid if stop > 0 or spacing == "time" else grid[:-1]
    if inner is not grid:
        assert grid[-1].start.t == pytest.approx(1e-3, abs=1e-12)
        assert grid[-1].end.t == 0
    if spacing == "time":
        values = times_of(inner)
    elif spacing == "lambda":
        values = lambdas_of(inner)
    else:
        values = [math.exp(-lam / 7) for lam in lambdas_of(inner)]
    differences = [b - a for a, b in pairwise(values)]
    assert differences == pytest.approx([differences[0]] * len(differences), rel=1e-8)


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_karras_grid_is_the_published_formula(schedule):
    # Karras et al. 2022, eq. 5, for the noise-to-signal ratio, which is their sigma.
    ends = schedule.lam(torch.tensor([1.0, 0.01], dtype=torch.float64))
    largest, smallest = torch.exp(-ends).tolist()
    grid = DDIM(9, "karras", stop=0.01).grid(schedule)
    for i, lam in enumerate(lambdas_of(grid)):
        ratio = (largest ** (1 / 7) + i / 9 * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7
        assert math.exp(-lam) == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_steps_are_chained(spacing):
    grid = DDIM(6, spacing).grid(VPLinear())
    assert [step.index for step in grid] == list(range(6))
    assert grid[0].previous is None
    for before, step in pairwise(grid):
        assert step.start == before.end
        assert step.previous == before.start
    for step in grid:
        assert step.dtau == step.start.t - step.end.t
    assert grid[-1].variance == 0  # nothing is drawn on the way to the data


@pytest.mark.parametrize("spacing", ["lambda", "karras"])
def test_a_grid_from_below_the_usual_last_time_still_falls(spacing):
    times = times_of(DDIM(4, spacing).grid(VPLinear(), start=5e-4))
    assert times[0] == 5e-4
    assert all(earlier > later for earlier, later in pairwise(times))


def test_second_order_passes_the_levels_where_the_cosine_schedule_is_held():
    # Both t = 1 and t = 0.9995 lie at the least alpha: the first step covers no distance in lambda.
    data = correlated(VPCosine())
    assert sample(data, NOISE, DPMSolver(2000, spacing="time")).x.isfinite().all()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (DDIM, {"steps": 0}, "steps >= 1, got 0"),
        (DDPM, {"steps": -3}, "steps >= 1"),
        (DDIM, {"spacing": "uniform"}, "unknown spacing 'uniform'"),
        (DDIM, {"stop": 1.0}, "stop is a time"),
        (DPMSolver, {"stop": -0.1}, "stop is a time"),
        (DDIM, {"eta": 1.5}, "eta lies in"),
        (DDIM, {"eta": -0.1}, "eta lies in"),
        (DPMSolver, {"order": 3}, "orders 1 and 2, got 3"),
        (DPMSolver, {"order": 0}, "orders 1 and 2"),
    ],
)
def test_bad_arguments(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("start", [0.0, 0.1, 0.05, 1.2])
def test_bad_start(start):
    with pytest.raises(ValueError, match="starts at a time above its stop"):
        DDIM(4, stop=0.1).grid(VPLinear(), start)


def test_samplers_by_name():
    assert SamplerConfig("ddim", 7, "karras", 0.1).build() == DDIM(7, "karras", 0.1)
    assert SamplerConfig("ddpm", 7).build() == DDPM(7)
    assert SamplerConfig("dpm", 7, "lambda", order=1).build() == DPMSolver(7, "lambda", order=1)
    for options, message in (({"name": "euler"}, "unknown sampler.name 'euler'"), ({"steps": 0}, "steps >= 1")):
        with pytest.raises(ValueError, match=message):
            SamplerConfig(**options)

"""Stochastic samplers: the law of their samples on Gaussian data, and the noise they draw."""

import math
from itertools import pairwise

import pytest
import torch

from core.denoiser import wrap
from core.noise import normal
from core.samplers import DDIM, DDPM, Consistency, DPMSolver, Heun
from core.sampling import WarmStart, sample
from core.schedules import VE, Flow, VPCosine, VPLinear, VPSigmoid, VPTable
from tests.core.every import SCHEDULES, deterministic, samplers, stochastic
from tests.core.gaussian import correlated

EYE = torch.eye(3, dtype=torch.float64)

#: Samplers by a count of steps, and the order at which their covariance converges. The estimates that SDE solvers
#: extrapolate from are noisy, which leaves 3M at order 2. Churn adds the same noise in all, however many the steps.
KINDS = {
    "ddim, eta 0.5": (lambda steps, **grid: DDIM(steps, eta=0.5, **grid), 1),
    "ddpm": (DDPM, 1),
    "ddpm, large": (lambda steps, **grid: DDPM(steps, large=True, **grid), 1),
    "sde, 1": (lambda steps, **grid: DPMSolver(steps, "lambda", order=1, sde=True, **grid), 1),
    "sde, 2M": (lambda steps, **grid: DPMSolver(steps, "lambda", order=2, sde=True, **grid), 2),
    "sde, 3M": (lambda steps, **grid: DPMSolver(steps, "lambda", order=3, sde=True, **grid), 2),
    "sde, 2S": (lambda steps, **grid: DPMSolver(steps, "lambda", singlestep=True, sde=True, **grid), 2),
    "heun": (lambda steps, **grid: Heun(steps, "karras", churn=8.0, **grid), 2),
    "heun, bounded": (lambda steps, **grid: Heun(steps, "karras", churn=8.0, churn_min=0.3, churn_max=9.0, **grid), 2),
}


def law(sampler, data, denoise=None, exact_start=False):
    """Mean and covariance of a sampler's results, exactly.

    Gaussian data's clean estimate is affine, hence so is the result in all the noise of a walk: its columns are what
    unit impulses of noise, one row each, come to. The first iterate is pure noise, as in `sample`, or, for exact_start,
    has the law of x_t.
    """
    grid = sampler.grid(data.schedule)
    draws = 1 + sum((step.renoise is not None) + 2 for step in grid)
    impulses = iter(torch.eye(3 * draws + 1, dtype=torch.float64)[1:].reshape(draws, 3, -1).transpose(1, 2))
    first = grid[0].start
    signal = first.alpha if exact_start else 0.0
    root = torch.linalg.cholesky(signal**2 * data.covariance + first.sigma**2 * EYE)
    x = signal * data.mean + next(impulses) @ root.T
    memory = None
    for step in grid:

        def estimate(x, at=None, step=step):
            time = torch.tensor((at or step).start.t, dtype=torch.float64)
            return (denoise or data)(x, time)

        if step.renoise:
            x = step.renoise[0] * x + step.renoise[1] * next(impulses)
        x, memory = sampler.step(x, estimate, step, memory, lambda: next(impulses))
    return x[0], (x[1:] - x[0]).T @ (x[1:] - x[0])


def ddpm_law(data, times):
    """Textbook ancestral sampling over the given times, by its recursion in the eigenbasis."""
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


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), VPTable.cosine(200)], ids=str)
def test_the_law_of_ancestral_sampling_is_its_recursion(schedule):
    data = correlated(schedule)
    expected = ddpm_law(data, torch.linspace(1, 0, 41, dtype=torch.float64))
    for got, right in zip(law(DDPM(40), data), expected, strict=True):
        assert (got - right).abs().max() < 1e-9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_law_converges_to_the_data_s(schedule, kind):
    # Down to some noise, since the last step to the data is of order 1, and from the exact law of the first iterate.
    make, order = KINDS[kind]
    data, stop = correlated(schedule), 0.2 if isinstance(schedule, VE) else 0.05
    gaps = []
    for steps in (100, 200):
        mean, covariance = law(make(steps, stop=stop), data, exact_start=True)
        end = schedule.levels(torch.tensor([stop], dtype=torch.float64))[0]
        gaps.append((covariance - end.alpha**2 * data.covariance - end.sigma**2 * EYE).abs().max().item())
        assert (mean - end.alpha * data.mean).abs().max() < 1e-12
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(order, abs=0.15)
    assert gaps[1] < (0.05, 0.003)[order - 1]


def assert_moments(x, mean, covariance, deviations=4.0):
    """Within so many standard errors of the sample mean and, for Gaussian samples, the sample covariance."""
    variances = covariance.diag()
    assert ((x.mean(dim=0) - mean).abs() < deviations * (variances / len(x)).sqrt()).all()
    error = ((torch.outer(variances, variances) + covariance**2) / len(x)).sqrt()
    assert ((torch.cov(x.T) - covariance).abs() < deviations * error).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", [VPLinear(), VPSigmoid(), VE(), Flow(), VPTable.cosine(200)], ids=str)
def test_samples_follow_the_law(schedule, kind):
    # 60 steps leave a bias above the standard error. So the samples are held against the exact law of the walk, and
    # that one against the data's, which it approaches as shown above, but for the first iterate's: pure noise.
    make, order = KINDS[kind]
    data, noise = correlated(schedule), normal(range(10_000), (3,), dtype=torch.float64)
    mean, covariance = law(make(60), data)
    assert_moments(sample(data, noise, make(60)).x, mean, covariance)
    assert (mean - data.mean).abs().max() < 0.02
    assert (covariance - data.covariance).abs().max() < (0.2, 0.04)[order - 1]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_consistency_sampling_with_the_exact_flow_map_has_the_data_s_law(schedule):
    # VE's flow ends at sigma_min; from there on the map is the clean estimate.
    data = correlated(schedule)
    noise = normal(range(20_000), (3,), dtype=torch.float64)

    def exact(x, t):
        x = data.flow(x, t.item(), 0.0)
        return data(x, torch.zeros((), dtype=torch.float64)) if isinstance(schedule, VE) else x

    for steps in (1, 2, 4):
        mean, covariance = law(Consistency(steps), data, exact, exact_start=True)
        assert (mean - data.mean).abs().max() < 1e-12
        assert (covariance - data.covariance).abs().max() < 1e-5
    x = sample(wrap(exact, schedule), noise, Consistency(3)).x
    assert_moments(x, *law(Consistency(3), data, exact))


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), Flow()], ids=str)
def test_deterministic_sampling_has_the_data_s_law(schedule):
    data = correlated(schedule)
    x = sample(data, normal(range(4000), (3,), dtype=torch.float64), DDIM(500)).x
    assert_moments(x, data.mean, data.covariance)


@pytest.mark.parametrize("start", [None, 0.6])
@pytest.mark.parametrize("sampler", [*stochastic(7), Consistency(3)], ids=str)
def test_a_sample_does_not_depend_on_its_batch(sampler, start):
    data, noise = correlated(VPCosine()), normal(range(64), (3,), dtype=torch.float64)
    x0 = torch.linspace(-1, 1, 192, dtype=torch.float64).reshape(64, 3)

    def drawn(rows):
        warm = None if start is None else WarmStart(x0[rows], start)
        return sample(data, noise[rows], sampler, start=warm).x

    whole = drawn(slice(None))
    for row in (0, 17, 63):
        assert (drawn(slice(row, row + 1)) - whole[row]).abs().max() < 1e-12
    assert (drawn(torch.arange(63, -1, -1)).flip(0) - whole).abs().max() < 1e-12
    assert (drawn(slice(None)) - whole).abs().max() == 0
    assert whole.std(dim=0).min() > 0.1


@pytest.mark.parametrize("sampler", [DDPM(3), DPMSolver(3, sde=True, singlestep=True), Consistency(3)], ids=str)
def test_a_large_sample_does_not_depend_on_its_batch(sampler):
    # Draws may be made several at a time, as many as there is room for.
    noise = normal(range(64), (5000,), dtype=torch.float64)
    denoiser = wrap(lambda x, t: 0.5 * x, VPLinear())
    whole = sample(denoiser, noise, sampler).x
    for row in (0, 63):
        assert torch.equal(sample(denoiser, noise[row : row + 1], sampler).x[0], whole[row])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_samplers_say_how_often_they_draw(schedule):
    for sampler in [
        *samplers(7),
        *samplers(7, spacing="time"),
        *samplers(7, spacing="karras"),
        *stochastic(7, stop=0.1),
    ]:
        memory, x = None, torch.zeros(1)
        for step in sampler.grid(schedule):
            drawn = []
            x, memory = sampler.step(x, lambda x, at=None: x, step, memory, lambda d=drawn, x=x: d.append(0) or x)
            assert len(drawn) == sampler.draws(step)


@pytest.mark.parametrize("sampler", samplers(7), ids=str)
def test_only_stochastic_samplers_draw(sampler):
    # An estimate of zero leaves a multiple of the first noise; what else there is was drawn on the way.
    noise = normal(range(4000), (3,), dtype=torch.float64)
    x = sample(wrap(lambda x, t: torch.zeros_like(x), VPCosine()), noise, sampler, trace=True).trace[-2]
    drawn = x - (x * noise).mean() / (noise**2).mean() * noise
    if sampler in deterministic(7):
        assert drawn.abs().max() < 1e-14
    else:
        assert drawn.std() > 0.05 * x.std()
        assert abs(drawn.mean()) < 4 * drawn.std() / math.sqrt(drawn.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_of_a_walk_are_independent_standard_normal(dtype):
    # With the clean estimate zero, consistency sampling's iterates are its draws, times sigma.
    schedule, count = VPLinear(), 20_000
    zero = wrap(lambda x, t: torch.zeros_like(x), schedule)
    sampler = Consistency(6)
    trace = sample(zero, normal(range(count), (3,), dtype=dtype), sampler, trace=True).trace[:-1]
    sigmas = [step.start.sigma for step in sampler.grid(schedule)]
    draws = torch.cat([x / sigma for x, sigma in zip(trace, sigmas, strict=True)], dim=1).double()  # [count, 6 x 3]
    assert draws.shape == (count, 18)
    assert (draws.mean(dim=0).abs() < 4.5 / math.sqrt(count)).all()
    assert ((draws**2).mean(dim=0) - 1).abs().max() < 4.5 * math.sqrt(2 / count)
    assert ((draws**4).mean(dim=0) - 3).abs().max() < 4.5 * math.sqrt(96 / count)
    off = ~torch.eye(18, dtype=torch.bool)
    assert torch.corrcoef(draws.T)[off].abs().max() < 4.5 / math.sqrt(count)
    assert torch.corrcoef((draws**2).T)[off].abs().max() < 4.5 / math.sqrt(count)
    neighbours = torch.corrcoef(torch.cat([draws[:-1], draws[1:]], dim=1).T)[:18, 18:]
    assert neighbours.abs().max() < 4.5 / math.sqrt(count)


@pytest.mark.parametrize("sampler", samplers(6), ids=str)
def test_the_same_noise_draws_the_same_sample(sampler):
    data, noise = correlated(VPLinear()), normal(range(8), (3,), dtype=torch.float64)
    first = sample(data, noise, sampler).x
    torch.manual_seed(3)
    torch.randn(5)
    assert torch.equal(sample(data, noise.clone(), sampler).x, first)
    assert (sample(data, -noise, sampler).x - first).abs().min() > 1e-6

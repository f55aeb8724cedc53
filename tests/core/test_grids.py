"""Which noise levels a walk visits, and how its steps hang together."""

import math
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

import core
from core.samplers import DDIM, SPACINGS, Consistency, DPMSolver, Heun, SamplerConfig
from core.schedules import CLEAN, VE, Flow, VPCosine, VPLinear, VPSigmoid, VPTable
from tests.core.every import SCHEDULES, TABLES, deterministic, lambdas_of, samplers, times_of

UNEVEN = [spacing for spacing in SPACINGS if spacing != "leading"]
STARTS = [1.0, 0.9, 0.4]
STOPS = [0.0, 0.05, 0.3]

#: What each spacing is uniform in.
MEASURE = {
    "time": lambda level: level.t,
    "quadratic": lambda level: math.sqrt(level.t),
    "lambda": lambda level: level.lam,
    "karras": lambda level: math.exp(-level.lam / 7),
}


def levels_of(grid):
    return [step.start for step in grid] + [grid[-1].end]


def falls(schedule, levels):
    """Times and lambdas in order; where cosine and sigmoid keep their least signal, lambda alone stands still."""
    for noisier, level in pairwise(levels):
        assert noisier.t > level.t or level == CLEAN
        assert noisier.lam < level.lam or (isinstance(schedule, (VPCosine, VPSigmoid)) and noisier.alpha < 1.0001e-3)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("spacing", UNEVEN)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_grid(schedule, spacing, start):
    for stop, steps in product(STOPS, (1, 2, 3, 15)):
        grid = DDIM(steps, spacing, stop).grid(schedule, start)
        levels = levels_of(grid)
        assert len(grid) == steps
        assert levels[0].t == pytest.approx(start, abs=1e-15)
        assert levels[-1].t == pytest.approx(stop, abs=1e-12)
        falls(schedule, levels)
        for level in levels[:-1] if stop == 0 else levels:
            t = torch.tensor(level.t, dtype=torch.float64)
            assert level.alpha == pytest.approx(schedule.alpha(t).item(), rel=1e-12)
            assert level.sigma == pytest.approx(schedule.sigma(t).item(), rel=1e-12)
            assert level.lam == pytest.approx(schedule.lam(t).item(), abs=1e-12)
        if stop == 0:
            assert levels[-1] == CLEAN
            # lambda grows without bound towards the data, and VE does not reach them: one step goes the rest.
            last = 0.0 if isinstance(schedule, VE) else 1 / schedule.steps if schedule.steps else 1e-3
            if isinstance(schedule, VE) or spacing in ("lambda", "karras"):
                levels = levels[:-1]
                assert steps == 1 or levels[-1].t == pytest.approx(last, abs=1e-12)
        if levels[0].lam == -math.inf and spacing in ("lambda", "karras"):
            continue  # see below
        values = [MEASURE[spacing](level) for level in levels]
        differences = [b - a for a, b in pairwise(values)]
        assert differences == pytest.approx([(values[-1] - values[0]) / max(1, len(differences))] * len(differences))


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("spacing", ["lambda", "karras"])
def test_grid_from_pure_noise_is_uniform_from_just_below(spacing, stop):
    # On Flow lambda is infinite at t = 1: the grid is the one from t = 0.999, but for its first level.
    levels = levels_of(DDIM(12, spacing, stop).grid(Flow()))
    below = levels_of(DDIM(12, spacing, stop).grid(Flow(), 0.999))
    assert levels[0] == Flow().levels(torch.ones(1))[0]
    for level, other in zip(levels[1:], below[1:], strict=True):
        assert level.t == pytest.approx(other.t, abs=1e-12)


@pytest.mark.parametrize("stop", [0.9985, 0.999, 0.99999])
def test_grid_that_stops_just_below_pure_noise_still_falls(stop):
    for spacing in ("lambda", "karras"):
        falls(Flow(), levels_of(DDIM(4, spacing, stop).grid(Flow())))


@pytest.mark.parametrize("spacing", ["lambda", "karras"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_grid_from_below_the_usual_last_time_still_falls(schedule, spacing):
    levels = levels_of(DDIM(4, spacing).grid(schedule, start=5e-4))
    assert levels[0].t == 5e-4
    falls(schedule, levels)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_karras_grid_is_the_published_formula(schedule):
    # Karras et al. 2022, eq. 5, for the noise-to-signal ratio, which is their sigma.
    largest, smallest = torch.exp(-schedule.lam(torch.tensor([0.99, 0.01], dtype=torch.float64))).tolist()
    for i, lam in enumerate(lambdas_of(DDIM(9, "karras", stop=0.01).grid(schedule, 0.99))):
        ratio = (largest ** (1 / 7) + i / 9 * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7
        assert math.exp(-lam) == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_grids_of_edm(steps):
    # Table 1 of Karras et al. 2022: sigma_0 = 80, sigma_{N-1} = 0.002, sigma_N = 0.
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    expected = [(high + i / max(1, steps - 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]
    for spacing in ("time", "karras"):
        assert [x.sigma for x in levels_of(DDIM(steps, spacing).grid(VE()))] == pytest.approx(expected, rel=1e-12)
        assert [x.sigma for x in levels_of(Heun(steps, spacing).grid(VE()))] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 7, 20, 200])
@pytest.mark.parametrize("table", [*TABLES, VPTable.vp(200), VPTable.sigmoid(250)], ids=str)
def test_leading_grid_counts_the_steps_of_a_table(table, steps):
    # diffusers' "leading": timesteps i = k (T // steps), from the last k down, and then the data.
    kept = [k * (table.steps // steps) for k in range(steps)][::-1]
    levels = levels_of(DDIM(steps, "leading").grid(table))
    abars = torch.cumprod(1 - torch.tensor(table.betas, dtype=torch.float64), dim=0)[kept].tolist()
    assert [level.t for level in levels[:-1]] == pytest.approx([(i + 1) / table.steps for i in kept], abs=1e-15)
    assert [level.alpha**2 for level in levels[:-1]] == pytest.approx(abars, rel=1e-11)
    assert levels[-1] == CLEAN


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_leading_and_time_are_the_whole_table_where_no_step_is_left_out(table):
    leading, time = (levels_of(DDIM(table.steps, spacing).grid(table)) for spacing in ("leading", "time"))
    for a, b in zip(leading, time, strict=True):
        assert a.t == pytest.approx(b.t, abs=1e-15)
        assert a.alpha == pytest.approx(b.alpha, rel=1e-12)


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_consistency_sampling_on_the_steps_of_a_table(table):
    grid = Consistency(4, "leading").grid(table)
    assert [step.start for step in grid] == [step.start for step in DDIM(4, "leading").grid(table)]


@pytest.mark.parametrize(
    ("schedule", "steps", "stop", "start", "message"),
    [
        (VPLinear(), 4, 0.0, 1.0, "steps of a table.*VPLinear.*has none"),
        (Flow(), 4, 0.0, 1.0, "steps of a table"),
        (VPTable.cosine(20), 21, 0.0, 1.0, "at most the 20 steps of its table.*got 21"),
        (VPTable.cosine(20), 4, 0.0, 0.5, "from t = 1.*from 0.5"),
        (VPTable.cosine(20), 4, 0.1, 1.0, "has no stop, got 0.1"),
    ],
)
def test_leading_grid_of_something_else(schedule, steps, stop, start, message):
    with pytest.raises(ValueError, match=message):
        DDIM(steps, "leading", stop).grid(schedule, start)


@pytest.mark.parametrize("start", [0.0, 0.1, 0.05, 1.2, -1.0, math.nan])
def test_bad_start(start):
    with pytest.raises(ValueError, match="starts at a time above its stop"):
        DDIM(4, stop=0.1).grid(VPLinear(), start)


def posterior_variance(start, end):
    """Of q(x_end | x_start, x0), from the precisions of x_end given x0 and of x_start given x_end."""
    ratio = start.alpha / end.alpha
    forward = start.sigma**2 - ratio**2 * end.sigma**2
    if end.sigma == 0 or forward <= 0:
        return 0.0
    return 1 / (1 / end.sigma**2 + ratio**2 / forward)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_steps_are_chained(schedule, spacing):
    if spacing == "leading" and schedule.steps is None:
        return
    for sampler in samplers(8, spacing=spacing):
        grid = sampler.grid(schedule)
        assert [step.index for step in grid] == list(range(8))
        assert grid[0].renoise is None
        place = 0
        for before, step in pairwise((None, *grid)):
            assert step.place == place
            assert step.dtau == step.start.t - step.end.t
            assert step.variance == pytest.approx(posterior_variance(step.start, step.end), rel=1e-9, abs=1e-15)
            assert all(isinstance(number, float) and math.isfinite(number) for number in step.coefficients)
            if before is not None and step.renoise is None:
                assert step.start == before.end
            elif before is not None:
                scale, deviation = step.renoise
                inflation = getattr(sampler, "churn_noise", 1.0)
                assert step.start.lam < before.end.lam
                assert scale == pytest.approx(step.start.alpha / before.end.alpha, rel=1e-12)
                added = step.start.sigma**2 - (scale * before.end.sigma) ** 2
                assert deviation**2 == pytest.approx(inflation**2 * added, rel=1e-9)
            if step.inner is not None:
                inner = step.inner
                assert (inner.index, inner.inner_of, inner.place) == (step.index, step.index, place + 1)
                assert (inner.inner, inner.end) == (None, step.end)
                assert step.start.lam < inner.start.lam <= step.end.lam
                assert (inner.dtau, inner.variance) == (step.dtau, step.variance)
            place += 1 if step.inner is None else 2
        assert sampler.evaluations(schedule) == place
        assert grid[-1].end == CLEAN
        assert grid[-1].variance == 0  # nothing is drawn on the way to the data


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_only_churn_and_consistency_sampling_renoise(schedule):
    for sampler in samplers(8, spacing="karras"):
        renoised = [step.renoise is not None for step in sampler.grid(schedule)]
        if isinstance(sampler, Consistency):
            assert renoised == [False] + [True] * 7
        elif getattr(sampler, "churn", 0) == 0:
            assert not any(renoised)
        elif sampler.churn_min == 0:
            assert sum(renoised) >= 6
        else:
            assert 1 <= sum(renoised) <= 6


def test_churn_goes_no_higher_than_where_the_walk_starts():
    for schedule, start in product(SCHEDULES, (0.95, 0.5)):
        grid = Heun(100, "time", churn=100.0).grid(schedule, start)
        assert max(step.start.t for step in grid) <= start
        assert sum(step.start == grid[0].start for step in grid) > 1  # where it would have


@pytest.mark.parametrize("spacing", UNEVEN)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_no_step_is_without_effect(schedule, spacing):
    for sampler, start in product(samplers(20, spacing=spacing), (1.0, 0.6)):
        for step in sampler.grid(schedule, start):
            assert step.start.lam < step.end.lam


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_later_call_of_consistency_sampling_has_noise_to_remove(schedule):
    # A call at VE's sigma_min would be one of the identity.
    for steps in (2, 3, 4):
        levels = [step.start for step in Consistency(steps).grid(schedule)]
        assert all(level.sigma / level.alpha > 0.05 for level in levels if level.alpha > 0)


@pytest.mark.parametrize("sampler", [Heun(2000, "time"), DPMSolver(2000, "time"), DDIM(2000)], ids=str)
def test_where_the_cosine_schedule_is_held_nothing_is_drawn(sampler):
    # Both t = 1 and t = 0.9995 lie at the least alpha: the first step covers no distance in lambda.
    grid = sampler.grid(VPCosine())
    assert grid[0].start.lam == grid[0].end.lam
    assert all(step.renoise is None for step in grid)
    assert times_of(grid) == sorted(times_of(grid), reverse=True)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_last_step_is_repeated_without_noise_in_between(schedule):
    for spacing in ("time", "lambda"):
        walks = zip(deterministic(8, spacing=spacing), deterministic(8, spacing=spacing, repeats=3), strict=True)
        for plain, repeated in [*walks, (DDIM(8, spacing, eta=1.0), DDIM(8, spacing, eta=1.0, repeats=3))]:
            grid = repeated.grid(schedule)
            assert grid[:8] == plain.grid(schedule)
            assert repeated.evaluations(schedule) == plain.evaluations(schedule) + 3
            for place, step in enumerate(grid[8:], 8):
                assert (step.start, step.end, step.index) == (grid[7].start, CLEAN, place)
                assert step.place == grid[7].place + place - 7
                assert step.renoise is None and step.inner is None
                assert repeated.draws(step) == 0


@pytest.mark.parametrize(
    "sampler",
    [DDIM(3), DDIM(3, eta=1.0), DPMSolver(3), DPMSolver(3, order=3, sde=True), Heun(3), Heun(3, churn=1.0)],
    ids=str,
)
def test_a_repeated_step_goes_to_the_estimate_of_what_it_is_given(sampler):
    # To the data, every sampler's step is x0 itself: here half of x, so that three more steps leave an eighth.
    denoiser = core.wrap(lambda x, t: 0.5 * x, VPLinear())
    noise = core.normal(range(4), (2,), dtype=torch.float64)
    once = core.sample(denoiser, noise, sampler).x
    assert torch.allclose(core.sample(denoiser, noise, replace(sampler, repeats=3)).x, once / 8, atol=1e-14)


def test_what_cannot_be_repeated():
    for options in ({"repeats": -1}, {"repeats": 2, "stop": 0.1}):
        with pytest.raises(ValueError, match="repeats its last step to the data, with stop = 0"):
            DDIM(4, **options)
    for sampler in (DDIM(1, repeats=1), Consistency(1, repeats=1)):
        with pytest.raises(ValueError, match="one step of a walk begins with noise and cannot be repeated"):
            sampler.grid(VPLinear())
    config = SamplerConfig("dpm", 10, repeats=2)
    assert (config.build(), str(config)) == (DPMSolver(10, repeats=2), "dpm-10, repeats 2")

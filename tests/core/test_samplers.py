"""What holds of every sampler on every schedule; their arguments and their names in configurations."""

import math
from dataclasses import replace

import pytest
import torch

from core.denoiser import Denoiser, Time, wrap
from core.noise import normal
from core.samplers import (
    DDIM,
    DDPM,
    SAMPLERS,
    SPACINGS,
    Consistency,
    DPMSolver,
    Euler,
    EulerAncestral,
    Heun,
    SamplerConfig,
)
from core.sampling import WarmStart, sample
from core.schedules import CLEAN, VE, Flow, VPCosine, VPLinear
from tests.core.every import SCHEDULES, TABLES, deterministic, samplers, times_of
from tests.core.gaussian import correlated

NOISE = normal(range(16), (3,), dtype=torch.float64)


class Recording(Denoiser):
    """Keeps every call's time and estimate."""

    takes_time = True

    def __init__(self, data):
        self.data = data
        self.schedule = data.schedule
        self.times, self.estimates = [], []

    def __call__(self, x, t, cond=None):
        assert isinstance(t, Time)
        self.times.append(t)
        self.estimates.append(self.data(x, t.tensor))
        return self.estimates[-1]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_sampler_on_every_schedule(schedule, spacing):
    if spacing == "leading" and schedule not in TABLES:
        return
    walks = [(1, 1.0), (6, 1.0)] + [(2, 0.5)] * (spacing != "leading")
    for sampler, start in [(sampler, start) for steps, start in walks for sampler in samplers(steps, spacing=spacing)]:
        denoiser = Recording(correlated(schedule))
        warm = None if start == 1 else WarmStart(torch.zeros_like(NOISE), start)
        result = sample(denoiser, NOISE, sampler, start=warm, trace=True)
        assert all(x.isfinite().all() for x in result.trace)
        assert not result.faults.any()
        assert len(result.trace) == sampler.steps + 1
        # The last step ends at the clean estimate itself.
        assert (result.x - denoiser.estimates[-1]).abs().max() < 1e-12
        # Calls are where the grid says, each once.
        assert len(denoiser.times) == sampler.evaluations(schedule, start)
        assert [time.place for time in denoiser.times] == list(range(len(denoiser.times)))
        assert [time.tensor.item() for time in denoiser.times] == [time.level.t for time in denoiser.times]
        expected = []
        for step in sampler.grid(schedule, start):
            expected += [step.start] if step.inner is None else [step.start, step.inner.start]
        assert [time.level for time in denoiser.times] == expected


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_sampler_stops_where_it_is_told(schedule):
    for sampler in samplers(5)[:-1]:
        grid = replace(sampler, stop=0.2).grid(schedule)
        assert grid[-1].end.t == pytest.approx(0.2, abs=1e-12)
        assert sample(correlated(schedule), NOISE, replace(sampler, stop=0.2)).x.isfinite().all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_numbers_of_calls(schedule):
    singles = [DDIM(7), DDPM(7), *(DPMSolver(7, order=order) for order in (1, 2, 3)), Consistency(7)]
    assert [sampler.evaluations(schedule) for sampler in singles] == [7] * 6
    # Two a step, but for the last one to the data, and for 2S the first one from where lambda is infinite.
    pure = isinstance(schedule, Flow)
    assert Heun(7).evaluations(schedule) == Heun(7, churn=3.0).evaluations(schedule) == 13
    assert Heun(7, stop=0.1).evaluations(schedule) == 14
    assert DPMSolver(7, singlestep=True).evaluations(schedule) == 13 - pure
    assert DPMSolver(7, singlestep=True, sde=True, stop=0.1).evaluations(schedule, 0.9) == 14


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_what_is_equal_in_exact_arithmetic_is_equal(schedule, spacing):
    if spacing == "leading" and schedule not in TABLES:
        return
    data = correlated(schedule)

    def walk(sampler):
        return torch.stack(sample(data, NOISE, sampler, trace=True).trace)

    ddim, ddpm = walk(DDIM(12, spacing)), walk(DDPM(12, spacing))
    assert (ddim - walk(DPMSolver(12, spacing, order=1))).abs().max() < 1e-13 * ddim.abs().max()
    assert (ddpm - walk(DPMSolver(12, spacing, order=1, sde=True))).abs().max() < 1e-13 * ddpm.abs().max()
    assert torch.equal(ddim, walk(Euler(12, spacing)))
    assert torch.equal(ddpm, walk(EulerAncestral(12, spacing)))
    others = [*deterministic(12, spacing=spacing)[2:], DDPM(12, spacing)]
    assert all((ddim[-1] - walk(other)[-1]).abs().max() > 1e-4 for other in others)
    assert (ddpm[-1] - walk(DDPM(12, spacing, large=True))[-1]).abs().max() > 1e-4


@pytest.mark.parametrize("sampler", samplers(7), ids=str)
def test_single_precision(sampler):
    schedule = VPLinear()
    gauss = correlated(schedule)
    denoiser = wrap(lambda x, t: gauss(x.double(), t).to(x.dtype), schedule)
    noise = NOISE.float()
    low, high = sample(denoiser, noise, sampler).x, sample(denoiser, noise.double(), sampler).x
    assert low.dtype == torch.float32
    # Later noise hangs on the bits of the first, which widening keeps.
    assert (low.double() - high).abs().max() < 2e-5


def test_a_sampler_can_be_shared_between_schedules_and_copies():
    sampler = DPMSolver(6, order=3)
    assert sampler.grid(VPLinear()) is sampler.grid(VPLinear())
    assert DPMSolver(6, order=3).grid(VPLinear()) == sampler.grid(VPLinear())
    assert sampler.grid(VPLinear(0.1, 10.0)) != sampler.grid(VPLinear())
    lambdas = DPMSolver(6, "lambda", order=3)
    assert times_of(lambdas.grid(TABLES[0])) != times_of(lambdas.grid(TABLES[1]))


def test_edm_s_frame_needs_some_signal():
    with pytest.raises(ValueError, match=r'"edm" frame divides by alpha.*Flow.*frame="flow"'):
        Heun(4, frame="edm").grid(Flow())
    assert Heun(4, frame="edm").grid(Flow(), 0.99)[-1].end == CLEAN
    assert Heun(4).grid(VE()) == Heun(4, frame="edm").grid(VE())
    for schedule in (VPLinear(), Flow()):
        assert Heun(4).grid(schedule) == Heun(4, frame="flow").grid(schedule)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (DDIM, {"steps": 0}, "steps >= 1, got 0"),
        (DDPM, {"steps": -3}, "steps >= 1"),
        (DDIM, {"spacing": "uniform"}, "unknown spacing 'uniform'.*leading"),
        (DDIM, {"stop": 1.0}, "stop is a time"),
        (DDIM, {"stop": math.nan}, "stop is a time"),
        (DPMSolver, {"stop": -0.1}, "stop is a time"),
        (DDIM, {"eta": 1.5}, "eta lies in"),
        (DDIM, {"eta": -0.1}, "eta lies in"),
        (DDIM, {"eta": math.nan}, "eta lies in"),
        (DDIM, {"large": True}, "large variance is DDPM's.*eta = 0"),
        (DPMSolver, {"order": 4}, "orders 1, 2 and 3, got 4"),
        (DPMSolver, {"order": 0}, "orders 1, 2 and 3"),
        (DPMSolver, {"order": 3, "singlestep": True}, "single-step DPMSolver is of order 2, got 3"),
        (Heun, {"frame": "flw"}, "unknown frame 'flw'"),
        (Heun, {"churn": -1.0}, "churn must be finite"),
        (Heun, {"churn": math.inf}, "churn must be finite"),
        (Heun, {"churn": math.nan}, "churn must be finite"),
        (Heun, {"churn_min": 2.0, "churn_max": 1.0}, "churn_min <= churn_max"),
        (Heun, {"churn_noise": -1.0}, "churn_noise >= 0"),
        (Consistency, {"stop": 0.1}, "ends at the data: it has no stop, got 0.1"),
    ],
)
def test_bad_arguments(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("options", "sampler", "words"),
    [
        ({}, DDIM(5), "ddim-5"),
        (
            {"name": "ddim", "steps": 7, "spacing": "karras", "stop": 0.1},
            DDIM(7, "karras", 0.1),
            "ddim-7, karras, stop 0.1",
        ),
        ({"name": "ddim", "eta": 0.5}, DDIM(5, eta=0.5), "ddim-5, eta 0.5"),
        ({"name": "ddim", "eta": 0.0, "large": False}, DDIM(5), "ddim-5"),
        ({"name": "ddpm", "steps": 7}, DDPM(7), "ddpm-7"),
        ({"name": "ddpm", "large": True}, DDPM(5, large=True), "ddpm-5, large"),
        ({"name": "ddpm", "spacing": "leading"}, DDPM(5, "leading"), "ddpm-5, leading"),
        ({"name": "dpm"}, DPMSolver(5), "dpm-5"),
        ({"name": "dpm", "order": 3, "spacing": "time"}, DPMSolver(5, "time", order=3), "dpm-5, order 3"),
        ({"name": "dpm", "order": 1, "sde": True}, DPMSolver(5, order=1, sde=True), "dpm-5, order 1, sde"),
        ({"name": "dpm", "singlestep": True}, DPMSolver(5, singlestep=True), "dpm-5, singlestep"),
        ({"name": "heun"}, Heun(5), "heun-5"),
        ({"name": "heun", "churn": 2.5, "stop": 0.01}, Heun(5, stop=0.01, churn=2.5), "heun-5, churn 2.5, stop 0.01"),
        ({"name": "consistency", "steps": 2}, Consistency(2), "consistency-2"),
        ({"name": "consistency", "spacing": "karras"}, Consistency(5, "karras"), "consistency-5, karras"),
    ],
)
def test_samplers_by_name(options, sampler, words):
    config = SamplerConfig(**options)
    assert config.build() == sampler
    assert type(config.build()) is type(sampler)
    assert str(config) == words


def test_every_name_builds():
    assert {name: type(SamplerConfig(name).build()) for name in SAMPLERS} == SAMPLERS


MEANT = {
    "ddim": {"eta", "large"},
    "ddpm": {"large"},
    "dpm": {"order", "sde", "singlestep"},
    "heun": {"churn"},
    "consistency": set(),
}
VALUES = {"eta": 0.5, "large": True, "order": 2, "sde": True, "singlestep": True, "churn": 1.0}


@pytest.mark.parametrize(("name", "option"), [(n, o) for n in SAMPLERS for o in VALUES if o not in MEANT[n]])
def test_options_that_mean_nothing_to_a_sampler(name, option):
    with pytest.raises(ValueError, match=f"sampler.{option} means nothing to sampler.name={name}"):
        SamplerConfig(name, **{option: VALUES[option]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "euler"}, "unknown sampler.name 'euler': choose one of ddim, ddpm, dpm, heun, consistency"),
        ({"steps": 0}, "steps >= 1"),
        ({"spacing": "even"}, "unknown spacing 'even'"),
        ({"name": "dpm", "order": 3, "singlestep": True}, "of order 2"),
        ({"name": "consistency", "stop": 0.1}, "has no stop"),
        ({"eta": 2.0}, "eta lies in"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**options)


def test_second_order_passes_the_levels_where_the_cosine_schedule_is_held():
    # Both t = 1 and t = 0.9995 lie at the least alpha: the first step covers no distance in lambda.
    for sampler in (DPMSolver(2000, "time"), DPMSolver(2000, "time", order=3, sde=True), Heun(2000, "time")):
        assert sample(correlated(VPCosine()), NOISE, sampler).x.isfinite().all()

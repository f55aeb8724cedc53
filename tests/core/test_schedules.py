import math

import pytest
import torch

from core.schedules import MIN_ALPHA, SCHEDULES, VPCosine, VPLinear

VARIANCE_PRESERVING = [VPLinear(), VPLinear(0.05, 9.0), VPCosine(), VPCosine(s=0.03)]
EVERY = [*(make() for make in SCHEDULES.values()), VPLinear(0.05, 9.0), VPCosine(s=0.03)]
INTERIOR = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=str)
def test_variance_is_preserved(schedule):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 - 1).abs().max() < 1e-14


@pytest.mark.parametrize(("low", "high"), [(0.1, 20.0), (0.05, 9.0)])
@pytest.mark.parametrize("t", [0.01, 0.3, 0.5, 0.77, 1.0])
def test_linear_is_the_integral_of_beta(t, low, high):
    # Song et al. 2021: alpha^2 = exp(-integral of beta); Simpson's rule is exact for a linear beta.
    beta = [low + s * (high - low) for s in (0.0, t / 2, t)]
    alpha_bar = math.exp(-t / 6 * (beta[0] + 4 * beta[1] + beta[2]))
    schedule, time = VPLinear(low, high), torch.tensor(t, dtype=torch.float64)
    assert schedule.alpha(time).item() == pytest.approx(math.sqrt(alpha_bar), rel=1e-13)
    assert schedule.sigma(time).item() == pytest.approx(math.sqrt(1 - alpha_bar), rel=1e-12)


@pytest.mark.parametrize("s", [0.008, 0.03])
@pytest.mark.parametrize("t", [0.01, 0.3, 0.5, 0.77, 0.99])
def test_cosine_is_the_published_formula(t, s):
    def f(time):
        return math.cos((time + s) / (1 + s) * math.pi / 2) ** 2

    schedule, time = VPCosine(s), torch.tensor(t, dtype=torch.float64)
    assert schedule.alpha(time).item() == pytest.approx(math.sqrt(f(t) / f(0)), rel=1e-13)
    assert schedule.sigma(time).item() == pytest.approx(math.sqrt(1 - f(t) / f(0)), rel=1e-11)


def test_sigma_keeps_its_digits_near_the_data():
    # sigma^2 -> beta_min t for the linear schedule, and pi tan(theta_0) / (1 + s) t for the cosine one.
    t = torch.tensor(1e-12, dtype=torch.float64)
    slope = math.pi * math.tan(0.008 / 1.008 * math.pi / 2) / 1.008
    assert VPLinear().sigma(t).item() ** 2 == pytest.approx(0.1e-12, rel=1e-5, abs=0)
    assert VPCosine().sigma(t).item() ** 2 == pytest.approx(slope * 1e-12, rel=1e-5, abs=0)


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_time_and_lambda_are_inverse(schedule):
    lam = schedule.lam(INTERIOR)
    assert (lam.diff() < 0).all()
    assert (schedule.time(lam) - INTERIOR).abs().max() < 1e-12
    levels = torch.linspace(lam[-1].item(), lam[0].item(), 300, dtype=torch.float64)
    assert (schedule.lam(schedule.time(levels)) - levels).abs().max() < 1e-10


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_time_is_recovered_from_the_signal_to_noise_ratio(schedule):
    snr = (schedule.alpha(INTERIOR) / schedule.sigma(INTERIOR)) ** 2
    assert (schedule.time(0.5 * snr.log()) - INTERIOR).abs().max() < 1e-12


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_the_ends_are_clean_data_and_finite_noise(schedule):
    ends = torch.tensor([0.0, 1.0])
    alpha, sigma, lam = schedule.alpha(ends), schedule.sigma(ends), schedule.lam(ends)
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert lam[0] == torch.inf
    assert schedule.time(lam[:1]) == 0
    assert MIN_ALPHA * (1 - 1e-9) <= alpha[1] < 0.15
    assert 0.98 < sigma[1] <= 1
    assert lam[1].isfinite()


@pytest.mark.parametrize("s", [0.0003, 0.001, 0.008, 0.0123, 0.2, 1.0])
def test_cosine_starts_without_noise_for_any_offset(s):
    # The rounding of a difference of equal angles must not reach the square root.
    assert (VPCosine(s).sigma(torch.zeros(9)) == 0).all()


def test_cosine_alpha_stops_at_its_least_value():
    t = torch.tensor([0.9990, 0.9995, 0.9999, 1.0], dtype=torch.float64)
    alpha = VPCosine().alpha(t)
    assert alpha[0] > 1.2 * MIN_ALPHA
    assert torch.allclose(alpha[1:], torch.full((3,), MIN_ALPHA, dtype=torch.float64), rtol=1e-9)


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_results_are_float64_of_the_same_shape(schedule):
    for shape in ((), (3,), (2, 5)):
        t = torch.full(shape, 0.4)
        for result in (schedule.alpha(t), schedule.sigma(t), schedule.lam(t), schedule.time(t)):
            assert result.shape == shape
            assert result.dtype == torch.float64


def test_levels_are_plain_floats():
    schedule = VPLinear()
    t = torch.tensor([1.0, 0.25, 0.0])
    for level, time in zip(schedule.levels(t), t, strict=True):
        assert all(type(value) is float for value in (level.t, level.alpha, level.sigma, level.lam))
        expected = [time.item(), schedule.alpha(time).item(), schedule.sigma(time).item(), schedule.lam(time).item()]
        assert [level.t, level.alpha, level.sigma, level.lam] == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diffuse_takes_one_time_or_one_per_sample(dtype):
    schedule = VPCosine()
    x0, noise = torch.full((2, 3, 4), 2.0, dtype=dtype), torch.full((2, 3, 4), -1.0, dtype=dtype)
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    x = schedule.diffuse(x0, noise, t)
    assert x.dtype == dtype
    for row in range(2):
        expected = 2 * schedule.alpha(t[row]) - schedule.sigma(t[row])
        assert torch.allclose(x[row].double(), expected.expand(3, 4), atol=1e-6)
        assert torch.equal(schedule.diffuse(x0, noise, t[row])[row], x[row])


@pytest.mark.parametrize(
    "betas", [(0.0, 20.0), (-0.1, 20.0), (20.0, 0.1), (1.0, 1.0), (math.nan, 20.0), (0.1, math.nan)]
)
def test_linear_rejects_bad_betas(betas):
    with pytest.raises(ValueError, match="beta_min < beta_max"):
        VPLinear(*betas)


@pytest.mark.parametrize("s", [0.0, -0.008])
def test_cosine_rejects_a_bad_offset(s):
    with pytest.raises(ValueError, match="offset s > 0"):
        VPCosine(s)

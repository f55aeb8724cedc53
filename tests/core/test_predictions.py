import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from core.predictions import PREDICTIONS, convert, prediction_of
from core.schedules import CLEAN, VE, Flow, VPCosine, VPLinear, VPSigmoid, VPTable, per_sample
from tests.core.gaussian import correlated

SCHEDULES = [VPLinear(), VPCosine(), VPSigmoid(), VE(), Flow(), VPTable.linear(), VPTable.cosine(37), VPTable.vp()]
TIMES = [0.01, 0.2, 0.5, 0.77, 0.99]

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
every_prediction = pytest.mark.parametrize("name", PREDICTIONS)


def draws(rows=5, seed=0):
    return torch.randn(2, rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def level_of(schedule, t):
    return schedule.levels(torch.tensor([t], dtype=torch.float64))[0]


def karras(kappa, std):
    """Karras et al. 2022, table 1, at noise kappa: c_skip, c_out, c_in."""
    root = math.sqrt(kappa**2 + std**2)
    return std**2 / (kappa**2 + std**2), kappa * std / root, 1 / root


def named(name, alpha, sigma, x0, noise, std=1.0):
    """What each prediction is, from its paper, with none of the code's coefficients."""
    if name == "edm":
        skip, out, _ = karras(sigma / alpha, std)
        return (x0 - skip * (x0 + sigma / alpha * noise)) / out
    return {
        "noise": noise,
        "x0": x0,
        "v": alpha * noise - sigma * x0,
        "score": -noise / sigma,
        "flow": noise - x0,
    }[name]


@every_schedule
@every_prediction
@pytest.mark.parametrize("std", [1.0, 0.3, 2.5])
def test_targets_stand_for_the_clean_sample_and_are_what_they_are_called(schedule, name, std):
    x0, noise = draws()
    prediction = prediction_of(name)
    for t in TIMES:
        level = level_of(schedule, t)
        c, d = prediction.target(level.alpha, level.sigma, std)
        p, q = prediction.estimate(level.alpha, level.sigma, std)
        output, x = c * x0 + d * noise, level.alpha * x0 + level.sigma * noise
        assert (p * x + q * output - x0).abs().max() < 1e-12
        expected = named(name, level.alpha, level.sigma, x0, noise, std)
        assert ((output - expected).abs() <= 1e-12 * (1 + expected.abs() + x.abs() / level.alpha)).all()


@every_schedule
@every_prediction
def test_floats_and_tensors_give_the_same_coefficients(schedule, name):
    t = torch.tensor(TIMES, dtype=torch.float64)
    levels = schedule.levels(t)
    for side in (prediction_of(name).estimate, prediction_of(name).target):
        columns = side(schedule.alpha(t), schedule.sigma(t), 0.7)
        assert all(column.shape == t.shape for column in columns)
        for row, level in enumerate(levels):
            numbers = side(level.alpha, level.sigma, 0.7)
            assert [column[row].item() for column in columns] == pytest.approx(numbers, rel=1e-14)


@every_schedule
def test_the_score_is_the_gradient_of_the_log_density(schedule):
    x0, noise = draws()
    for t in TIMES:
        level = level_of(schedule, t)
        x = (level.alpha * x0 + level.sigma * noise).requires_grad_()
        density = Normal(level.alpha * x0, torch.tensor(level.sigma, dtype=torch.float64)).log_prob(x).sum()
        (score,) = torch.autograd.grad(density, x)
        c, d = prediction_of("score").target(level.alpha, level.sigma, 1.0)
        assert torch.allclose(c * x0 + d * noise, score, rtol=1e-9)


@pytest.mark.parametrize(("name", "schedule"), [("flow", Flow()), ("v", VPLinear()), ("v", VPSigmoid())])
def test_velocities_are_derivatives_of_the_sample(name, schedule):
    # flow: dx/dt. v: dx/dphi, where alpha = cos(phi) and sigma = sin(phi).
    x0, noise = draws()
    for value in TIMES:
        t = torch.tensor(value, dtype=torch.float64)
        angle = torch.atan2(schedule.sigma(t), schedule.alpha(t)) if name == "v" else t

        def sample(place):
            alpha, sigma = (place.cos(), place.sin()) if name == "v" else (1 - place, place)
            return alpha * x0 + sigma * noise

        _, velocity = torch.autograd.functional.jvp(sample, angle, torch.ones_like(angle))
        c, d = prediction_of(name).target(schedule.alpha(t), schedule.sigma(t), 1.0)
        assert torch.allclose(c * x0 + d * noise, velocity, rtol=1e-12, atol=1e-13)


@every_schedule
@pytest.mark.parametrize("std", [1.0, 0.3, 2.5])
def test_edm_is_the_published_preconditioning(schedule, std):
    # Karras's D(X) = c_skip X + c_out F, for X = x / alpha at noise kappa = sigma / alpha.
    for t in TIMES:
        level = level_of(schedule, t)
        skip, out, _ = karras(level.sigma / level.alpha, std)
        p, q = prediction_of("edm").estimate(level.alpha, level.sigma, std)
        assert p * level.alpha == pytest.approx(skip, rel=1e-12)
        assert q == pytest.approx(out, rel=1e-12)


def test_edm_targets_of_data_of_its_deviation_have_unit_variance():
    # What the preconditioning is for (Karras et al. 2022, appendix B.6).
    for std in (0.3, 1.0, 2.5):
        for t in TIMES:
            level = level_of(VE(), t)
            c, d = prediction_of("edm").target(level.alpha, level.sigma, std)
            assert (c * std) ** 2 + d**2 == pytest.approx(1, rel=1e-12)


@every_schedule
@pytest.mark.parametrize("std", [1.0, 0.4])
@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
def test_conversion_gives_what_the_other_network_would_have_said(schedule, source, target, std):
    x0, noise = draws(seed=1)
    for t in TIMES:
        level = level_of(schedule, t)
        x = level.alpha * x0 + level.sigma * noise
        first, second = (named(name, level.alpha, level.sigma, x0, noise, std) for name in (source, target))
        converted = convert(first, x, level, source, target, std)
        back = convert(converted, x, level, target, source, std)
        for result, expected in ((converted, second), (back, first)):
            assert (result - expected).abs().max() < 1e-12 * (1 + expected.abs().max())


@every_schedule
@every_prediction
def test_conversion_of_the_exact_noise_of_gaussian_data(schedule, name):
    data, (x, _) = correlated(schedule), draws(seed=2)
    for t in (0.1, 0.5, 0.9):
        level, time = level_of(schedule, t), torch.tensor(t, dtype=torch.float64)
        noise, x0 = data.noise(x, time), data(x, time)
        expected = named(name, level.alpha, level.sigma, x0, noise, 0.8)
        for source, output in (("noise", noise), ("x0", x0)):
            converted = convert(output, x, level, source, name, 0.8)
            assert (converted - expected).abs().max() < 1e-12 * (1 + expected.abs().max())


@every_schedule
def test_the_score_of_gaussian_data_is_that_of_its_noisy_law(schedule):
    data, (x, _) = correlated(schedule), draws(seed=3)
    for t in (0.1, 0.5, 0.9):
        level, leaf = level_of(schedule, t), x.clone().requires_grad_()
        law = level.alpha**2 * data.covariance + level.sigma**2 * torch.eye(3, dtype=torch.float64)
        density = MultivariateNormal(level.alpha * data.mean, law).log_prob(leaf).sum()
        (score,) = torch.autograd.grad(density, leaf)
        x0 = data(x, torch.tensor(t, dtype=torch.float64))
        assert torch.allclose(convert(x0, x, level, "x0", "score"), score, rtol=1e-8, atol=1e-10)


def test_conversion_keeps_precision_and_shape():
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for name in PREDICTIONS:
        output = convert(x, x, level_of(VPLinear(), 0.5), "noise", name)
        assert output.dtype == torch.float32
        assert output.shape == x.shape


def test_predictions_do_not_convert_without_signal_or_noise():
    x = torch.zeros(1, 1)
    for level in (CLEAN, level_of(Flow(), 0.0), level_of(Flow(), 1.0), level_of(VPTable.vp(), 0.0)):
        with pytest.raises(ValueError, match="predictions convert where there are signal and noise"):
            convert(x, x, level, "noise", "x0")


def test_unknown_predictions_name_the_known():
    x, level = torch.zeros(1, 1), level_of(Flow(), 0.5)
    for call in (
        lambda: prediction_of("epsilon"),
        lambda: convert(x, x, level, "epsilon", "x0"),
        lambda: convert(x, x, level, "x0", "epsilon"),
    ):
        with pytest.raises(ValueError, match="unknown prediction 'epsilon'") as error:
            call()
        assert all(name in str(error.value) for name in PREDICTIONS)


@every_prediction
def test_one_time_for_each_sample(name):
    schedule, (x0, noise) = VPCosine(), draws()
    t = torch.tensor(TIMES, dtype=torch.float64)
    c, d = prediction_of(name).target(schedule.alpha(t), schedule.sigma(t), 0.5)
    p, q = prediction_of(name).estimate(schedule.alpha(t), schedule.sigma(t), 0.5)
    output = per_sample(c, x0) * x0 + per_sample(d, x0) * noise
    x = schedule.diffuse(x0, noise, t)
    assert (per_sample(p, x) * x + per_sample(q, x) * output - x0).abs().max() < 1e-12

"""Guidance against closed forms: what is exact is held to rounding, what is an approximation to its known deviation."""

import math

import pytest
import torch

from core.denoiser import wrap
from core.guidance import ENERGIES, ClassifierFree, Energy, gradient
from core.noise import normal
from core.samplers import DDIM, DDPM, DPMSolver, Heun
from core.sampling import WarmStart, sample
from core.schedules import VE, Flow, VPCosine, VPLinear, VPTable
from tests.core.gaussian import Gaussian, correlated

X = normal(range(6), (3,), dtype=torch.float64)
T = torch.tensor(0.5, dtype=torch.float64)
TIMES = torch.tensor([0.02, 0.3, 0.5, 0.7, 0.9, 0.99], dtype=torch.float64)
SHIFT = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
MEAN = correlated(VPLinear()).mean
COND = (MEAN + SHIFT).expand(6, 3)
OTHER = (MEAN + torch.tensor([0.5, 0.5, -1.0], dtype=torch.float64)).expand(6, 3)
SLOPE = torch.tensor([0.7, -0.2, 0.4], dtype=torch.float64)
SCHEDULES = [VPLinear(), VPCosine(), VE(), Flow()]
SAMPLERS = [DDIM(12), DDPM(12), DPMSolver(12), DPMSolver(12, singlestep=True), Heun(12, "time", frame="flow")]


class TwoGaussians:
    """One network for both: where the condition [B, 3] is NaN the data of `correlated`, else N(condition, `spread`
    times its covariance)."""

    def __init__(self, schedule, spread=1.0):
        self.schedule, self.spread = schedule, spread
        self.unconditional = correlated(schedule)
        self.rows = []

    def conditional(self, x, t, cond):
        return Gaussian(self.schedule, cond, self.spread * self.unconditional.covariance)(x, t)

    def __call__(self, x, t, cond=None):
        self.rows.append(len(x))
        assert len(cond) == len(x)
        assert t.ndim == 0 or len(t) == len(x)
        return torch.where(cond.isnan(), self.unconditional(x, t), self.conditional(x, t, cond.nan_to_num()))


def tilted(data, slope):
    """N(mean, covariance) times exp(-slope . x)."""
    return Gaussian(data.schedule, data.mean - data.covariance @ slope, data.covariance)


def linear(slope):
    return lambda x0: x0 @ slope


def close(a, b, tolerance=1e-11):
    assert (a - b).abs().max() < tolerance


# Classifier-free.


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.4, 5.0, -1.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_guidance_extrapolates_from_the_unconditional_estimate(schedule, scale):
    both = TwoGaussians(schedule, spread=0.4)
    for t in (*TIMES, TIMES):  # of the batch, and each sample's own
        unconditional, conditional = both.unconditional(X, t), both.conditional(X, t, COND)
        close(ClassifierFree(both, scale)(X, t, COND), unconditional + scale * (conditional - unconditional), 1e-12)


@pytest.mark.parametrize("scales", [(1.5, -0.5), (1.2, 0.0), (0.5, 0.3), (3.0, 2.0), (0.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_conditions_compose(schedule, scales):
    both = TwoGaussians(schedule, spread=0.4)
    for t in (*TIMES, TIMES):
        expected = unconditional = both.unconditional(X, t)
        for scale, cond in zip(scales, (COND, OTHER), strict=True):
            expected = expected + scale * (both.conditional(X, t, cond) - unconditional)
        close(ClassifierFree(both, scales)(X, t, [COND, OTHER]), expected, 1e-11)


@pytest.mark.parametrize("scales", [(0.0,), (1.4,), (3.0,), (-1.0,), (1.5, -0.5), (0.6, 0.9)])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_guided_samples_of_equal_covariance_come_from_the_moved_gaussian(sampler, scales):
    # With one covariance, p(x) prod (p(x | c) / p(x))^scale is the Gaussian with its mean moved by sum scale (c - m).
    both, conditions = TwoGaussians(VPLinear()), [COND, OTHER][: len(scales)]
    moved = MEAN + sum(scale * (cond[0] - MEAN) for scale, cond in zip(scales, conditions, strict=True))
    guided = sample(ClassifierFree(both, scales), X, sampler, cond=conditions).x
    close(guided, sample(Gaussian(VPLinear(), moved, both.unconditional.covariance), X, sampler).x, 1e-10)


@pytest.mark.parametrize(
    ("scales", "parts"),
    [
        *[((0.0,), 1), ((1.0,), 1), ((1.4,), 2), ((-0.5,), 2), ((1.5, -0.5), 2), ((1.2, 0.0), 2), ((0.5, 0.5), 2)],
        *[((0.5, 0.3), 3), ((1.0, 0.0), 1), ((0.0, 0.0), 1), ((2.0, -0.5, 0.7), 4), ((0.7, 0.2, 0.1), 3)],
    ],
)
def test_one_network_call_a_step_has_a_row_for_each_part_that_counts(scales, parts):
    both = TwoGaussians(VPCosine())
    sample(ClassifierFree(both, scales), X, DDIM(5), cond=[COND, OTHER, COND][: len(scales)])
    assert both.rows == [parts * 6] * 5


def test_scale_zero_ignores_the_condition():
    both = TwoGaussians(VPCosine())
    for cond in (COND, 7 * COND):
        assert torch.equal(ClassifierFree(both, 0.0)(X, T, cond), both.unconditional(X, T))
    other = [ClassifierFree(both, 1.4)(X, T, cond) for cond in (COND, 7 * COND)]
    assert (other[0] - other[1]).abs().max() > 0.1


def test_the_parts_of_the_batch_stay_apart():
    # Each row is guided by its own condition, at its own time: rows one by one give what the batch gives.
    both = TwoGaussians(VPCosine())
    cond = COND * torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    cond[2] = torch.nan
    guided = ClassifierFree(both, (2.0, 0.5))
    batch = guided(X, TIMES, [cond, OTHER])
    for row in range(6):
        one = slice(row, row + 1)
        close(guided(X[one], TIMES[row], [cond[one], OTHER[one]]), batch[one], 1e-13)
    close(ClassifierFree(both, 2.0)(X, TIMES, cond)[2], both.unconditional(X, TIMES)[2], 1e-13)


@pytest.mark.parametrize(
    ("scale", "cond"), [(0.0, None), (1.0, None), (1.4, None), (1.4, [COND, OTHER]), ((1, 2), COND), ((1, 2), [COND])]
)
def test_there_are_as_many_conditions_as_scales(scale, cond):
    with pytest.raises(ValueError, match="needs as many conditions, got"):
        sample(ClassifierFree(TwoGaussians(VPCosine()), scale), X, DDIM(2), cond=cond)


@pytest.mark.parametrize("scale", [math.nan, math.inf, (1.0, -math.inf), [math.nan, 0.0], ()])
def test_guidance_scales_are_finite_and_at_least_one(scale):
    with pytest.raises(ValueError, match="scale"):
        ClassifierFree(TwoGaussians(VPCosine()), scale)


# Energies.


@pytest.mark.parametrize("scale", [-1.0, 0.3, 2.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_linear_energy_is_exact_on_gaussian_data(schedule, scale):
    data = correlated(schedule)
    exact, guided = tilted(data, scale * SLOPE), Energy(data, linear(SLOPE), scale)
    for t in (*TIMES, TIMES):
        close(guided(X, t), exact(X, t))
    for sampler in SAMPLERS:
        close(
            sample(guided, X, sampler, start=WarmStart(0 * X, 0.99)).x,
            sample(exact, X, sampler, start=WarmStart(0 * X, 0.99)).x,
        )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_linear_energy_follows_the_exact_flow_of_the_tilted_gaussian(schedule):
    data, start = correlated(schedule), WarmStart(0 * X, 0.95)
    exact = tilted(data, SLOPE).flow(schedule.sigma(torch.tensor(0.95)) * X, 0.95, 0.05)
    errors = [
        (sample(Energy(data, linear(SLOPE)), X, DPMSolver(steps, "lambda", stop=0.05), start=start).x - exact)
        .abs()
        .max()
        .item()
        for steps in (40, 80)
    ]
    assert errors[1] < 2e-3
    assert 3.2 < errors[0] / errors[1] < 4.8  # of second order, like its solver


NORMAL = torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)


def to_one(x0):
    """J = (x - 1)^2 / 2, which makes N(1/2, 1/2) of the standard normal."""
    return (x0[:, 0] - 1) ** 2 / 2


def exact_energy(schedule):
    """E_t(x) = -log E[exp(-J(x0)) | x_t = x] for standard normal data: x0 | x_t is N(m, v)."""

    def energy(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        m, v = alpha * x[:, 0] / (alpha**2 + sigma**2), sigma**2 / (alpha**2 + sigma**2)
        return (m - 1) ** 2 / (2 * (1 + v))

    return energy


def moments(denoiser, sampler):
    """Mean and variance of what a deterministic sampler makes of Gaussian data: an affine map of the noise."""
    low, high = sample(denoiser, torch.tensor([[-1.0], [1.0]], dtype=torch.float64), sampler).x[:, 0].tolist()
    return (low + high) / 2, ((high - low) / 2) ** 2


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("sampler", [DDIM(1500, "lambda"), DPMSolver(200), DPMSolver(100, order=3), Heun(100)], ids=str)
def test_the_exact_noisy_energy_gives_the_tilted_gaussian(schedule, sampler):
    if isinstance(sampler, Heun) and isinstance(schedule, Flow):
        sampler = Heun(200, "time")
    guided = Energy(Gaussian(schedule, *NORMAL), exact_energy(schedule), on="noisy")
    assert moments(guided, sampler) == pytest.approx((0.5, 0.5), abs=6e-3)


@pytest.mark.parametrize("schedule", [VPLinear(), VE(), Flow(), VPTable.cosine(400)], ids=str)
def test_the_exact_noisy_energy_gives_the_tilted_gaussian_to_ancestral_sampling(schedule):
    guided = Energy(Gaussian(schedule, *NORMAL), exact_energy(schedule), on="noisy")
    exact = Gaussian(schedule, NORMAL[0] + 0.5, NORMAL[1] / 2)
    noise = normal(range(8000), (1,), dtype=torch.float64)
    x = sample(guided, noise, DDPM(400)).x
    close(x, sample(exact, noise, DDPM(400)).x, 1e-4 if isinstance(schedule, Flow) else 1e-9)
    assert x.mean().item() == pytest.approx(0.5, abs=0.03)
    assert x.var().item() == pytest.approx(0.5, abs=0.04)  # 400 steps of the "small" variance leave 0.48


@pytest.mark.parametrize("on", ["estimate", "frozen"])
def test_a_quadratic_energy_of_the_estimate_deviates_as_known(on):
    # dx/ds = a (a x - 1) in s = -log a, so the variance is 1/e and the mean e^(-1/2) int_0^1 e^(u^2 / 2) du = 0.7248,
    # where 1/2 and 1/2 are exact. Ancestral sampling solves another equation: mean 1 - 1/e, variance (1 - e^-2) / 2.
    data = Gaussian(VPCosine(), *NORMAL)
    assert moments(Energy(data, to_one, on=on), DPMSolver(100)) == pytest.approx((0.7248, 0.3679), abs=2e-3)
    # Its mirror image x -> 1 - x has the reference's mean: data N(1, 1), J = x^2 / 2.
    mirrored = Energy(Gaussian(VPCosine(), NORMAL[0] + 1, NORMAL[1]), lambda x0: x0[:, 0] ** 2 / 2, on=on)
    assert moments(mirrored, DPMSolver(100)) == pytest.approx((0.275, 0.367), abs=2e-3)
    x = sample(Energy(data, to_one, on=on), normal(range(20000), (1,), dtype=torch.float64), DDPM(200)).x
    assert x.mean().item() == pytest.approx(1 - math.exp(-1), abs=0.02)
    assert x.var().item() == pytest.approx((1 - math.exp(-2)) / 2, abs=0.02)


@pytest.mark.parametrize("schedule", [*SCHEDULES, VPTable.cosine(20)], ids=str)
def test_frozen_equals_estimate_on_standard_normal_data(schedule):
    data = Gaussian(schedule, torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    frozen, estimate = (Energy(data, lambda x0: x0.pow(4).sum(1), 0.1, on=on) for on in ("frozen", "estimate"))
    for t in (*TIMES, TIMES):
        close(frozen(X, t), estimate(X, t))
    start = WarmStart(0 * X, 0.95)  # below the pure noise of Flow
    close(sample(frozen, X, DDIM(9), start=start).x, sample(estimate, X, DDIM(9), start=start).x)


def any_energy(on):
    return (lambda x, t: (x**3).sum(1) * t) if on == "noisy" else (lambda x0: (x0 - 0.3).pow(2).sum(1))


@pytest.mark.parametrize("on", ENERGIES)
@pytest.mark.parametrize("schedule", [VPCosine(), Flow(), VPTable.cosine(20)], ids=str)
def test_scale_zero_is_no_guidance_and_no_gradient_mode_is_needed(on, schedule):
    data = correlated(schedule)
    off, guided = Energy(data, any_energy(on), 0.0, on=on), Energy(data, any_energy(on), 0.1, on=on)
    assert torch.equal(off(X, TIMES), data(X, TIMES))
    assert torch.equal(sample(off, X, DDIM(4)).x, sample(data, X, DDIM(4)).x)
    x = sample(guided, X, DDIM(4)).x
    assert not x.requires_grad
    with torch.no_grad():
        assert torch.equal(sample(guided, X, DDIM(4)).x, x)
    assert (x - sample(data, X, DDIM(4)).x).abs().max() > 1e-3


def test_inference_mode_is_refused_by_its_name():
    with torch.inference_mode(), pytest.raises((ValueError, RuntimeError), match="inference_mode"):
        sample(Energy(correlated(VPCosine()), linear(SLOPE)), X, DDIM(2))


@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("on", ENERGIES)
def test_guidance_of_a_sample_of_pure_noise(on, scale):
    # Flow at t = 1, where alpha = 0: said for the whole batch at once, or for each of its samples. Through the estimate
    # the shift has a limit, scale times the data's covariance times the energy's gradient at their mean.
    data = correlated(Flow())
    slope = 2 * (MEAN - 0.3)
    shift = {"estimate": data.covariance @ slope, "frozen": slope, "noisy": torch.zeros(3)}[on]
    guided = Energy(data, any_energy(on), scale, on=on)
    for t in (torch.ones((), dtype=torch.float64), torch.ones(6, dtype=torch.float64)):
        close(guided(X, t), (MEAN - scale * shift).expand(6, 3), 0.02 if on == "estimate" else 1e-11)
    result = sample(guided, X, DDIM(1))
    close(result.x, guided(X, torch.ones((), dtype=torch.float64)))
    assert sample(guided, X, DDIM(4)).x.isfinite().all()


@pytest.mark.parametrize("on", ENERGIES)
@pytest.mark.parametrize("sampler", [DDIM(3), DPMSolver(4, order=3), Heun(2)], ids=str)
def test_gradients_flow_through_guidance_into_the_network(on, sampler):
    def run(weight, bias):
        denoiser = wrap(lambda x, t: torch.tanh(x @ weight + t * bias), VPCosine())
        return sample(Energy(denoiser, any_energy(on), 0.2, on=on), X[:2], sampler, grad=True).x

    weight, bias = (0.4 * normal([i], shape, dtype=torch.float64)[0] for i, shape in enumerate([(3, 3), (3,)]))
    assert torch.autograd.gradcheck(run, (weight.requires_grad_(), bias.requires_grad_()))


@pytest.mark.parametrize("energy", [lambda x, *_: torch.zeros(len(x)), lambda x, *_: x.detach().sum(1)])
@pytest.mark.parametrize("on", ENERGIES)
def test_an_energy_depends_on_its_sample(on, energy):
    with pytest.raises(ValueError, match="does not depend on its sample"):
        sample(Energy(correlated(VPLinear()), energy, on=on), X, DDIM(2))
    parameter = torch.ones(6, requires_grad=True)
    with pytest.raises(ValueError, match="does not depend on its sample"):
        gradient(lambda x: parameter, X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "x0"}, "unknown kind of energy 'x0': choose"),
        *[({"scale": s}, "must be finite") for s in (math.nan, math.inf)],
    ],
)
def test_bad_options_of_energies(options, message):
    with pytest.raises(ValueError, match=message):
        Energy(correlated(VPLinear()), to_one, **options)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_guidance_composes(sampler):
    # Classifier-free inside two energies, of three kinds in all: each moves the mean of the same Gaussian.
    both, schedule = TwoGaussians(VPLinear()), VPLinear()
    conditional = ClassifierFree(both, 1.4)
    noisy = lambda x, t: conditional(x, t, COND) @ SLOPE  # noqa: E731  (E_t of a linear energy, up to a constant)
    guided = Energy(Energy(conditional, noisy, 0.5, on="noisy"), linear(SHIFT), 0.2)
    data = Gaussian(schedule, MEAN + 1.4 * SHIFT, both.unconditional.covariance)
    exact = sample(tilted(data, 0.5 * SLOPE + 0.2 * SHIFT), X, sampler).x
    close(sample(guided, X, sampler, cond=COND).x, exact, 1e-9)
    both.rows.clear()
    sample(Energy(Energy(conditional, linear(SLOPE)), linear(SHIFT)), X, DDIM(4), cond=COND)
    assert both.rows == [12] * 4


def test_a_scale_for_each_sample_is_that_scale_alone():
    """Samples of several scales in one batch are those of each scale by itself."""
    network = TwoGaussians(VPLinear())
    scales = torch.tensor([0.0, 0.4, 1.0, 1.7, 2.5, 0.0])
    together = sample(ClassifierFree(network, scales), X, DDIM(8), cond=COND).x
    for index, scale in enumerate(scales.tolist()):
        row = slice(index, index + 1)
        alone = sample(ClassifierFree(network, scale), X[row], DDIM(8), cond=COND[row]).x
        assert (together[row] - alone).abs().max() < 1e-12
    with pytest.raises(ValueError, match="finite"):
        ClassifierFree(network, torch.tensor([1.0, torch.inf]))

"""The same betas, noise and network through diffusers' schedulers, an implementation that is not ours.

Its timestep i is our t = (i + 1) / T, its "trailing" our "time" and its "leading" ours. It starts from standard normal
noise where ours, from t = 1, has deviation sigma(1). It keeps betas in single precision, for which it is given their
products in double, and some of its solvers hold samples and sigmas in single too: iterates are compared to 1e-5 of
their size. Not compared: grids of DPMSolverMultistepScheduler that are not "trailing" (its "leading" leaves one
timestep more, Karras's and Lu's are rounded to whole ones).
"""

import importlib
from itertools import count, islice

import pytest
import torch
from torch import nn

from core.denoiser import NetworkDenoiser
from core.noise import keys_of, normal
from core.samplers import DDIM, DDPM, DPMSolver, Euler, EulerAncestral, Heun
from core.sampling import sample
from core.schedules import VE, Flow, VPTable
from tests.core import published

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of theirs
diffusers = pytest.importorskip("diffusers")
schedulers = diffusers.schedulers

NOISE = normal(range(8), (4,), dtype=torch.float64)
LINEAR, COSINE = VPTable.linear(1000), VPTable.cosine(200)


class Network(nn.Module):
    """Random, smooth and dependent on the time."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = [
            torch.randn(5, 16, generator=generator).double() / 2,
            torch.randn(16, 4, generator=generator) / 4,
        ]

    def forward(self, x, t, cond=None):
        hidden = torch.tanh(torch.cat([x.double(), t.double()[:, None]], dim=1) @ self.weights[0])
        return hidden @ self.weights[1].double() + 0.5 * x


NETWORK = Network()


def draws():
    return (normal(keys_of(NOISE), NOISE.shape[1:], k, NOISE.dtype) for k in count())


def ours(schedule, sampler, prediction="noise", **options):
    denoiser = NetworkDenoiser(NETWORK, schedule, prediction, **options)
    return sample(denoiser, NOISE, sampler, trace=True).trace


def scheduler_of(name, table, steps, spacing="trailing", **options):
    scheduler = getattr(schedulers, name)(
        num_train_timesteps=table.steps, trained_betas=list(table.betas), timestep_spacing=spacing, **options
    )
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(table.betas, dtype=torch.float64), dim=0)
    scheduler.set_timesteps(steps)
    return scheduler


def theirs(scheduler, x, time, **options):
    """The iterates; time: of their timestep. Options of a step that are callable are called for each."""
    iterates = [x]
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = NETWORK(scaled, time(t.double()).expand(len(x)))
        now = {name: value() if callable(value) else value for name, value in options.items()}
        x = scheduler.step(output, t, x, **now).prev_sample
        iterates.append(x)
    return iterates


def vp(scheduler, table, **options):
    whole = scheduler.timesteps[0] == table.steps - 1
    first = table.sigma(torch.ones((), dtype=torch.float64)) * NOISE if whole else NOISE
    return theirs(scheduler, first, lambda t: (t + 1) / table.steps, **options)


def assert_same(iterates, expected, tolerance=1e-5):
    assert len(iterates) == len(expected)
    for got, right in zip(iterates, expected, strict=True):
        assert (got - right).abs().max() < tolerance * max(1.0, right.abs().max().item())


@pytest.mark.parametrize("table", [LINEAR, COSINE], ids=str)
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
def test_betas(betas, table):
    if (betas == "linear") == (table is LINEAR):
        scheduler = schedulers.DDPMScheduler(num_train_timesteps=table.steps, beta_schedule=betas)
        assert torch.allclose(scheduler.betas.double(), torch.tensor(table.betas, dtype=torch.float64), atol=1e-7)


@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize(("spacing", "name"), [("leading", "leading"), ("time", "trailing")])
def test_timesteps(spacing, name, steps):
    if spacing == "time" and steps == 7:
        steps = 8  # theirs are rounded to whole timesteps
    scheduler = scheduler_of("DDIMScheduler", LINEAR, steps, name)
    times = [step.start.t for step in DDIM(steps, spacing).grid(LINEAR)]
    assert times == pytest.approx(((scheduler.timesteps.double() + 1) / 1000).tolist(), abs=1e-15)


@pytest.mark.parametrize("prediction", ["noise", "x0", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize(("spacing", "name"), [("leading", "leading"), ("time", "trailing")])
@pytest.mark.parametrize("table", [LINEAR, COSINE], ids=str)
def test_ddim(table, spacing, name, eta, prediction):
    kind = {"noise": "epsilon", "x0": "sample", "v": "v_prediction"}[prediction]
    scheduler = scheduler_of("DDIMScheduler", table, 20, name, clip_sample=False, prediction_type=kind)
    stream = draws()
    expected = vp(scheduler, table, eta=eta, variance_noise=lambda: next(stream))
    assert_same(ours(table, DDIM(20, spacing, eta=eta), prediction), expected)


@pytest.mark.parametrize("steps", [20, 200])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("spacing", "name"), [("leading", "leading"), ("time", "trailing")])
@pytest.mark.parametrize("table", [LINEAR, COSINE], ids=str)
def test_ddpm(monkeypatch, table, spacing, name, large, steps):
    options = {"clip_sample": False, "variance_type": "fixed_large" if large else "fixed_small"}
    scheduler, stream = scheduler_of("DDPMScheduler", table, steps, name, **options), draws()
    module = importlib.import_module("diffusers.schedulers.scheduling_ddpm")
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(stream))
    iterates, expected = ours(table, DDPM(steps, spacing, large=large)), vp(scheduler, table)
    if large and scheduler.timesteps[-1] > 0:
        # They leave the noise out of a last step from timestep 0 alone; ours never ends in noise.
        deviation = (1 - scheduler.alphas_cumprod[scheduler.timesteps[-1]]).sqrt()
        expected[-1] = expected[-1] - deviation * list(islice(draws(), steps))[-1]
    assert_same(iterates, expected)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("steps", [10, 20])
def test_multistep_dpm_solver(steps, sde, order):
    kind = "sde-dpmsolver++" if sde else "dpmsolver++"
    scheduler = scheduler_of("DPMSolverMultistepScheduler", LINEAR, steps, solver_order=order, algorithm_type=kind)
    stream = draws()
    expected = vp(scheduler, LINEAR, variance_noise=(lambda: next(stream)) if sde else None)
    assert_same(ours(LINEAR, DPMSolver(steps, "time", order=order, sde=sde)), expected)


def test_their_third_order_solver_has_half_of_the_second_derivative():
    sampler = DPMSolver(20, "time", order=3)
    grid = sampler.grid(LINEAR)
    levels = [(level.alpha, level.sigma) for level in (*(step.start for step in grid), grid[-1].end)]
    denoiser = NetworkDenoiser(NETWORK, LINEAR)
    times = {(step.start.alpha, step.start.sigma): torch.tensor(step.start.t, dtype=torch.float64) for step in grid}

    def clean(x, *level):
        return denoiser(x, times[level])

    iterates = ours(LINEAR, sampler)
    expected = vp(scheduler_of("DPMSolverMultistepScheduler", LINEAR, 20, solver_order=3), LINEAR)
    assert_same(published.dpm_3m_as_usual(clean, iterates[0], levels), expected)
    assert_same(iterates, published.dpm_3m_as_usual(clean, iterates[0], levels, 2.0), 1e-10)
    assert (iterates[-1] - expected[-1]).abs().max() > 1e-4


def kappa_frame(sampler, table, iterates):
    """x / alpha, which is what they hold."""
    alphas = [step.start.alpha for step in sampler.grid(table)] + [1.0]
    return [x / alpha for x, alpha in zip(iterates, alphas, strict=True)]


def test_heun():
    sampler = Heun(20, "time", frame="edm")
    scheduler = scheduler_of("HeunDiscreteScheduler", LINEAR, 20)
    expected = theirs(scheduler, scheduler.init_noise_sigma * NOISE, lambda t: (t + 1) / 1000)
    # Of theirs, every other is the second call's.
    assert_same(kappa_frame(sampler, LINEAR, ours(LINEAR, sampler)), [*expected[::2], expected[-1]])


def test_euler():
    scheduler = scheduler_of("EulerDiscreteScheduler", LINEAR, 20)
    expected = theirs(scheduler, scheduler.init_noise_sigma * NOISE, lambda t: (t + 1) / 1000)
    assert_same(kappa_frame(Euler(20), LINEAR, ours(LINEAR, Euler(20))), expected)


def test_euler_ancestral(monkeypatch):
    scheduler, stream = scheduler_of("EulerAncestralDiscreteScheduler", LINEAR, 20), draws()
    module = importlib.import_module("diffusers.schedulers.scheduling_euler_ancestral_discrete")
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(stream))
    expected = theirs(scheduler, scheduler.init_noise_sigma * NOISE, lambda t: (t + 1) / 1000)
    assert_same(kappa_frame(EulerAncestral(20), LINEAR, ours(LINEAR, EulerAncestral(20))), expected)


def test_edm_euler():
    # Their timestep is c_noise; the preconditioning is on their side as well.
    scheduler = schedulers.EDMEulerScheduler(sigma_data=0.5)
    scheduler.set_timesteps(20)
    expected = theirs(scheduler, 80 * NOISE, lambda t: t)
    assert_same(ours(VE(), Euler(20), "edm", data_std=0.5), expected)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_flow_euler(steps):
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[k / steps for k in range(steps, 0, -1)])
    assert_same(ours(Flow(), Euler(steps), "flow"), theirs(scheduler, NOISE, lambda t: t / 1000))


def test_flow_heun():
    scheduler = schedulers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(10)
    times = torch.linspace(1, 0, 11)  # theirs end at 1 / 1000 before 0
    scheduler.sigmas = torch.cat([times[:1], times[1:-1].repeat_interleave(2), times[-1:]])
    scheduler.timesteps = 1000 * scheduler.sigmas[:-1]
    expected = theirs(scheduler, NOISE, lambda t: t / 1000)
    assert_same(ours(Flow(), Heun(10, "time"), "flow"), [*expected[::2], expected[-1]])

"""How fast deterministic samplers converge to the exact probability flow."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from core.noise import normal
from core.samplers import DDIM, DPMSolver, Heun
from core.sampling import WarmStart, sample
from core.schedules import VE, Flow, VPCosine, VPLinear, VPTable
from tests.core import mixture, published
from tests.core.every import SCHEDULES
from tests.core.gaussian import correlated
from tests.core.mixture import Mixture

ORDERS = [
    (DDIM(spacing="lambda"), 1),
    (DPMSolver(spacing="lambda", order=1), 1),
    (DPMSolver(spacing="lambda", order=2), 2),
    (DPMSolver(spacing="lambda", singlestep=True), 2),
    (Heun(spacing="lambda"), 2),
    (Heun(spacing="lambda", frame="edm"), 2),
    (Heun(spacing="lambda", frame="flow"), 2),
    (DPMSolver(spacing="lambda", order=3), 3),
]


def ends(schedule):
    """Where walks start and stop.

    From pure noise lambda is infinite, so that Flow's first step is of order 1 whatever its length. VE's t = 0.05 is
    sigma = 0.004, where Gaussian data hold nothing to be solved.
    """
    return 0.999 if isinstance(schedule, Flow) else 1.0, 0.2 if isinstance(schedule, VE) else 0.05


def slope(data, exact, noise, sampler, counts):
    """log2 of the ratio of the errors with some steps and with twice as many, and the second error."""
    start, stop = ends(data.schedule)
    warm = None if start == 1 else WarmStart(torch.zeros_like(noise), start)
    walks = (sample(data, noise, replace(sampler, steps=steps, stop=stop), start=warm).x for steps in counts)
    # At low orders a start between two modes is slow to settle, and would decide the norm.
    errors = [(x - exact).norm(dim=1) for x in walks]
    coarse, fine = ((e.norm() if sampler == ORDERS[-1][0] else e.median()).item() for e in errors)
    return math.log2(coarse / fine), fine


@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_order_on_gaussian_data(schedule, sampler, order):
    noise = normal(range(16), (3,), dtype=torch.float64)
    data, (start, stop) = correlated(schedule), ends(schedule)
    exact = data.flow(schedule.sigma(torch.tensor(start, dtype=torch.float64)) * noise, start, stop)
    # Order 3 is approached from above; on VE, which starts with the most signal, the first two steps, of orders 1 and
    # 2, show beyond 600 steps.
    counts = (100, 200) if order < 3 else (240, 480) if isinstance(schedule, VE) else (480, 960)
    found, error = slope(data, exact, noise, sampler, counts)
    assert found == pytest.approx(order, abs=0.15)
    assert error < (0.05, 2e-3, 1e-6)[order - 1]


@cache
def mixture_flow(schedule):
    noise, (start, stop) = normal(range(16), (2,), dtype=torch.float64), ends(schedule)
    x = schedule.sigma(torch.tensor(start, dtype=torch.float64)) * noise
    return Mixture(schedule).flow(x, start, stop, steps=800)


@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=str)
@pytest.mark.parametrize("schedule", [VPLinear(), VE(), Flow(), VPTable.cosine(200)], ids=str)
def test_order_on_a_mixture(schedule, sampler, order):
    noise = normal(range(16), (2,), dtype=torch.float64)
    counts = (100, 200) if order < 3 else (240, 480)
    found, error = slope(Mixture(schedule), mixture_flow(schedule), noise, sampler, counts)
    assert found == pytest.approx(order, abs=0.15)
    assert error < (0.05, 1e-3, 1e-5)[order - 1]


def test_the_reference_is_exact():
    # Tweedie's formula, from the density of x_t; and Runge and Kutta's method at half the steps, and backwards.
    alpha, sigma = 0.6, 0.7
    x = normal(range(16), (2,), dtype=torch.float64).requires_grad_()
    variance = alpha**2 * mixture.DEVIATIONS**2 + sigma**2
    gap = ((x[:, None] - alpha * mixture.MEANS) ** 2).sum(dim=-1)
    density = (mixture.WEIGHTS / (2 * math.pi * variance) * torch.exp(-gap / (2 * variance))).sum(dim=1)
    (score,) = torch.autograd.grad(density.log().sum(), x)
    x = x.detach()
    assert (Mixture.at(x, alpha, sigma) - (x + sigma**2 * score) / alpha).abs().max() < 1e-12

    data = Mixture(VPCosine())
    assert (data.flow(x, 0.99, 0.05, 400) - data.flow(x, 0.99, 0.05, 800)).abs().max() < 2e-8
    assert (data.flow(data.flow(x, 0.9, 0.05, 400), 0.05, 0.9, 400) - x).abs().max() < 1e-6


def test_third_order_as_usually_written_is_of_order_two():
    # Its D2 is half of the second derivative of the parabola through the last three estimates.
    data, noise = Mixture(VPLinear()), normal(range(16), (2,), dtype=torch.float64)
    first, exact = VPLinear().sigma(torch.ones(())) * noise, mixture_flow(VPLinear())
    errors = {}
    for factor in (1, 2):
        for steps in (120, 240, 480):
            grid = DPMSolver(steps, "lambda", stop=0.05, order=3).grid(VPLinear())
            levels = [(level.alpha, level.sigma) for level in (*(step.start for step in grid), grid[-1].end)]
            x = published.dpm_3m_as_usual(Mixture.at, first, levels, factor)[-1]
            errors[factor, steps] = (x - exact).abs().max().item()
            if factor == 2:
                mine = sample(data, noise, DPMSolver(steps, "lambda", stop=0.05, order=3)).x
                assert (mine - x).abs().max() < 1e-8
    found = {factor: math.log2(errors[factor, 240] / errors[factor, 480]) for factor in (1, 2)}
    assert found == pytest.approx({1: 2.0, 2: 3.0}, abs=0.15)
    assert errors[1, 480] > 20 * errors[2, 480]

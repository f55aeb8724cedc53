import pytest
import torch
from torch import nn

from core.denoiser import NetworkDenoiser, wrap
from core.noise import normal
from core.samplers import DDIM, DDPM, DPMSolver
from core.sampling import WarmStart, sample
from core.schedules import VPCosine, VPLinear, VPTable
from tests.core.every import SCHEDULES, samplers
from tests.core.gaussian import correlated

NOISE = normal(range(8), (3,), dtype=torch.float64)
SAMPLERS = samplers(6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_warm_start_begins_at_its_level(schedule, sampler):
    times = []

    def denoise(x, t):
        times.append(t.item())
        return torch.zeros_like(x)

    x0 = torch.full((8, 3), 2.0, dtype=torch.float64)
    result = sample(wrap(denoise, schedule), NOISE, sampler, start=WarmStart(x0, 0.3), trace=True)
    assert times[0] == 0.3
    assert len(times) == sampler.evaluations(schedule, 0.3)
    assert torch.allclose(result.trace[0], schedule.diffuse(x0, NOISE, torch.tensor(0.3).double()), atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_pure_noise_has_the_deviation_of_its_level(schedule):
    sigma = schedule.sigma(torch.ones((), dtype=torch.float64))
    for sampler in SAMPLERS:
        first = sample(wrap(lambda x, t: torch.zeros_like(x), schedule), NOISE, sampler, trace=True).trace[0]
        assert torch.allclose(first, sigma * NOISE, rtol=1e-12)


@pytest.mark.parametrize("steps", [6, 200])
def test_a_grid_that_begins_below_pure_noise_takes_it_for_a_sample_there(steps):
    # "leading" leaves out the last timesteps, and the papers' code starts with unit variance all the same.
    table = VPTable.cosine(200)
    denoiser = wrap(lambda x, t: torch.zeros_like(x), table)
    for sampler in samplers(steps, spacing="leading"):
        x = sample(denoiser, NOISE, sampler, trace=True, temperature=0.5).trace[0]
        scale = 1.0 if steps == 6 else table.sigma(torch.ones((), dtype=torch.float64)).item()
        assert torch.allclose(x, 0.5 * scale * NOISE, rtol=1e-12)


def test_warm_start_near_the_data_keeps_its_sample():
    data = correlated(VPLinear())
    x0 = torch.tensor([[1.0, -1.0, 2.0]], dtype=torch.float64)
    near = sample(data, NOISE[:1], DPMSolver(10), start=WarmStart(x0, 1e-4)).x
    far = sample(data, NOISE[:1], DPMSolver(10), start=WarmStart(x0, 0.9)).x
    assert (near - x0).abs().max() < 0.02
    assert (far - x0).abs().max() > 0.2


@pytest.mark.parametrize("level", [0.0, 1.1])
def test_warm_start_needs_a_level_above_the_stop(level):
    with pytest.raises(ValueError, match="starts at a time above its stop"):
        sample(correlated(VPLinear()), NOISE, DDIM(3), start=WarmStart(torch.zeros_like(NOISE), level))


@pytest.mark.parametrize("start", [None, WarmStart(torch.full((8, 3), 4.0, dtype=torch.float64), 0.7)])
def test_temperature_scales_the_noise_of_the_first_iterate(start):
    data = correlated(VPLinear())
    hot, cold, none = (
        sample(data, NOISE, DDIM(2), start=start, temperature=f, trace=True).trace[0] for f in (1, 0.5, 0)
    )
    assert torch.allclose(cold - none, 0.5 * (hot - none), atol=1e-14)
    assert (hot - none).abs().max() > 0.5
    expected = torch.zeros(()) if start is None else 4 * VPLinear().alpha(torch.tensor(0.7, dtype=torch.float64))
    assert torch.allclose(none, expected.double().expand(8, 3), atol=1e-14)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_trace_holds_every_iterate(sampler):
    data = correlated(VPCosine())
    result = sample(data, NOISE, sampler, trace=True)
    assert len(result.trace) == sampler.steps + 1
    assert torch.allclose(result.trace[0], VPCosine().sigma(torch.tensor(1.0)) * NOISE)
    assert torch.equal(result.trace[-1], result.x)
    assert all((a - b).abs().max() > 0 for a, b in zip(result.trace[:-1], result.trace[1:], strict=True))
    plain = sample(data, NOISE, sampler)
    assert plain.trace == ()
    assert torch.equal(plain.x, result.x)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_faults_flag_the_rows_that_are_not_finite(sampler):
    def denoise(x, t):
        broken = torch.zeros_like(x)
        broken[2, 1] = torch.nan
        broken[5, 0] = torch.inf
        return broken

    result = sample(wrap(denoise, VPLinear()), NOISE, sampler)
    assert result.faults.tolist() == [False, False, True, False, False, True, False, False]
    assert result.x[[0, 1, 3, 4, 6, 7]].isfinite().all()


def test_a_fault_stays_in_its_row():
    noise = NOISE.clone()
    noise[3] = torch.nan
    clean, faulty = (sample(correlated(VPLinear()), start, DDPM(6)) for start in (NOISE, noise))
    assert faulty.faults.tolist() == [row == 3 for row in range(8)]
    assert not clean.faults.any()
    assert torch.allclose(faulty.x[~faulty.faults], clean.x[~faulty.faults], atol=1e-12)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3, dtype=torch.float64)
        values = torch.linspace(-0.4, 0.5, 15, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(values[:12].reshape(3, 4))
            self.layer.bias.copy_(values[12:])

    def forward(self, x, t, cond):
        return self.layer(torch.cat([x, t[:, None]], dim=1))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_gradients_reach_the_noise_and_the_network(sampler):
    network = Linear()
    denoiser = NetworkDenoiser(network, VPLinear(), "x0")
    noise = NOISE.clone().requires_grad_()
    plain = sample(denoiser, noise, sampler)
    assert not plain.x.requires_grad
    result = sample(denoiser, noise, sampler, grad=True)
    assert torch.allclose(result.x, plain.x, atol=1e-13)
    assert not result.faults.requires_grad

    bias = network.layer.bias
    by_noise, by_bias = torch.autograd.grad(result.x[:, 0].sum(), [noise, bias])
    assert (by_noise.abs().sum(dim=1) > 0).all()
    shift = torch.zeros_like(bias)
    shift[1] = 1e-5
    with torch.no_grad():
        bias += shift
        above = sample(denoiser, noise, sampler).x[:, 0].sum()
        bias -= 2 * shift
        below = sample(denoiser, noise, sampler).x[:, 0].sum()
    assert by_bias[1].item() == pytest.approx(((above - below) / 2e-5).item(), rel=1e-6)


def test_sampling_leaves_the_gradient_mode_and_the_noise_as_they_were():
    noise = NOISE.clone()
    sample(correlated(VPLinear()), noise, DDPM(3))
    assert torch.is_grad_enabled()
    assert torch.equal(noise, NOISE)


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 8, 2, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_precision_are_the_noise_s(shape, dtype):
    noise = normal(range(shape[0]), shape[1:], dtype=dtype)
    for sampler in SAMPLERS:
        result = sample(wrap(lambda x, t: 0.5 * x, VPCosine()), noise, sampler)
        assert result.x.shape == shape
        assert result.x.dtype == dtype
        assert result.faults.shape == shape[:1]

import math

import pytest
import torch
from scipy import stats

from core.denoiser import wrap
from core.noise import keys_of, normal
from core.samplers import DDIM, DDPM
from core.sampling import sample
from core.schedules import VPCosine

# Keys are fixed, so a test either always passes or always fails; p < 1e-3 in one of so few is then worth a look.
LEAST_P = 1e-3


@pytest.mark.parametrize("stream", [0, 1, 50])
@pytest.mark.parametrize("first", [0, -100, 10**12])
def test_noise_is_standard_normal(first, stream):
    x = normal(range(first, first + 200), (25, 20), stream, dtype=torch.float64).flatten().numpy()
    assert stats.kstest(x, "norm").pvalue > LEAST_P
    moments = [(x**power).mean() for power in (1, 2, 3, 4)]
    # Standard errors of the raw moments of a normal variable from its even moments 1, 3, 15, 105.
    errors = [math.sqrt(variance / len(x)) for variance in (1, 2, 15, 96)]
    for moment, expected, error in zip(moments, (0, 1, 0, 3), errors, strict=True):
        assert abs(moment - expected) < 4 * error


def draw(first, stream=0, size=1000):
    return normal(range(first, first + 200), (size,), stream, dtype=torch.float64)


#: Two sets of rows [200, n] each that should have nothing to do with one another.
NEIGHBOURS = {
    "keys": lambda: (draw(0), draw(1)),
    "streams": lambda: (draw(0), draw(0, stream=1)),
    "key and stream swapped": lambda: (
        draw(1),
        torch.cat([normal([0], (1000,), stream, dtype=torch.float64) for stream in range(1, 201)]),
    ),
    "entries": lambda: (draw(0)[:, 1:], draw(0)[:, :-1]),
    "cosine and sine": lambda: draw(0, size=2000).chunk(2, dim=1),
}


@pytest.mark.parametrize("kind", NEIGHBOURS)
@pytest.mark.parametrize("power", [1, 2])
def test_neighbours_are_independent(kind, power):
    a, b = (rows**power for rows in NEIGHBOURS[kind]())
    a, b = ((rows - rows.mean(dim=1, keepdim=True)) / rows.std(dim=1, keepdim=True) for rows in (a, b))
    correlations = (a * b).mean(dim=1) * math.sqrt(a.shape[1])
    assert stats.kstest(correlations.numpy(), "norm").pvalue > LEAST_P
    assert correlations.abs().max() < 4.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (6,), (8, 3, 2)])
def test_the_same_key_draws_the_same_noise_in_any_batch(shape, dtype):
    keys = torch.tensor([5, -3, 2**62, 0, 5, -(2**63), 17])
    batch = normal(keys, shape, stream=2, dtype=dtype)
    assert batch.shape == (7, *shape)
    assert batch.dtype == dtype
    for key, row in zip(keys.tolist(), batch, strict=True):
        assert torch.equal(normal([key], shape, stream=2, dtype=dtype)[0], row)
    assert torch.equal(batch[0], batch[4])
    assert batch.reshape(7, -1).sum(dim=1).unique().numel() == 6
    assert batch.isfinite().all()


def test_noise_of_a_key_never_changes():
    # Whatever is drawn from a seed in a published result hangs on these numbers.
    expected = [
        [-1.5705429765265941, 1.2841901047603013, -0.0764503063263845],
        [-0.9601511481882888, -0.9583274654889824, 1.5039684388439314],
    ]
    drawn = normal([0, 2024], (3,), stream=1, dtype=torch.float64)
    assert torch.allclose(drawn, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_keys_belong_to_the_sample_alone():
    noise = normal(range(50), (4, 3))
    keys = keys_of(noise)
    assert keys.shape == (50,)
    assert keys.dtype == torch.int64
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(keys_of(noise[order]), keys[order])
    assert torch.equal(keys_of(noise[7:8]), keys[7:8])
    assert torch.equal(keys_of(noise.transpose(1, 2).contiguous().transpose(1, 2)), keys)


def test_different_noise_has_different_keys():
    noise = normal(range(20_000), (2,), dtype=torch.float64)
    assert keys_of(noise).unique().numel() == 20_000
    one = noise[:1]
    changed = [
        one.flip(1),
        -one,
        torch.nextafter(one, torch.full_like(one, torch.inf)),
        one.roll(1),
        torch.zeros_like(one),
    ]
    for entry in range(2):
        single = one.clone()
        single[0, entry] = torch.nextafter(single[0, entry], torch.tensor(0.0, dtype=torch.float64))
        changed.append(single)
    # flip and roll are one and the same for two entries
    assert keys_of(torch.cat([one, *changed])).unique().numel() == len(changed)


def test_keys_spread_over_all_bits():
    keys = keys_of(normal(range(40_000), (6,)))
    ones = torch.stack([(keys >> bit) & 1 for bit in range(64)]).double().mean(dim=1)
    assert ((ones - 0.5).abs() < 4 * 0.5 / math.sqrt(40_000)).all()


@pytest.mark.parametrize("sampler", [DDPM(8), DDIM(8, eta=0.5)], ids=str)
def test_a_stochastic_sample_does_not_depend_on_its_batch(sampler):
    denoiser = wrap(lambda x, t: torch.tanh(x), VPCosine())
    noise = normal(range(64), (4, 3))
    batch = sample(denoiser, noise, sampler).x
    for row in (0, 31, 63):
        assert (sample(denoiser, noise[row : row + 1], sampler).x[0] - batch[row]).abs().max() < 1e-6
    assert (batch - sample(denoiser, noise, DDIM(8)).x).abs().max() > 0.1  # it is stochastic


def test_the_noise_of_every_step_is_new():
    # With an estimate of zero, what the steps add is all that distinguishes a sample from its start.
    denoiser = wrap(lambda x, t: torch.zeros_like(x), VPCosine())
    noise = normal(range(20), (500,), dtype=torch.float64)
    sampler = DDPM(6)
    trace = sample(denoiser, noise, sampler, trace=True).trace
    drawn = [noise]
    for step, a, b in zip(sampler.grid(VPCosine())[:-1], trace[:-2], trace[1:-1], strict=True):
        kept = math.sqrt(step.end.sigma**2 - step.variance) / step.start.sigma * a
        drawn.append((b - kept) / math.sqrt(step.variance))
    drawn = torch.stack(drawn).flatten(1)
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > LEAST_P
    correlations = torch.corrcoef(drawn)[torch.triu(torch.ones(6, 6), 1).bool()]
    assert correlations.abs().max() < 4 / math.sqrt(drawn.shape[1])

import math

import pytest
import torch

from core.denoiser import wrap
from core.edits import Clamp, Edit
from core.noise import normal
from core.samplers import DDIM, DDPM, DPMSolver
from core.sampling import sample
from core.schedules import VPCosine, VPLinear
from tests.core.gaussian import Gaussian

SAMPLERS = [DDIM(4), DDPM(4), DPMSolver(4), DDIM(4, stop=0.3)]
MASK = torch.tensor([True, False, False])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_clamp_shows_every_call_the_value_and_returns_it(sampler):
    values = torch.arange(5.0)[:, None].expand(5, 3)
    seen = []

    def denoise(x, t):
        seen.append(x.clone())
        return torch.full_like(x, 100.0)  # at the clamped entry, nonsense that must not be used

    noise = normal(range(5), (3,))
    result = sample(wrap(denoise, VPCosine()), noise, sampler, edits=[Clamp(MASK, values)])
    assert len(seen) == 4
    for x in seen:
        assert torch.equal(x[:, 0], values[:, 0])
        assert (x[:, 1:] != values[:, 1:]).all()
    assert torch.equal(result.x[:, 0], values[:, 0])
    assert (result.x[:, 1:] > 50).all()


def test_clamp_corrects_the_estimate():
    # Every iterate in between follows the value too, not only those that `before` has written over.
    clamp = Clamp(MASK, torch.tensor(0.5))
    denoiser = wrap(lambda x, t: torch.full_like(x, 100.0), VPCosine())
    trace = sample(denoiser, normal(range(2), (3,)), DDIM(4), edits=[clamp], trace=True).trace
    assert all(x[:, 0].abs().max() < 1 for x in trace[1:])


def test_clamp_leaves_its_input_alone():
    x = torch.ones(2, 3)
    assert torch.equal(Clamp(MASK, torch.zeros(3))(x), torch.tensor([[0.0, 1.0, 1.0]] * 2))
    assert torch.equal(x, torch.ones(2, 3))
    assert torch.equal(Clamp(MASK, torch.zeros(3)).free, ~MASK)


def test_clamp_needs_a_boolean_mask():
    with pytest.raises(ValueError, match=r"boolean mask, got torch\.float32"):
        Clamp(MASK.float(), torch.zeros(3))


class Recorder(Edit):
    """Notes each call and adds its own number, so that the order of two recorders shows in the values."""

    def __init__(self, name, calls, number):
        self.name, self.calls, self.number = name, calls, number

    def before(self, x, step):
        self.calls.append((self.name, "before", step.index, x))
        return x + self.number

    def estimate(self, x0, x, step):
        self.calls.append((self.name, "estimate", step.index, x0, x))
        return x0 * (1 + self.number)

    def after(self, x_new, x_old, step):
        self.calls.append((self.name, "after", step.index, x_new, x_old))
        return x_new - 2 * self.number

    def finish(self, x):
        self.calls.append((self.name, "finish", x))
        return x + 10 * self.number


def recorded():
    calls = []

    def denoise(x, t):
        calls.append(("network", x))
        return 0.5 * x

    edits = [Recorder("a", calls, 1.0), Recorder("b", calls, 3.0)]
    noise = normal(range(2), (3,), dtype=torch.float64)
    result = sample(wrap(denoise, VPLinear()), noise, DDIM(2), edits=edits, trace=True)
    return calls, result


def test_hooks_are_called_in_the_documented_order():
    calls, _ = recorded()
    one_step = ["a before", "b before", "network", "a estimate", "b estimate", "a after", "b after"]
    names = [call[0] if call[0] == "network" else f"{call[0]} {call[1]}" for call in calls]
    assert names == [*one_step, *one_step, "a finish", "b finish"]
    indices = [call[2] for call in calls if call[0] != "network" and call[1] != "finish"]
    assert indices == [0] * 6 + [1] * 6


def test_hooks_see_and_change_the_right_iterates():
    calls, result = recorded()
    steps = DDIM(2).grid(VPLinear())
    for step, iterate in zip(steps, result.trace, strict=False):
        before_a, before_b, network, estimate_a, estimate_b, after_a, after_b = calls[
            7 * step.index : 7 * step.index + 7
        ]
        x_old = network[1]
        # The trace shows what entered the network.
        assert torch.equal(x_old, iterate)
        assert torch.equal(before_b[3], before_a[3] + 1)
        assert torch.equal(x_old, before_a[3] + 1 + 3)
        assert torch.equal(estimate_a[3], 0.5 * x_old)
        assert torch.equal(estimate_b[3], 0.5 * x_old * 2)
        assert torch.equal(estimate_a[4], x_old)
        assert torch.equal(estimate_b[4], x_old)
        # The sampler steps from what `before` made, with what `estimate` made.
        keep = step.end.sigma / step.start.sigma
        x_new = keep * x_old + (step.end.alpha - keep * step.start.alpha) * (0.5 * x_old * 2 * 4)
        assert torch.allclose(after_a[3], x_new, atol=1e-13)
        assert torch.equal(after_b[3], after_a[3] - 2)
        assert torch.equal(after_a[4], x_old)
        assert torch.equal(after_b[4], x_old)
    finish_a, finish_b = calls[-2:]
    assert torch.equal(finish_a[2], after_b[3] - 6)
    assert torch.equal(finish_b[2], finish_a[2] + 10)
    assert torch.equal(result.x, finish_b[2] + 30)
    assert torch.equal(result.trace[-1], result.x)


def test_an_edit_changes_nothing_by_itself():
    noise = normal(range(3), (2,))
    denoiser = wrap(lambda x, t: torch.tanh(x), VPCosine())
    assert torch.equal(sample(denoiser, noise, DDPM(3), edits=[Edit()]).x, sample(denoiser, noise, DDPM(3)).x)


@pytest.mark.parametrize("sampler", [DDIM(50), DDPM(50)], ids=["ddim", "ddpm"])
@pytest.mark.parametrize("rho", [0.8, -0.8])
def test_inpainting_moves_the_free_entry_with_its_correlation(rho, sampler):
    # Replacement by the clean value is not conditioning: the network takes the value for a noisy one. So the mean is
    # only held to lie on the way from 0 to rho * value, at no less than a third of it.
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    data = Gaussian(VPCosine(), torch.zeros(2, dtype=torch.float64), covariance)
    noise = normal(range(2000), (2,), dtype=torch.float64)
    assert abs(sample(data, noise, sampler).x[:, 1].mean()) < 4 / math.sqrt(2000)
    for value in (1.5, -1.5):
        clamp = Clamp(torch.tensor([True, False]), torch.tensor([value, 0.0], dtype=torch.float64))
        moved = sample(data, noise, sampler, edits=[clamp]).x[:, 1].mean().item()
        assert 1 / 3 < moved / (rho * value) < 1

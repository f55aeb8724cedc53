import pytest
import torch

from core.guidance import ClassifierFree
from core.noise import normal
from core.samplers import DDIM
from core.sampling import sample
from core.schedules import VPCosine, VPLinear
from tests.core.gaussian import Gaussian, correlated

X = normal(range(6), (3,), dtype=torch.float64)
COND = torch.ones(6, 1, dtype=torch.float64)
T = torch.tensor(0.5, dtype=torch.float64)
SHIFT = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


class TwoGaussians:
    """One network for both: N(mean, covariance) where the condition is NaN, else N(mean + cond shift, another)."""

    def __init__(self, schedule, spread=1.0):
        self.schedule = schedule
        self.unconditional = correlated(schedule)
        data = self.unconditional
        self.conditional = Gaussian(schedule, data.mean + SHIFT, spread * data.covariance)
        self.calls = []

    def __call__(self, x, t, cond=None):
        self.calls.append(len(x))
        assert len(cond) == len(x)
        return torch.where(cond.isnan(), self.unconditional(x, t), self.conditional(x + self._offset(cond, t), t))

    def _offset(self, cond, t):
        """Moving the condition moves the mean it asks for; 1 is where it stands."""
        return self.schedule.alpha(t) * (1 - cond.nan_to_num(1.0)) * SHIFT


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.4, 5.0, -1.0])
@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine()], ids=str)
def test_guidance_extrapolates_from_the_unconditional_estimate(schedule, scale):
    both = TwoGaussians(schedule, spread=0.4)
    for time in (0.1, 0.5, 0.95):
        t = torch.tensor(time, dtype=torch.float64)
        unconditional, conditional = both.unconditional(X, t), both.conditional(X, t)
        expected = unconditional + scale * (conditional - unconditional)
        assert (ClassifierFree(both, scale)(X, t, COND) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.4, 3.0])
def test_guided_samples_of_equal_covariance_come_from_the_tilted_gaussian(scale):
    # With one covariance, p(x) (p(x | c) / p(x))^scale is the Gaussian with its mean moved `scale` times as far.
    schedule = VPLinear()
    both = TwoGaussians(schedule)
    tilted = Gaussian(schedule, both.unconditional.mean + scale * SHIFT, both.unconditional.covariance)
    guided = sample(ClassifierFree(both, scale), X, DDIM(20), cond=COND).x
    assert (guided - sample(tilted, X, DDIM(20)).x).abs().max() < 1e-12


@pytest.mark.parametrize(("scale", "width"), [(0.0, 6), (1.0, 6), (1.4, 12), (-0.5, 12)])
def test_one_batched_call_a_step(scale, width):
    both = TwoGaussians(VPCosine())
    sample(ClassifierFree(both, scale), X, DDIM(5), cond=COND)
    assert both.calls == [width] * 5


def test_scale_zero_ignores_the_condition():
    both = TwoGaussians(VPCosine())
    estimates = [ClassifierFree(both, 0.0)(X, T, cond) for cond in (COND, 7 * COND)]
    assert torch.equal(estimates[0], estimates[1])
    assert torch.equal(estimates[0], both.unconditional(X, T))
    other = [ClassifierFree(both, 1.4)(X, T, cond) for cond in (COND, 7 * COND)]
    assert (other[0] - other[1]).abs().max() > 0.1


def test_the_halves_of_the_batch_stay_apart():
    # Each row is guided by its own condition: rows one by one give what the batch gives.
    both = TwoGaussians(VPCosine())
    cond = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    cond[2] = torch.nan
    guided = ClassifierFree(both, 2.0)
    batch = guided(X, T, cond)
    for row in range(6):
        assert (guided(X[row : row + 1], T, cond[row : row + 1]) - batch[row]).abs().max() < 1e-13
    assert (batch[2] - both.unconditional(X, T)[2]).abs().max() < 1e-13


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.4])
def test_a_condition_is_needed(scale):
    with pytest.raises(ValueError, match="needs a condition"):
        sample(ClassifierFree(TwoGaussians(VPCosine()), scale), X, DDIM(2))

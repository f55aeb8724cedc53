from dataclasses import dataclass

import pytest
import torch
from torch import nn

from core.denoiser import PREDICTIONS, Clip, NetworkDenoiser, wrap
from core.schedules import Schedule, VPCosine, VPLinear, per_sample
from tests.core.gaussian import correlated


@dataclass(frozen=True)
class Straight(Schedule):
    """alpha^2 + sigma^2 is not 1 here, which conversions of v must not assume."""

    def alpha(self, t):
        return 1 - t.double()

    def sigma(self, t):
        return t.double()

    def time(self, lam):
        return torch.sigmoid(-lam.double())


SCHEDULES = [VPLinear(), VPCosine(), Straight()]


class Exact(nn.Module):
    """A network that says of Gaussian data exactly what its prediction asks for."""

    def __init__(self, data, prediction):
        super().__init__()
        self.data = data
        self.prediction = prediction

    def forward(self, x, t, cond):
        assert t.shape == (len(x),)
        if self.prediction == "x0":
            return self.data(x, t)
        noise = self.data.noise(x, t)
        if self.prediction == "noise":
            return noise
        schedule = self.data.schedule
        return per_sample(schedule.alpha(t), x) * noise - per_sample(schedule.sigma(t), x) * self.data(x, t)


class Constant(nn.Module):
    """Records what it is called with."""

    def forward(self, x, t, cond):
        self.seen = (x, t, cond)
        return torch.zeros_like(x)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_gives_the_same_clean_estimate(schedule, prediction):
    data = correlated(schedule)
    denoiser = NetworkDenoiser(Exact(data, prediction), schedule, prediction)
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (torch.tensor(0.05), torch.tensor(0.5), torch.tensor(0.95), torch.linspace(0.1, 0.9, 7)):
        t = t.double()
        assert (denoiser(x, t) - data(x, t)).abs().max() < 1e-10


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_stands_for_the_clean_sample(schedule, prediction):
    denoiser = NetworkDenoiser(Constant(), schedule, prediction)
    generator = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, 5, 4, 3, dtype=torch.float64, generator=generator)
    for t in (torch.tensor(0.3, dtype=torch.float64), torch.linspace(0.05, 0.95, 5, dtype=torch.float64)):
        target = denoiser.target(x0, noise, t)
        assert (denoiser.to_x0(target, schedule.diffuse(x0, noise, t), t) - x0).abs().max() < 1e-12


def test_targets_are_what_their_names_say():
    schedule, t = VPLinear(), torch.tensor(0.4, dtype=torch.float64)
    x0, noise = torch.full((1, 1), 2.0, dtype=torch.float64), torch.full((1, 1), 3.0, dtype=torch.float64)
    target = {name: NetworkDenoiser(Constant(), schedule, name).target(x0, noise, t).item() for name in PREDICTIONS}
    assert target["noise"] == 3
    assert target["x0"] == 2
    assert target["v"] == pytest.approx(3 * schedule.alpha(t).item() - 2 * schedule.sigma(t).item())


def test_the_network_gets_one_time_per_sample_in_its_precision():
    network = Constant()
    denoiser = NetworkDenoiser(network, VPLinear())
    x, cond = torch.zeros(4, 2), torch.ones(4, 1)
    denoiser(x, torch.tensor(0.25, dtype=torch.float64), cond)
    assert network.seen[0] is x
    assert torch.equal(network.seen[1], torch.full((4,), 0.25))
    assert network.seen[2] is cond


def test_clip_bounds_the_estimate_only():
    estimate = torch.tensor([[-3.0, -0.5, 0.5, 3.0]])
    denoiser = wrap(lambda x, t: estimate, VPCosine())
    x, t = torch.full((1, 4), 9.0), torch.tensor(0.5)
    assert torch.equal(Clip(denoiser)(x, t), torch.tensor([[-1.0, -0.5, 0.5, 1.0]]))
    low, high = torch.tensor([-4.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.25, 2.0])
    assert torch.equal(Clip(denoiser, low, high)(x, t), torch.tensor([[-3.0, 0.0, 0.25, 2.0]]))
    assert Clip(denoiser).schedule == VPCosine()


def test_clip_works_in_the_precision_of_the_sample():
    denoiser = wrap(lambda x, t: 2 * x, VPCosine())
    assert Clip(denoiser)(torch.ones(1, 1, dtype=torch.float64), torch.tensor(0.5)).dtype == torch.float64


def test_clip_passes_the_condition():
    denoiser = wrap(lambda x, t, cond: x + cond, VPCosine())
    assert Clip(denoiser)(torch.zeros(1, 1), torch.tensor(0.5), torch.full((1, 1), 0.25)) == 0.25


def test_wrap_passes_a_condition_only_where_there_is_one():
    x, t, cond = torch.ones(2, 1), torch.tensor(0.5), torch.full((2, 1), 3.0)
    without = wrap(lambda x, t: x * t, VPLinear())
    assert torch.equal(without(x, t), x * 0.5)
    assert without.schedule == VPLinear()
    assert torch.equal(wrap(lambda x, t, cond: x + cond, VPLinear())(x, t, cond), x + 3)


def test_unknown_prediction():
    with pytest.raises(ValueError, match="unknown prediction 'epsilon'"):
        NetworkDenoiser(Constant(), VPLinear(), "epsilon")

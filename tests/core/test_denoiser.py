import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import core
from core.denoiser import Denoiser, NetworkDenoiser, Time, Walk, as_denoiser, wrap
from core.networks import ResidualMLP, TemporalUNet, TimeEmbedding
from core.predictions import PREDICTIONS
from core.schedules import VE, Flow, VPCosine, VPLinear, VPSigmoid, VPTable, per_sample
from tests.core.gaussian import correlated

SCHEDULES = [VPLinear(), VPCosine(), VPSigmoid(), VE(), Flow(), VPTable.cosine(37)]
TIMES = [0.05, 0.5, 0.95]

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def walk_of(schedule, times):
    """What `sample` hands to a denoiser at each of these times."""
    walk = Walk(tensor(times))
    return [Time(level, walk, place) for place, level in enumerate(schedule.levels(tensor(times)))]


class Exact(nn.Module):
    """A network that says of Gaussian data exactly what its prediction asks for."""

    def __init__(self, data, prediction, std=1.0):
        super().__init__()
        self.data = data
        self.prediction = prediction
        self.std = std

    def forward(self, x, t, cond):
        assert t.shape == (len(x),)
        schedule = self.data.schedule
        if self.prediction == "edm":  # Karras et al. 2022, table 1: from c_in X and c_noise back to x / alpha
            kappa = torch.exp(4 * t)[:, None]
            t = schedule.time(-4 * t)
            X = x * (kappa**2 + self.std**2).sqrt()
            x = X * per_sample(schedule.alpha(t), x)
        alpha, sigma = per_sample(schedule.alpha(t), x), per_sample(schedule.sigma(t), x)
        x0, noise = self.data(x, t), self.data.noise(x, t)
        if self.prediction == "edm":
            skip = self.std**2 / (kappa**2 + self.std**2)
            return (x0 - skip * X) / (kappa * self.std / (kappa**2 + self.std**2).sqrt())
        return {
            "x0": x0,
            "noise": noise,
            "v": alpha * noise - sigma * x0,
            "score": -noise / sigma,
            "flow": noise - x0,
        }[self.prediction]


class Constant(nn.Module):
    """Records what it is called with."""

    def forward(self, x, t, cond):
        self.seen = (x, t, cond)
        return torch.zeros_like(x)


@every_schedule
@every_prediction
@pytest.mark.parametrize("std", [1.0, 0.4])
def test_every_prediction_gives_the_same_clean_estimate(schedule, prediction, std):
    data = correlated(schedule)
    denoiser = NetworkDenoiser(Exact(data, prediction, std), schedule, prediction, data_std=std)
    x = normal(7, 3)
    for t in (*map(tensor, TIMES), torch.linspace(0.1, 0.9, 7, dtype=torch.float64)):
        assert (denoiser(x, t) - data(x, t)).abs().max() < 1e-10
    for time in walk_of(schedule, TIMES):
        assert (denoiser(x, time) - data(x, time.tensor)).abs().max() < 1e-10


@every_schedule
@every_prediction
def test_the_target_stands_for_the_clean_sample(schedule, prediction):
    denoiser = NetworkDenoiser(Constant(), schedule, prediction, data_std=0.6)
    x0, noise = normal(2, 5, 4, 3)
    for t in (tensor(0.3), torch.linspace(0.05, 0.95, 5, dtype=torch.float64)):
        target = denoiser.target(x0, noise, t)
        assert (denoiser.to_x0(target, schedule.diffuse(x0, noise, t), t) - x0).abs().max() < 1e-12


@every_schedule
@every_prediction
def test_error_gain_is_how_far_an_error_of_the_output_moves_the_estimate(schedule, prediction):
    denoiser = NetworkDenoiser(Constant(), schedule, prediction, data_std=0.6)
    x, output, t = normal(5, 3), normal(5, 3, seed=1), torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    moved = (denoiser.to_x0(output + 0.5, x, t) - denoiser.to_x0(output, x, t)).abs() / 0.5
    assert torch.allclose(moved, denoiser.error_gain(t)[:, None].expand(5, 3), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("std", [1.0, 0.4])
@every_schedule
def test_the_edm_network_sees_scaled_samples_and_log_noise(schedule, std):
    network = Constant()
    denoiser = NetworkDenoiser(network, schedule, "edm", data_std=std)
    x = normal(3, 2)
    for time in walk_of(schedule, TIMES):
        kappa = time.level.sigma / time.level.alpha
        for t in (time, time.tensor, time.tensor.expand(3)):
            estimate = denoiser(x, t)
            scaled = x / time.level.alpha / math.sqrt(kappa**2 + std**2)
            assert torch.allclose(network.seen[0], scaled, rtol=1e-12)
            assert network.seen[1].tolist() == pytest.approx([math.log(kappa) / 4] * 3, rel=1e-12)
            skipped = std**2 / (kappa**2 + std**2) * x / time.level.alpha  # the network said 0
            assert torch.allclose(estimate, skipped, rtol=1e-12)


@every_prediction
def test_the_network_gets_one_time_per_sample_in_float32_or_better(prediction):
    schedule, network = VPLinear(), Constant()
    denoiser = NetworkDenoiser(network, schedule, prediction)
    (walked,) = walk_of(schedule, [0.25])
    expected = -schedule.lam(tensor(0.25)) / 4 if prediction == "edm" else tensor(0.25)
    for dtype, kept in [(torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)]:
        x, cond = torch.zeros(4, 2, dtype=dtype), torch.ones(4, 1)
        for t in (tensor(0.25), tensor([0.25] * 4), walked):
            assert denoiser(x, t, cond).dtype == dtype
            assert torch.equal(network.seen[1], expected.to(kept).expand(4))
            assert network.seen[0].dtype == dtype
            assert network.seen[0] is x or prediction == "edm"
            assert network.seen[2] is cond


# Where there is no signal


@pytest.mark.parametrize("sampler", [core.DDIM(3), core.Heun(3, spacing="time"), core.DPMSolver(3)], ids=str)
@every_prediction
def test_sampling_from_pure_noise_is_defined_or_refused(sampler, prediction):
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(ResidualMLP(3, width=8, blocks=1), Flow(), prediction)
    try:
        result = core.sample(denoiser, normal(2, 3, dtype=torch.float32), sampler)
    except ValueError as error:
        assert prediction not in ("x0", "v", "flow")
        assert repr(prediction) in str(error)
        assert "alpha = 0" in str(error)
    else:
        assert prediction not in ("noise", "score")
        assert not result.faults.any()


@pytest.mark.parametrize("prediction", ["noise", "score", "edm"])
def test_a_warm_start_below_pure_noise_takes_any_prediction(prediction):
    schedule = Flow()
    denoiser = NetworkDenoiser(Exact(correlated(schedule), prediction), schedule, prediction)
    start = core.WarmStart(torch.zeros(4, 3, dtype=torch.float64), 0.9)
    assert not core.sample(denoiser, normal(4, 3), core.DDIM(3), start=start).faults.any()


# Lower precision


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 32), nn.Linear(32, 6)

    def forward(self, x, t, cond):
        hidden = self.first(x)
        self.seen = (x.dtype, t.dtype, hidden.dtype)
        return self.second(torch.tanh(hidden + t[:, None]))


@every_prediction
def test_autocast_lowers_the_network_alone(prediction):
    torch.manual_seed(0)
    network, x = Layers(), normal(16, 6, dtype=torch.float32)
    full, low = (NetworkDenoiser(network, VPCosine(), prediction, autocast=to) for to in (None, torch.bfloat16))
    for t in (tensor(0.5), torch.full((16,), 0.5), *walk_of(VPCosine(), [0.5])):
        exact = full(x, t)
        assert network.seen == (torch.float32, torch.float32, torch.float32)
        rounded = low(x, t)
        assert network.seen == (torch.float32, torch.float32, torch.bfloat16)
        assert low.predict(x, t).dtype == rounded.dtype == torch.float32
        assert not torch.equal(rounded, exact)
        assert (rounded - exact).abs().max() < 0.03
    assert not torch.is_autocast_enabled("cpu")


def test_samples_keep_their_precision_under_autocast():
    torch.manual_seed(0)
    network, noise = ResidualMLP(6, width=32, blocks=2), normal(8, 6, dtype=torch.float32)
    denoisers = [NetworkDenoiser(network, VPCosine(), "x0", autocast=to) for to in (None, torch.bfloat16)]
    exact, rounded = (core.sample(denoiser, noise, core.DDIM(5)).x for denoiser in denoisers)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05


# What is computed once for a whole walk


SAMPLERS = [core.DDIM(5), core.DDPM(5), core.Heun(4), core.DPMSolver(4, singlestep=True), core.Consistency(3)]
NETWORKS = {
    "mlp": (lambda: ResidualMLP(6, width=16, blocks=1, condition_dim=2), (6,), (2,)),
    "unet": (lambda: TemporalUNet(3, 4, width=8, multipliers=(1, 2), condition_dim=2), (4, 2, 3), (2, 2)),
}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("prediction", ["x0", "v", "edm"])
@pytest.mark.parametrize("name", NETWORKS)
def test_times_are_embedded_once_for_a_walk(name, prediction, sampler):
    torch.manual_seed(0)
    make, shape, condition = NETWORKS[name]
    network, schedule, embedded = make().double(), VPCosine(), []  # in float32 these networks amplify rounding
    denoiser = NetworkDenoiser(network, schedule, prediction)
    network.time.mlp.register_forward_hook(lambda module, args, output: embedded.append(len(output)))
    noise, cond = normal(3, *shape), normal(3, *condition, seed=1)
    calls = sampler.evaluations(schedule)
    for guided in (denoiser, core.ClassifierFree(denoiser, 1.5)):
        embedded.clear()
        hoisted = core.sample(guided, noise, sampler, cond=cond).x
        assert embedded == [calls]
        embedded.clear()
        stepwise = core.sample(wrap(guided, schedule), noise, sampler, cond=cond).x
        assert len(embedded) == calls
        assert (hoisted - stepwise).abs().max() < 1e-9 * stepwise.abs().max().clamp(min=1)


def test_each_denoiser_has_its_own_embeddings():
    schedule, (first, second) = VPLinear(), walk_of(VPLinear(), [0.8, 0.3])
    torch.manual_seed(0)
    one, other = (NetworkDenoiser(ResidualMLP(3, width=8, blocks=1), schedule, "x0") for _ in range(2))
    x = normal(2, 3, dtype=torch.float32)
    for denoiser in (one, other, one):
        for time in (second, first):
            assert torch.allclose(denoiser(x, time), denoiser(x, time.tensor), atol=1e-6)
    assert not torch.allclose(one(x, first), other(x, first))


def test_gradients_reach_the_time_embedding_and_guidance_keeps_the_graph():
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(ResidualMLP(3, width=8, blocks=1), VPLinear(), "x0")
    noise = normal(2, 3, dtype=torch.float32)
    core.sample(denoiser, noise, core.DDIM(3), grad=True).x.sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in denoiser.network.time.parameters())
    energy = core.Energy(denoiser, lambda x0: (x0**2).sum(dim=1), 0.1)
    assert not core.sample(energy, noise, core.DDIM(3)).faults.any()


def test_a_walk_computes_what_is_hoisted_when_it_is_first_asked_for():
    calls, walk = [], Walk(tensor([1.0, 0.5]))
    for key in ("a", "a", "b"):
        assert torch.equal(walk.hoist(key, lambda t: calls.append(1) or 2 * t), tensor([2.0, 1.0]))
    assert len(calls) == 2
    time = Time(VPLinear().levels(walk.times)[1], walk, 1)
    assert time.tensor.shape == ()
    assert time.tensor == 0.5
    embedded = torch.zeros(2, 8)
    assert TimeEmbedding(8)(embedded) is embedded


# Callables


def test_wrap_passes_a_condition_only_where_there_is_one():
    x, t, cond = torch.ones(2, 1), torch.tensor(0.5), torch.full((2, 1), 3.0)
    without = wrap(lambda x, t: x * t, VPLinear())
    assert torch.equal(without(x, t), x * 0.5)
    assert without.schedule == VPLinear()
    assert torch.equal(wrap(lambda x, t, cond: x + cond, VPLinear())(x, t, cond), x + 3)
    (walked,) = walk_of(VPLinear(), [0.5])
    assert torch.equal(without(x, walked), x * 0.5)
    seen = []
    core.sample(wrap(lambda x, t: seen.append(t) or x, VPLinear()), x, core.DDIM(4))
    assert [t.item() for t in seen] == [1.0, 0.75, 0.5, 0.25]


def test_any_callable_with_a_schedule_is_a_denoiser():
    data = correlated(VPLinear())
    adapted = as_denoiser(data)
    assert isinstance(adapted, Denoiser)
    assert adapted.schedule is data.schedule
    assert as_denoiser(adapted) is adapted
    x, (walked,) = normal(2, 3), walk_of(VPLinear(), [0.4])
    assert torch.equal(adapted(x, walked), data(x, tensor(0.4)))
    network = NetworkDenoiser(Constant(), VPLinear())
    assert as_denoiser(network) is network


class NamedSchedule(Constant):
    schedule = "cosine"


@pytest.mark.parametrize(
    "bad", [lambda x, t: x, SimpleNamespace(schedule=VPLinear()), Constant(), None, NamedSchedule()], ids=repr
)
def test_what_has_no_schedule_is_no_denoiser(bad):
    for call in (as_denoiser, lambda bad: core.sample(bad, torch.zeros(1, 1), core.DDIM(2))):
        with pytest.raises(TypeError, match=f"{type(bad).__name__} is no denoiser.*core.wrap"):
            call(bad)


def test_bad_options():
    with pytest.raises(ValueError, match="unknown prediction 'epsilon'"):
        NetworkDenoiser(Constant(), VPLinear(), "epsilon")
    for std in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="data_std must be positive"):
            NetworkDenoiser(Constant(), VPLinear(), data_std=std)
    with pytest.raises(NotImplementedError, match="Denoiser has no __call__"):
        Denoiser()(torch.zeros(1, 1), torch.tensor(0.5))

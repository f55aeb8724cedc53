import math

import pytest
import torch
from torch import nn

import core
from core.denoiser import NetworkDenoiser
from core.edits import Clamp
from core.losses import WEIGHTINGS, LogNormalTimes, UniformTimes, diffusion_loss, time_weights
from core.predictions import PREDICTIONS
from core.schedules import VE, Flow, VPCosine, VPLinear, VPSigmoid, VPTable

MASK = torch.tensor([True, False, False, True])
X0 = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)
CLAMP = Clamp(MASK, torch.tensor([0.3, 0.0, 0.0, -0.2], dtype=torch.float64))
SCHEDULES = [VPLinear(), VPCosine(), VPSigmoid(), VE(), Flow(), VPTable.vp()]
CPU = torch.device("cpu")

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Offset(nn.Module):
    """Says x / 2 plus an offset, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x, t, cond):
        self.seen = (x, t, cond)
        return 0.5 * x + self.offset


class Told(nn.Module):
    def forward(self, x, t, cond):
        return torch.sin(t)[:, None] * x


def loss_of(denoiser, **options):
    return diffusion_loss(denoiser, X0, **{"clamp": CLAMP, "generator": seeded()} | options)


def by_hand(denoiser, t, weighting, entries, std=1.0):
    """The mean over rows and entries of what `weighting` says, in plain numbers, and the clean estimates."""
    total, estimates = [], []
    for row in range(6):
        level = denoiser.schedule.levels(t)[row]
        a, s, kappa = level.alpha, level.sigma, level.sigma / level.alpha
        skip, out = std**2 / (kappa**2 + std**2), kappa * std / math.sqrt(kappa**2 + std**2)
        for entry in entries:
            seen, x0 = denoiser.network.seen[0][row, entry].item(), X0[row, entry].item()
            said = 0.5 * seen
            x = seen * a * math.sqrt(kappa**2 + std**2) if denoiser.prediction == "edm" else seen
            eps = (x - a * x0) / s
            asked, estimate = {
                "noise": (eps, (x - s * said) / a),
                "x0": (x0, said),
                "v": (a * eps - s * x0, (a * x - s * said) / (a * a + s * s)),
                "score": (-eps / s, (x + s * s * said) / a),
                "flow": (eps - x0, (x - s * said) / (a + s)),
                "edm": ((x0 - skip * x / a) / out, skip * x / a + out * said),
            }[denoiser.prediction]
            snr = (a / s) ** 2
            estimates.append(estimate)
            total.append(
                {
                    "simple": (said - asked) ** 2,
                    "x0": (estimate - x0) ** 2,
                    "snr": snr * (estimate - x0) ** 2,
                    "min_snr": min(snr, 5.0) * (estimate - x0) ** 2,
                    "edm": (kappa**2 + std**2) / (kappa * std) ** 2 * (estimate - x0) ** 2,
                }[weighting]
            )
    return sum(total) / len(total), estimates


@every_schedule
@every_prediction
@pytest.mark.parametrize("weighting", ["simple", *WEIGHTINGS])
@pytest.mark.parametrize("clamp", [CLAMP, None], ids=["clamped", "free"])
def test_loss_is_the_weighted_error_of_its_definition(schedule, prediction, weighting, clamp):
    std = 0.7
    denoiser = NetworkDenoiser(Offset(), schedule, prediction, data_std=std)
    loss, estimate, t = loss_of(denoiser, clamp=clamp, weighting=weighting)
    told = denoiser.network.seen[1]
    assert torch.allclose(told, -schedule.lam(t) / 4 if prediction == "edm" else t, rtol=1e-14, atol=0)
    entries = range(4) if clamp is None else (1, 2)
    expected, estimates = by_hand(denoiser, t, weighting, entries, std)
    assert loss.item() == pytest.approx(expected, rel=1e-8)
    assert loss.shape == ()
    assert estimate[:, list(entries)].flatten().tolist() == pytest.approx(estimates, rel=1e-9, abs=1e-11)
    if clamp is not None:
        assert torch.equal(estimate[:, MASK], CLAMP.values[MASK].expand(6, 2))


@pytest.mark.parametrize("schedule", [VPCosine(), VE(), Flow(), VPTable.vp()], ids=str)
@pytest.mark.parametrize(("weighting", "prediction"), [("snr", "noise"), ("edm", "edm"), ("x0", "x0")])
def test_weightings_that_are_simple_on_a_network(schedule, weighting, prediction):
    for std in (1.0, 0.3, 2.5):
        denoiser = NetworkDenoiser(Offset(), schedule, prediction, data_std=std)
        simple, weighted = (loss_of(denoiser, weighting=name)[0].item() for name in ("simple", weighting))
        assert weighted == pytest.approx(simple, rel=1e-10)
        t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
        factors = time_weights(denoiser, t, weighting, torch.zeros(5, 2, 3))
        assert factors.shape == (5, 1, 1)
        assert factors.dtype == torch.float32
        assert torch.allclose(factors, torch.ones(5, 1, 1))


def test_min_snr_stops_at_five():
    assert WEIGHTINGS["min_snr"](torch.ones(3), torch.tensor([0.01, 0.5, 2.0]), 1.0).tolist() == [5, 4, 0.25]


def test_unknown_weighting():
    with pytest.raises(ValueError, match="unknown weighting 'p2': choose one of simple, x0, snr, min_snr, edm"):
        loss_of(NetworkDenoiser(Offset(), VPCosine()), weighting="p2")


# What counts


@every_prediction
@pytest.mark.parametrize("weighting", ["simple", "edm"])
def test_what_the_network_says_at_clamped_entries_does_not_count(prediction, weighting):
    denoiser = NetworkDenoiser(Offset(), VPCosine(), prediction)
    offset = denoiser.network.offset
    loss, _, _ = loss_of(denoiser, weighting=weighting)
    (gradient,) = torch.autograd.grad(loss, offset)
    assert (gradient[MASK] == 0).all()
    assert (gradient[~MASK] != 0).all()
    for said in (1e3, math.inf, math.nan):
        with torch.no_grad():
            offset[MASK] = said
        changed, estimate, _ = loss_of(denoiser, weighting=weighting)
        assert changed.item() == loss.item()
        assert torch.equal(torch.autograd.grad(changed, offset)[0], gradient)
        assert torch.equal(estimate[:, MASK], CLAMP.values[MASK].expand(6, 2))


@every_schedule
@every_prediction
def test_clamped_entries_are_clean_to_the_network(schedule, prediction):
    denoiser, cond = NetworkDenoiser(Offset(), schedule, prediction), torch.ones(6, 1)
    _, _, t = loss_of(denoiser, cond=cond)
    x, _, seen = denoiser.network.seen
    assert seen is cond
    values = CLAMP.values[MASK].expand(6, 2)
    # Under VE the sample carries them as large as a sample is; EDM's network scales that back (std = 1).
    if isinstance(schedule, VE) and prediction != "edm":
        values = values * (1 + schedule.sigma(t) ** 2).sqrt()[:, None]
    if isinstance(schedule, Flow) and prediction == "edm":
        values = values / (t**2 + (1 - t) ** 2).sqrt()[:, None]
    assert torch.allclose(x[:, MASK], values, rtol=1e-12, atol=0)
    assert (x[:, ~MASK] != X0[:, ~MASK]).all()


def test_weights_are_relative():
    denoiser = NetworkDenoiser(Offset(), VPCosine())
    loss, _, _ = loss_of(denoiser)
    assert loss_of(denoiser, weights=torch.full((4,), 7.0))[0].item() == pytest.approx(loss.item())
    first, second = (loss_of(denoiser, weights=torch.eye(4, dtype=torch.float64)[i])[0].item() for i in (1, 2))
    mixed, _, _ = loss_of(denoiser, weights=torch.tensor([5.0, 3.0, 1.0, 9.0], dtype=torch.float64))
    assert loss.item() == pytest.approx((first + second) / 2)
    assert mixed.item() == pytest.approx((3 * first + second) / 4)


def test_weights_mask_entries_and_rows():
    denoiser = NetworkDenoiser(Offset(), VPCosine())
    clamped, free = loss_of(denoiser)[0].item(), loss_of(denoiser, clamp=None)[0].item()
    assert loss_of(denoiser, clamp=None, weights=torch.ones(6, 1))[0].item() == pytest.approx(free)
    rows = torch.arange(6.0)[:, None]
    each = [loss_of(denoiser, clamp=None, weights=(rows == row))[0].item() for row in range(6)]
    assert sum(each) / 6 == pytest.approx(free)
    weighted = loss_of(denoiser, clamp=None, weights=rows)[0].item()
    assert weighted == pytest.approx(sum(row * each[row] for row in range(6)) / 15)
    assert clamped != pytest.approx(free)
    nothing = loss_of(denoiser, weights=torch.zeros(4))[0]
    assert nothing.item() == 0
    assert (torch.autograd.grad(nothing, denoiser.network.offset)[0] == 0).all()


# Times


def test_times_are_stratified_and_the_generator_decides():
    denoiser = NetworkDenoiser(Offset(), VPCosine())
    loss, _, t = loss_of(denoiser)
    assert (t * 6).floor().tolist() == list(range(6))
    again, _, _ = loss_of(denoiser)
    other, _, other_t = loss_of(denoiser, generator=seeded(1))
    assert again.item() == loss.item()
    assert other.item() != loss.item()
    assert not torch.equal(other_t, t)


@pytest.mark.parametrize("emphasis", [0.5, 1.0, 2.0, 3.0])
@every_schedule
def test_uniform_times_follow_their_law(schedule, emphasis):
    # P(t <= x) = 1 - (1 - x)^(1 / emphasis), at a table's steps and everywhere else; stratified to 1 / batch.
    batch = 4000
    t = UniformTimes(emphasis)(batch, schedule, seeded(), CPU)
    assert t.dtype == torch.float64
    assert t.shape == (batch,)
    assert t.min() > 0
    assert t.max() <= 1
    for x in (0.2, 0.4, 0.6, 0.8):
        below = (t <= x + 1e-12).double().mean().item()
        assert below == pytest.approx(1 - (1 - x) ** (1 / emphasis), abs=2 / batch)


@pytest.mark.parametrize("steps", [1, 5, 7, 50])
def test_a_table_trains_its_steps_equally_often(steps):
    t = UniformTimes()(12 * steps, VPTable.vp(steps), seeded(), CPU)
    times, counts = t.unique(return_counts=True)
    assert times.tolist() == [k / steps for k in range(1, steps + 1)]
    assert counts.tolist() == [12] * steps


@pytest.mark.parametrize("emphasis", [3.0, 20.0])
@pytest.mark.parametrize("schedule", [VPTable.vp(), VPCosine(), Flow()], ids=str)
def test_no_emphasis_goes_past_the_last_time(schedule, emphasis):
    # (1 - u)^emphasis vanishes in the rounding of 1 - (1 - u)^emphasis.
    times = UniformTimes(emphasis)
    assert max(times(4096, schedule, seeded(seed), CPU).max().item() for seed in range(60)) <= 1


@every_prediction
def test_emphasis_keeps_training_on_flow_finite(prediction):
    # There is no signal at t = 1 itself, where EDM's network is told of infinite noise and the noise of nothing.
    denoiser = NetworkDenoiser(Told(), Flow(), prediction)
    x0, times = torch.zeros(4096, 2), UniformTimes(8.0)
    for weighting in ("simple", "snr"):
        loss, estimate, _ = diffusion_loss(denoiser, x0, times=times, weighting=weighting, generator=seeded())
        assert loss.isfinite()
        assert estimate.isfinite().all()


def test_emphasis_draws_more_times_of_high_noise():
    even, emphasised = (UniformTimes(emphasis)(64, VPCosine(), seeded(), CPU) for emphasis in (1.0, 2.0))
    assert torch.allclose(1 - emphasised, (1 - even) ** 2)
    assert (emphasised > even).all()


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.5, 0.8)])
@pytest.mark.parametrize("schedule", [VE(), Flow(), VPLinear(), VPSigmoid(), VPTable.linear()], ids=str)
def test_log_normal_times(schedule, mean, std):
    t = LogNormalTimes(mean, std)(200_000, schedule, seeded(), CPU)
    assert t.dtype == torch.float64
    log_noise = torch.log(schedule.sigma(t) / schedule.alpha(t))
    assert log_noise.mean().item() == pytest.approx(mean, abs=0.01)
    assert log_noise.std().item() == pytest.approx(std, abs=0.01)
    skew = ((log_noise - mean) / std).pow(3).mean().item()
    assert skew == pytest.approx(0, abs=0.03)


def test_log_normal_times_are_cut_off_at_the_ends():
    for schedule in SCHEDULES:
        t = LogNormalTimes(0.0, 30.0)(2000, schedule, seeded(), CPU)
        assert t.isfinite().all()
        assert 0 <= t.min() < 1e-3
        assert 0.999 < t.max() <= 1


@pytest.mark.parametrize("make", [lambda e: UniformTimes(e), lambda s: LogNormalTimes(std=s)])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_bad_times(make, bad):
    with pytest.raises(ValueError, match=r"positive|std > 0"):
        make(bad)


# What is learnt


class Lines(nn.Module):
    """One line for each of the steps of a table, which a squared error fits in closed form."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.embeds = schedule, prediction == "edm"
        self.lines = torch.zeros(2, schedule.steps, dtype=torch.float64)

    def forward(self, x, t, cond):
        t = self.schedule.time(-4 * t) if self.embeds else t
        slope, intercept = self.lines[:, (t * self.schedule.steps).round().long() - 1]
        return slope[:, None] * x + intercept[:, None]


@every_prediction
@pytest.mark.parametrize("weighting", ["simple", *WEIGHTINGS])
def test_every_weighting_is_least_at_the_posterior_mean(prediction, weighting):
    mean, std, schedule = 0.8, 0.5, VPTable.vp(3)
    x0 = mean + std * torch.randn(60_000, 1, dtype=torch.float64, generator=seeded(1))
    network = Lines(schedule, prediction)
    denoiser = NetworkDenoiser(network, schedule, prediction, data_std=0.7)

    def loss(lines):
        network.lines = lines
        return core.diffusion_loss(denoiser, x0, weighting=weighting, generator=seeded(2))[0]

    start = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(start), start, create_graph=True)
    curvature = torch.stack([torch.autograd.grad(entry, start, retain_graph=True)[0] for entry in slope.flatten()])
    with torch.no_grad():
        network.lines = -torch.linalg.solve(curvature.reshape(6, 6), slope.flatten()).reshape(2, 3)
        for t in (1 / 3, 2 / 3, 1.0):
            (level,) = schedule.levels(torch.tensor([t], dtype=torch.float64))
            spread = math.sqrt(level.alpha**2 * std**2 + level.sigma**2)
            x = level.alpha * mean + spread * torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
            exact = mean + level.alpha * std**2 / spread**2 * (x - level.alpha * mean)
            learnt = denoiser(x, torch.tensor(t, dtype=torch.float64))
            # within four standard errors of a mean over the step's samples
            assert (learnt - exact).abs().max() < 4 * std / math.sqrt(20_000) * math.sqrt(2) * max(1, level.sigma)

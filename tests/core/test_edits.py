"""Edits: when their hooks are called, and what each of them does to an iterate."""

import math

import pytest
import torch

from core.denoiser import wrap
from core.edits import Box, Clamp, Edit, GradientMove
from core.guidance import ClassifierFree
from core.noise import keys_of, normal
from core.samplers import DDIM, DDPM, DPMSolver, Heun
from core.sampling import best_of, sample
from core.schedules import VE, Flow, VPCosine, VPLinear, VPSigmoid, VPTable
from tests.core.gaussian import Gaussian

NOISE = normal(range(5), (3,), dtype=torch.float64)
MASK = torch.tensor([True, False, False])
SAMPLERS = [DDIM(4), DDPM(4), DPMSolver(4), DDIM(4, stop=0.3)]
TWO_CALLS = [Heun(4), DPMSolver(4, singlestep=True), Heun(4, "time", frame="flow", churn=2.0)]
NAN, INF = math.nan, math.inf


class Note(Edit):
    """Notes every call of a hook with what it was given, and adds its own number, so that the order of two shows."""

    def __init__(self, calls, name="", number=0.0):
        self.calls, self.name, self.number = calls, name, number

    def before(self, x, step):
        self.calls.append((f"{self.name} before", step, x))
        return x + self.number

    def estimate(self, x0, x, step):
        self.calls.append((f"{self.name} estimate", step, x0, x))
        return x0 * (1 + self.number)

    def after(self, x_new, x_old, step):
        self.calls.append((f"{self.name} after", step, x_new, x_old))
        return x_new - 2 * self.number

    def finish(self, x):
        self.calls.append((f"{self.name} finish", None, x))
        return x + 10 * self.number


def recorded(sampler):
    calls = []
    denoiser = wrap(lambda x, t: calls.append(("network", None, x)) or 0.5 * x, VPLinear())
    result = sample(denoiser, NOISE, sampler, edits=[Note(calls, "a", 1.0), Note(calls, "b", 3.0)], trace=True)
    return calls, result


@pytest.mark.parametrize("sampler", [DDIM(2), *TWO_CALLS], ids=str)
def test_hooks_are_called_in_the_documented_order(sampler):
    ask, names = ["a before", "b before", "network", "a estimate", "b estimate"], []
    grid = sampler.grid(VPLinear())
    for step in grid:
        names += [*ask, *(ask if step.inner else []), "a after", "b after"]
    calls, _ = recorded(sampler)
    assert [call[0] for call in calls] == [*names, "a finish", "b finish"]
    places = [(call[1].index, call[1].inner_of is not None) for call in calls if call[0] == "a before"]
    assert places == [(step.index, inner) for step in grid for inner in [False, True][: 2 if step.inner else 1]]


def test_hooks_see_and_change_the_right_iterates():
    assert torch.equal(sample(HALF, NOISE, DDPM(3), edits=[Edit()]).x, sample(HALF, NOISE, DDPM(3)).x)
    calls, result = recorded(DDIM(2))
    for step, iterate in zip(DDIM(2).grid(VPLinear()), result.trace, strict=False):
        of_step = calls[7 * step.index : 7 * step.index + 7]
        before_a, before_b, network, estimate_a, estimate_b, after_a, after_b = of_step
        x_old = iterate  # the trace shows what entered the network
        assert torch.equal(x_old, network[2])
        assert torch.equal(before_b[2], before_a[2] + 1)
        assert torch.equal(x_old, before_b[2] + 3)
        assert torch.equal(estimate_a[2], 0.5 * x_old)
        assert torch.equal(estimate_b[2], 0.5 * x_old * 2)
        # The sampler steps from what `before` made, with what `estimate` made.
        keep = step.end.sigma / step.start.sigma
        x_new = keep * x_old + (step.end.alpha - keep * step.start.alpha) * (0.5 * x_old * 2 * 4)
        assert torch.allclose(after_a[2], x_new, atol=1e-13)
        assert torch.equal(after_b[2], after_a[2] - 2)
        assert all(torch.equal(call[3], x_old) for call in (estimate_a, estimate_b, after_a, after_b))
    finish_a, finish_b = calls[-2:]
    pairs = [(finish_a[2], after_b[2] - 6), (finish_b[2], finish_a[2] + 10), (result.x, finish_b[2] + 30)]
    assert all(torch.equal(*pair) for pair in [*pairs, (result.trace[-1], result.x)])


# Clamp.


@pytest.mark.parametrize("sampler", [*SAMPLERS, *TWO_CALLS], ids=str)
def test_clamp_shows_every_call_the_value_and_returns_it(sampler):
    values = torch.arange(5.0)[:, None].expand(5, 3)
    seen = []
    nonsense = wrap(lambda x, t: seen.append(x.clone()) or torch.full_like(x, 100.0), VPCosine())
    result = sample(nonsense, NOISE.float(), sampler, edits=[Clamp(MASK, values)], trace=True)
    assert len(seen) == sampler.evaluations(VPCosine())
    for x in seen:
        assert torch.equal(x[:, 0], values[:, 0])
        assert (x[:, 1:] != values[:, 1:]).all()
    assert torch.equal(result.x[:, 0], values[:, 0])
    assert (result.x[:, 1:] > 50).all()


def test_clamp_corrects_the_estimate():
    # Every iterate in between follows the value too, not only those that `before` has written over.
    calls = []
    denoiser = wrap(lambda x, t: torch.full_like(x, 100.0), VPCosine())
    sample(denoiser, NOISE, DDIM(4), edits=[Clamp(MASK, torch.tensor(0.5).double()), Note(calls)])
    assert all(x_new[:, 0].abs().max() < 3 for name, _, x_new, *_ in calls if name == " after")


@pytest.mark.parametrize("schedule", [VPSigmoid(), VPLinear(), VPCosine(), Flow(), VE(), VPTable.cosine(20)], ids=str)
def test_clamp_carries_the_value_at_the_scale_of_its_level(schedule):
    # sqrt(1 + sigma^2) for VE, whose samples grow with the noise, and exactly 1 for the others.
    clamp = Clamp(MASK, torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64))
    for level in schedule.levels(torch.linspace(0, 1, 201)):
        expected = pytest.approx(0.1 * math.sqrt(1 + level.sigma**2)) if schedule == VE() else 0.1
        assert all(value == expected for value in clamp.noisy(NOISE, level.scale)[:, 0].tolist())
    result = sample(wrap(lambda x, t: torch.zeros_like(x), schedule), NOISE, DDIM(4), edits=[clamp], trace=True)
    for x, step in zip(result.trace, DDIM(4).grid(schedule), strict=False):
        assert torch.equal(x, torch.where(MASK, 0.1 * step.start.scale, x))
    assert torch.equal(result.x[:, 0], torch.full_like(NOISE[:, 0], 0.1))


def test_clamp_shapes_and_scales_of_a_batch():
    mask, values = torch.tensor([True, False])[:, None, None], normal([7], (1, 3, 2))  # [T, 1, 1] of [B, T, A, O]
    x, scale = normal(range(4), (2, 3, 2)), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    clamp, original = Clamp(mask, values), x.clone()
    noisy = clamp.noisy(x, scale)
    assert noisy.dtype == torch.float32
    assert torch.equal(noisy[:, 1], x[:, 1])
    assert torch.equal(noisy[:, 0], values[0] * scale[:, None, None].float())
    assert torch.equal(clamp.noisy(x, 1.0), clamp(x))
    assert torch.equal(x, original)
    assert torch.equal(clamp.free, ~mask)
    with pytest.raises(ValueError, match=r"boolean mask, got torch\.float32"):
        Clamp(mask.float(), values)


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


# Box.

ROWS = torch.tensor([-1.0, -0.1, 0.0]), torch.full((4, 1, 1), -0.3).double(), torch.tensor([[1.0], [0.2]]).double()


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-0.2, INF), (ROWS[0], 0.5), (ROWS[1], ROWS[2]), (-INF, ROWS[2])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_box_bounds_the_estimate_and_the_result(low, high, dtype):
    x0 = normal(range(4), (2, 3)).to(dtype)
    box = Box(low, high)
    low, high = (b.to(dtype) if isinstance(b, torch.Tensor) else torch.tensor(b, dtype=dtype) for b in (low, high))
    expected = torch.where(x0 < low, low, torch.where(x0 > high, high, x0))
    for result in (box(x0), box.estimate(x0, x0, None), box.finish(x0)):
        assert torch.equal(result, expected) and result.dtype == dtype
    assert box.before(x0, None) is box.after(x0, x0, None) is x0
    assert (expected != x0).any()


def test_box_sees_the_guided_estimate_and_later_edits_have_the_last_word():
    says_three = ClassifierFree(wrap(lambda x, t, cond: cond.nan_to_num(), VPCosine()), 3.0)
    seen = []
    run = [says_three, NOISE, DDIM(4)]
    trace = sample(*run, cond=torch.ones_like(NOISE), edits=[Note(seen), Box(-2), Note(seen)], trace=True).trace
    assert [x0[2].unique().tolist() for x0 in seen if x0[0] == " estimate"] == [[3.0], [1.0]] * 4
    assert torch.equal(trace[-1], torch.ones_like(NOISE))
    clamp, box = Clamp(MASK, torch.full((3,), 2.0, dtype=torch.float64)), Box()
    for edits, expected in (([clamp, box], [1.0, 1.0, 1.0]), ([box, clamp], [2.0, 1.0, 1.0])):
        assert sample(*run, cond=torch.ones_like(NOISE), edits=edits).x[0].tolist() == expected


# Gradient moves.

TABLE = VPTable.cosine(20)
HALF = wrap(lambda x, t: 0.5 * torch.tanh(x), TABLE)


def value(x, t):
    return (torch.sin(x) - 0.2 * x**2).sum(1) * (1 + t)


def slope(x, t):
    return (torch.cos(x) - 0.4 * x) * (1 + t)


def posterior_variance(k):
    """beta (1 - abar_prev) / (1 - abar) of the table's step k -> k - 1."""
    bars = [math.prod(1 - beta for beta in TABLE.betas[:j]) for j in (k - 1, k)]
    return TABLE.betas[k - 1] * (1 - bars[0]) / (1 - bars[1])


@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True])], ids=["all", "masked"])
@pytest.mark.parametrize(("steps", "clip", "stop"), [(1, INF, 0), (2, INF, 2), (3, 0.3, 10), (1, 0.3, 0), (2, INF, 19)])
@pytest.mark.parametrize(("by", "power"), [("variance", 1), ("deviation", 0.5), ("one", 0)])
@pytest.mark.parametrize("sampler", [DDIM(20), DDPM(20), DPMSolver(20, "time", order=1)], ids=["ddim", "ddpm", "dpm"])
def test_a_move_of_the_iterate_is_the_published_one(sampler, by, power, steps, clip, stop, mask):
    move = GradientMove(value, 0.7, steps=steps, by=by, stop=stop / 20, clip=clip, mask=mask)
    calls, moved = [], []
    trace = sample(HALF, NOISE, sampler, edits=[Note(calls), move], trace=True).trace
    entering = [call[2] for call in calls if call[0] == " before"]
    for k, x, iterate in zip(range(20, 0, -1), entering, trace, strict=False):
        moved.append(not torch.equal(iterate, x))
        for _ in range(steps if k - 1 >= stop else 0):  # published: none where timestep i = k - 1 < t_stopgrad
            gradient = slope(x, k / 20) * (1 if mask is None else mask)
            gradient = gradient * (clip / gradient.norm(dim=1, keepdim=True)).clamp(max=1)
            x = x + 0.7 * posterior_variance(k) ** power * gradient
        assert torch.allclose(iterate, x, rtol=0, atol=1e-9)
    last = 0 if by == "one" else 1  # the posterior of the last step has no variance
    assert moved == [k > max(stop, last) for k in range(20, 0, -1)]


@pytest.mark.parametrize("schedule", [TABLE, VPLinear(), VE(), Flow()], ids=str)
def test_a_move_of_the_mean_is_dhariwal_and_nichol_s(schedule):
    # Algorithm 1: x_prev ~ N(mu + s Sigma grad log p(y | x_t), Sigma). The step's noise is known, so it can be removed.
    move = GradientMove(value, 0.7, on="mean")
    x, x_prev = sample(wrap(HALF.fn, schedule), NOISE, DDPM(20), edits=[move], trace=True).trace[:2]
    times = torch.tensor([1.0, DDPM(20).grid(schedule)[0].end.t], dtype=torch.float64)
    (a, a_prev), (s, s_prev) = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    forward = s**2 - (a / a_prev * s_prev) ** 2
    variance = forward * (s_prev / s) ** 2
    assert schedule != TABLE or variance == pytest.approx(posterior_variance(20), rel=1e-9)
    mu = a_prev * forward / s**2 * HALF.fn(x, None) + a / a_prev * (s_prev / s) ** 2 * x
    mean = x_prev - math.sqrt(variance) * normal(keys_of(NOISE), (3,), dtype=torch.float64)
    assert torch.allclose(mean, mu + 0.7 * variance * slope(x, 1.0), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("sampler", [*TWO_CALLS, DPMSolver(4, singlestep=True, sde=True), Heun(4, stop=0.1)], ids=str)
@pytest.mark.parametrize(("on", "steps"), [("iterate", 1), ("iterate", 2), ("mean", 1)])
def test_a_move_happens_once_a_step_of_two_calls(sampler, on, steps):
    calls, moves = [], []
    move = GradientMove(lambda x, t: moves.append(t.item()) or value(x, t), 0.1, on=on, steps=steps)
    sample(wrap(HALF.fn, VPCosine()), NOISE, sampler, edits=[Note(calls), move])
    assert sum(call[0] == " before" for call in calls) == sampler.evaluations(VPCosine()) > sampler.steps
    assert moves == [step.start.t for step in sampler.grid(VPCosine()) if step.variance > 0 for _ in range(steps)]


@pytest.mark.parametrize("on", ["iterate", "mean"])
@pytest.mark.parametrize("sampler", [DDIM(4), *TWO_CALLS[:2]], ids=str)
def test_gradients_flow_through_edits(sampler, on):
    ones = torch.ones(3, dtype=torch.float64)
    edits = [Clamp(MASK, 0.3 * ones), GradientMove(value, 0.5, on=on, clip=0.8, mask=~MASK), Box(-0.9, 5.0)]

    def run(noise, weight):
        denoiser = wrap(lambda x, t: torch.tanh(weight * x), VPCosine())
        return sample(denoiser, noise, sampler, edits=edits, grad=True).x

    assert torch.autograd.gradcheck(run, (NOISE[:2].clone().requires_grad_(), ones.requires_grad_()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "noise"}, "unknown on='noise': choose one of iterate, mean"),
        ({"by": "std"}, "unknown by='std': choose one of variance, deviation, one"),
        *[({"scale": scale}, "finite scale") for scale in (NAN, INF)],
        *[({"clip": clip}, "clip > 0") for clip in (0.0, -1.0, NAN)],
        *[({"stop": stop}, "0 <= stop < 1") for stop in (-0.1, 1.0, NAN)],
        *[(options, "steps >= 1") for options in ({"steps": 0}, {"steps": 2, "on": "mean"})],
    ],
)
def test_bad_options_of_a_move(options, message):
    with pytest.raises(ValueError, match=message):
        GradientMove(value, **{"scale": 1.0, **options})


def test_a_move_needs_a_value_that_depends_on_its_sample_unless_it_does_not_move():
    flat = wrap(lambda x, t: torch.zeros(len(x)), TABLE)
    with pytest.raises(ValueError, match="does not depend on its sample"):
        sample(HALF, NOISE, DDIM(2), edits=[GradientMove(flat, 1.0)])
    for on in ("iterate", "mean"):
        still = sample(HALF, NOISE, DDIM(4), edits=[GradientMove(flat, 0.0, on=on)]).x
        assert torch.equal(still, sample(HALF, NOISE, DDIM(4)).x)


# The best of several candidates.

CANDIDATES = normal(range(3), (3, 2, 4))
SCORES = [
    *[[1.0, 3.0, 2.0], [3.0, 3.0, 2.0], [NAN, -5.0, NAN], [NAN, -INF, NAN], [-INF, -1e30, NAN], [1.0, INF, NAN]],
    *[[NAN, NAN, NAN], [-INF, -INF, NAN], [-2, -1, -3], [False, True, True]],
]


@pytest.mark.parametrize("row", SCORES, ids=str)
@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 2), (3, 3, 2, 4)])
def test_best_of_takes_the_first_of_the_highest_and_nan_last(shape, row):
    candidates = CANDIDATES[(slice(None), slice(None), *[0] * (4 - len(shape)))]
    scores = torch.stack([torch.tensor(row).roll(shift) for shift in range(3)])
    ranks = [[(s == s, s if s == s else 0.0) for s in each] for each in scores.tolist()]
    expected = torch.stack([each[rank.index(max(rank))] for each, rank in zip(candidates, ranks, strict=True)])
    assert torch.equal(best_of(candidates, scores), expected)
    assert torch.equal(best_of(candidates, lambda flat: scores.flatten() if len(flat) == 9 else None), expected)
    highest = torch.stack([max(each, key=torch.sum) for each in candidates])
    assert torch.equal(best_of(candidates, lambda flat: flat.reshape(9, -1).sum(1)), highest)


@pytest.mark.parametrize("score", [torch.ones(3), torch.ones(2, 3), torch.ones(3, 3, 1), lambda flat: torch.ones(5)])
def test_best_of_needs_a_score_for_each_candidate(score):
    with pytest.raises(ValueError, match=r"scores must be \[3, 3\], got"):
        best_of(CANDIDATES, score)
    for bad in (CANDIDATES[:, :0], CANDIDATES[0, 0, 0]):
        with pytest.raises(ValueError, match="candidates must be"):
            best_of(bad, score)

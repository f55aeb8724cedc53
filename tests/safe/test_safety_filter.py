"""The safety filter: what each mode asks of a step, and that every returned plan is safe where it was free to be."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import core
from core.data.normalisers import CDF, Affine
from core.noise import normal
from core.samplers import DDIM, DDPM, Consistency, DPMSolver, Heun
from core.schedules import VE, Flow, VPCosine, VPLinear
from safe.barriers import Ellipse, FunctionBarrier, HalfSpaces, Separation, SpeedLimit, within
from safe.safety_filter import SafetyFilter
from safe.safety_rules import FiniteTime, Relaxed, Robust, Rule, TimeVarying
from tests.core.gaussian import Gaussian
from tests.core.test_counts import waits

STEPS = 10
DISC = Ellipse([0.0, 0.0], 0.4)
SCHEDULES = [VPLinear(), VPCosine(), VE(), Flow()]
SAMPLERS = [
    *[DDPM(6), DDIM(6), DPMSolver(6, "lambda"), DPMSolver(4, singlestep=True, sde=True), Heun(4), Heun(4, churn=1.0)],
    *[Consistency(1), Consistency(3), DDIM(6, "lambda", repeats=3), DDIM(4, stop=0.2)],
]
MODES = ["robust", "relaxed", "time_varying", "finite_time"]


def paths(schedule, agents=1, steps=STEPS):
    """The exact denoiser of smooth Gaussian paths from (-1, 0) to (1, 0); a condition moves them up."""
    s = torch.linspace(0, 1, steps, dtype=torch.float64)
    mean = torch.stack([2 * s - 1, torch.zeros_like(s)], dim=-1).flatten()
    smooth = torch.exp(-((s[:, None] - s) ** 2) / 0.18) + 1e-3 * torch.eye(steps)
    data = Gaussian(schedule, mean, torch.kron(smooth, torch.diag(torch.tensor([0.0025, 0.09]).double())))

    def estimate(x, t, cond=None):
        flat = x.double().transpose(1, 2).flatten(0, 1).flatten(1)
        x0 = data(flat, t).reshape(len(x), agents, steps, 2).transpose(1, 2)
        return x0 if cond is None else x0 + cond.nan_to_num()[:, None, None] * torch.tensor([0.0, 1.0]).to(x)

    return core.wrap(estimate, schedule)


def noise(batch=6, agents=1, dtype=torch.float64, steps=STEPS):
    return normal(range(batch), (steps, agents, 2), dtype=dtype)


def still(schedule, at=0.0):
    """Insists on one plan."""
    return core.wrap(lambda x, t: torch.full_like(x, at), schedule)


# Returned plans.


@pytest.mark.parametrize("sampler", [*SAMPLERS[:5], *SAMPLERS[6:9]], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_returned_plan_is_safe_whatever_guides_it(schedule, sampler):
    dtype = [torch.float64, torch.float32][(SCHEDULES.index(schedule) + SAMPLERS.index(sampler)) % 2]
    guided = core.ClassifierFree(paths(schedule), 1.5)
    pulled = core.Energy(guided, lambda x0: x0.square().sum(dim=(1, 2, 3)), 0.05, on="frozen")
    scene = [Ellipse([0.0, 0.2], 0.7), Ellipse([0.6, 0.1], [0.1, 0.3], 4.0), within(-1.2, 1.2, (0, 1))]
    known = core.Clamp(torch.arange(STEPS)[:, None, None] == 0, torch.tensor([-1.0, 0.1], dtype=torch.float64))
    z, cond = noise(dtype=dtype), torch.full((6, 1), 0.1, dtype=dtype)
    free = core.sample(pulled, z, sampler, cond=cond, edits=[known]).x
    assert min(float(barrier(free).min()) for barrier in scene) < -0.02
    for mode, on in [*((mode, "iterate") for mode in MODES), ("robust", "estimate")]:
        safety = SafetyFilter(scene, None, mode, on, clamp=known)
        x = core.sample(pulled, z, sampler, cond=cond, edits=[known, safety]).x
        assert x.dtype == dtype
        assert torch.equal(x[:, 0], free[:, 0])
        assert min(float(barrier(x).min()) for barrier in scene) >= 0.01 - 1e-6
        report = safety.report(x)
        assert bool(report.safe.all()) and not bool(report.contradictory.any())
        assert float(report.minimum.min()) == pytest.approx(min(float(b(x[:, 1:]).min()) for b in scene), abs=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS[:6], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_last_step_itself_is_safe_outside_convex_sets(schedule, sampler):
    """SafeDiffuser's claim, without the final projection: one projection with a full step ends outside."""
    for mode in ("robust", "relaxed", "time_varying"):
        x = core.sample(paths(schedule), noise(), sampler, edits=[SafetyFilter([DISC], None, mode, final=False)]).x
        assert float(DISC(x).min()) >= 0.01 - 1e-9


@pytest.mark.parametrize("sampler", SAMPLERS[1::2], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_filter_that_never_acts_changes_nothing(schedule, sampler):
    for dtype in [torch.float32, torch.float64]:
        clamp = core.Clamp(torch.arange(STEPS)[:, None, None] < 2, torch.full((2,), 0.3))
        plain = core.sample(paths(schedule, 2), noise(3, 2, dtype), sampler, edits=[clamp], trace=True).trace
        for mode, aware in (("robust", clamp), ("relaxed", None), ("time_varying", clamp)):
            far = [
                within(-1e9, 1e9, (0, 1)),
                FunctionBarrier(lambda x: 1e6 + x.sum((-2, -1))[..., None], (0,), "agents"),
            ]
            safety = SafetyFilter([*far, SpeedLimit(1e9)], None, mode, clamp=aware)
            filtered = core.sample(paths(schedule, 2), noise(3, 2, dtype), sampler, edits=[clamp, safety], trace=True)
            assert all(torch.equal(a, b) for a, b in zip(plain, filtered.trace, strict=True))


TOGETHER = [DISC, Separation(0.3), SpeedLimit(0.6)]


def walk(mode="relaxed", scene=TOGETHER, **options):
    """Sampling of two agents, one of them between a clamped start and a disc, under barriers of every coupling."""
    clamp = core.Clamp(torch.arange(STEPS)[:, None, None] == 0, torch.tensor([[-1.0, 0.2], [-1.0, -0.6]]).double())
    normaliser = Affine(2)  # scale 1, shift 0
    safety = SafetyFilter(scene, normaliser, mode, clamp=clamp, **options)
    denoiser = paths(VPCosine(), 2)
    return lambda z: core.sample(denoiser, z, DDPM(3), edits=[clamp, safety]).x


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_equals_its_members_and_the_unscreened_form_the_screened_one(mode):
    z, run = noise(4, 2), walk(mode, rounds=5)
    together = run(z)
    assert torch.allclose(together, torch.cat([run(row) for row in z.split(1)]), atol=1e-9)
    assert torch.allclose(walk(mode, rounds=5, screen=False)(z), together, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_in_the_loop_waits_for_the_device(mode, monkeypatch):
    # Not `Separation`: it sets an entry to 1, which only a CPU copies from the host.
    near = FunctionBarrier(lambda x: 1.5 - x.diff(dim=-2).square().sum((-2, -1))[..., None], (0, 1), "agents")
    slow = FunctionBarrier(lambda x: 0.4 - x.diff(dim=-2).square().sum((-2, -1))[..., None], (0, 1), "steps")
    z, scene = noise(2, 2), [DISC, near, slow, within(-1.5, 1.5, (1,))]
    for options in ({"physical": True}, {"on": "estimate"}):
        run = walk(mode, scene, rounds=2, screen=False, **options)
        assert waits(lambda run=run: run(z), monkeypatch) == []
    screened = walk(mode, scene, rounds=2)
    assert waits(lambda: screened(z), monkeypatch) != []


@pytest.mark.slow
def test_the_recorded_form_equals_the_eager_one():
    z, eager = noise(4, 2), walk(rounds=2)
    eager(z)  # makes the grid, whose numbers are no part of a record
    recorded = make_fx(walk(rounds=2, screen=False))(z)
    for start in (z, z.flip(0), noise(8, 2)[4:]):
        assert torch.allclose(recorded(start), eager(start), atol=1e-9)


# What each mode asks of a step.


def lowered(rule, steps=20, depth=-2.0, schedule=None, **options):
    """Barriers [steps + 1] along a walk of a plan that wants to be at x = 0, where x >= 1 is asked for, and begins at
    1 + depth: a linear barrier is met to the last digit."""
    schedule = schedule or VPCosine()
    barrier = HalfSpaces([1.0, 0.0], 1.0, (0, 1))
    start = core.WarmStart(torch.full((1, 1, 1, 2), 1.0 + depth, dtype=torch.float64), 0.999)
    safety = SafetyFilter([barrier], None, rule, margin=0.0, final=False, **options)
    result = core.sample(
        still(schedule, -50.0), torch.zeros(1, 1, 1, 2, dtype=torch.float64), DDIM(steps), edits=[safety], start=start,
        trace=True,
    )  # fmt: skip
    times = [step.start.t for step in DDIM(steps).grid(schedule, 0.999)] + [0.0]
    return times, torch.stack([barrier(x).squeeze() for x in result.trace])


@pytest.mark.parametrize("gain", [1.0, 0.5, 0.1])
def test_robust_keeps_a_share_of_the_barrier(gain):
    _, b = lowered(Robust(gain))
    # From below 0 it rises by the gain; what wants to fall does not fall faster either.
    assert torch.allclose(b, b[0] * (1 - gain) ** torch.arange(21, dtype=torch.float64), atol=1e-12)


def test_time_varying_rises_to_exactly_0_and_the_published_sign_ends_below():
    times, b = lowered(TimeVarying(depth=3.0))
    assert torch.allclose(b[1:], torch.tensor([-3.0 * t for t in times[1:]], dtype=torch.float64), atol=1e-12)
    assert b[-1].item() == pytest.approx(0, abs=1e-12)
    _, gentle = lowered(TimeVarying(depth=3.0, gain=0.5))
    levels = torch.tensor([-3.0 * t for t in times], dtype=torch.float64)
    assert torch.allclose(gentle - levels, (gentle[0] - levels[0]) * 0.5 ** torch.arange(21.0).double(), atol=1e-12)

    @dataclass(frozen=True)
    class Published(TimeVarying):
        """The level's change subtracted the other way round: grad b . u + gamma_dot + (b - gamma) >= 0."""

        def floor(self, b, step):
            here, there = self.level(step.start.t), self.level(step.end.t)
            return here - (there - here)

    _, wrong = lowered(Published(depth=3.0))
    assert wrong[-1].item() == pytest.approx(-6.0 * times[-2])
    assert wrong[-1] < -0.2


@pytest.mark.parametrize("hard", [0.0, 0.3])
def test_levels_and_slack_are_0_at_the_times_that_are_hard(hard):
    relaxed, varying = Relaxed(5.0, hard), TimeVarying(2.0, hard)
    for step in DDIM(20).grid(VPLinear()):
        expected = max(0.0, step.end.t - hard) / (1 - hard)
        assert relaxed.slack(step) == pytest.approx(5 * expected)
        assert varying.level(step.end.t) == pytest.approx(-2 * expected)
        assert (relaxed.slack(step) == 0) == (step.end.t <= hard)
    assert relaxed.slack(DDIM(20).grid(VPLinear())[-1]) == 0 and varying.level(0.0) == 0


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0, 100.0])
def test_relaxed_moves_by_the_share_that_slack_leaves(weight):
    # min |u - u_ref|^2 + r^2 s.t. u + w r >= -b in one dimension: u - u_ref = (-b - u_ref) / (1 + w^2).
    rule, schedule = Relaxed(weight), VPCosine()
    _, b = lowered(rule)
    steps = DDIM(20).grid(schedule, 0.999)
    for step, here, there in zip(steps, b, b[1:], strict=False):
        keep = step.end.sigma / step.start.sigma
        wanted = keep * (here + 1) + (step.end.alpha - keep * step.start.alpha) * -50.0 - 1 - here
        w = weight * step.end.t
        expected = here + wanted + (-here - wanted).clamp(min=0) / (1 + w**2)
        assert there.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("power", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("depth", [-2.0, 3.0])
def test_finite_time_is_the_solution_of_its_equation(depth, power):
    rate = 6.0
    times, b = lowered(FiniteTime(rate, power), 50, depth, Flow())
    bound = abs(b[0].item()) ** (1 - power) / (rate * (1 - power))
    value, fine = b[0].item(), 400  # Euler's method on db/dtau = -rate sgn(b) |b|^power
    for k, (start, end) in enumerate(pairwise(times)):
        for _ in range(fine):
            change = rate * abs(value) ** power * (start - end) / fine
            value = math.copysign(max(0.0, abs(value) - change), value)
        assert b[k + 1].item() == pytest.approx(value, abs=0.02)
        if times[0] - end > bound:
            assert b[k + 1].item() == pytest.approx(0, abs=1e-9)


def test_a_step_outside_a_disc_is_cut_by_its_tangent():
    barrier = Ellipse([0.5, -0.2], 0.7)
    z, schedule = noise(16), VPLinear()
    safety = SafetyFilter([barrier], None, margin=0.05)
    x_old, x_new = core.sample(paths(schedule), z, DDIM(5), edits=[safety], trace=True).trace[:2]
    free = core.sample(paths(schedule), z, DDIM(5), trace=True).trace[1]
    way = x_old - torch.tensor([0.5, -0.2]).double()
    unit = way / way.norm(dim=-1, keepdim=True)
    # In the direction outwards from where it was, it must come to 0.7 * 1.05.
    reach = ((free - torch.tensor([0.5, -0.2]).double()) * unit).sum(-1, keepdim=True)
    assert torch.allclose(x_new, free + unit * (0.7 * 1.05 - reach).clamp(min=0), atol=1e-12)
    assert (reach < 0.735).any() and (reach > 0.735).any()


@pytest.mark.parametrize("physical", [False, True])
def test_nearest_in_the_plan_s_units_or_in_physical_ones(physical):
    normaliser = Affine(2)
    normaliser.scale.copy_(torch.tensor([4.0, 1.0]))
    normaliser.shift.copy_(torch.tensor([1.0, -2.0]))
    barrier = HalfSpaces([3.0, 4.0], 10.0, (0, 1))
    x = noise(5)
    moved = SafetyFilter([barrier], normaliser, margin=0.0, physical=physical).finish(x)
    assert float(barrier(moved, normaliser).min()) >= -1e-9
    way = normaliser.scale.double() * (moved - x)[barrier(x, normaliser).squeeze(-1) < 0]  # in physical units
    direction = torch.tensor([3.0, 4.0]).double() * (1 if physical else normaliser.scale.double() ** 2)
    assert torch.allclose(way / way.norm(dim=-1, keepdim=True), (direction / direction.norm()).expand_as(way))


@pytest.mark.parametrize("sampler", [DDIM(6), Heun(6), Consistency(3)], ids=str)
def test_only_the_late_steps_are_filtered(sampler):
    z, denoiser = noise(), paths(VPCosine())
    plain = core.sample(denoiser, z, sampler, trace=True).trace
    for on in ("iterate", "estimate"):
        late = core.sample(denoiser, z, sampler, edits=[SafetyFilter([DISC], on=on, begin=0.5)], trace=True).trace
        for step, a, b in zip(sampler.grid(VPCosine()), plain[1:], late[1:], strict=True):
            assert torch.equal(a, b) == (step.start.t > 0.5)
        last = core.sample(denoiser, z, sampler, edits=[SafetyFilter([DISC], on=on, begin=0.0)]).x
        out = plain[-1] / plain[-1].norm(dim=-1, keepdim=True)
        outside = plain[-1].norm(dim=-1, keepdim=True) >= 0.404
        assert torch.allclose(last, torch.where(outside, plain[-1], 0.404 * out), atol=1e-9)


def test_a_projected_estimate_is_what_every_call_hands_on():
    seen = []

    class Note(core.Edit):
        def estimate(self, x0, x, step):
            seen.append((x0, step.inner_of))
            return x0

    core.sample(paths(VPCosine()), noise(), Heun(4), edits=[SafetyFilter([DISC], on="estimate"), Note()])
    assert {inner is None for _, inner in seen} == {True, False}
    assert all(float(DISC(x0).min()) >= 0.01 - 1e-9 for x0, _ in seen)


def test_warm_starts_and_gradients():
    z, denoiser = noise(3), paths(VPCosine())
    start = core.WarmStart(core.sample(denoiser, z, DDIM(4)).x, 0.4)
    for rule in (Robust(0.5), Relaxed(0.5), TimeVarying(), FiniteTime()):
        safety = SafetyFilter([DISC], None, rule, rounds=2)
        assert float(DISC(core.sample(denoiser, z, DDPM(4), edits=[safety], start=start).x).min()) >= 0.01 - 1e-9

        def run(x, weight, safety=safety):
            pulled = core.wrap(lambda x, t: weight * denoiser(x, t), VPCosine())
            return core.sample(pulled, x, DDIM(2), edits=[safety], grad=True).x

        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            run, (z[:1, :, :, :].clone().requires_grad_(), weight), atol=1e-4, fast_mode=True
        )


# Pitfalls.


@pytest.mark.parametrize("offset", [0.0, 1e-300, 1e-12, 1e-3])
def test_moves_stay_bounded_at_the_centre_of_an_obstacle(offset):
    """The published gradient of sum |z|^4 - 1 vanishes there, and moves explode."""
    barrier = Ellipse([1.5, 4.8], 1.0, 4.0)
    x = torch.tensor([1.5 + offset, 4.8 + offset], dtype=torch.float64).expand(2, 3, 1, 2)
    z = torch.zeros_like(x)
    safety = SafetyFilter([barrier])
    moved = safety.after(x, x, DDIM(4).grid(VPCosine())[2])
    assert 1.0 <= float((moved - x).norm(dim=-1).max()) < 2.0
    assert float(barrier(moved).min()) >= 0.01 - 1e-9
    plan = core.sample(core.wrap(lambda noisy, t: x, VPCosine()), z, DDPM(20), edits=[safety]).x
    assert float((plan - x).norm(dim=-1).max()) < 2.0


def test_what_is_clamped_is_never_moved_and_reported_apart():
    mask = torch.tensor([True, True, *[False] * (STEPS - 2)])[:, None, None]
    inside = torch.tensor([0.1, 0.1], dtype=torch.float64)
    clamp = core.Clamp(mask, inside)
    denoiser, z = paths(VPCosine()), noise()
    safety = SafetyFilter([DISC], clamp=clamp)
    x = core.sample(denoiser, z, DDPM(8), edits=[clamp, safety]).x
    report = safety.report(x)
    assert torch.equal(x[:, :2], inside.expand(6, 2, 1, 2))
    assert report.given.tolist() == [[True, True, *[False] * (STEPS - 2)]] * 6
    assert bool(report.safe.all()) and not bool(report.contradictory.any())
    assert report.minimum.tolist() == pytest.approx(DISC(x[:, 2:]).flatten(1).amin(1).tolist())
    assert "6 of 6 plans were given entries at waypoints 0, 1 that violate" in str(report)
    # A filter that does not know of the clamp is overruled by it, and says so of the plan that was returned.
    unaware = SafetyFilter([DISC])
    overruled = core.sample(denoiser, z, DDPM(8), edits=[unaware, clamp]).x
    assert unaware.report(overruled).violated[:, :2].all() and not bool(unaware.report(overruled).safe.any())
    assert "violate constraints at waypoints 0, 1" in str(unaware.report(overruled))


def test_a_free_agent_gives_way_to_a_clamped_one():
    held = core.Clamp(torch.tensor([True, False])[:, None], torch.zeros(2, dtype=torch.float64))
    apart, z = Separation(0.5), noise(8, 2)
    safety = SafetyFilter([apart, DISC], clamp=held)
    x = core.sample(paths(VPCosine(), 2), z, DDIM(6), edits=[held, safety]).x
    report = safety.report(x)
    assert torch.equal(x[..., 0, :], torch.zeros_like(x[..., 0, :]))
    assert float(x[..., 1, :].norm(dim=-1).min()) >= 0.51 - 1e-6
    assert bool(report.given.all())  # the clamped agent stands in the disc
    assert bool(report.safe.all())
    both = core.Clamp(torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, dtype=torch.float64))
    report = SafetyFilter([apart], clamp=both).report(x)
    assert bool(report.given.all()) and report.minimum.tolist() == [math.inf] * 8 and bool(report.safe.all())


CURVED = [Ellipse([0.0, 0.0], [1.0, 0.4], inside=True), SpeedLimit(0.4)]


@pytest.mark.parametrize("mode", MODES)
def test_concave_barriers_are_met_by_repetition(mode):
    clamp = core.Clamp(torch.arange(STEPS)[:, None, None] == 0, torch.tensor([-0.5, 0.0], dtype=torch.float64))
    safety = SafetyFilter(CURVED, None, mode, clamp=clamp)
    wide = core.wrap(lambda x, t: 3 * paths(VPCosine())(x, t), VPCosine())
    x = core.sample(wide, noise(), DDIM(6), edits=[clamp, safety]).x
    assert min(float(barrier(x).min()) for barrier in CURVED) >= -1e-6
    assert bool(safety.report(x).safe.all())
    once = SafetyFilter(CURVED, None, mode, clamp=clamp, rounds=1)
    report = once.report(core.sample(wide, noise(), DDIM(6), edits=[clamp, once]).x)
    assert not bool(report.safe.all()) and "allow more rounds" in str(report)


def test_short_plans_and_pairs():
    for steps in (2, 3, 4):
        x = 3 * noise(5, 2, steps=steps)
        moved = SafetyFilter([SpeedLimit(0.5)], margin=0.0, rounds=100).finish(x)
        assert float(moved.diff(dim=1).norm(dim=-1).max()) <= 0.5 + 1e-6
        # Nothing pulls: the middle of all waypoints of an agent stays where it was.
        assert torch.allclose(moved.mean(dim=1), x.mean(dim=1), atol=1e-9)


# Bad input.


def test_contradictory_constraints_are_reported_with_where():
    clash = [HalfSpaces([1.0, 0.0], 0.5, (0, 1)), HalfSpaces([-1.0, 0.0], -0.3, (0, 1))]
    safety = SafetyFilter(clash, margin=0.0)
    x = core.sample(paths(VPCosine()), noise(), DDIM(4), edits=[safety]).x
    report = safety.report(x)
    assert bool(report.contradictory.all()) and not bool(report.safe.any()) and not bool(report.faults.any())
    assert torch.allclose(x[..., 0], torch.full_like(x[..., 0], 0.4), atol=1e-4)  # half-way, the least violation
    assert "6 of 6 plans have constraints that contradict each other at waypoints 0, 1, 2, 3, 4, ..." in str(report)


def test_a_network_that_breaks_is_traced_to_its_step():
    healthy = paths(VPCosine())

    def breaks(x, t):
        x0 = healthy(x, t)
        x0[1, 3] = torch.where(t < 0.5, torch.nan, x0[1, 3])
        return x0

    sampler, safety = DDIM(8), SafetyFilter([DISC])
    result = core.sample(core.wrap(breaks, VPCosine()), noise(), sampler, edits=[safety], trace=True)
    made_by = [step.start.t < 0.5 for step in sampler.grid(VPCosine())].index(True)
    assert result.first_fault().tolist() == [9, made_by + 1, 9, 9, 9, 9]
    report = safety.report(result.x)
    assert report.faults.tolist() == result.faults.tolist() == [row == 1 for row in range(6)]
    assert report.safe.tolist() == [row != 1 for row in range(6)]
    assert "1 of 6 plans are not finite" in str(report)
    whole = core.sample(healthy, noise(), sampler, edits=[safety])
    assert torch.allclose(result.x[0], whole.x[0]) and torch.allclose(result.x[2:], whole.x[2:])
    with pytest.raises(ValueError, match=r"sample\(..., trace=True\) keeps it"):
        whole.first_fault()
    assert str(safety.report(whole.x)).startswith("all 6 plans are safe, by 0.01")


def test_bad_constraints_are_refused():
    affine = Affine(2)
    for arguments, message in (
        (([],), "at least one barrier"),
        (([DISC], CDF(2)), "need an affine normaliser"),
        (([Ellipse([0.0, 0.0], 1.0, entries=(0, 2))], affine), r"on the entries \(0, 2\) needs a normaliser of them"),
        (([DISC], affine, "strict"), "unknown mode 'strict' of a safety filter: choose one of robust, relaxed"),
        (([DISC], affine, "robust", "noise"), "unknown on='noise': choose one of iterate, estimate"),
    ):
        with pytest.raises(ValueError, match=message):
            SafetyFilter(*arguments)
    for options in ({"margin": -0.1}, {"margin": math.inf}, {"begin": 1.5}, {"rounds": 0}):
        with pytest.raises(ValueError, match="margin >= 0, a time begin in"):
            SafetyFilter([DISC], **options)
    with pytest.raises(ValueError, match=r"needs a plan \[..., T, A, O\] that has them, got \[6, 10, 1, 2\]"):
        core.sample(
            paths(VPCosine()), noise(), DDIM(2), edits=[SafetyFilter([Ellipse([0.0, 0.0], 1.0, entries=(0, 3))])]
        )
    with pytest.raises(ValueError, match="needs at least two agents, got a plan of 1"):
        core.sample(paths(VPCosine()), noise(), DDIM(2), edits=[SafetyFilter([Separation(0.3)])])
    with pytest.raises(ValueError, match="needs at least two waypoints, got a plan of 1"):
        SafetyFilter([SpeedLimit(0.3)]).finish(noise(steps=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *[(lambda gain=gain: Robust(gain), "is a gain in") for gain in (0.0, 1.1, math.nan)],
        (lambda: Relaxed(-1.0), "needs weight >= 0 and a time 0 <= hard < 1"),
        (lambda: Relaxed(hard=1.0), "needs weight >= 0 and a time 0 <= hard < 1"),
        (lambda: TimeVarying(math.nan), "needs depth >= 0"),
        (lambda: FiniteTime(0.0), "needs a rate > 0 and 0 <= power < 1"),
        (lambda: FiniteTime(1.0, 1.0), "needs a rate > 0 and 0 <= power < 1"),
    ],
)
def test_bad_rules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_rule_of_one_s_own_and_the_move_to_a_device():
    class Frozen(Rule):
        def floor(self, b, step):
            return b

    _, b = lowered(Frozen())
    assert torch.allclose(b, b[0].expand_as(b), atol=1e-9)
    moved = SafetyFilter([DISC], margin=0.2).to("meta")
    assert moved.barriers[0].centre.is_meta and not DISC.centre.is_meta and moved.margin == 0.2

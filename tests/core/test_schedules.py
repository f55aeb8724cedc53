import math
from decimal import Decimal, localcontext
from itertools import pairwise

import pytest
import torch

from core.schedules import (
    MIN_ALPHA,
    SCHEDULES,
    TABLES,
    VE,
    Flow,
    VPCosine,
    VPLinear,
    VPSigmoid,
    VPTable,
    schedule_of,
)

CONTINUOUS = [VPLinear(), VPLinear(0.05, 9.0), VPCosine(), VPCosine(s=0.03), VPSigmoid(), VPSigmoid(0.0, 3.0, 0.9)]
CONTINUOUS += [VE(), VE(0.01, 50.0, 3.0), Flow()]
DISCRETE = [VPTable.linear(), VPTable.linear(7), VPTable.cosine(), VPTable.cosine(37), VPTable.sigmoid(51)]
DISCRETE += [VPTable.vp(), VPTable.vp(1)]
EVERY = [*CONTINUOUS, *DISCRETE]
PRESERVING = [schedule for schedule in EVERY if not isinstance(schedule, VE | Flow)]
INTERIOR = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def every(schedules=EVERY):
    return pytest.mark.parametrize("schedule", schedules, ids=str)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def cos(x):
    term = total = Decimal(1)
    for n in range(1, 40):
        term *= -x * x / ((2 * n - 1) * (2 * n))
        total += term
    return total


def published(schedule, t):
    """alpha^2 and sigma^2 from the papers' formulas, as they are written there, in 60 digits."""
    t = Decimal(t)
    match schedule:
        case VPLinear(low, high):  # Song et al. 2021: exp(-integral of beta)
            low, high = Decimal(low), Decimal(high)
            square = (-(low * t + (high - low) * t * t / 2)).exp()
        case VPCosine(s):  # Nichol and Dhariwal 2021, eq. 17
            s = Decimal(s)
            square = (cos((t + s) / (1 + s) * PI / 2) / cos(s / (1 + s) * PI / 2)) ** 2
        case VPSigmoid(start, end, tau):  # Jabri et al. 2022, algorithm 4
            start, end, tau = Decimal(start), Decimal(end), Decimal(tau)
            first, present, last = (1 / (1 + (-u / tau).exp()) for u in (start, start + t * (end - start), end))
            square = (last - present) / (last - first)
        case VE(low, high, rho):  # Karras et al. 2022, eq. 5
            low, high = (Decimal(end) ** (1 / Decimal(rho)) for end in (low, high))
            return Decimal(1), (low + t * (high - low)) ** (2 * Decimal(rho))
        case Flow():
            return (1 - t) ** 2, t * t
    if not isinstance(schedule, VPLinear):
        square = max(square, Decimal(MIN_ALPHA) ** 2)
    return square, 1 - square


@every(CONTINUOUS)
@pytest.mark.parametrize("t", [0.0, 1e-12, 1e-6, 0.001, 0.01, 0.3, 0.5, 0.77, 0.99, 0.999, 1 - 4e-6, 1 - 1e-12, 1.0])
def test_alpha_and_sigma_are_the_published_formulas(schedule, t):
    with localcontext(prec=60):
        alpha, sigma = (float(square.sqrt()) for square in published(schedule, t))
    slack = 1e-13
    if isinstance(schedule, VPCosine) and t:  # the spacing of its angles counts near the ends
        slack += 2e-16 / max(1 - t, 1e-3) + 2e-18 / t
    assert schedule.alpha(tensor(t)).item() == pytest.approx(alpha, rel=slack, abs=0)
    assert schedule.sigma(tensor(t)).item() == pytest.approx(sigma, rel=slack, abs=0)
    if alpha > 0 and sigma > 0:
        assert schedule.lam(tensor(t)).item() == pytest.approx(math.log(alpha) - math.log(sigma), abs=2 * slack + 1e-14)


@every(PRESERVING)
def test_variance_is_preserved(schedule):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 - 1).abs().max() < 1e-14


@every()
def test_time_and_lambda_are_inverse(schedule):
    lam = schedule.lam(INTERIOR)
    assert (lam.diff() < 0).all()
    assert (schedule.time(lam) - INTERIOR).abs().max() < 1e-12
    levels = torch.linspace(lam[-1].item(), lam[0].item(), 300, dtype=torch.float64)
    assert (schedule.lam(schedule.time(levels)) - levels).abs().max() < 1e-11
    near_data = tensor(1e-12, 1e-9, 1e-6, 1e-4)
    assert (schedule.time(schedule.lam(near_data)) - near_data).abs().max() < 1e-15


@every()
def test_time_is_recovered_from_the_signal_to_noise_ratio(schedule):
    snr = (schedule.alpha(INTERIOR) / schedule.sigma(INTERIOR)) ** 2
    assert (schedule.time(0.5 * snr.log()) - INTERIOR).abs().max() < 1e-12


@every([s for s in EVERY if not isinstance(s, VE)] + [VPCosine(s) for s in (0.0003, 0.001, 0.0123, 0.2, 1.0)])
def test_walks_end_at_the_data(schedule):
    # The rounding of a difference of equal angles must not reach the cosine's square root.
    start = torch.zeros(1)
    assert schedule.alpha(start) == 1
    assert schedule.sigma(start) == 0
    assert schedule.lam(start) == torch.inf
    assert schedule.time(schedule.lam(start)).abs() < 1e-16


@every()
def test_the_noisy_end_is_the_last_time(schedule):
    end = torch.ones(1)
    lam = schedule.lam(end)
    if isinstance(schedule, VPCosine | VPSigmoid):  # the least signal is reached a little before
        assert schedule.alpha(end).item() == pytest.approx(MIN_ALPHA, rel=1e-12)
        assert 0.999 < schedule.time(lam) <= 1
        assert schedule.lam(schedule.time(lam)).item() == pytest.approx(lam.item(), rel=1e-9)
    else:
        assert schedule.time(lam).item() == pytest.approx(1, abs=1e-12)
    assert lam.isfinite().item() != isinstance(schedule, Flow)


def test_the_ends_of_flow_and_ve():
    ends = torch.tensor([0.0, 1.0])
    assert Flow().alpha(ends).tolist() == [1, 0]
    assert Flow().sigma(ends).tolist() == [0, 1]
    assert Flow().lam(ends).tolist() == [math.inf, -math.inf]
    assert VE().alpha(ends).tolist() == [1, 1]
    assert VE().sigma(ends).tolist() == pytest.approx([0.002, 80], rel=1e-14)
    assert VE().time(-tensor(0.002, 80).log()).tolist() == pytest.approx([0, 1], abs=1e-14)


def test_a_uniform_grid_of_ve_is_karras_eq_5():
    n, low, high, rho = 18, 0.002, 80.0, 7
    karras = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    assert VE(low, high, rho).sigma(torch.linspace(1, 0, n, dtype=torch.float64)).tolist() == pytest.approx(karras)


@pytest.mark.parametrize(("schedule", "last"), [(VPCosine(), 0.9994), (VPSigmoid(), 1 - 3e-6)], ids=str)
def test_alpha_stops_at_its_least_value(schedule, last):
    before, *after = schedule.alpha(tensor(1 - 1.5 * (1 - last), 1 - 0.5 * (1 - last), 1.0)).tolist()
    assert before > 1.1 * MIN_ALPHA
    assert after == pytest.approx([MIN_ALPHA] * 2, rel=1e-12)


@every()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_float64_of_the_same_shape(schedule, dtype):
    for shape in ((), (0,), (3,), (2, 5)):
        t = torch.full(shape, 0.4, dtype=dtype)
        for result in (schedule.alpha(t), schedule.sigma(t), schedule.lam(t), schedule.time(t), schedule.scale(t)):
            assert result.shape == shape
            assert result.dtype == torch.float64
            assert result.data_ptr() != t.data_ptr() or not t.numel()


@every()
def test_levels_are_plain_floats(schedule):
    t = torch.tensor([1.0, 0.25, 0.0])
    columns = [t.double(), schedule.alpha(t), schedule.sigma(t), schedule.lam(t)]
    for level, *values in zip(schedule.levels(t), *(column.tolist() for column in columns), strict=True):
        assert all(type(value) is float for value in (level.t, level.alpha, level.sigma, level.lam, level.scale))
        assert [level.t, level.alpha, level.sigma, level.lam] == values


@every()
def test_only_ve_makes_samples_larger_than_the_data(schedule):
    # 1 exactly elsewhere, as documented: edits leave out the factor where it is.
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    scales = [level.scale for level in schedule.levels(t)]
    if isinstance(schedule, VE):
        expected = pytest.approx((1 + schedule.sigma(t) ** 2).sqrt().tolist(), rel=1e-15)
    else:
        expected = [1.0] * len(t)
    assert scales == expected
    assert schedule.scale(t).tolist() == expected


def ddpm(steps):
    return [1e-4 + (0.02 - 1e-4) * i / max(steps - 1, 1) for i in range(steps)]


def clipped_cosine(steps, s=0.008):
    bars = [math.cos((k / steps + s) / (1 + s) * math.pi / 2) ** 2 for k in range(steps + 1)]
    return [min(1 - after / before, 0.999) for before, after in pairwise(bars)]


def geodiff(steps):
    places = [-6 + 12 * i / max(steps - 1, 1) for i in range(steps)]
    return [1e-4 + (0.02 - 1e-4) / (1 + math.exp(-u)) for u in places]


def diffusion_ql(steps):
    return [1 - math.exp(-0.1 / steps - 0.5 * 9.9 * (2 * t - 1) / steps**2) for t in range(1, steps + 1)]


BETAS = {"linear": ddpm, "cosine": clipped_cosine, "sigmoid": geodiff, "vp": diffusion_ql}


@pytest.mark.parametrize("steps", [1, 2, 5, 37, 50, 1000])
@pytest.mark.parametrize("name", TABLES)
def test_tables_hold_the_published_betas(name, steps):
    schedule, betas = TABLES[name](steps), BETAS[name](steps)
    assert schedule.steps == steps
    assert list(schedule.betas) == pytest.approx(betas, rel=1e-9)
    # alpha at t = k / T is the root of the product of what is kept, whichever way k / T was rounded
    kept = tensor(*(math.sqrt(math.prod(1 - beta for beta in schedule.betas[:k])) for k in range(steps + 1)))
    k = torch.arange(steps + 1, dtype=torch.float64)
    for t in (k / steps, k * (1 / steps), torch.linspace(0, 1, steps + 1, dtype=torch.float64)):
        assert (schedule.alpha(t.clamp(max=1)) - kept).abs().max() < 1e-14


def test_the_cosine_table_is_clipped():
    for steps in (37, 50, 1000):
        assert VPTable.cosine(steps).betas[-2] < VPTable.cosine(steps).betas[-1] == 0.999
    assert max(VPTable.cosine(20, max_beta=0.5).betas) == 0.5


@every(DISCRETE)
def test_between_steps_a_table_is_log_linear(schedule):
    t = torch.linspace(0, 1, 8 * schedule.steps + 1, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    assert (schedule.lam(t).diff() < 0).all()
    at, after = alpha[:-1:8], alpha[8::8]
    for i in range(1, 8):
        assert alpha[i::8].tolist() == pytest.approx((at ** (1 - i / 8) * after ** (i / 8)).tolist(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every([VPCosine(), VE(), Flow(), VPTable.vp()])
def test_diffuse_takes_one_time_or_one_per_sample(schedule, dtype):
    x0, noise = torch.full((2, 3, 4), 2.0, dtype=dtype), torch.full((2, 3, 4), -1.0, dtype=dtype)
    t = tensor(0.2, 0.9)
    x = schedule.diffuse(x0, noise, t)
    assert x.dtype == dtype
    for row in range(2):
        expected = 2 * schedule.alpha(t[row]) - schedule.sigma(t[row])
        assert torch.allclose(x[row].double(), expected.expand(3, 4), atol=1e-6)
        assert torch.equal(schedule.diffuse(x0, noise, t[row])[row], x[row])


NAN, INF = math.nan, math.inf
BAD = [(VPLinear, args) for args in [(0.0, 20.0), (-0.1, 20.0), (20.0, 0.1), (1.0, 1.0), (NAN, 20.0), (0.1, INF)]]
BAD += [(VPCosine, (s,)) for s in (0.0, -0.008, NAN, INF)]
BAD += [(VPSigmoid, args) for args in [(3.0, -3.0), (1.0, 1.0), (-INF, 3.0), (-3.0, 3.0, 0.0), (-3.0, NAN)]]
BAD += [(VE, args) for args in [(0.0, 80.0), (80.0, 0.002), (0.002, INF), (0.002, 80.0, 0.0), (NAN, 80.0)]]
BAD += [(VPTable, (betas,)) for betas in [(), (0.0,), (0.5, 1.0), (-0.1,), (NAN,)]] + [(VPTable.linear, (9, 0.1, 1.5))]


@pytest.mark.parametrize(("make", "args"), BAD)
def test_bad_arguments_are_refused(make, args):
    with pytest.raises(ValueError, match="needs"):
        make(*args)


@pytest.mark.parametrize("steps", [0, -1, -3])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_needs_steps(name, steps):
    with pytest.raises(ValueError, match="at least one"):
        TABLES[name](steps)


@pytest.mark.parametrize("args", [(-3.0, 3.0, 0.004), (-800.0, 3.0), (40.0, 50.0), (-3.0, 3.0, 0.05)])
def test_a_sigmoid_is_finite_or_refused(args):
    t = tensor(0.0, 0.25, 0.5, 0.75, 1.0)
    try:
        schedule = VPSigmoid(*args)
    except ValueError:
        return
    assert schedule.alpha(t).isfinite().all()
    assert schedule.alpha(t)[0] == 1
    assert schedule.sigma(t)[0] == 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_continuous_schedules_by_name(name):
    assert schedule_of(name) == SCHEDULES[name]()
    assert schedule_of(name).steps is None


def test_tables_by_name():
    for name in TABLES:
        table = schedule_of(f"{name}/200")
        assert table.steps == 200
        assert list(table.betas) == pytest.approx(BETAS[name](200), rel=1e-9)


BAD_NAMES = [
    "cosine/0",
    "ve/10",
    "flow/5",
    "nope",
    "nope/5",
    "linear/",
    "linear/x",
    "linear/2.5",
    "linear/-5",
    "vp",
    "",
]


@pytest.mark.parametrize("name", [*BAD_NAMES, "Linear", "linear/5/5", "/5", " linear"])
def test_unknown_schedules_name_the_known(name):
    with pytest.raises(ValueError, match="unknown schedule") as error:
        schedule_of(name)
    assert repr(name) in str(error.value)
    assert all(known in str(error.value) for known in [*SCHEDULES, "vp/T"])

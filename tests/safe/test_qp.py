import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import core
from safe.qp import project, project_convex
from safe.qp.rows import solved

KINDS = ("plain", "duplicate", "parallel", "opposite", "combination", "zero", "integer")
SHAPES = [(rows, size) for rows in range(1, 9) for size in (1, 2, 3, 4, 6, 8, 12)]


def problems(count, rows, size, kind, generator):
    """Random u_ref, A and b of one kind, with rows of lengths 1e-4 to 1e4."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u_ref, A, b = normal(count, size), normal(count, rows, size), normal(count, rows)
    every = torch.arange(count)
    source, target, other = (torch.randint(0, rows, (count,), generator=generator) for _ in range(3))
    factor = {"parallel": 2.7, "duplicate": 1.0, "opposite": -1.0, "zero": 0.0}.get(kind)
    if kind == "integer":
        u_ref, A, b = (values.mul(1.2).round() for values in (u_ref, A, b))
    elif kind == "combination":
        A[every, target] = A[every, source] + A[every, other]
    elif factor is not None:
        A[every, target] = factor * A[every, source]
        b[every, target] = b[every, source] if kind == "duplicate" else b[every, target]
    lengths = 10 ** (8 * torch.rand(count, rows, generator=generator, dtype=torch.float64) - 4)
    return u_ref, A * lengths[..., None], b * lengths


def residuals(u_ref, A, b, found, weights=1.0, relax=0.0):  # noqa: N803
    """Largest violation, slack at a positive multiplier, and gradient of the Lagrangian, each [...], of rows of length
    1 and as a share of the problem's size; and the least multiplier."""
    weights, relax = torch.as_tensor(weights).expand_as(u_ref), torch.as_tensor(relax).expand_as(b)
    lengths = ((A.square() / weights[..., None, :]).sum(-1) + relax.square()).sqrt()
    lengths = torch.where(lengths > 0, lengths, 1.0)
    slack = ((A * found.u[..., None, :]).sum(-1) + relax.square() * found.multipliers - b) / lengths
    forces = found.multipliers * lengths
    pull = weights.sqrt() * (found.u - u_ref) - (A / weights[..., None, :].sqrt() * found.multipliers[..., None]).sum(
        -2
    )
    size = (1 + u_ref.abs().amax(-1) + ((b - (A * u_ref[..., None, :]).sum(-1)) / lengths).abs().amax(-1))[..., None]
    return (
        (-slack / size).amax(-1).clamp(min=0),
        (torch.minimum(forces, slack.abs()) / size).amax(-1),
        pull.abs().amax(-1) / (size[..., 0] + forces.amax(-1)),
        found.multipliers.amin(-1),
    )


def beyond(u, rows, b):
    return [rows @ u >= b]


def farkas(rows, b):
    """Whether some y >= 0 has A^T y = 0 and b . y > 0, by linear programming: then no u has A u >= b."""
    lengths = np.linalg.norm(rows, axis=1)
    lengths[lengths == 0] = 1.0
    sums = np.vstack([(rows / lengths[:, None]).T, b / lengths])
    goal = np.append(np.zeros(rows.shape[1]), 1.0)
    return scipy.optimize.linprog(np.zeros(len(b)), A_eq=sums, b_eq=goal, bounds=(0, None)).status == 0


def check(count, shapes, seed, certified):
    """The conditions of optimality of problems of every kind; of some, whether there is a solution at all."""
    generator = torch.Generator().manual_seed(seed)
    infeasible, total = 0, count * len(KINDS) * len(shapes)
    for place, (kind, (rows, size)) in enumerate(itertools.product(KINDS, shapes)):
        u_ref, A, b = problems(count, rows, size, kind, generator)
        found = project(u_ref, A, b)
        assert not found.faults.any()
        violation, at_slack, pull, least = residuals(u_ref, A, b, found)
        met = found.feasible
        assert least.min() >= 0 and pull.max() < 1e-9
        assert violation[met].amax() < 1e-7 if met.any() else True
        assert at_slack[met].amax() < 1e-7 if met.any() else True
        assert (found.violation[~met] > 1e-10).all()
        infeasible += int((~met).sum())
        for k in range(place % 7, count, total // certified):
            assert farkas(A[k].numpy(), b[k].numpy()) != bool(met[k]), (kind, rows, size, k)
    assert infeasible > 0.1 * total


def test_random_problems_are_solved_to_optimality():
    check(175, SHAPES[1::3], seed=0, certified=100)  # 22,050 problems


@pytest.mark.slow
def test_a_hundred_thousand_random_problems_are_solved_to_optimality():
    check(256, SHAPES, seed=1, certified=4000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_number_of_turns_is_enough(kind):
    generator = torch.Generator().manual_seed(2)
    for rows, size in SHAPES:
        u_ref, A, b = problems(256, rows, size, kind, generator)
        fixed, screened = project(u_ref, A, b, screen=False), project(u_ref, A, b)
        assert not fixed.faults.any()
        assert torch.equal(fixed.feasible, screened.feasible)


@pytest.mark.parametrize(("rows", "size"), [(1, 2), (2, 2), (4, 2), (3, 6), (6, 4)])
def test_it_agrees_with_an_interior_point_method(rows, size):
    generator = torch.Generator().manual_seed(rows)
    u_ref, A, b = problems(60, rows, size, "plain", generator)
    lengths = A.norm(dim=-1)
    A, b = A / lengths[..., None], b / lengths
    weights = 0.5 + torch.rand(size, generator=generator).double()
    reference = project_convex(u_ref, beyond, A, b, weights=weights, tolerance=1e-13)
    found = project(u_ref, A, b, weights=weights)
    solved = ~reference.faults
    assert solved.double().mean() > 0.9
    assert torch.equal(found.feasible[solved], reference.feasible[solved])
    both = solved & found.feasible
    torch.testing.assert_close(found.u[both], reference.u[both], rtol=1e-8, atol=1e-8)


def test_it_agrees_with_all_active_sets_in_turn():
    """Every subset of rows as equalities: the solution is the nearest that meets the other rows."""
    u_ref, A, b = problems(40, 4, 3, "plain", torch.Generator().manual_seed(3))
    A, b = A / A.norm(dim=-1, keepdim=True), b / A.norm(dim=-1)
    found = project(u_ref, A, b)
    for k in range(40):
        candidates = [u_ref[k]]
        for count in (1, 2, 3):
            for chosen in itertools.combinations(range(4), count):
                rows, missing = A[k, list(chosen)], b[k, list(chosen)] - A[k, list(chosen)] @ u_ref[k]
                candidates.append(u_ref[k] + torch.linalg.lstsq(rows, missing[:, None]).solution[:, 0])
        allowed = [u for u in candidates if bool((A[k] @ u - b[k] > -1e-9).all())]
        assert bool(found.feasible[k]) == bool(allowed)
        if allowed:
            nearest = min(allowed, key=lambda u: float((u - u_ref[k]).norm()))
            torch.testing.assert_close(found.u[k], nearest, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("relax", [None, 0.5])
@pytest.mark.parametrize("screen", [True, False])
def test_a_batch_is_its_members(relax, screen):
    u_ref, A, b = problems(30, 4, 3, "opposite", torch.Generator().manual_seed(4))
    together = project(u_ref, A, b, relax=relax, screen=screen)
    alone = [project(u_ref[k], A[k], b[k], relax=relax, screen=screen) for k in range(30)]
    assert alone[0].u.shape == (3,) and alone[0].feasible.shape == ()
    assert torch.equal(together.feasible, torch.stack([one.feasible for one in alone]))
    met = together.feasible
    for name, exact in (("u", 1e-12), ("multipliers", 1e-9), ("violation", 1e-12)):
        members = torch.stack([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(together, name)[met], members[met], rtol=exact, atol=exact)
        torch.testing.assert_close(getattr(together, name), members, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("relax", [None, 0.5])
def test_screening_changes_nothing(relax):
    generator = torch.Generator().manual_seed(5)
    u_ref, A, b = problems(200, 5, 4, "plain", generator)
    u_ref[::7, 0] = torch.nan
    weights = 0.5 + torch.rand(200, 4, generator=generator).double()
    screened, full = (project(u_ref, A, b, weights=weights, relax=relax, screen=screen) for screen in (True, False))
    assert torch.equal(screened.faults, full.faults) and torch.equal(screened.feasible, full.feasible)
    for name in ("u", "multipliers", "violation"):
        a, b = getattr(screened, name), getattr(full, name)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)


class NoLookAtValues(TorchDispatchMode):
    """Fails on anything that waits for the device or makes shapes depend on values."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.name()
        assert not any(part in name for part in ("_local_scalar_dense", "nonzero", "unique", "masked_select")), name
        return function(*arguments, **(options or {}))


def test_without_shrinking_nothing_depends_on_values():
    u_ref, A, b = problems(20, 4, 3, "opposite", torch.Generator().manual_seed(6))
    problem = u_ref, A, b - torch.einsum("pmn,pn->pm", A, u_ref)
    for options in ((None, None), (torch.ones_like(u_ref), torch.ones_like(b))):
        with NoLookAtValues():
            solved(*problem, *options, shrink=False)
    with pytest.raises(AssertionError, match="nonzero"), NoLookAtValues():
        solved(*problem, None, None, shrink=True)


@pytest.mark.slow
def test_a_compiled_loop_takes_it_as_one_operation():
    u_ref, A, b = (values.float() for values in problems(40, 3, 2, "plain", torch.Generator().manual_seed(7)))
    compiled = core.compiled(lambda *problem: project(*(2 * values for values in problem)).u + 1)
    torch.testing.assert_close(compiled(u_ref, A, b), project(2 * u_ref, 2 * A, 2 * b).u + 1)


def test_weights_stretch_the_space():
    generator = torch.Generator().manual_seed(8)
    u_ref, A, b = problems(50, 3, 3, "plain", generator)
    weights = 0.1 + torch.rand(50, 3, generator=generator).double()
    root = weights.sqrt()
    found = project(u_ref, A, b, weights=weights)
    stretched = project(root * u_ref, A / root[:, None], b)
    met = found.feasible & stretched.feasible
    torch.testing.assert_close((root * found.u)[met], stretched.u[met])
    assert all(float(one[met].amax()) < 1e-9 for one in residuals(u_ref, A, b, found, weights)[:3])


def test_slack_is_one_more_variable():
    """A relaxed problem is a hard one in (u, r), one r for each row."""
    generator = torch.Generator().manual_seed(9)
    u_ref, A, b = problems(50, 3, 2, "opposite", generator)
    A, b = A / A.norm(dim=-1, keepdim=True), b / A.norm(dim=-1)
    relax = 0.1 + torch.rand(50, 3, generator=generator).double()
    found = project(u_ref, A, b, relax=relax)
    lifted = project(torch.cat([u_ref, torch.zeros(50, 3)], dim=1), torch.cat([A, torch.diag_embed(relax)], dim=2), b)
    assert found.feasible.all() and lifted.feasible.all()
    torch.testing.assert_close(found.u, lifted.u[:, :2])
    torch.testing.assert_close(relax * found.multipliers, lifted.u[:, 2:])


def test_relaxation_by_hand():
    """min (u - 0)^2 + r^2 s.t. u + w r >= 1: u = 1 / (1 + w^2)."""
    for w in (0.0, 0.5, 3.0):
        found = project(torch.zeros(1), torch.ones(1, 1), torch.ones(1), relax=w)
        assert float(found.u) == pytest.approx(1 / (1 + w * w))
        assert float(w * found.multipliers) == pytest.approx(w / (1 + w * w))


def test_relaxation_has_the_hard_rows_and_none_at_its_ends():
    u_ref, A, b = problems(100, 3, 4, "plain", torch.Generator().manual_seed(10))
    A, b = A / A.norm(dim=-1, keepdim=True), b / A.norm(dim=-1)
    hard = project(u_ref, A, b)
    torch.testing.assert_close(project(u_ref, A, b, relax=1e-5).u, hard.u, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(project(u_ref, A, b, relax=1e5).u, u_ref, rtol=1e-5, atol=1e-5)
    mixed = project(u_ref, A, b, relax=torch.tensor([0.0, 1e5, 1e5]))
    torch.testing.assert_close(mixed.u, project(u_ref, A[:, :1], b[:, :1]).u, rtol=1e-5, atol=1e-5)


def test_batch_dimensions_broadcast():
    A, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, -1.0])
    u_ref = torch.randn(3, 5, 2)
    found = project(u_ref, A, b)
    torch.testing.assert_close(found.u, u_ref.maximum(b))
    assert found.multipliers.shape == (3, 5, 2) and found.feasible.shape == (3, 5)
    assert project(torch.zeros(2), A.expand(7, 2, 2), b).u.shape == (7, 2)
    assert project(torch.zeros(0, 2), A, b).u.shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_in_float64_whatever_comes_in(dtype):
    u_ref, A, b = (values.to(dtype) for values in problems(50, 4, 3, "plain", torch.Generator().manual_seed(11)))
    found, exact = project(u_ref, A, b), project(u_ref.double(), A.double(), b.double())
    assert found.u.dtype == dtype and found.multipliers.dtype == torch.float64
    torch.testing.assert_close(found.u, exact.u.to(dtype))
    assert torch.equal(found.violation, exact.violation)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2,), (3, 4), (3,)), {}, r"u_ref \[2\], A \[3, 4\] and b \[3\]"),
        (((2,), (3, 2), (4,)), {}, r"A \[3, 2\] and b \[4\]"),
        (((5, 2), (4, 3, 2), (3,)), {}, "do not broadcast"),
        (((2,), (2,), (2,)), {}, r"A \[..., m, n\]"),
        (((), (1, 1), (1,)), {}, r"u_ref \[\]"),
        (((2,), (0, 2), (0,)), {}, "at least one row"),
        (((2,), (3, 2), (3,)), {"weights": torch.ones(3)}, r"weights must broadcast to \[2\], got \[3\]"),
        (((2,), (3, 2), (3,)), {"relax": torch.ones(5, 3)}, r"relax must broadcast to \[3\], got \[5, 3\]"),
        (((2,), (3, 2), (3,)), {"relax": -1.0}, "at least 0, got -1.0"),
    ],
)
def test_bad_input(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        project(*(torch.zeros(shape) for shape in shapes), **options)


def test_a_reference_of_integers_is_refused():
    with pytest.raises(ValueError, match=r"floating u_ref, got torch\.int64"):
        project(torch.zeros(2, dtype=torch.int64), torch.ones(1, 2), torch.ones(1))

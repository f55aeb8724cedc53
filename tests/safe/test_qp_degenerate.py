"""Rows that are parallel, contradict each other or are zeros; numbers that are not finite; by hand and by scipy."""

import numpy as np
import pytest
import scipy.optimize
import torch

from safe.qp import project, project_convex


def solve(u_ref, rows, b, **options):
    return project(*(torch.tensor(values, dtype=torch.float64) for values in (u_ref, rows, b)), **options)


def near(values, tolerance=1e-9):
    return pytest.approx(values, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("screen", [True, False])
class TestByHand:
    def test_a_point_that_meets_its_rows_stays(self, screen):
        found = solve([1.0, 2.0], [[1.0, 0.0], [0.0, 1.0]], [1.0, 0.0], screen=screen)
        assert found.u.tolist() == [1.0, 2.0] and bool(found.feasible)
        assert found.multipliers.tolist() == [0.0, 0.0] and float(found.violation) == 0.0

    def test_one_row(self, screen):
        """u_ref + a (b - a . u_ref) / |a|^2."""
        found = solve([1.0, 1.0], [[3.0, 4.0]], [32.0], screen=screen)
        assert found.u.tolist() == near([4.0, 5.0]) and found.multipliers.tolist() == near([1.0])

    def test_duplicate_rows_are_one(self, screen):
        found = solve([0.0, 0.0], [[1.0, 1.0]] * 4, [2.0] * 4, screen=screen)
        assert found.u.tolist() == near([1.0, 1.0]) and float(found.multipliers.sum()) == near(1.0)

    def test_of_parallel_rows_the_tightest_counts(self, screen):
        found = solve([0.0, 0.0], [[1e-4, 0.0], [1e4, 0.0], [1.0, 0.0]], [1e-4, 3e4, 2.0], screen=screen)
        assert found.u.tolist() == near([3.0, 0.0])
        assert found.multipliers.tolist() == near([0.0, 3e-4, 0.0])

    def test_opposite_rows_are_an_equality(self, screen):
        found = solve([0.0, 5.0], [[1.0, 1.0], [-3.0, -3.0]], [1.0, -3.0], screen=screen)
        assert bool(found.feasible) and found.u.tolist() == near([-2.0, 3.0])

    def test_a_corner_where_all_rows_meet(self, screen):
        """Eight rows through one point: any two of them would do."""
        angles = torch.linspace(0.1, 1.4, 8).double()
        rows = torch.stack([angles.cos(), angles.sin()], dim=1)
        b = rows @ torch.tensor([2.0, 3.0]).double()
        found = project(torch.tensor([-50.0, -50.0]).double(), rows, b, screen=screen)
        assert bool(found.feasible) and found.u.tolist() == near([2.0, 3.0])

    def test_a_row_that_enters_first_may_leave(self, screen):
        """The most violated row is not active in the end."""
        found = solve([0.0, 0.0], [[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]], [1.0, 1.1, 1.1], screen=screen)
        assert found.u.tolist() == near([1.1 / 0.6, 0.0])
        assert found.multipliers[0] == 0 and bool((found.multipliers[1:] > 0).all())

    def test_rows_of_zeros(self, screen):
        void = solve([0.0, 0.0], [[0.0, 0.0], [2.0, 0.0]], [-1.0, 4.0], screen=screen)
        assert bool(void.feasible) and void.u.tolist() == near([2.0, 0.0])
        just = solve([0.0, 0.0], [[0.0, 0.0], [2.0, 0.0]], [0.0, 4.0], screen=screen)
        assert bool(just.feasible)
        contrary = solve([0.0, 0.0], [[0.0, 0.0], [2.0, 0.0]], [0.5, 4.0], screen=screen)
        assert not contrary.feasible and not contrary.faults
        assert contrary.u.tolist() == near([2.0, 0.0]) and float(contrary.violation) == 0.5
        alone = solve([3.0, 4.0], [[0.0, 0.0]], [0.5], screen=screen)
        assert not alone.feasible and alone.u.tolist() == [3.0, 4.0]

    def test_two_contradictory_rows_share_the_violation(self, screen):
        """Of x >= 3 and x <= -1 the middle, whatever the rows' lengths; y, which they leave free, stays."""
        found = solve([0.3, 0.7], [[100.0, 0.0], [-0.01, 0.0]], [300.0, 0.01], screen=screen)
        assert not found.feasible and not found.faults
        assert found.u.tolist() == near([1.0, 0.7], 1e-7) and float(found.violation) == near(2.0, 1e-7)

    def test_of_the_least_violating_points_it_is_the_nearest(self, screen):
        """x >= 1 and x <= -1 leave x = 0, and a third row that can be met is."""
        found = solve([5.0, 5.0], [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], [1.0, 1.0, 7.0], screen=screen)
        assert not found.feasible and found.u.tolist() == near([0.0, 7.0], 1e-7)

    def test_three_contradictory_rows(self, screen):
        """A triangle turned inside out: its centre violates all three by as much."""
        rows = [[1.0, 0.0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]]
        found = solve([9.0, -4.0], rows, [1.0, 1.0, 1.0], screen=screen)
        assert found.u.tolist() == near([0.0, 0.0], 1e-6) and float(found.violation) == near(1.0, 1e-6)

    def test_relaxed_rows_do_not_contradict_each_other(self, screen):
        """min (u - 1)^2 + r^2 + s^2 s.t. u + r >= 2, -u + s >= 2: u - 1 = r - s, r = 2 - u, s = 2 + u."""
        found = solve([1.0], [[1.0], [-1.0]], [2.0, 2.0], relax=1.0, screen=screen)
        assert bool(found.feasible) and found.u.tolist() == near([1 / 3])
        assert found.multipliers.tolist() == near([5 / 3, 7 / 3])


def test_nearly_parallel_rows_meet_far_away():
    """x >= 1 and its mirror image turned by an angle: they meet at a distance of about 2 / angle."""
    for angle in (1e-1, 1e-3, 1e-5, 1e-6):
        found = solve([0.0, 0.0], [[1.0, 0.0], [-np.cos(angle), np.sin(angle)]], [1.0, 1.0])
        assert bool(found.feasible)
        assert found.u.tolist() == near([1.0, (1 + np.cos(angle)) / np.sin(angle)], 1e-7)
    parallel = solve([0.0, 0.0], [[1.0, 0.0], [-1.0, 1e-9]], [1.0, 1.0])
    assert not parallel.feasible and abs(float(parallel.u[0])) < 1e-6


@pytest.mark.parametrize("screen", [True, False])
def test_numbers_that_are_not_finite_are_faults_and_given_back(screen):
    u_ref, A, b = torch.zeros(8, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(8, 1, 1), torch.ones(8, 2)
    u_ref[1, 0], A[2, 0, 1], b[3, 0] = torch.nan, torch.nan, torch.nan
    u_ref[4, 1], A[5, 1, 1], b[6, 0] = torch.inf, torch.inf, -torch.inf
    found = project(u_ref, A, b, screen=screen)
    assert found.faults.tolist() == [False] + [True] * 6 + [False]
    assert found.feasible.tolist() == [True] + [False] * 6 + [True]
    torch.testing.assert_close(found.u[found.faults], u_ref[found.faults], equal_nan=True)
    assert found.u[0].tolist() == [1.0, 1.0] and found.u[7].tolist() == [1.0, 1.0]
    weights = torch.ones(8, 2)
    weights[7, 1] = -1.0
    assert project(u_ref, A, b, weights=weights, screen=screen).faults.tolist() == [False] + [True] * 7


@pytest.mark.parametrize("screen", [True, False])
def test_finite_numbers_never_become_nan(screen):
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(400, 3, 2, generator=generator).sign().double()
    A = signs * 10 ** (600 * torch.rand(400, 3, 2, generator=generator).double() - 300)
    b = torch.randn(400, 3, generator=generator).double() * 10 ** (
        300 * torch.rand(400, 3, generator=generator).double()
    )
    u_ref = torch.randn(400, 2, generator=generator).double() * 1e3
    found = project(u_ref, A, b, screen=screen)
    assert found.u.isfinite().all() and found.multipliers.isfinite().all() and not found.violation.isnan().any()
    assert torch.equal(found.u[found.faults], u_ref[found.faults])
    assert 0 < int(found.faults.sum()) < 400


def test_the_least_violation_is_that_of_nonnegative_least_squares():
    """min over u of the sum of squared violations of unit rows, by scipy: A u - t + s = b with t >= 0, least |s|."""
    generator = torch.Generator().manual_seed(1)
    for rows, size in ((3, 2), (5, 2), (6, 3), (8, 4)):
        A = torch.randn(60, rows, size, generator=generator).double()
        A = A / A.norm(dim=-1, keepdim=True)
        b, u_ref = torch.randn(60, rows, generator=generator).double() + 1, torch.randn(60, size).double()
        found = project(u_ref, A, b)
        assert int((~found.feasible).sum()) > 0
        for k in (~found.feasible).nonzero()[:, 0].tolist():
            matrix, bound = A[k].numpy(), b[k].numpy()
            solution, _ = scipy.optimize.nnls(np.hstack([matrix, -matrix, -np.eye(rows)]), bound, maxiter=10000)
            least = np.maximum(bound - matrix @ (solution[:size] - solution[size : 2 * size]), 0)
            violation = np.maximum(bound - matrix @ found.u[k].numpy(), 0)
            np.testing.assert_allclose(violation, least, atol=1e-5)
            y = found.multipliers[k].numpy() / found.multipliers[k].max().item()
            assert np.abs(y @ matrix).max() < 1e-5 and y @ bound > 0  # a certificate that there is no solution


def test_contradictory_rows_lead_to_the_nearest_of_the_least_violating_points():
    """In 3-D with rows in a plane: the point nearest to u_ref under the least violations, by an interior point."""
    generator = torch.Generator().manual_seed(2)
    A = torch.randn(30, 4, 3, generator=generator).double()
    A[..., 2] = 0
    A = A / A.norm(dim=-1, keepdim=True)
    u_ref, b = torch.randn(30, 3, generator=generator).double(), 1 + torch.rand(30, 4, generator=generator).double()
    found = project(u_ref, A, b)
    contrary = ~found.feasible
    assert int(contrary.sum()) > 5
    violation = (b - torch.einsum("pmn,pn->pm", A, found.u)).clamp(min=0)
    allowed = project_convex(u_ref, lambda u, rows, bound: [rows @ u >= bound], A, b - violation - 1e-9)
    known = contrary & ~allowed.faults
    assert int(known.sum()) > 5
    torch.testing.assert_close(found.u[known], allowed.u[known], rtol=1e-4, atol=1e-4)
    assert torch.equal(found.u[contrary, 2], u_ref[contrary, 2])


def test_many_rows():
    """The pairs of twelve agents: 66 rows in 24 variables."""
    generator = torch.Generator().manual_seed(3)
    x, push = (torch.randn(20, 12, 2, generator=generator).double() for _ in range(2))
    first, second = torch.triu_indices(12, 12, 1)
    away = x[:, first] - x[:, second]
    distance = away.norm(dim=-1)
    A = torch.zeros(20, 66, 12, 2).double()
    A[:, range(66), first], A[:, range(66), second] = away / distance[..., None], -away / distance[..., None]
    A, b, u_ref = A.flatten(2), 0.8 - distance, 0.1 * push.flatten(1)
    found = project(u_ref, A, b)
    slack = torch.einsum("pmn,pn->pm", A, found.u) - b
    assert found.feasible.all() and slack.min() > -1e-12
    assert (found.multipliers > 0).sum(dim=1).max() > 10
    assert (found.multipliers * slack).abs().max() < 1e-12
    torch.testing.assert_close(found.u, u_ref + torch.einsum("pmn,pm->pn", A, found.multipliers))


class TestAnyConvexSet:
    def test_a_ball(self):
        import cvxpy

        def ball(u, centre):
            return [cvxpy.norm(u - centre) <= 2.0]

        u_ref, centre = torch.tensor([[6.0, 8.0], [1.0, 0.0]]), torch.zeros(2, 2)
        found = project_convex(u_ref, ball, centre)
        assert found.feasible.all() and not found.faults.any() and found.multipliers.shape == (2, 0)
        torch.testing.assert_close(found.u, torch.tensor([[1.2, 1.6], [1.0, 0.0]]), rtol=1e-6, atol=1e-6)

    def test_weights(self):
        """min 4 (x - 0)^2 + (y - 0)^2 s.t. x + y >= 5: multipliers make 4 x = y."""
        found = project_convex(torch.zeros(2), lambda u: [u[0] + u[1] >= 5], weights=torch.tensor([4.0, 1.0]))
        torch.testing.assert_close(found.u, torch.tensor([1.0, 4.0]), rtol=1e-6, atol=1e-6)

    def test_an_empty_set_and_a_point_that_is_not_finite(self):
        empty = project_convex(torch.tensor([0.5]), lambda u: [u >= 1, u <= 0])
        assert not empty.feasible and not empty.faults and empty.u.tolist() == [0.5] and float(empty.violation) == 0.5
        fault = project_convex(torch.tensor([torch.nan]), lambda u: [u >= 1])
        assert bool(fault.faults) and not fault.feasible

    def test_what_is_no_convex_program_is_refused(self):
        import cvxpy

        with pytest.raises(ValueError, match="no parametrised convex program"):
            project_convex(torch.zeros(2), lambda u: [cvxpy.norm(u) >= 1])
        with pytest.raises(ValueError, match=r"parameter 0 must be \[\[3\], ...\]"):
            project_convex(torch.zeros(3, 2), lambda u, c: [u >= c], torch.zeros(2))
        with pytest.raises(ValueError, match=r"weights must broadcast to \[3, 2\]"):
            project_convex(torch.zeros(3, 2), lambda u: [u >= 1], weights=torch.ones(3))

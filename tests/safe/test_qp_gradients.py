"""The derivative of a projection, against differences and by hand."""

import pytest
import torch
from torch.autograd import gradcheck

from safe.qp import project


def problem(count, rows, size, seed, *, contradictory=False):
    """Unit rows whose solution keeps its active rows under a small change."""
    generator = torch.Generator().manual_seed(seed)
    u_ref, A, b = (
        torch.randn(8 * count, *shape, generator=generator).double() for shape in ((size,), (rows, size), (rows,))
    )
    A = A / A.norm(dim=-1, keepdim=True)
    found = project(u_ref, A, b)
    slack = torch.einsum("pmn,pn->pm", A, found.u) - b
    settled = (found.multipliers - slack).abs().amin(-1) > 1e-2
    chosen = (settled & (found.multipliers.amax(-1) > 0) & (found.feasible != contradictory)).nonzero()[:count, 0]
    assert len(chosen) == count
    return tuple(values[chosen].requires_grad_() for values in (u_ref, A, b))


@pytest.mark.parametrize(("rows", "size"), [(1, 2), (2, 3), (4, 3), (3, 6), (6, 2)])
def test_hard_rows(rows, size):
    inputs = problem(3, rows, size, seed=rows)
    assert gradcheck(lambda *values: project(*values).u, inputs, atol=1e-5)


def test_screening_does_not_change_them():
    inputs = problem(20, 4, 3, seed=30)
    one, other = (torch.autograd.grad(project(*inputs, screen=s).u.square().sum(), inputs) for s in (True, False))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("rows", "size"), [(1, 2), (3, 2), (4, 6)])
def test_relaxed_rows_and_weights(rows, size):
    u_ref, A, b = problem(3, rows, size, seed=10 + rows)
    generator = torch.Generator().manual_seed(0)
    weights = (0.5 + torch.rand(3, size, generator=generator).double()).requires_grad_()
    relax = (0.5 + torch.rand(3, rows, generator=generator).double()).requires_grad_()
    assert gradcheck(lambda *v: project(*v[:3], weights=v[3], relax=v[4]).u, (u_ref, A, b, weights, relax), atol=1e-5)


def test_contradictory_rows_in_what_is_asked_and_wanted():
    u_ref, A, b = problem(5, 6, 2, seed=20, contradictory=True)
    A = A.detach()
    assert gradcheck(lambda u_ref, b: project(u_ref, A, b).u, (u_ref, b), eps=1e-4, atol=1e-3)


def test_shared_rows_sum_their_gradients():
    u_ref = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    A = torch.eye(3).double().requires_grad_()
    b = torch.full((3,), 0.7).double().requires_grad_()
    assert gradcheck(lambda *values: project(*values).u, (u_ref, A, b), atol=1e-5)


def test_one_row_by_hand():
    """u = u_ref + a (b - a . u_ref) / |a|^2: du/db = a / |a|^2 and du/du_ref = I - a a^T / |a|^2."""
    u_ref = torch.zeros(2, requires_grad=True)
    A, b = torch.tensor([[3.0, 4.0]]), torch.tensor([50.0], requires_grad=True)
    found = project(u_ref, A, b)
    by_reference, by_b = torch.autograd.grad(found.u[0], (u_ref, b))
    torch.testing.assert_close(by_reference, torch.tensor([1 - 9 / 25, -12 / 25]))
    torch.testing.assert_close(by_b, torch.tensor([3 / 25]))
    assert not (found.multipliers.requires_grad or found.violation.requires_grad or found.feasible.requires_grad)


def test_an_inactive_problem_passes_the_gradient_on():
    u_ref = torch.randn(5, 2, requires_grad=True)
    A, b = torch.randn(5, 3, 2, requires_grad=True), torch.full((5, 3), -100.0, requires_grad=True)
    by_reference, by_rows, by_b = torch.autograd.grad(project(u_ref, A, b).u.sum(), (u_ref, A, b))
    assert torch.equal(by_reference, torch.ones(5, 2)) and not by_rows.any() and not by_b.any()


@pytest.mark.parametrize("screen", [True, False])
def test_a_fault_does_not_spoil_those_that_share_its_rows(screen):
    u_ref = torch.tensor([[torch.nan, 0.0], [0.0, 0.0], [torch.inf, 0.0]], dtype=torch.float64, requires_grad=True)
    A, b = (torch.ones(*shape, dtype=torch.float64, requires_grad=True) for shape in ((1, 2), (3, 1)))
    found = project(u_ref, A, b, screen=screen)
    assert found.faults.tolist() == [True, False, True]
    _, by_rows, by_b = torch.autograd.grad(found.u[1, 0], (u_ref, A, b))
    assert by_b.flatten().tolist() == pytest.approx([0.0, 0.5, 0.0])
    assert by_rows.flatten().tolist() == pytest.approx([0.0, -0.5])  # u = a b / |a|^2


def test_a_second_derivative_is_refused():
    u_ref, A, b = problem(1, 2, 2, seed=3)
    (first,) = torch.autograd.grad(project(u_ref, A, b).u.square().sum(), A, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_it_trains_what_it_is_told():
    """The bound that makes the projection of 0 come out at 2 is found by following the gradient."""
    b = torch.zeros(1, requires_grad=True)
    for _ in range(60):
        u = project(torch.zeros(1), torch.ones(1, 1), b + 0.1).u
        (slope,) = torch.autograd.grad((u - 2).square().sum(), b)
        b = (b - 0.2 * slope).detach().requires_grad_()
    assert float(b.detach()) == pytest.approx(1.9, abs=1e-4)

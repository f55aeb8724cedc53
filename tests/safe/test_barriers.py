import math

import pytest
import torch

from core.data.normalisers import CDF, Affine
from safe.barriers import Ellipse, FunctionBarrier, HalfSpaces, Separation, SpeedLimit, joined, within
from safe.qp import project

OBSTACLES = [Ellipse([4.5, 5.3], 1.0), Ellipse([0.0, 1.0], [2.0, 0.5], 4.0), Ellipse([0.0, 0.0], [1.0, 3.0], math.inf)]


def plan(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def each(barrier):
    """Values at a plan [T, A, O] that depends on every entry, flat."""
    return lambda x: barrier(x).flatten()


def step(barrier, x, u_ref, **options):
    """x + u for the u nearest to u_ref with gradient . u + b(x) >= 0, for barriers of one agent at one waypoint."""
    found = barrier.linearised(x)
    return x + project(u_ref, found.gradients, -found.values, **options).u


BARRIERS = {
    "half-space": HalfSpaces([1.0, -2.0], 0.5, (0, 2)),
    "box": within([-1.0, -2.0], 0.3, (1, 0)),
    "height": within(-math.inf, 1.4, (0,), rates=(2,), lead=0.1),
    "circle": Ellipse([0.2, -0.1], 1.5),
    "superellipse": Ellipse([0.2, -0.1], [0.5, 1.5], 4.0, entries=(2, 1)),
    "box outside": Ellipse([0.2, -0.1, 0.4], [0.5, 1.5, 0.7], math.inf, entries=(0, 1, 2)),
    "moving": Ellipse(plan(4, 2, seed=9), 0.7),
    "inside": Ellipse([0.0, 0.0], [1.0, 2.0], inside=True),
    "separation": Separation(0.8),
    "separation in 1-D": Separation(0.1, entries=(2,)),
    "speed limit": SpeedLimit(2.0, 0.5, entries=(1, 2)),
    "function": FunctionBarrier(lambda x: torch.stack([x.sin().prod(-1), x.square().sum(-1)], -1), (0, 2)),
    "function of agents": FunctionBarrier(lambda x: x.prod(-1).sum(-1, keepdim=True), (0, 1), "agents"),
    "function of steps": FunctionBarrier(lambda x: x[..., 1, :] - x[..., 0, :].exp(), (0, 1), "steps"),
}


@pytest.mark.parametrize("name", BARRIERS)
def test_gradients_are_those_of_the_values(name):
    """By automatic differentiation of the values where they can be, by differences where not."""
    barrier, x = BARRIERS[name], plan(4, 3, 3)
    found = barrier.linearised(x)
    full = torch.zeros(*found.values.shape, 4, 3, 3, dtype=torch.float64)
    for k in range(x.numel()):
        change = torch.zeros(x.numel(), dtype=torch.float64)
        change[k] = 1e-6
        full.flatten(found.values.ndim)[..., k] = (
            barrier(x + change.view_as(x)) - barrier(x - change.view_as(x))
        ) / 2e-6
    for place in torch.cartesian_prod(*(torch.arange(size) for size in found.values.shape)).tolist():
        t, a = place[0], place[1]
        block = {
            "nothing": lambda g, t=t, a=a: g[t, a],
            "agents": lambda g, t=t, a=a: g[t],
            "steps": lambda g, t=t, a=a: g[t : t + 2, a],
        }[barrier.couples](full[tuple(place)])[..., list(barrier.entries)]
        torch.testing.assert_close(found.gradients[tuple(place)], block, rtol=1e-5, atol=1e-7)
        assert full[tuple(place)].abs().sum() == pytest.approx(float(block.abs().sum()))  # nothing else moves it


@pytest.mark.parametrize(
    ("name", "values", "gradients"),
    [
        ("nothing", (2, 4, 3), (2,)),
        ("agents", (2, 4), (3, 2)),
        ("steps", (2, 3, 3), (2, 2)),
    ],
)
def test_shapes(name, values, gradients):
    barriers = {"nothing": Ellipse([0.0, 0.0], 1.0), "agents": Separation(0.5), "steps": SpeedLimit(1.0)}
    found = barriers[name].linearised(plan(2, 4, 3, 5).float())
    rows = (3,) if name == "agents" else (1,)
    assert found.values.shape == (*values, *rows) and found.gradients.shape == (*values, *rows, *gradients)
    assert found.values.dtype == torch.float64 and barriers[name].couples == name


def test_values_by_hand():
    x = torch.tensor([[[3.0, 4.0, 1.0]], [[3.0, 1.0, 2.0]]])  # two waypoints of one agent
    assert HalfSpaces([[1.0, 1.0]], [5.0], (0, 1))(x).flatten().tolist() == [2.0, -1.0]
    assert within(0.0, [3.5, 4.5], (0, 1))(x)[0, 0].tolist() == [3.0, 4.0, 0.5, 0.5]
    assert within(-math.inf, 1.4, (2,), rates=(1,), lead=0.1)(x).flatten().tolist() == pytest.approx([0.0, -0.7])
    assert Ellipse([0.0, 0.0], 2.5)(x)[0].item() == 1.0
    assert Ellipse([0.0, 0.0], 2.5, inside=True)(x)[0].item() == -1.0
    assert Ellipse([0.0, 0.0], [3.0, 2.0], math.inf)(x)[0].item() == 1.0
    assert Ellipse([0.0, 0.0], 1.0, 4.0)(x)[0].item() == pytest.approx((3**4 + 4**4) ** 0.25 - 1)
    assert Ellipse([[3.0, 4.0], [3.0, 0.0]], 0.5)(x).flatten().tolist() == [-1.0, 1.0]
    assert SpeedLimit(10.0, interval=0.5)(x).item() == 4.0
    pair = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]])
    assert Separation(2.0)(pair).flatten().tolist() == pytest.approx([3.0, -1.0, 18**0.5 - 2.0])


@pytest.mark.parametrize("power", [2.0, 4.0, math.inf])
def test_no_move_explodes_near_the_centre(power):
    """SafeDiffuser's sum |z|^p - 1 has a vanishing gradient there: at p = 4 the move would be 1 / (4 z^3)."""
    obstacle = Ellipse([1.5, 4.8], 1.0, power)
    offsets = 10 ** torch.linspace(-12, -1, 12).double()[:, None, None] * torch.tensor([1.0, 0.3]).double()
    x = torch.tensor([1.5, 4.8]).double() + offsets
    moved = step(obstacle, x, torch.zeros_like(x))
    assert (moved - x).norm(dim=-1).max() < 1.5
    assert obstacle(moved).min() > -1e-9
    assert obstacle.linearised(x).gradients.norm(dim=-1).min() > 0.7


def test_at_the_centre_itself_the_shortest_way_out_is_taken():
    obstacle = Ellipse([1.0, 2.0], [3.0, 0.5], 4.0)
    x = torch.tensor([[[1.0, 2.0]]]).double()
    moved = step(obstacle, x, torch.zeros_like(x))
    assert moved.flatten().tolist() == pytest.approx([1.0, 2.5])
    assert not Ellipse([1.0, 2.0], 1.0, inside=True)(x).lt(0).any()


def test_agents_at_one_point_part():
    x = torch.zeros(1, 3, 2).double()
    found = Separation(1.0).linearised(x)
    u = project(torch.zeros(1, 6), found.gradients.flatten(-2), -found.values).u.reshape(1, 3, 2)
    assert Separation(1.0)(x + u).min() > -1e-6


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_one_step_of_a_convex_barrier_ends_safe(obstacle):
    """grad . u + b >= 0 gives b(x + u) >= 0, wherever the reference wants to go."""
    x = obstacle.centre + 3 * plan(500, 1, 2, seed=1)
    assert (obstacle(x) < 0).double().mean() > 0.02
    assert obstacle(step(obstacle, x, 2 * plan(500, 1, 2, seed=2))).min() > -1e-9


def test_one_step_of_separation_ends_safe():
    x, u_ref = plan(300, 4, 2, seed=3), plan(300, 4, 2, seed=4)
    found = Separation(0.7).linearised(x)
    assert (found.values < 0).double().mean() > 0.05
    solved = project(u_ref.flatten(-2), found.gradients.flatten(-2), -found.values)
    assert Separation(0.7)(x + solved.u.reshape_as(x))[solved.feasible].min() > -1e-8


def test_one_step_of_a_concave_barrier_may_not_but_some_do():
    disc = Ellipse([0.0, 0.0], 1.0, inside=True)
    x = 2 * plan(200, 1, 2, seed=5)
    moved = step(disc, x, plan(200, 1, 2, seed=6))
    assert disc(moved).min() < -0.1
    for _ in range(30):
        moved = step(disc, moved, torch.zeros_like(x))
    assert disc(moved).min() > -1e-6


def test_a_waypoint_that_is_safe_never_crosses_again():
    """The local trap: a hard row at every step keeps the waypoints of one plan on the sides where they began, with a
    gap between neighbours; a relaxed one lets the reference through until its weight falls."""
    obstacle = Ellipse([0.0, 0.0], 1.0)
    goal = torch.stack([torch.linspace(-1e-6, 1e-6, 8), torch.full((8,), 1.2)], dim=-1).double()[:, None]
    start = torch.where(torch.arange(8)[:, None, None] % 2 == 0, goal, goal * torch.tensor([1.0, -1.0]))

    def denoised(weights):
        x = start
        for weight in weights:
            x = step(obstacle, x, 0.3 * (goal - x), relax=weight)
        return x, float((x[1:] - x[:-1]).norm(dim=-1).max())

    trapped, gap = denoised([0.0] * 20)
    assert obstacle(trapped).min() > -1e-9 and gap > 1.5
    assert torch.equal(trapped[..., 1].sign(), start[..., 1].sign())
    free, gap = denoised([100.0] * 20 + [0.0] * 5)
    assert obstacle(free).min() > -1e-9 and gap < 0.3


class TestNormalised:
    def normaliser(self):
        return Affine(3, "minmax").fit(3 + 5 * plan(50, 3, seed=7).float())

    @pytest.mark.parametrize("name", ["circle", "separation", "speed limit", "function", "height"])
    def test_it_is_the_same_barrier_of_the_physical_plan(self, name):
        normaliser, barrier = self.normaliser(), BARRIERS[name]
        x = plan(4, 3, 3)
        physical = x * normaliser.scale + normaliser.shift
        torch.testing.assert_close(barrier(x, normaliser), barrier(physical))
        scale = normaliser.scale[list(barrier.entries)].double()
        expected = barrier.linearised(physical).gradients * scale
        torch.testing.assert_close(barrier.linearised(x, normaliser).gradients, expected)

    def test_a_step_in_normalised_units_ends_safe(self):
        normaliser, obstacle = self.normaliser(), Ellipse([2.0, 3.0], [4.0, 2.0])
        x = plan(200, 1, 3, seed=8)
        found = obstacle.linearised(x, normaliser)
        moved = x.clone()
        moved[..., :2] += project(torch.zeros(200, 1, 2).double(), found.gradients, -found.values).u
        assert obstacle(x, normaliser).min() < -0.1 and obstacle(moved, normaliser).min() > -1e-9

    def test_a_normaliser_that_is_not_affine_is_refused(self):
        with pytest.raises(ValueError, match=r"affine normaliser.*CDF.*minmax"):
            Ellipse([0.0, 0.0], 1.0)(plan(4, 3, 3), CDF(3, 10))

    def test_so_is_one_of_other_observations(self):
        with pytest.raises(ValueError, match="got one of 1"):
            Ellipse([0.0, 0.0], 1.0)(plan(4, 3, 3), Affine(1))


class TestJoined:
    def test_barriers_of_an_agent_are_rows_over_all_their_entries(self):
        x = plan(4, 3, 3)
        both = joined([within(-1.0, 1.0, (2,)), Ellipse([0.0, 0.0], 1.0)], x)
        assert both.entries == (0, 1, 2) and both.gradients.shape == (4, 3, 3, 3)
        torch.testing.assert_close(both.values[..., 2:], Ellipse([0.0, 0.0], 1.0)(x))
        assert both.gradients[0, 0, :2].tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]
        assert not both.gradients[..., 2, 2].any()

    def test_with_agents_coupled_all_rows_are_over_a_waypoint(self):
        """To first order each row is its barrier after any move of all agents."""
        x, u = plan(4, 3, 3), 1e-6 * plan(4, 3, 3, seed=1)
        parts = [within(-1.0, 1.0, (2,)), Separation(0.5), Ellipse([0.0, 0.0], 1.0)]
        one = joined(parts, x)
        assert one.values.shape == (4, 12) and one.gradients.shape == (4, 12, 3, 3)
        after = torch.cat([part(x + u).reshape(4, -1) for part in parts], dim=-1)
        change = torch.einsum("tmad,tad->tm", one.gradients, u)
        torch.testing.assert_close(one.values + change, after, rtol=0, atol=1e-10)

    def test_what_cannot_be_joined(self):
        for parts in ([], [SpeedLimit(1.0), Ellipse([0.0, 0.0], 1.0)]):
            with pytest.raises(ValueError, match="couple no steps"):
                joined(parts, plan(4, 3, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ellipse([0.0, 0.0], 0.0), "positive radii"),
        (lambda: Ellipse([0.0, 0.0], [1.0, -1.0]), "positive radii"),
        (lambda: Ellipse([0.0, 0.0], 1.0, 0.5), "power of at least 1"),
        (lambda: Ellipse([0.0, 0.0, 0.0], 1.0), r"a centre \[2\].*got \[3\]"),
        (lambda: Ellipse([0.0, math.nan], 1.0), "centre must be finite"),
        (lambda: Ellipse([0.0, 0.0], 1.0, entries=(1, 1)), r"distinct.*\(1, 1\)"),
        (lambda: Ellipse([0.0, 0.0], 1.0, entries=(-1, 0)), r"distinct.*\(-1, 0\)"),
        (lambda: HalfSpaces([0.0, 0.0], 1.0, (0, 1)), "other than 0"),
        (lambda: HalfSpaces([1.0, 0.0], [1.0, 2.0], (0, 1)), "offsets"),
        (lambda: HalfSpaces([1.0, 0.0], 1.0, (0,)), "as many entries"),
        (lambda: within(1.0, 0.0, (0,)), "low <= high"),
        (lambda: within([0.0, 0.0], 1.0, (0,)), "low <= high"),
        (lambda: within(-math.inf, math.inf, (0,)), "normals"),
        (lambda: within(0.0, 1.0, (0,), lead=0.1), "rates"),
        (lambda: within(0.0, 1.0, ()), "distinct"),
        (lambda: Separation(0.0), "positive distance"),
        (lambda: SpeedLimit(-1.0), "positive"),
        (lambda: SpeedLimit(1.0, 0.0), "positive"),
        (lambda: FunctionBarrier(lambda x: x, (0,), "all"), "unknown couples='all'"),
        (lambda: Ellipse([0.0, 0.0], 1.0, entries=(0, 3))(plan(4, 3, 3)), r"entries \(0, 3\).*\[4, 3, 3\]"),
        (lambda: Ellipse([0.0, 0.0], 1.0)(plan(4, 3)), r"\[4, 3\]"),
        (lambda: Ellipse(plan(5, 2), 1.0)(plan(4, 3, 3)), "5 centres and the plan 4"),
        (lambda: Separation(1.0)(plan(4, 1, 3)), "two agents, got a plan of 1"),
        (lambda: SpeedLimit(1.0)(plan(1, 3, 3)), "two waypoints, got a plan of 1"),
        (lambda: FunctionBarrier(lambda x: x.sum(-1), (0,))(plan(4, 3, 3)), r"\[\[4, 3\], m\], got \[4, 3\]"),
        (lambda: FunctionBarrier(lambda x: x.detach(), (0,))(plan(4, 3, 3)), "no gradient"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_function_has_no_gradient_in_inference_mode():
    barrier = FunctionBarrier(lambda x: x, (0,))
    with torch.no_grad():
        assert barrier.linearised(plan(4, 3, 3)).gradients.shape == (4, 3, 1, 1)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        barrier(plan(4, 3, 3))


def test_tensors_move_to_a_device():
    moved = Ellipse([0.0, 0.0], 1.0).to("meta")
    assert moved.centre.device.type == moved.radii.device.type == "meta" and moved.power == 2.0

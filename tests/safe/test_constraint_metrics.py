"""Constraint metrics by hand."""

import math

import pytest
import torch

from core.data import Trajectories
from core.data.normalisers import Affine
from safe.barriers import Ellipse, HalfSpaces, SpeedLimit
from safe.constraint_metrics import gaps, least_of_episodes, least_of_plans, summarise_constraints

DISC = Ellipse([0.0, 0.0], 1.0)


def plan(*points):
    """[1, T, 1, 2] of points."""
    return torch.tensor(points, dtype=torch.float64)[None, :, None]


ROUND = plan((-2.0, 0.0), (0.0, 2.0), (2.0, 0.0))  # barriers 1, 1, 1
THROUGH = plan((-2.0, 0.0), (0.0, 0.5), (2.0, 0.0))  # 1, -0.5, 1
ALONG = plan((0.0, 3.0), (0.0, 3.5), (0.0, 3.6))  # 2, 2.5, 2.6


def episodes(*plans):
    """Plans [1, T, 1, 2] as executed episodes."""
    rows = torch.cat([one[0] for one in plans])
    offsets = torch.tensor([0, *(one.shape[1] for one in plans)]).cumsum(0)
    zeros = torch.zeros(len(rows), 1)
    ended = torch.zeros(len(plans), dtype=torch.bool)
    return Trajectories(rows, torch.zeros(len(rows), 1, 1), zeros, zeros, offsets, ended)


def test_plans_by_hand():
    plans = torch.cat([ROUND, THROUGH, ALONG])
    assert least_of_plans([DISC], plans).tolist() == [1.0, -0.5, 2.0]
    # The half-space x <= 1.5 is the lesser one where a plan ends at 2.
    assert least_of_plans([DISC, HalfSpaces([-1.0, 0.0], -1.5, (0, 1))], plans).tolist() == [-0.5, -0.5, 1.5]
    assert torch.allclose(gaps(ROUND), torch.full((1, 2, 1), math.sqrt(8)).double())
    assert torch.allclose(gaps(plans, entries=(1,))[1].flatten(), torch.tensor([0.5, 0.5]).double())
    found = summarise_constraints([DISC], plans, gap=2.5, unconstrained=plans + torch.tensor([0.3, -0.4]))
    assert found.plan_minimum == -0.5
    assert found.plan_violation_rate == pytest.approx(1 / 3)
    assert found.trap_rate == pytest.approx(1 / 3)  # sqrt(8) of the first; the second's steps are sqrt(4.25)
    assert found.distance == pytest.approx(0.5)
    assert math.isnan(found.executed_minimum) and math.isnan(found.executed_violation_rate)
    assert math.isnan(summarise_constraints([DISC], plans).distance)


def test_normalised_plans_have_physical_barriers():
    normaliser = Affine(2)
    normaliser.scale.copy_(torch.tensor([2.0, 0.5]))
    normaliser.shift.copy_(torch.tensor([1.0, -1.0]))
    plans = torch.cat([ROUND, THROUGH])
    found = summarise_constraints([DISC], normaliser(plans), normaliser)
    assert found.plan_minimum == pytest.approx(-0.5)
    assert gaps(normaliser(ALONG))[0].flatten().tolist() == pytest.approx([1.0, 0.2])


def test_what_is_executed_is_reported_beside_the_plan():
    """A plan that is safe says nothing of what happens: both are reported (published tables have the plan alone)."""
    executed = episodes(THROUGH, ALONG[:, :2], ROUND, THROUGH)
    assert least_of_episodes([DISC], executed).tolist() == [-0.5, 2.0, 1.0, -0.5]
    found = summarise_constraints([DISC], ROUND, executed=executed)
    assert (found.plan_minimum, found.plan_violation_rate) == (1.0, 0.0)
    assert (found.executed_minimum, found.executed_violation_rate) == (-0.5, 0.5)


def test_no_step_leads_from_an_episode_to_the_next():
    executed = episodes(ALONG[:, 1:], -ALONG[:, 1:], ALONG)
    limit = SpeedLimit(1.0)
    assert least_of_episodes([limit], executed).tolist() == pytest.approx([0.9, 0.9, 0.5])
    assert least_of_episodes([limit, DISC], executed).tolist() == pytest.approx([0.9, 0.9, 0.5])


def test_what_is_no_number_is_a_violation():
    plans = torch.cat([ROUND, ROUND])
    plans[1, 2] = math.nan
    found = summarise_constraints([DISC], plans)
    assert found.plan_violation_rate == 0.5
    assert math.isnan(found.plan_minimum)


def test_bad_shapes():
    for plans in (ROUND[0], ROUND[:0]):
        with pytest.raises(ValueError, match=r"plans must be \[B, T, A, O\] with at least one"):
            summarise_constraints([DISC], plans)
    with pytest.raises(ValueError, match=r"unconstrained plans must be \[1, 3, 1, 2\], got \[1, 2, 1, 2\]"):
        summarise_constraints([DISC], ROUND, unconstrained=ROUND[:, :2])
    with pytest.raises(ValueError, match="at least one barrier"):
        summarise_constraints([], ROUND)

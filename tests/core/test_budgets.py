import math

import pytest
import torch

from core.acting import Asked, GuidanceConfig, MoveConfig
from core.budgets import Allowance


def allowance(discount=1.0, **asked):
    return Allowance(Asked.of([GuidanceConfig(**asked)], [0, 1]), discount)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_what_is_left_by_hand(discount):
    """z_t = (b - sum gamma^k c_k) / gamma^t, of the agents' mean costs."""
    one = allowance(discount, budget=5.0)
    for costs in ([[1.0, 2.0], [0.0, 0.0]], [[3.0, 1.0], [4.0, 6.0]]):
        one.spend(torch.tensor(costs))
    expected = [(5 - 1.5 - discount * 2) / discount**2, (5 - discount * 5) / discount**2]
    assert one.left.tolist() == pytest.approx(expected)
    one.spend(torch.tensor([[9.0, 9.0], [0.0, 0.0]]))
    assert one.left[0] == 0  # the published code lets it fall below
    assert one.unclamped[0].item() == pytest.approx((5 - 1.5 - discount * 2 - discount**2 * 9) / discount**3)


def test_a_change_holds_from_its_step_on():
    one = allowance(budget=10.0, budget_factor=0.5, budget_change=2)
    left = []
    for _ in range(4):
        left.append(one.left[0].item())
        one.spend(torch.ones(2, 1))
    assert left == [10, 9, 3, 2]


def test_a_reserve_is_kept_back():
    one = allowance(budget=10.0, reserve=0.1, budget_factor=0.5, budget_change=1)
    one.spend(torch.ones(2, 1))
    assert one.left[0].item() == pytest.approx(10 * 0.9 * 0.5 - 1)


def test_without_a_budget_everything_is_left():
    one = allowance(budget_factor=0.0, budget_change=0)
    one.spend(torch.full((2, 1), 1e6))
    assert one.left.tolist() == [math.inf, math.inf]


def test_episodes_are_asked_for_their_own():
    asked = Asked.of([GuidanceConfig(budget=1.0), GuidanceConfig(scale=2.0, budget=3.0)], [5, 6])
    assert (asked.budgets.tolist(), asked.scales.tolist()) == ([1, 3], pytest.approx([1.2, 2.0]))
    with pytest.raises(ValueError, match="asked for 2 episodes, and 3 begin"):
        Asked.of([GuidanceConfig(), GuidanceConfig()], [5, 6, 7])


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (lambda: GuidanceConfig(budget=-1.0), "guidance.budget"),
        (lambda: GuidanceConfig(budget=math.nan), "guidance.budget"),
        (lambda: GuidanceConfig(reserve=1.0), "guidance.reserve"),
        (lambda: GuidanceConfig(budget_factor=-0.5), "budget_factor"),
        (lambda: GuidanceConfig(budget_change=-2), "budget_change"),
        (lambda: MoveConfig(gate="firm"), "move.gate 'firm': choose one of hard, soft, none"),
        (lambda: MoveConfig(scale=math.inf), "move.scale"),
        (lambda: MoveConfig(repeats=0), "move.repeats"),
    ],
)
def test_mistakes_are_named(config, named):
    with pytest.raises(ValueError, match=named):
        config()

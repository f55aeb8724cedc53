import pytest
import torch

import safe
from safe.metrics import LIMITS, NormalisedScore, normalised_cost, normalised_reward, normalised_score


def test_worked_example():
    costs = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 10.0])
    summary = safe.summarise_costs(costs, 2.0, tail=0.2)
    assert summary == safe.CostSummary(mean=2.0, worst=10.0, cvar=7.0, violation_rate=0.3, normalised=1.0)


def test_a_limit_of_zero_is_safe_only_without_any_cost():
    assert safe.summarise_costs(torch.zeros(3), 0.0).normalised == 1.0
    assert safe.summarise_costs(torch.tensor([0.0, 0.0, 3.0]), 0.0).normalised == 2.0
    assert normalised_cost(torch.tensor([0.0, 0.0, 3.0]), 0.0) == 2.0
    assert normalised_cost(torch.tensor([0.0, 3.0]), 0.5) == 3.0


def test_a_cost_at_the_limit_is_no_violation():
    assert safe.summarise_costs(torch.tensor([5.0, 5.5]), 5.0).violation_rate == 0.5


def test_returns_are_measured_by_the_whole_dataset():
    data = torch.tensor([300.0, -100.0, 50.0])
    assert normalised_reward(torch.tensor([-100.0]), data) == 0
    assert normalised_reward(torch.tensor([300.0]), data) == 1
    assert normalised_reward(torch.tensor([0.0, 600.0]), data) == 1  # their mean is 300
    assert normalised_reward(torch.tensor([700.0]), data) == 2


def test_a_score_is_the_mean_over_limits():
    """By hand: a cost of 30 is 3/2, 3/4 and 3/8 of the limits, 7/8 in the mean."""
    data = torch.tensor([0.0, 10.0])
    same = normalised_score(torch.tensor([4.0, 6.0]), torch.tensor([20.0, 40.0]), data)
    assert LIMITS == (20, 40, 80)
    assert same == NormalisedScore(reward=0.5, cost=0.875)
    assert same.safe
    told = normalised_score(
        torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[10.0, 20.0], [60.0, 40.0]]), data, limits=(10, 40)
    )
    assert told.reward == pytest.approx((0.2 + 0.6) / 2)
    assert told.cost == pytest.approx((15 / 10 + 50 / 40) / 2)
    assert not told.safe
    assert normalised_score(torch.tensor([5.0]), torch.tensor([60.0]), data, limits=[60]).safe


@pytest.mark.parametrize(
    ("costs", "limit", "tail", "message"),
    [
        (torch.zeros(0), 1.0, 0.1, "one number for each episode"),
        (torch.zeros(2, 2), 1.0, 0.1, "one number for each episode"),
        (torch.zeros(2), -1.0, 0.1, "-1.0"),
        (torch.zeros(2), 1.0, 0.0, "tail"),
    ],
)
def test_bad_input(costs, limit, tail, message):
    with pytest.raises(ValueError, match=message):
        safe.summarise_costs(costs, limit, tail=tail)


@pytest.mark.parametrize(
    ("returns", "costs", "data", "limits", "message"),
    [
        ([1.0], [1.0], [2.0, 2.0], LIMITS, "must differ to be a scale, and all are 2.0"),
        ([1.0], [1.0], [], LIMITS, "the dataset's returns must be one number"),
        ([], [1.0], [0.0, 1.0], LIMITS, "returns must be one number for each episode"),
        ([[1.0], [2.0]], [1.0], [0.0, 1.0], LIMITS, r"returns must be \[N\] or \[3, N\]"),
        ([1.0], [[1.0], [2.0]], [0.0, 1.0], LIMITS, r"costs must be \[N\] or \[3, N\]"),
        ([1.0], [1.0], [0.0, 1.0], (), "one row for each limit"),
        ([1.0], [1.0], [0.0, 1.0], (-1.0,), "at least 0, got -1.0"),
        ([1.0], [1.0], [0.0, 1.0], (float("nan"),), "at least 0, got nan"),
    ],
)
def test_scores_of_bad_input(returns, costs, data, limits, message):
    with pytest.raises(ValueError, match=message):
        normalised_score(torch.tensor(returns), torch.tensor(costs), torch.tensor(data), limits)

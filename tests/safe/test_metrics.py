import pytest
import torch

import safe


def test_worked_example():
    costs = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 10.0])
    summary = safe.summarise_costs(costs, 2.0, tail=0.2)
    assert summary == safe.CostSummary(mean=2.0, worst=10.0, cvar=7.0, violation_rate=0.3, normalised=1.0)


def test_a_limit_of_zero_is_safe_only_without_any_cost():
    assert safe.summarise_costs(torch.zeros(3), 0.0).normalised == 1.0
    assert safe.summarise_costs(torch.tensor([0.0, 0.0, 3.0]), 0.0).normalised == 2.0


def test_a_cost_at_the_limit_is_no_violation():
    assert safe.summarise_costs(torch.tensor([5.0, 5.5]), 5.0).violation_rate == 0.5


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

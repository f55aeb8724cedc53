"""Planners of entity-wise observations: trained for one team, planning for another."""

import pytest
import torch

from core.acting import Acting, PlanningConfig
from core.environments import TeamSpec
from core.errors import UserError
from core.noise import normal
from core.rollout import rollout
from marl import InverseConfig, MADiff, MADiffConfig, TaskConfig, scripted_team
from marl.attention import AgentAttention

CONFIG = MADiffConfig(horizon=4, history=1, multipliers=[1], width=16, known="random", inverse=InverseConfig(hidden=16))


@pytest.fixture(scope="module")
def planner():
    torch.manual_seed(0)
    with TaskConfig(entities=True).make() as environments:
        data = rollout(scripted_team("mpe/spread", "expert"), environments, range(20)).trajectories
        planner = MADiff(CONFIG, environments.spec)
    planner.prepare(data)
    for module in planner.modules():
        if isinstance(module, AgentAttention):
            module.gate.data.fill_(1.0)
    return planner.eval()


def test_a_team_of_five_is_planned_for_with_the_same_weights(planner):
    task = TaskConfig(agents=5, entities=True)
    with task.make() as environments:
        larger = planner.for_team(environments.spec)
        assert larger.spec == TeamSpec(5, 4 + 5 * 2 + 4 * 2, 2, entities=((5, 2), (4, 2)))
        seen = environments.reset([0, 1]).observations
        plan = larger.plan(seen)
        assert plan.observations.shape == (2, 4, 5, 22)
        assert torch.equal(plan.observations[:, 0], seen)
        assert not plan.faults.any()
        data = rollout(larger.policy(Acting(planning=PlanningConfig("decentralised"))), environments, [3]).trajectories
    assert data.agents == 5
    mine, theirs = dict(planner.named_parameters()), dict(larger.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(theirs[name] is mine[name] for name in mine)
    assert planner.spec.agents == 3  # nothing happened to the planner itself
    with TaskConfig(entities=True).make() as environments:
        planner.plan(environments.reset([0]).observations)


def test_it_plans_for_its_own_team_as_before(planner):
    seen = 0.5 * normal([1, 2], (3, 14))
    assert torch.equal(planner.for_team(planner.spec).plan(seen).observations, planner.plan(seen).observations)


def test_permuting_tokens_permutes_the_plan(planner):
    """Landmarks in another order are the same landmarks."""
    seen = 0.5 * normal([1, 2], (3, 14))
    order = torch.tensor([0, 1, 2, 3, 8, 9, 4, 5, 6, 7, 10, 11, 12, 13])
    noise = normal([1, 2], planner.plan_shape())
    swapped = noise[..., torch.cat([order, torch.tensor([14])])]
    plan, other = planner.plan(seen, noise=noise), planner.plan(seen[..., order], noise=swapped)
    assert torch.allclose(other.observations, plan.observations[..., order], atol=1e-4)
    assert torch.allclose(other.actions, plan.actions, atol=1e-4)


def test_other_teams_are_refused(planner):
    with pytest.raises(UserError, match="cannot for TeamSpec"):
        planner.for_team(TeamSpec(5, 18, 2))
    plain = MADiff(CONFIG, TeamSpec(3, 18, 2))
    with pytest.raises(UserError, match=r"planners trained with task\.entities=true"):
        plain.for_team(TeamSpec(5, 30, 2))
    with pytest.raises(ValueError, match=r"algo\.actions=joint does not go with entity-wise"):
        MADiff(MADiffConfig(actions="joint"), planner.spec)

from dataclasses import replace

import pytest
import torch

from core.data import Trajectories, Transitions


def two_episodes():
    """Three steps, terminated, with rewards 1, 2, 4; two steps, cut off, with rewards 8, 16. Row k sees k."""
    rewards = torch.tensor([1.0, 2.0, 4.0, 0.0, 8.0, 16.0, 0.0])[:, None]
    return Trajectories(
        torch.arange(7.0).reshape(7, 1, 1),
        torch.zeros(7, 1, 1),
        rewards,
        torch.zeros_like(rewards),
        torch.tensor([0, 4, 7]),
        torch.tensor([True, False]),
    )


@pytest.mark.parametrize(
    ("lookahead", "rewards", "following", "discount"),
    [
        (1, [1, 2, 4, 8, 16], [1, 2, 3, 5, 6], [0.5, 0.5, 0, 0.5, 0.5]),
        (2, [2, 4, 4, 16, 16], [2, 3, 3, 6, 6], [0.25, 0, 0, 0.25, 0.5]),
        (3, [3, 4, 4, 16, 16], [3, 3, 3, 6, 6], [0, 0, 0, 0.25, 0.5]),
    ],
)
def test_what_comes_of_a_step(lookahead, rewards, following, discount):
    """Nothing is worth anything after a termination; what was cut off goes on from the last observation."""
    steps = Transitions.of(two_episodes(), discount=0.5, lookahead=lookahead)
    assert steps.observations.flatten().tolist() == [0, 1, 2, 4, 5]
    assert steps.rewards.flatten().tolist() == rewards
    assert steps.following.flatten().tolist() == following
    assert steps.discount.flatten().tolist() == discount


def test_costs_are_summed_as_rewards_are_and_masks_come_along():
    data = two_episodes()
    legal = torch.arange(7).reshape(7, 1, 1).expand(7, 1, 2) % 2 == 0
    present = torch.tensor([True, True, True, True, True, False, False])[:, None]
    data = Trajectories(
        data.observations,
        torch.zeros(7, 1, 2),
        data.rewards,
        3 * data.rewards,
        data.offsets,
        data.terminated,
        legal=legal,
        present=present,
    )
    steps = Transitions.of(data, discount=0.5)
    assert steps.costs.flatten().tolist() == [3, 6, 12, 24, 48]
    assert steps.legal[:, 0, 0].tolist() == [True, False, True, True, False]
    assert steps.following_legal[:, 0, 0].tolist() == [False, True, False, False, True]
    assert steps.present.flatten().tolist() == [True, True, True, True, False]
    # An agent that has left is worth nothing from then on.
    assert steps.discount.flatten().tolist() == [0.5, 0.5, 0, 0, 0]
    chosen = steps.gather(torch.tensor([3, 0]))
    assert chosen.rewards.flatten().tolist() == [8, 1] and chosen.legal.shape == (2, 1, 2) and len(chosen) == 2


@pytest.mark.parametrize(
    ("lookahead", "actions", "followed"),
    [
        (1, [1, 2, 0, 5, 0], [True, True, False, True, False]),
        (2, [2, 0, 0, 0, 0], [True, False, False, False, False]),
    ],
)
def test_what_was_done_then(lookahead, actions, followed):
    """Last rows have no action, whether they end or cut off the episode."""
    data = two_episodes()
    rows = torch.arange(7.0).reshape(7, 1, 1)
    rows[[3, 6]] = 0
    steps = Transitions.of(replace(data, actions=rows), discount=0.5, lookahead=lookahead)
    assert steps.following_actions.flatten().tolist() == actions
    assert steps.followed.flatten().tolist() == followed


def test_nobody_follows_who_has_left():
    present = torch.ones(7, 2, dtype=torch.bool)
    present[2:4, 1] = False
    pair = {name: getattr(two_episodes(), name).expand(7, 2, 1) for name in ("observations", "actions")}
    pair |= {name: getattr(two_episodes(), name).expand(7, 2) for name in ("rewards", "costs")}
    steps = Transitions.of(replace(two_episodes(), **pair, present=present), discount=0.5)
    assert steps.followed.tolist() == [[True, True], [True, False], [False, False], [True, True], [False, False]]

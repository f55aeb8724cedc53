from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment

from core.errors import UserError
from core.rollout import Context, rollout
from marl import QUALITIES, TaskConfig, scripted_team
from marl.behaviours import SpreadTeam, Steering

TASK = TaskConfig()
SEEDS = range(40)
START = Context(0, torch.ones(1, dtype=torch.bool))


@pytest.fixture(scope="module")
def data():
    """40 episodes of each quality."""
    return {
        quality: rollout(scripted_team("mpe/spread", quality), TASK.make, SEEDS).trajectories
        for quality in QUALITIES["mpe/spread"]
    }


def first_observations(data):
    return data.observations[data.offsets[:-1]]


def landmarks_of(data):
    """Absolute landmarks [E, A, 2] of each episode."""
    first = first_observations(data)[:, 0]
    return first[:, None, 2:4] + first[:, 4:10].reshape(-1, 3, 2)


def final_positions(data):
    return data.observations[data.offsets[1:] - 1][..., 2:4]


def coverage(positions, landmarks):
    """Mean distance of landmarks to their nearest agent [E]."""
    return torch.cdist(landmarks, positions).amin(dim=2).mean(dim=1)


def test_expert_beats_medium_beats_random(data):
    expert, medium, random = (data[quality].scores for quality in ("expert", "medium", "random"))
    assert (expert > random).all()
    assert expert.mean() > -8
    assert random.mean() < -22
    assert expert.mean() - medium.mean() > 4
    assert medium.mean() - random.mean() > 4
    for better, worse in ((expert, medium), (medium, random)):
        assert stats.ttest_rel(better, worse, alternative="greater").pvalue < 1e-6


def test_references_are_the_scores_of_random_and_expert(data):
    for quality, reference in (("random", TASK.references.random), ("expert", TASK.references.expert)):
        scores = data[quality].scores
        assert abs(scores.mean() - reference) < 4 * scores.std() / len(scores) ** 0.5


def test_the_expert_covers_the_landmarks_by_the_shortest_assignment(data):
    expert = data["expert"]
    positions, landmarks = final_positions(expert), landmarks_of(expert)
    assert coverage(positions, landmarks).mean() < 0.1
    starts = first_observations(expert)[..., 2:4]
    for start, end, marks in zip(starts, positions, landmarks, strict=True):
        _, shortest = linear_sum_assignment(torch.cdist(start, marks).numpy())
        nearest = torch.cdist(end, marks).argmin(dim=1)
        assert nearest.tolist() == shortest.tolist()


def test_exactly_half_of_mixed_is_misled():
    team = scripted_team("mpe/spread", "mixed")
    for first in (0, 1, 7, 1000):
        tags = team.tags(range(first, first + 40))
        assert tags.sum() == 20
        assert set(tags.tolist()) == {0, 1}
    assert [team.tags(range(seed, seed + 1)).item() for seed in range(6)] == team.tags(range(6)).tolist()
    assert team.behaviours == ("guided", "misled")


@pytest.mark.parametrize("share", [0.0, 0.25, 0.1, 1 / 3, 1.0])
def test_other_shares_are_exact_too(share):
    tags = SpreadTeam(Steering(misled=share)).tags(range(120))
    assert tags.sum() == round(120 * share)
    # Evenly spread: any window of the data has about its share.
    assert all(abs(tags[k : k + 30].sum() - 30 * share) <= 1 for k in range(90))


def test_misled_agents_steer_to_mirrored_landmarks(data):
    mixed = data["mixed"]
    misled = scripted_team("mpe/spread", "mixed").tags(SEEDS).bool()
    positions, landmarks = final_positions(mixed), landmarks_of(mixed)
    assert coverage(positions[misled], -landmarks[misled]).mean() < 0.1
    assert coverage(positions[misled], landmarks[misled]).mean() > 0.4
    assert coverage(positions[~misled], landmarks[~misled]).mean() < 0.1
    # The guided half is the expert's, episode by episode.
    guided = torch.nonzero(~misled).squeeze(1)
    assert torch.equal(mixed.subset(guided).observations, data["expert"].subset(guided).observations)
    assert mixed.scores[misled].mean() < mixed.scores[~misled].mean() - 10


def choices(team, seeds, observations):
    """Landmark that each agent steers to [B, A]."""
    team.reset(seeds)
    team.act(observations.expand(len(seeds), -1, -1), START)
    landmarks = observations[0, None, 2:4] + observations[0, 4:10].reshape(3, 2)
    return torch.cdist(team.targets, landmarks.expand(len(seeds), -1, -1)).argmin(dim=2)


def test_multimodal_assignments_are_uniform_over_the_permutations(data):
    observations = first_observations(data["expert"])[0]
    chosen = choices(scripted_team("mpe/spread", "multimodal"), range(6000), observations).tolist()
    counts = dict.fromkeys(permutations(range(3)), 0)
    for order in chosen:
        counts[tuple(order)] += 1  # a KeyError here is an assignment that is no permutation
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    assert sum(counts.values()) == 6000


def test_random_actions_are_uniform(data):
    actions = data["random"].actions[data["random"].decisions].flatten()
    assert stats.kstest(actions.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(actions[:-1], actions[1:])[0, 1]) < 0.05


@pytest.mark.parametrize("quality", QUALITIES["mpe/spread"])
def test_an_episode_is_its_seeds_whatever_the_batch(quality, data):
    team = scripted_team("mpe/spread", quality)
    for parallel in (1, 4):
        again = rollout(team, TASK.make, [3, 17, 8, 30, 29], parallel=parallel).trajectories
        expected = data[quality].subset(torch.tensor([3, 17, 8, 30, 29]))
        for name in ("observations", "actions", "rewards", "costs"):
            assert torch.equal(getattr(again, name), getattr(expected, name))
    assert not torch.equal(again.actions[:25], again.actions[26:51])


def test_delay_acts_on_old_observations():
    """Two steps late: the first three actions all come from the first observation."""
    fresh, late = SpreadTeam(Steering()), SpreadTeam(Steering(delay=2))
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand(5, 1, 3, 18, generator=generator)
    actions = []
    for team in (fresh, late):
        team.reset([0])
        actions.append([team.act(observations, Context(step, START.active)) for step, observations in enumerate(seen)])
    fresh, late = actions
    for step in range(5):
        assert torch.equal(late[step], fresh[max(0, step - 2)])


@pytest.mark.parametrize("agents", [1, 2, 5])
def test_teams_of_other_sizes(agents):
    task = TaskConfig(agents=agents, max_cycles=4)
    for quality in QUALITIES["mpe/spread"]:
        data = rollout(scripted_team("mpe/spread", quality), task.make, range(3)).trajectories
        assert (data.agents, data.steps) == (agents, 12)
        assert data.actions.abs().max() <= 1


def test_unknown_quality():
    with pytest.raises(UserError, match="unknown quality 'exprt' of mpe/spread: did you mean 'expert'"):
        scripted_team("mpe/spread", "exprt")

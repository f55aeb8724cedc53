import pytest
import torch

from core.data import CurationConfig, Trajectories


def episodes(returns):
    """One episode of a step for each return, which is also what is seen."""
    rewards = torch.tensor(returns, dtype=torch.float32).repeat_interleave(2)[:, None]
    rewards[1::2] = 0
    seen = torch.tensor(returns, dtype=torch.float32).repeat_interleave(2).reshape(-1, 1, 1)
    offsets = torch.arange(0, 2 * len(returns) + 1, 2)
    return Trajectories(
        seen, torch.zeros_like(seen), rewards, 0 * rewards, offsets, torch.zeros(len(returns), dtype=bool)
    )


def counts(config, returns):
    chosen = config.of(episodes(returns)).scores.tolist()
    return [chosen.count(value) for value in returns]


def test_an_episode_counts_once_more_for_each_threshold_that_it_exceeds():
    """DOM2's for spread's expert data: 525 to 625 in steps of 25."""
    config = CurationConfig(reweight="thresholds", thresholds=[525, 550, 575, 600, 625])
    assert counts(config, [500, 525, 526, 560, 700]) == [1, 1, 2, 3, 6]


def test_quantiles_are_those_of_the_data():
    """Of 0 to 7 the quantiles 1/2, 3/4 and 7/8, the last one twice, are 3.5, 5.25 and 6.125."""
    assert counts(CurationConfig(reweight="quantiles"), list(range(8))) == [1, 1, 1, 1, 2, 2, 3, 5]


def test_a_share_is_spread_evenly_and_taken_before_the_weights():
    assert counts(CurationConfig(share=0.3), list(range(10))) == [1, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    config = CurationConfig(share=0.5, reweight="thresholds", thresholds=[3])
    assert counts(config, list(range(8))) == [1, 0, 1, 0, 2, 0, 2, 0]
    data = episodes([1, 2])
    assert CurationConfig().of(data) is data


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, "curation.share is a share in .0, 1., got 0.0"),
        ({"reweight": "all"}, "unknown curation.reweight 'all': choose one of none, quantiles, thresholds"),
        ({"reweight": "thresholds"}, "curation.thresholds are returns for curation.reweight=thresholds"),
        ({"thresholds": [1.0]}, "for none"),
        ({"reweight": "thresholds", "thresholds": [float("nan")]}, "got .nan."),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        CurationConfig(**settings)


def test_a_share_of_too_few_episodes_is_none():
    with pytest.raises(ValueError, match=r"curation\.share=0\.1 of 4 episodes is none"):
        CurationConfig(share=0.1).of(episodes([1, 2, 3, 4]))

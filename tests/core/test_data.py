from itertools import pairwise

import pytest
import torch

from core.data import Affine, Trajectories, Windows, drop_conditions, return_ranks, window_rows

LENGTHS = [3, 1, 5, 2]  # steps; an episode takes one row more


def team(lengths=LENGTHS, agents=2, tags=True, seed=0):
    """Episodes whose observations are their row numbers, with random rewards."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum(lengths) + len(lengths)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(torch.tensor(lengths) + 1, 0)])
    rewards = torch.randint(-3, 4, (rows, agents), generator=generator).float()
    rewards[offsets[1:] - 1] = 0
    observations = torch.arange(rows).float()[:, None, None].expand(rows, agents, 1).clone()
    terminated = torch.arange(len(lengths)) % 2 == 0
    extra = (10 + torch.arange(len(lengths)),) if tags else ()
    return Trajectories(observations, 2 * observations, rewards, rewards.abs(), offsets, terminated, *extra)


def episodes_of(data):
    """[(first row, row after the last)] by plain loop."""
    ends = data.offsets.tolist()
    return list(pairwise(ends))


def test_rows_of_episodes():
    data = team()
    assert (data.episodes, data.steps, data.agents) == (4, 11, 2)
    assert data.episode.tolist() == [0] * 4 + [1] * 2 + [2] * 6 + [3] * 3
    assert data.time.tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert data.last.tolist() == [3] * 4 + [5] * 2 + [11] * 6 + [14] * 3
    assert data.decisions.tolist() == [0, 1, 2, 4, 6, 7, 8, 9, 10, 12, 13]


def test_returns_and_scores():
    data = team()
    for episode, (first, end) in enumerate(episodes_of(data)):
        for agent in range(2):
            assert data.returns[episode, agent] == sum(data.rewards[row, agent] for row in range(first, end))
        assert data.scores[episode].item() == pytest.approx(data.returns[episode].mean().item())
    costs = data.episode_sums(data.costs)
    assert costs.tolist() == [data.costs[first:end].sum(dim=0).tolist() for first, end in episodes_of(data)]


@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
def test_returns_to_go_is_a_naive_sum(discount):
    data = team()
    to_go = data.returns_to_go(discount)
    assert to_go.dtype == torch.float32
    for first, end in episodes_of(data):
        for row in range(first, end):
            for agent in range(2):
                naive = sum(discount ** (later - row) * data.rewards[later, agent].item() for later in range(row, end))
                assert to_go[row, agent].item() == pytest.approx(naive, abs=1e-5)
    assert torch.equal(to_go[data.last], torch.zeros(15, 2))


def test_subset_keeps_the_given_order():
    data = team()
    part = data.subset(torch.tensor([2, 0]))
    assert part.offsets.tolist() == [0, 6, 10]
    assert part.observations[:, 0, 0].tolist() == [*range(6, 12), *range(4)]
    assert torch.equal(part.actions, 2 * part.observations)
    assert torch.equal(part.returns, data.returns[[2, 0]])
    assert torch.equal(part.costs, part.rewards.abs())
    assert part.terminated.tolist() == [True, True]
    assert part.tags.tolist() == [12, 10]
    assert data.subset(torch.tensor([1])).terminated.tolist() == [False]
    assert team(tags=False).subset(torch.tensor([1])).tags.tolist() == [-1]


def test_concatenate_undoes_subset():
    data = team()
    joined = Trajectories.concatenate(
        [data.subset(torch.tensor([0, 1])), data.subset(torch.tensor([2])), data.subset(torch.tensor([3]))]
    )
    for name in ("observations", "actions", "rewards", "costs", "offsets", "terminated", "tags"):
        assert torch.equal(getattr(joined, name), getattr(data, name)), name


def test_concatenate_marks_episodes_of_unknown_behaviour():
    joined = Trajectories.concatenate([team(), team(tags=False)])
    assert joined.tags.tolist() == [10, 11, 12, 13, -1, -1, -1, -1]


def test_inconsistent_rows():
    data = team()
    with pytest.raises(ValueError, match="disagree about the 15 rows"):
        Trajectories(data.observations, data.actions[:-1], data.rewards, data.costs, data.offsets, data.terminated)
    with pytest.raises(ValueError, match="disagree about the 15 rows"):
        Trajectories(data.observations, data.actions, data.rewards, data.costs, data.offsets[:-1], data.terminated)
    with pytest.raises(ValueError, match="at least one step"):
        offsets = torch.tensor([0, 4, 5, 15])
        Trajectories(data.observations, data.actions, data.rewards, data.costs, offsets, data.terminated[:3])


@pytest.mark.parametrize("history", [0, 2])
@pytest.mark.parametrize("horizon", [1, 3, 10])
def test_windows_stay_in_their_episode(horizon, history):
    data = team()
    first_row = torch.tensor([first for first, end in episodes_of(data) for _ in range(first, end)])
    rows, mask = window_rows(first_row, data.last, torch.arange(15), horizon, history)
    assert rows.shape == mask.shape == (15, history + horizon)
    for first, end in episodes_of(data):
        for start in range(first, end):
            wanted = range(start - history, start + horizon)
            assert rows[start].tolist() == [min(max(row, first), end - 1) for row in wanted]
            assert mask[start].tolist() == [first <= row < end - 1 for row in wanted]
    some = torch.tensor([13, 0, 13])
    assert torch.equal(window_rows(first_row, data.last, some, horizon, history)[0], rows[some])


def test_windows_with_history_begin_before_the_current_step():
    data = team()
    batches = Windows(data, data.observations, 3, history=2)
    for place, start in enumerate(data.decisions.tolist()):
        batch = batches.gather(torch.tensor([place]))
        first = start - int(data.time[start])
        assert torch.equal(batch.observations[0, 2], data.observations[start])
        assert torch.equal(batch.observations[0, 0], data.observations[max(first, start - 2)])
        assert torch.equal(batch.ranks[0, :, 0], return_ranks(data)[start])


@pytest.mark.parametrize("kind", ["standard", "minmax"])
def test_affine_round_trip(kind):
    values = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1.0, 50.0]) + 4
    normaliser = Affine(3, kind).fit(values)
    normalised = normaliser(values)
    assert torch.allclose(normaliser.invert(normalised), values, rtol=1e-6)
    flat = normalised.reshape(-1, 3).double()
    if kind == "standard":
        assert flat.mean(dim=0).abs().max() < 1e-3
        assert (flat.std(dim=0, correction=0) - 1).abs().max() < 1e-3
    else:
        assert (flat.amin(dim=0) + 1).abs().max() < 1e-3
        assert (flat.amax(dim=0) - 1).abs().max() < 1e-3
    assert torch.allclose(normaliser.low, normalised.amin(dim=(0, 1)), atol=1e-3)
    assert torch.allclose(normaliser.high, normalised.amax(dim=(0, 1)), atol=1e-3)


@pytest.mark.parametrize("kind", ["standard", "minmax"])
def test_affine_of_constant_entries(kind):
    values = torch.stack([torch.full((9,), 0.1), torch.arange(9.0), torch.full((9,), -7.0)], dim=1)
    normaliser = Affine(3, kind).fit(values)
    normalised = normaliser(values)
    assert normaliser.scale[[0, 2]].tolist() == [1, 1]
    assert normalised[:, [0, 2]].abs().max() < 1e-6
    assert torch.allclose(normaliser.invert(normalised), values, atol=1e-6)
    # A value never seen is moved, not magnified.
    assert normaliser(torch.tensor([1.1, 0.0, -7.0]))[0].item() == pytest.approx(1.0, abs=1e-6)


def test_affine_is_saved_with_its_model():
    fitted, fresh = Affine(2, "minmax").fit(torch.tensor([[0.0, 5.0], [4.0, 6.0]])), Affine(2, "minmax")
    assert torch.equal(fresh(torch.ones(2)), torch.ones(2))
    fresh.load_state_dict(fitted.state_dict())
    assert fresh(torch.tensor([4.0, 5.0])).tolist() == [1.0, -1.0]


def test_affine_rejects_an_unknown_kind():
    with pytest.raises(ValueError, match="unknown normaliser 'cdf'"):
        Affine(2, "cdf")


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_return_ranks_is_a_naive_count(discount):
    data = team([3, 1, 5, 2, 5, 4])
    ranks = return_ranks(data, discount)
    to_go, times = data.returns_to_go(discount), data.time.tolist()
    for row, time in enumerate(times):
        peers = [to_go[other, agent] for other in range(len(times)) if times[other] == time for agent in range(2)]
        for agent in range(2):
            naive = sum(bool(peer <= to_go[row, agent]) for peer in peers) / len(peers)
            assert ranks[row, agent].item() == pytest.approx(naive, abs=1e-6)
    assert ranks.min() > 0
    assert ranks.max() == 1
    assert ranks[:, 0].unique().numel() > 5


@pytest.mark.parametrize("shape", [(4000,), (4000, 3), (4000, 2, 3)])
def test_drop_conditions_drops_whole_items(shape):
    condition = torch.ones(shape)
    dropped = drop_conditions(condition, 0.25, torch.Generator().manual_seed(0))
    assert dropped.shape == shape
    assert (condition == 1).all()
    unknown = dropped.isnan().reshape(4000, -1)
    assert torch.equal(unknown.any(dim=1), unknown.all(dim=1))
    assert (dropped[~dropped.isnan()] == 1).all()
    # Four standard errors of a share of 4000.
    assert abs(unknown[:, 0].double().mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_drop_none_or_all(probability, share):
    dropped = drop_conditions(torch.ones(50, 1), probability, torch.Generator().manual_seed(0))
    assert dropped.isnan().double().mean() == share


def test_agents_that_left_do_not_count_among_the_returns():
    """Two agents, the second gone after the first step of every episode: ranks of the rest as by hand."""
    lengths = torch.tensor([3, 3, 3])
    rows = int(lengths.sum())
    rewards = torch.tensor([[1.0, 5], [2, 0], [0, 0], [3, 4], [1, 0], [0, 0], [2, 6], [5, 0], [0, 0]])
    present = torch.tensor([[True, True], [True, False], [True, False]] * 3)
    data = Trajectories(
        torch.zeros(rows, 2, 1), torch.zeros(rows, 2, 1), rewards, rewards, torch.tensor([0, 3, 6, 9]),
        torch.ones(3, dtype=torch.bool), present=present,
    )  # fmt: skip
    ranks = return_ranks(data)
    # At the first step six returns to go: 3, 5, 4, 4, 7, 6. At the second the first agent's three: 2, 1, 5.
    assert torch.allclose(ranks[[0, 3, 6]], torch.tensor([[1.0, 4], [3, 3], [6, 5]]) / 6)
    assert torch.allclose(ranks[[1, 4, 7], 0], torch.tensor([2.0, 1, 3]) / 3)

"""Normalisers against closed forms and the published rule written out with NumPy; affine ones alone: test_data.py."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import functional_call, jacrev

from core.data.normalisers import CDF, NORMALISERS, Affine, normaliser_of

#: Own entries, and tokens [S, A, count, size] of two kinds.
OWN, SIZES = 3, (2, 1)
TRAINED, LARGER = ((3, 2), (2, 1)), ((5, 2), (4, 1))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def published(column, values):
    """2 F - 1 of values by the papers' code: shares at the unique values, linear in between, clipped to the data."""
    unique, counts = np.unique(column, return_counts=True)
    share = np.cumsum(counts) / len(column)
    return 2 * np.interp(np.clip(values, unique[0], unique[-1]), unique, share) - 1


def assembled(own, tokens):
    """Observations [S, A, O] of own entries and tokens."""
    return torch.cat([own, *(kind.flatten(2) for kind in tokens)], dim=-1)


def entity_wise(entities, seed):
    """Own entries [6, 4, 3] and tokens of each kind [6, 4, count, size], of different scales."""
    own = normal(6, 4, OWN, seed=seed) * torch.tensor([1.0, 5.0, 0.2]) + 1
    scales = (torch.tensor([3.0, 0.5]), torch.tensor([10.0]))
    tokens = [
        normal(6, 4, count, size, seed=seed + 1 + kind) * scales[kind] - kind
        for kind, (count, size) in enumerate(entities)
    ]
    return own, tokens


def test_cdf_is_the_published_one_where_it_keeps_all_data():
    column = torch.tensor([0.0, 0.0, 3.0, 1.0, 1.0, 1.0, 7.0, -2.5, 3.0])
    values = torch.stack([column, normal(9, seed=1)], dim=1)
    normaliser = CDF(2, knots=9).fit(values)
    at = torch.stack([torch.linspace(-4, 9, 101), torch.linspace(-3, 3, 101)], dim=1)
    for k in range(2):
        expected = published(values[:, k].numpy(), at[:, k].numpy())
        assert np.abs(normaliser(at)[:, k].numpy() - expected).max() < 1e-6
    # -2.5 once, 0 twice, 1 three times, 3 twice and 7 once of nine.
    of_values = [(-2.5, 1), (0.0, 3), (1.0, 6), (3.0, 8), (7.0, 9), (2.0, 7), (-10.0, 1), (10.0, 9)]
    for value, count in of_values:
        assert normaliser(torch.tensor([value, 0.0]))[0].item() == pytest.approx(2 * count / 9 - 1, abs=1e-6)


def test_cdf_makes_the_data_uniform_with_few_knots():
    values = torch.stack([normal(20_000).exp(), normal(20_000, seed=1) ** 3], dim=1)
    for knots in (20, 200):
        normalised = CDF(2, knots).fit(values)(values)
        for k in range(2):
            distance = stats.kstest(normalised[:, k].numpy(), stats.uniform(-1, 2).cdf).statistic
            assert distance < 1 / knots
    exact = torch.from_numpy(stats.lognorm(1).cdf(values[:, 0].numpy())).float()
    assert (normalised[:, 0] - (2 * exact - 1)).abs().max() < 0.03  # the sample's own distance: 1.6 / sqrt(n)


def test_cdf_inverts_data_what_lies_between_and_repeated_values():
    # Half of the first entry is one value, the second has a wide gap, the third is a flag.
    first = torch.where(torch.arange(400) % 2 == 0, 2.0, normal(400))
    second = normal(400, seed=1) + 100 * (torch.arange(400) % 2)
    values = torch.stack([first, second, (torch.arange(400) % 7 == 0).float()], dim=1)
    for knots in (400, 30):
        normaliser = CDF(3, knots).fit(values)
        assert torch.allclose(normaliser.invert(normaliser(values)), values, atol=1e-4)
        between = torch.stack([torch.linspace(0.3, 2.2, 50), torch.linspace(5, 95, 50), torch.linspace(0, 1, 50)], 1)
        assert torch.allclose(normaliser.invert(normaliser(between)), between, rtol=1e-4, atol=1e-4)
        assert (normaliser(between).diff(dim=0) > 0).all()
    assert normaliser(values)[:, 2].unique().tolist() == pytest.approx([2 * 342 / 400 - 1, 1.0])


def test_cdf_of_constant_entries_and_beyond_the_data():
    values = torch.stack([torch.full((9,), 0.1), torch.arange(9.0)], dim=1)
    normaliser = CDF(2).fit(values)
    assert normaliser(torch.tensor([[0.1, 0.0], [5.0, -3.0], [-5.0, 30.0]])).tolist() == [
        [0.0, pytest.approx(2 / 9 - 1)],
        [0.0, pytest.approx(2 / 9 - 1)],
        [0.0, 1.0],
    ]
    inverse = normaliser.invert(torch.tensor([[-0.9, -1.0], [0.0, 1.0], [7.0, 7.0]]))
    assert torch.allclose(inverse, torch.tensor([[0.1, 0.0], [0.1, 8.0], [0.1, 8.0]]))
    assert normaliser.low.tolist() == pytest.approx([0, 2 / 9 - 1])
    assert normaliser.high.tolist() == [0, 1]
    assert normaliser(torch.full((1, 2), torch.nan)).isnan().all()


def test_cdf_inverse_has_the_slope_of_the_data():
    """Guidance differentiates plans through the inverse: for evenly spaced data dx/dy is n step / 2."""
    normaliser = CDF(2, knots=11).fit(torch.stack([torch.arange(11.0), 4 * torch.arange(11.0)], dim=1))
    slopes = jacrev(normaliser.invert)(torch.tensor([0.13, -0.4]))
    assert torch.allclose(slopes, torch.diag(torch.tensor([11 / 2, 44 / 2])), atol=1e-4)


@pytest.mark.parametrize("kind", NORMALISERS)
def test_statistics_pool_all_leading_dimensions(kind):
    values = normal(7, 5, 4, 3)
    pooled, flat = normaliser_of(kind, 3).fit(values), normaliser_of(kind, 3).fit(values.reshape(-1, 3))
    assert all(torch.equal(a, b) for a, b in zip(pooled.buffers(), flat.buffers(), strict=True))
    assert torch.equal(pooled(values), flat(values.reshape(-1, 3)).reshape(values.shape))


@pytest.mark.parametrize("kind", NORMALISERS)
def test_only_what_is_known_counts(kind):
    """Agents see 4, 2 and 3 entries: each entry's statistics are those of the agents that have it."""
    values, sizes = normal(50, 3, 4) * 3 + 2, (4, 2, 3)
    known = torch.arange(4) < torch.tensor(sizes)[:, None]
    normaliser = normaliser_of(kind, 4).fit(torch.where(known, values, 1e6), known)
    for k in range(4):
        seen = values[:, known[:, k], k].reshape(-1, 1)
        alone = normaliser_of(kind, 1).fit(seen)
        assert torch.allclose(normaliser(values)[..., k], alone(values[..., k, None])[..., 0], atol=1e-5)
        assert torch.allclose(normaliser.low[k], alone.low[0], atol=1e-6)
        assert torch.allclose(normaliser.high[k], alone.high[0], atol=1e-6)


def test_masked_statistics_in_closed_form():
    values = torch.tensor([[1.0, 9.0], [3.0, 9.0], [8.0, 9.0]])
    known = torch.tensor([[True, False], [True, False], [False, False]])
    standard = Affine(2).fit(values, known)
    assert (standard.shift.tolist(), standard.scale.tolist()) == ([2, 0], [1, 1])
    assert (standard.low.tolist(), standard.high.tolist()) == ([-1, 0], [1, 0])
    minmax = Affine(2, "minmax").fit(values * 2, known)
    assert (minmax.shift.tolist(), minmax.scale.tolist()) == ([4, 0], [2, 1])
    cdf = CDF(2).fit(values, known)
    assert cdf(torch.tensor([[1.0, 0.0], [2.0, 5.0], [3.0, 9.0]])).tolist() == [[0, 0], [0.5, 0], [1, 0]]
    # One row of padding for each of two agents: [S, 1, 1] masks whole rows.
    rows = torch.tensor([True, True, False])[:, None, None]
    assert Affine(2).fit(values[:, None], rows).shift.tolist() == [2, 9]


@pytest.mark.parametrize("kind", NORMALISERS)
def test_tokens_of_a_kind_share_their_statistics(kind):
    own, tokens = entity_wise(TRAINED, seed=0)
    normaliser = normaliser_of(kind, OWN + sum(SIZES)).fit(assembled(own, tokens), entities=TRAINED)
    # Independently: own entries, and the tokens of each kind, each by a normaliser of its own.
    parts = [normaliser_of(kind, part.shape[-1]).fit(part) for part in (own, *tokens)]
    for name, buffer in normaliser.named_buffers():
        assert torch.allclose(buffer, torch.cat([getattr(part, name) for part in parts]), atol=1e-6)
    for entities, seed in ((TRAINED, 0), (LARGER, 5), (((0, 2), (1, 1)), 7)):
        own, tokens = entity_wise(entities, seed)
        expanded = normaliser.expand(entities)
        observations = assembled(own, tokens)
        expected = assembled(parts[0](own), [part(found) for part, found in zip(parts[1:], tokens, strict=True)])
        assert torch.allclose(expanded(observations), expected, atol=1e-5)
        assert expanded.features == len(expanded.low) == len(expanded.high) == observations.shape[-1]
        inside = expanded(observations).clamp(expanded.low, expanded.high)
        assert torch.allclose(expanded(expanded.invert(inside)), inside, atol=1e-4)
    assert normaliser.expand(()) is normaliser


def test_tokens_can_be_missing_and_masked():
    own, tokens = entity_wise(((0, 2), (2, 1)), seed=0)
    normaliser = Affine(6).fit(assembled(own, tokens), entities=((0, 2), (2, 1)))
    assert normaliser.shift[3:5].tolist() == [0, 0]
    assert normaliser.scale[3:5].tolist() == [1, 1]
    assert normaliser.shift[5].item() == pytest.approx(tokens[1].mean().item(), abs=1e-6)
    known = torch.ones(6, 4, 5, dtype=torch.bool)
    known[..., 4] = False  # the second token of the last kind
    normaliser.fit(assembled(own, tokens), known, entities=((0, 2), (2, 1)))
    assert normaliser.shift[5].item() == pytest.approx(tokens[1][:, :, 0].mean().item(), abs=1e-6)


@pytest.mark.parametrize("kind", NORMALISERS)
def test_a_normaliser_is_saved_with_its_model_for_any_team(kind):
    own, tokens = entity_wise(TRAINED, seed=0)
    fitted = normaliser_of(kind, 6).fit(assembled(own, tokens), entities=TRAINED)
    fresh = normaliser_of(kind, 6)
    inside = torch.linspace(-1, 1, 6)
    assert torch.allclose(fresh(inside), inside, atol=1e-6)
    assert torch.allclose(fresh.invert(inside), inside, atol=1e-6)
    fresh.load_state_dict(fitted.state_dict())
    observations = assembled(*entity_wise(LARGER, seed=3))
    assert torch.equal(fresh.expand(LARGER)(observations), fitted.expand(LARGER)(observations))


@pytest.mark.parametrize("kind", NORMALISERS)
def test_several_normalisers_at_once(kind):
    values = normal(2, 30, 3)
    each = [normaliser_of(kind, 3).fit(part) for part in values]
    stacked = {name: torch.stack([one.state_dict()[name] for one in each]) for name in each[0].state_dict()}
    found = torch.vmap(lambda state, part: functional_call(each[0], state, part))(stacked, values)
    assert torch.allclose(found, torch.stack([one(part) for one, part in zip(each, values, strict=True)]), atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", NORMALISERS)
def test_on_the_gpu(kind):
    observations, known = assembled(*entity_wise(TRAINED, seed=0)), normal(6, 4, 1) < 0.5
    here = normaliser_of(kind, 6).fit(observations, known, TRAINED).expand(LARGER)
    there = normaliser_of(kind, 6).cuda().fit(observations.cuda(), known.cuda(), TRAINED).expand(LARGER)
    larger = assembled(*entity_wise(LARGER, seed=3))
    assert torch.allclose(there(larger.cuda()).cpu(), here(larger), atol=1e-5)
    assert torch.allclose(there.invert(here(larger).cuda()).cpu(), here.invert(here(larger)), atol=1e-4)


def test_linear_constraints_carry_over_to_affine_ones_alone():
    assert [normaliser_of(kind, 1).affine for kind in NORMALISERS] == [True, True, False]


def test_precision_is_the_values():
    normaliser = CDF(2).fit(normal(9, 2))
    assert normaliser(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64
    assert normaliser.quantiles.dtype == torch.float32


def test_errors():
    with pytest.raises(ValueError, match="unknown normaliser 'rank': choose one of standard, minmax, cdf"):
        normaliser_of("rank", 2)
    with pytest.raises(ValueError, match="at least 2 knots, got 1"):
        CDF(2, knots=1)
    with pytest.raises(ValueError, match=r"values to fit must be \[..., 11\], got \[4, 5\]"):
        Affine(6).fit(torch.zeros(4, 5), entities=TRAINED)
    with pytest.raises(ValueError, match=r"a normaliser of 2 statistics has none for tokens \(\(3, 2\), \(2, 1\)\)"):
        Affine(2).expand(TRAINED)

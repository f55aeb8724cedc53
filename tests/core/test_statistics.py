import itertools
import json
import math
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from core.statistics import (
    Facts,
    compare,
    compare_all,
    holm,
    interquartile_mean,
    mean,
    mean_interval,
    performance_profile,
    probability_of_improvement,
    protocol,
    protocol_lines,
)
from core.statistics.intervals import SMOOTHING, bootstrap_t, interquartile_mean_of, mean_of, student_t

ROOT = Path(__file__).parents[2]

#: Five seeds of three tasks.
TABLE = np.array([[3.0, 41.0, 88.0], [5.0, 55.0, 93.0], [9.0, 47.0, 90.0], [4.0, 62.0, 97.0], [7.0, 40.0, 91.0]])
ESTIMATORS = [
    mean,
    interquartile_mean,
    lambda scores, **options: mean(scores, method="t", **options),
]


def ends(estimate):
    return np.array([estimate.value, estimate.low, estimate.high])


# The interval of episodes


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("count", [2, 5, 300])
def test_mean_interval_is_scipys(count, confidence):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)) * 3 - 20
    value, interval = mean_interval(values, confidence)
    sample = values.double().numpy()
    low, high = stats.ttest_1samp(sample, 0).confidence_interval(confidence)
    assert value == pytest.approx(sample.mean())
    assert interval == pytest.approx((low, high))


def test_mean_interval_of_one_value_equal_values_and_large_offsets():
    assert mean_interval(torch.tensor([4.0])) == (4.0, (-math.inf, math.inf))
    assert mean_interval(torch.full((4,), 2.5)) == (2.5, (2.5, 2.5))
    values = torch.tensor([1e8, 1e8 + 8, 1e8 + 16])  # exact in float32, but not their sum
    value, (low, high) = mean_interval(values)
    assert value == 1e8 + 8
    assert high - value == pytest.approx(4.302653 * 8 / math.sqrt(3), rel=1e-5)
    assert low < value


# Student's t


def test_t_worked_example():
    # Standard deviation 1, two degrees of freedom: the t quantile is 4.302653.
    estimate = mean([1.0, 2.0, 3.0], method="t")
    assert (estimate.value, estimate.seeds, estimate.tasks, estimate.method) == (2.0, 3, 1, "t")
    assert [estimate.high - 2, 2 - estimate.low] == pytest.approx([4.302653 / math.sqrt(3)] * 2, abs=1e-6)
    with pytest.raises(FrozenInstanceError):
        estimate.value = 0.0


def test_stratified_t_worked_example():
    # Variances 1 and 16 of three seeds: of the two means 1/3 and 16/3, of their mean (17/3) / 4. Welch and
    # Satterthwaite: (17/3)^2 / ((1/9 + 256/9) / 2) = 578/257 degrees of freedom.
    estimate = mean(np.array([[1.0, 10.0], [2.0, 14.0], [3.0, 18.0]]), method="t")
    half = stats.t.ppf(0.975, 578 / 257) * math.sqrt(17 / 12)
    assert ends(estimate) == pytest.approx([8.0, 8 - half, 8 + half])


def test_joint_t_is_that_of_seed_means():
    assert ends(mean(TABLE, method="t", joint=True)) == pytest.approx(ends(mean(TABLE.mean(axis=1), method="t")))


# The interquartile mean


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 5.0], 3.0),
        ([0.0, 6.0, 30.0], 0 / 6 + 6 * 4 / 6 + 30 / 6),  # of thirds, [1/4, 3/4] holds 1/12, 1/3 and 1/12
        ([1.0, 2.0, 6.0, 99.0], (2 + 6) / 2),
        ([0.0, 1.0, 2.0, 5.0, 99.0], 0.3 * 1 + 0.4 * 2 + 0.3 * 5),  # of fifths: 0, 0.15, 0.2, 0.15, 0
        ([0.0, 1.0, 2.0, 3.0, 7.0, 99.0], (0.5 * 1 + 2 + 3 + 0.5 * 7) / 3),
    ],
)
def test_interquartile_mean_worked_examples(scores, expected):
    assert interquartile_mean(scores[::-1]).value == pytest.approx(expected)


def test_interquartile_mean_is_scipys_where_a_quarter_is_whole_and_trims_exactly_elsewhere():
    scores = np.random.default_rng(0).gamma(2, size=40)
    assert interquartile_mean(scores).value == pytest.approx(stats.trim_mean(scores, 0.25))
    assert interquartile_mean(scores.reshape(10, 4)).value == pytest.approx(stats.trim_mean(scores, 0.25))
    assert stats.trim_mean(scores[:3], 0.25) == pytest.approx(scores[:3].mean())  # nothing trimmed
    assert interquartile_mean(scores[:3]).value != pytest.approx(scores[:3].mean())
    for count in range(1, 12):
        assert interquartile_mean(scores[:count]).value == pytest.approx(trimmed_mean(scores[:count]))


def trimmed_mean(scores):
    """The interquartile mean by another way: each score listed four times, a whole quarter trimmed."""
    return stats.trim_mean(np.repeat(scores, 4), 0.25)


def leave_one_out(statistic, scores, joint):
    """The stratified jackknife's variance, one statistic at a time."""
    seeds, tasks = scores.shape
    if joint:
        left = [[statistic(np.delete(scores, seed, axis=0).ravel())] for seed in range(seeds)]
    else:
        left = [[statistic(np.delete(scores.ravel(), s * tasks + m)) for m in range(tasks)] for s in range(seeds)]
    return (seeds - 1) ** 2 / seeds * np.var(left, axis=0, ddof=1).sum()


@pytest.mark.parametrize("shape", [(2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (9, 1), (3, 4), (5, 3), (2, 2)])
def test_sensitivities_are_those_of_leaving_one_out(shape):
    scores = np.random.default_rng(1).gamma(2, size=shape) + 3 * np.arange(shape[1])
    sensitivities = interquartile_mean_of(scores)[1]
    variance = (shape[0] - 1) ** 2 / shape[0] * sensitivities.var(axis=0, ddof=1).sum()
    exact = leave_one_out(trimmed_mean, scores, joint=False)
    assert variance == pytest.approx(exact)
    # The mean's are exact, too: the variance of the stratified mean.
    variance = (shape[0] - 1) ** 2 / shape[0] * mean_of(scores)[1].var(axis=0, ddof=1).sum()
    assert variance == pytest.approx((scores.var(axis=0, ddof=1) / shape[0]).sum() / shape[1] ** 2)


# The bootstrap-t


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(("statistic", "value_of"), [(mean_of, np.mean), (interquartile_mean_of, trimmed_mean)])
def test_bootstrap_t_is_the_textbooks_loop(statistic, value_of, joint):
    """Resample, smooth, studentise by the jackknife and by a part of the mean's variance, invert; one by one."""
    resamples, (seeds, tasks) = 79, TABLE.shape

    def value_and_error(table):
        middle = np.var(table.mean(axis=1), ddof=1) if joint else table.var(axis=0, ddof=1).sum() / tasks**2
        if joint and statistic is interquartile_mean_of:
            sensitivities = interquartile_mean_of(table)[1].sum(axis=1)
            left_out = (seeds - 1) ** 2 / seeds * sensitivities.var(ddof=1)
        elif statistic is interquartile_mean_of:
            left_out = leave_one_out(lambda rest: value_of(rest.ravel()), table, joint)
        else:
            left_out = middle / seeds
        return value_of(table.ravel()), math.sqrt(left_out + middle / seeds / (4 * tasks))

    generator = np.random.default_rng(3)
    picks = generator.integers(seeds, size=(resamples, seeds, 1 if joint else tasks))
    noise = generator.normal(size=(resamples, seeds, seeds if joint else tasks))
    centre, width = TABLE.mean(axis=0), SMOOTHING / math.sqrt(seeds)
    value, error = value_and_error(TABLE)
    roots = []
    for pick, normal in zip(picks, noise):
        table = np.empty_like(TABLE)
        for seed, task in itertools.product(range(seeds), range(tasks)):
            away = TABLE[:, task] - centre[task]
            smooth = normal[seed] @ away / math.sqrt(seeds - 1) if joint else normal[seed, task] * away.std(ddof=1)
            picked = away[pick[seed, 0 if joint else task]]
            shrunk = (picked + width * smooth) / math.sqrt((seeds - 1) / seeds + width**2)
            table[seed, task] = centre[task] + shrunk
        drawn, drawn_error = value_and_error(table)
        roots.append((drawn - value) / drawn_error)
    roots.sort()  # of 79 roots, the 2nd and the 78th are at 2/80 and 78/80
    found = bootstrap_t(statistic, TABLE, 0.95, np.random.default_rng(3), resamples, joint)
    assert np.array(found) == pytest.approx([value, value - roots[77] * error, value - roots[1] * error])


def test_bootstrap_t_of_many_normal_scores_is_students():
    scores = stats.norm.ppf((np.arange(200) + 0.5) / 200)
    assert ends(mean(scores)) == pytest.approx(ends(mean(scores, method="t")), abs=0.01)


def test_bootstrap_t_follows_the_skew():
    scores = stats.gamma.ppf((np.arange(10) + 0.5) / 10, 2)
    right, left = mean(scores), mean(-scores)
    assert right.high - right.value > 1.4 * (right.value - right.low)
    assert left.value - left.low > 1.4 * (left.high - left.value)


def test_same_generator_same_interval():
    assert mean(TABLE) == mean(TABLE, rng=0) == mean(TABLE, rng=np.random.default_rng(0))
    other = mean(TABLE, rng=1)
    assert other != mean(TABLE)
    assert ends(other) == pytest.approx(ends(mean(TABLE)), abs=0.02 * (other.high - other.low))


# All estimates


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_shift_scale_and_order_do_not_matter(estimate, joint):
    base = ends(estimate(TABLE, joint=joint))
    assert ends(estimate(1000 + 0.3 * TABLE, joint=joint)) == pytest.approx(1000 + 0.3 * base)
    assert ends(estimate(TABLE[[4, 0, 2, 1, 3]], joint=joint)) == pytest.approx(base)
    assert ends(estimate(TABLE[:, [2, 0, 1]], joint=joint)) == pytest.approx(base)
    if not joint:  # seeds of a task are its own
        shuffled = np.stack([TABLE[:, 0], TABLE[::-1, 1], TABLE[[1, 0, 3, 2, 4], 2]], axis=1)
        assert ends(estimate(shuffled)) == pytest.approx(base)


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_honest_limits(estimate):
    for scores in ([4.0], [[1.0, 4.0, 7.0]]):
        single = estimate(scores)
        assert (single.value, single.low, single.high) == (4.0, -math.inf, math.inf)
    for same in (estimate([0.1] * 6), estimate(np.tile([0.1, 0.7], (4, 1)))):
        assert same.low == same.value == same.high
    tied = estimate([100.0, 100.0, 100.0, 100.0, 60.0])  # its middle half does not vary, but its seeds do
    assert tied.high - tied.low > 5
    assert estimate([5.0, 7.0]).low > -math.inf


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_more_confidence_is_wider(estimate):
    narrow, wide = estimate(TABLE, confidence=0.8), estimate(TABLE, confidence=0.99)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


@pytest.mark.parametrize("estimate", [*ESTIMATORS, lambda scores: performance_profile(scores, [0.0])])
def test_bad_scores_are_named(estimate):
    broken = TABLE.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"scores has the value nan at seed 3, task 1"):
        estimate(broken)
    with pytest.raises(ValueError, match=r"value inf at seed 2:"):
        estimate([1.0, 2.0, np.inf])
    for shape in ((0,), (3, 0), (2, 2, 2)):
        with pytest.raises(ValueError, match=re.escape(f"shape {shape}")):
            estimate(np.zeros(shape))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"'bootstrap': did you mean 'bootstrap-t'"):
        mean(TABLE, method="bootstrap")
    for function in ESTIMATORS:
        with pytest.raises(ValueError, match="confidence is 95"):
            function(TABLE, confidence=95)
    with pytest.raises(ValueError, match="resamples is 10: give 40"):
        mean(TABLE, resamples=10)


LAWS = {"normal": (lambda g, size: g.normal(size=size), 0.0), "gamma": (lambda g, size: g.gamma(2, size=size), 2.0)}


@pytest.mark.parametrize(
    ("law", "shape", "joint"),
    [("normal", (3, 1), False), ("gamma", (10, 1), False), ("gamma", (3, 4), False), ("normal", (5, 4), True)],
)
def test_coverage(law, shape, joint):
    """93 to 97% of intervals hold the truth, within three standard errors."""
    count = 600
    draw, centre = LAWS[law]
    generator = np.random.default_rng(5)
    tasks = 10 * np.arange(shape[1])  # far apart, so that the middle half is that of the tasks between
    scores = draw(generator, (count, *shape)) + tasks
    luck = draw(generator, (count, shape[0], 1)) + tasks
    scores = np.where(generator.random(scores.shape) < 0.5, luck, scores) if joint else scores
    many = draw(generator, (400_000, shape[1])) + tasks
    truths = {mean_of: centre + tasks.mean(), interquartile_mean_of: interquartile_mean_of(many)[0]}
    slack = 3 * math.sqrt(0.95 * 0.05 / count)
    for statistic, truth in truths.items():
        _, low, high = bootstrap_t(statistic, scores, 0.95, generator, 199, joint)
        assert 0.93 - slack < ((low <= truth) & (truth <= high)).mean() < 0.97 + slack
    if law == "normal":
        _, low, high = student_t(scores, 0.95, joint)
        assert abs(((low <= truths[mean_of]) & (truths[mean_of] <= high)).mean() - 0.95) < slack + 0.01


# Shares


def test_profile_worked_example():
    scores = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 9.0]])
    profile = performance_profile(scores, [0.0, 2.0, 5.0, 9.0])
    assert profile.share == pytest.approx([1, (1 / 3 + 1) / 2, (0 + 1 / 3) / 2, 0])
    assert (profile.seeds, profile.tasks) == (3, 2)
    assert (profile.low <= profile.share).all() and (profile.share <= profile.high).all()
    assert profile.high[0] == 1 and profile.low[0] < 0.8  # six of six runs are no proof of all
    assert profile.low[3] == 0 and profile.high[3] > 0.2
    assert (np.diff(profile.share) <= 0).all()


@pytest.mark.parametrize("above", [0, 1, 4, 7])
def test_profile_of_one_task_is_scipys_wilson(above):
    scores = np.r_[np.ones(above), np.zeros(7 - above)]
    profile = performance_profile(scores, 0.5, confidence=0.9)
    expected = stats.binomtest(above, 7).proportion_ci(0.9, method="wilson")
    assert (profile.low[0], profile.high[0]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_stratified_profile_worked_example():
    # Shares 1 and 1/2 of two seeds: with half a run more on each side 5/6 and 1/2, their mean 2/3. The runs that
    # count are 2 * 2 * (2/3 * 1/3) / ((5/36 + 1/4) / 2) = 32/7.
    profile = performance_profile([[1.0, 0.0], [1.0, 1.0]], [0.5])
    runs, z2 = 32 / 7, stats.norm.ppf(0.975) ** 2
    root = math.sqrt(z2 * (0.75 * 0.25 / runs + z2 / (4 * runs**2)))
    expected = [(0.75 + z2 / (2 * runs) + sign * root) / (1 + z2 / runs) for sign in (-1, 1)]
    assert [profile.low[0], profile.high[0]] == pytest.approx(expected)
    # Seeds common to both tasks count as two runs.
    joint = performance_profile([[1.0, 0.0], [1.0, 1.0]], [0.5], joint=True)
    assert joint.low[0] < profile.low[0] and profile.high[0] < joint.high[0]


def test_profile_errors_and_one_seed():
    with pytest.raises(ValueError, match="thresholds are"):
        performance_profile(TABLE, [np.nan])
    single = performance_profile([[3.0, 5.0]], [4.0])
    assert (single.share[0], single.low[0], single.high[0]) == (0.5, 0.0, 1.0)


def test_improvement_worked_example():
    # Of the 6 pairs 4 > 1, 4 > 3, 2 > 1 and 2 < 3; 4 = 4 counts half; 2 < 4.
    estimate = probability_of_improvement([4.0, 2.0], [1.0, 3.0, 4.0])
    assert estimate.value == pytest.approx((1 + 1 + 0.5 + 1) / 6)
    assert (estimate.seeds, estimate.tasks, estimate.method) == (2, 1, "wilson")


def test_improvement_is_mann_and_whitneys_and_turns_round():
    generator = np.random.default_rng(2)
    x, y = generator.integers(0, 9, (6, 3)).astype(float), generator.integers(0, 9, (4, 3)).astype(float)
    forward, back = probability_of_improvement(x, y), probability_of_improvement(y, x)
    assert forward.value == pytest.approx(stats.mannwhitneyu(x, y).statistic.mean() / 24)
    assert ends(back) == pytest.approx(1 - ends(forward)[[0, 2, 1]])
    assert ends(probability_of_improvement(np.exp(x), np.exp(y))) == pytest.approx(ends(forward))
    separate = probability_of_improvement([5.0, 6.0, 7.0], [1.0, 2.0, 3.0])
    assert separate.value == separate.high == 1
    assert separate.low == pytest.approx(3 / (3 + stats.norm.ppf(0.975) ** 2))  # Wilson's, of 3 of 3
    with pytest.raises(ValueError, match="x has 3 tasks and y 1"):
        probability_of_improvement(x, y[:, :1])
    single = probability_of_improvement([3.0], [1.0, 2.0])
    assert (single.value, single.low, single.high) == (1, 0, 1)


# Comparisons


def test_comparison_worked_example():
    # Differences 1, 2, 3, -0.5 (sum 5.5): of the 16 sign changes 2 give 5.5 or more and 2 give -5.5 or less.
    comparison = compare([2.0, 4.0, 6.0, 1.0], [1.0, 2.0, 3.0, 1.5], names=("new", "old"))
    assert (comparison.x, comparison.y) == ("new", "old")
    assert comparison.difference == mean([1.0, 2.0, 3.0, -0.5], method="t")
    assert comparison.p_value == comparison.p_wilcoxon == comparison.p_holm == 0.25
    assert comparison.p_least == 0.125


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_p_values_are_those_of_all_sign_changes(count):
    generator = np.random.default_rng(count)
    x, y = generator.normal(0.7, size=count), generator.normal(size=count)
    differences = x - y
    sums = [np.dot(signs, differences) for signs in itertools.product([1, -1], repeat=count)]
    comparison = compare(x, y)
    assert comparison.p_value == np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-12)
    assert comparison.p_wilcoxon == pytest.approx(stats.wilcoxon(x, y, method="exact").pvalue)
    assert compare(y, x).p_value == comparison.p_value
    assert comparison.p_least == 2 / 2**count


def test_tasks_are_more_differences_unless_seeds_are_joint():
    better = TABLE + np.array([[1.0], [2.0], [1.5], [0.5], [3.0]]) * [1.0, 2.0, 0.1]
    apart = compare(better, TABLE)
    assert apart.p_value == apart.p_least == 2 / (2**14 + 1)  # 2^14 of the 2^15 sign changes, at random
    joint = compare(better, TABLE, joint=True)
    assert joint.p_value == joint.p_least == 2 / 2**5
    assert ends(joint.difference) == pytest.approx(ends(mean((better - TABLE).mean(axis=1), method="t")))


def test_equal_scores_tell_nothing():
    same = compare(TABLE, TABLE)
    assert (same.p_value, same.p_wilcoxon, same.p_least) == (1, 1, 1)
    assert ends(same.difference).tolist() == [0, 0, 0]
    assert compare([1.0, 2.0, 5.0], [1.0, 2.0, 3.0]).p_least == 1  # one difference only


def test_random_sign_changes_agree_with_all():
    generator = np.random.default_rng(8)
    differences = generator.normal(0.8, size=16)
    drawn = compare(differences, np.zeros(16), rng=1).p_value
    signs = 1 - 2 * ((np.arange(2**16)[:, None] >> np.arange(16)) & 1)
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    assert 0.01 < exact < 0.2
    assert abs(drawn - exact) < 5 * math.sqrt(exact / 2**14)


def test_false_alarms_are_rare():
    """Of equal methods with 6 seeds, p <= 0.05 at most 2 / 64 of the time."""
    differences = np.random.default_rng(4).laplace(size=(300, 6))
    alarms = np.mean([compare(row, np.zeros(6)).p_value <= 0.05 for row in differences])
    assert alarms < 2 / 64 + 3 * math.sqrt(2 / 64 / 300)


def test_holm_worked_example():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]).tolist() == [1, 1]
    assert holm([]).size == 0
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        holm([0.5, np.nan])


def test_many_comparisons_are_corrected():
    scores = {"bc": TABLE, "diffuser": TABLE + 1, "worse": TABLE - [[1.0], [2.0], [3.0], [4.0], [-5.0]]}
    found = compare_all(scores, "bc", joint=True)
    assert [(one.x, one.y) for one in found] == [("diffuser", "bc"), ("worse", "bc")]
    assert [one.p_holm for one in found] == holm([one.p_value for one in found]).tolist()
    assert found[0] == replace(compare(TABLE + 1, TABLE, names=("diffuser", "bc"), joint=True), p_holm=0.125)
    with pytest.raises(ValueError, match=r"reference is 'diffusr': did you mean 'diffuser'"):
        compare_all(scores, "diffusr")
    with pytest.raises(ValueError, match=r"new has \(seeds, tasks\) \(5, 3\) and old \(3, 3\)"):
        compare(TABLE, TABLE[:3], names=("new", "old"))
    with pytest.raises(ValueError, match="old has the value nan at seed 1"):
        compare([1.0, 2.0], [1.0, np.nan], names=("new", "old"))


# The protocol

GOOD = Facts(
    method="planner",
    datasets=("9f3a", "77c1"),
    seeds=tuple(range(10)),
    episodes=32,
    steps=100_000,
    tuning_trials=20,
    selected_on_test=False,
)
CLONE = replace(GOOD, method="bc", datasets=("77c1", "9f3a"), cloning=True)


def missed(*facts):
    return {check.name: check.found for check in protocol(facts) if not check.met}


def test_a_protocol_that_is_met():
    checks = protocol([GOOD, CLONE])
    assert missed(GOOD, CLONE) == {}
    assert protocol_lines(checks) == [
        "met: common data: 77c1, 9f3a",
        "met: cloning: bc",
        "met: equal tuning: 20 trials",
        "met: training budget: 100,000 steps",
        "met: no selection on test: none",
        "met: episodes: 32 episodes",
        "met: seeds: 10 seeds",
    ]


@pytest.mark.parametrize(
    ("change", "name", "found"),
    [
        ({"datasets": ("9f3a",)}, "common data", "77c1, 9f3a (bc); 9f3a (planner)"),
        ({"tuning_trials": 60}, "equal tuning", "20 trials (bc); 60 trials (planner)"),
        ({"steps": 5000}, "training budget", "100,000 steps (bc); 5,000 steps (planner)"),
        ({"selected_on_test": True}, "no selection on test", "none (bc); selected on test (planner)"),
        ({"episodes": 31}, "episodes", "32 episodes (bc); 31 episodes (planner)"),
        ({"seeds": (1, 2, 3, 3)}, "seeds", "10 seeds (bc); 3 seeds (planner)"),
        ({"datasets": None}, "common data", "77c1, 9f3a (bc); not stated (planner)"),
        ({"seeds": None}, "seeds", "10 seeds (bc); not stated (planner)"),
    ],
)
def test_each_point_alone(change, name, found):
    assert missed(CLONE, replace(GOOD, **change)) == {name: found}


def test_what_is_not_stated_is_not_met():
    lines = protocol_lines(protocol([Facts("a"), Facts("b")]))
    assert len(lines) == 7
    assert all(line.startswith("not met: ") and "stated (wanted: " in line for line in lines)


def test_equal_seconds_are_a_budget():
    fast, slow = replace(GOOD, steps=10, seconds=600.0), replace(CLONE, steps=20, seconds=600.0)
    assert missed(fast, slow) == {}
    assert "met: training budget: 600.0 seconds" in protocol_lines(protocol([fast, slow]))


def test_a_table_has_methods_each_once():
    with pytest.raises(ValueError, match="facts is empty"):
        protocol([])
    with pytest.raises(ValueError, match="bc more than once"):
        protocol([CLONE, CLONE])


# The document


def test_the_documents_code_runs_and_its_table_is_the_benchmarks():
    text = (ROOT / "docs" / "statistics.md").read_text()
    names: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    assert names["overall"].low < names["overall"].value < names["overall"].high
    rows = json.loads((ROOT / "benchmarks" / "coverage.json").read_text())
    found = {
        tuple(row[key] for key in ("tasks", "common_seeds", "statistic", "interval", "scores", "seeds")): row
        for row in rows
    }
    tables = re.findall(r"\| (one task|four tasks) \| (.*) \|\n\| --- .*\n((?:\|.*\n)+)", text)
    assert [title for title, _, _ in tables] == ["one task", "four tasks"]
    for (_, columns, lines), tasks in zip(tables, (1, 4)):
        for line in lines.splitlines():
            law, *cells = line.strip("| ").split(" | ")
            for column, cell in zip(columns.split(" | "), cells, strict=True):
                statistic, interval = column.split(", ")
                expected = [found[tasks, False, statistic, interval, law, seeds]["coverage"] for seeds in (3, 5, 10)]
                assert [float(number) for number in cell.split(", ")] == expected
        assert len(lines.splitlines()) == len({row["scores"] for row in rows})

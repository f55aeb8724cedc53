import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from core.errors import UserError
from core.statistics import interquartile_mean, mean
from core.tables import RowSpec, assemble
from tests.core.tables import frame_of, random_scores, spec_of

# The numbers


def test_cells_are_means_over_seeds():
    spec = spec_of(["a", "b"])
    scores = random_scores(spec)
    table = assemble(spec, frame_of(spec, scores))
    assert [(cell.row, cell.column) for cell in table.cells] == list(itertools.product("ab", ("expert", "mixed")))
    for cell in table.cells:
        of_seeds = scores[cell.row, cell.column]
        assert cell.seeds == (0, 1, 2)
        assert cell.scores == tuple(of_seeds.values())
        assert cell.estimate.value == pytest.approx(sum(of_seeds.values()) / 3)
        assert cell.estimate == mean(list(of_seeds.values()))
        assert cell.missing == ()


def test_the_order_of_the_frame_does_not_matter():
    spec = spec_of(["a", "b", "c"], reference="c")
    frame = frame_of(spec, random_scores(spec))
    assert assemble(spec, frame.sample(frac=1, random_state=1)) == assemble(spec, frame)


def test_over_columns_trainings_of_their_own_are_stratified():
    spec = spec_of(["a", "b"], seeds=range(4), reference="b")
    scores = random_scores(spec)
    table = assemble(spec, frame_of(spec, scores))
    values = {row: np.array([list(scores[row, column].values()) for column in spec.columns]).T for row in "ab"}
    assert not table.joint
    for one in table.overall:
        assert one.mean.value == pytest.approx(values[one.row].mean())
        assert one.middle.value == pytest.approx(stats.trim_mean(values[one.row].ravel(), 0.25))  # 8 scores
        assert one.middle == interquartile_mean(values[one.row])
    (contrast,) = [one for one in table.contrasts if one.column is None]
    difference = values["a"] - values["b"]
    spread = difference.var(axis=0, ddof=1) / 4
    freedom = spread.sum() ** 2 / (spread**2).sum() * 3  # Welch and Satterthwaite
    half = stats.t.ppf(0.975, freedom) * np.sqrt(spread.sum()) / 2
    estimate = contrast.comparison.difference
    assert [estimate.low, estimate.high] == pytest.approx([difference.mean() - half, difference.mean() + half])


def test_over_columns_that_share_trainings_a_seed_is_one():
    rows = {"a": RowSpec(("algo=a",)), "b": RowSpec(("algo=b",))}
    spec = spec_of(rows, seeds=range(5), reference="b")
    scores = random_scores(spec)
    frame = frame_of(spec, scores)
    frame["run"] = [f"{row}/{seed}" for row, seed in zip(frame["row"], frame["training_seed"])]
    table = assemble(spec, frame)
    assert table.joint
    (contrast,) = [one for one in table.contrasts if one.column is None]
    means = {row: np.mean([list(scores[row, column].values()) for column in spec.columns], axis=0) for row in "ab"}
    interval = stats.ttest_rel(means["a"], means["b"]).confidence_interval()
    estimate = contrast.comparison.difference
    assert [estimate.low, estimate.high] == pytest.approx([interval.low, interval.high])


def test_contrasts_are_paired_and_corrected():
    spec = spec_of(["a", "b", "c"], columns=("expert",), seeds=range(6), reference="c")
    scores = random_scores(spec, spread=6.0)
    table = assemble(spec, frame_of(spec, scores))
    assert table.overall == ()
    assert [(one.row, one.column) for one in table.contrasts] == [("a", "expert"), ("b", "expert")]
    reference = np.array(list(scores["c", "expert"].values()))
    p_values = []
    for one in table.contrasts:
        values = np.array(list(scores[one.row, "expert"].values()))
        difference = values - reference
        interval = stats.ttest_rel(values, reference).confidence_interval()
        estimate = one.comparison.difference
        assert [estimate.value, estimate.low, estimate.high] == pytest.approx([difference.mean(), *interval])
        flips = np.array(list(itertools.product((-1, 1), repeat=6))) @ difference
        p_values.append(float((abs(flips) >= abs(difference.sum()) - 1e-9).mean()))
        assert one.comparison.p_value == pytest.approx(p_values[-1])
        wins = stats.mannwhitneyu(values, reference).statistic / 36
        assert one.improvement.value == pytest.approx(wins)
    small, large = sorted(p_values)
    holm = {small: min(1.0, 2 * small), large: min(1.0, max(2 * small, large))}
    assert [one.comparison.p_holm for one in table.contrasts] == pytest.approx([holm[p] for p in p_values])


def test_lower_is_better():
    spec = spec_of(["a", "b"], columns=("expert",), score="cost_mean", higher_is_better=False, reference="b")
    frame = frame_of(spec, {("a", "expert"): dict.fromkeys(range(3), 0.0), ("b", "expert"): dict.fromkeys(range(3), 0)})
    frame["cost_mean"] = [1.0, 1.1, 1.2, 9.0, 9.5, 9.9]
    table = assemble(spec, frame)
    assert [cell.best for cell in table.cells] == [True, False]
    assert table.contrasts[0].comparison.difference.value == pytest.approx(1.1 - 28.4 / 3)
    assert table.contrasts[0].improvement.value == 1.0


# Which rows are marked


@pytest.mark.parametrize("seed", range(12))
def test_marked_rows_are_those_that_a_paired_interval_does_not_tell_from_the_best(seed):
    spec = spec_of("abcd", columns=("expert",), seeds=range(5))
    scores = random_scores(spec, seed, spread=4.0)
    values = {row: np.array(list(scores[row, "expert"].values())) for row in spec.rows}
    top = max(values, key=lambda row: values[row].mean())
    expected = {top}
    for row in values.keys() - {top}:
        interval = stats.ttest_rel(values[top], values[row]).confidence_interval(1 - 2 * 0.05 / 3)
        expected |= {row} if interval.low <= 0 else set()
    assert {cell.row for cell in assemble(spec, frame_of(spec, scores)).cells if cell.best} == expected


def test_marking_of_equal_scores_single_seeds_and_seeds_that_are_not_common():
    spec = spec_of("ab", columns=("expert",), seeds=range(4))

    def marked(a, b):
        frame = frame_of(spec, {("a", "expert"): a, ("b", "expert"): b})
        return {cell.row for cell in assemble(spec, frame).cells if cell.best}

    equal = dict.fromkeys(range(4), 7.0)
    assert marked(equal, equal) == {"a", "b"}
    assert marked(equal, dict.fromkeys(equal, 7.5)) == {"b"}
    assert marked({0: 90.0}, {0: 10.0, 1: 11.0}) == set()  # nothing is known of the spread of the first
    assert marked({0: 90.0, 1: 90.1}, {2: 10.0, 3: 10.1}) == {"a"}
    assert marked({0: 90.0, 1: 91.0}, {2: 89.0, 3: 92.0}) == {"a", "b"}
    assert marked(equal, {}) == set()


# What is missing


def test_missing_cells_and_seeds_are_kept_and_reported():
    spec = spec_of("ab", seeds=range(3), reference="b")
    scores = random_scores(spec)
    del scores["a", "mixed"], scores["b", "expert"][1]
    table = assemble(spec, frame_of(spec, scores))
    assert len(table.cells) == 4
    absent = table.cell("a", "mixed")
    assert (absent.seeds, absent.missing, absent.estimate, absent.best) == ((), (0, 1, 2), None, False)
    assert table.cell("b", "expert").missing == (1,)
    first, second = table.overall
    assert (first.mean, first.middle, first.seeds) == (None, None, ())
    assert second.seeds == (0, 2)
    assert second.mean.value == pytest.approx(
        np.mean([scores["b", column][seed] for column in spec.columns for seed in (0, 2)])
    )
    contrasts = {one.column: one for one in table.contrasts}
    assert contrasts["expert"].seeds == (0, 2)
    assert contrasts["mixed"].comparison is None
    assert contrasts[None].comparison is None
    check = next(one for one in table.checks if one.name == "nothing missing")
    assert not check.met
    assert check.found == "8 of 12 evaluations, missing of a in mixed; b in expert"


def test_no_evaluations_at_all():
    spec = spec_of("ab", reference="b")
    frame = frame_of(spec, random_scores(spec)).iloc[:0]
    table = assemble(spec, frame)
    assert all(cell.estimate is None for cell in table.cells)
    assert not any(check.met for check in table.checks if check.name != "equal tuning" and "test" not in check.name)


def test_one_seed_has_no_interval():
    spec = spec_of("ab", seeds=[3], reference="b")
    table = assemble(spec, frame_of(spec, random_scores(spec)))
    assert all(np.isinf(cell.estimate.high) and not cell.best for cell in table.cells)
    assert table.contrasts[0].comparison.p_value == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalised_score": float("nan")}, "normalised_score of row 'a', column 'expert', seed 0 is None"),
        ({"normalised_score": float("inf")}, "is inf: expected a finite number"),
        ({"row": "aa"}, "an evaluation of table has the row 'aa': did you mean 'a'?"),
        ({"column": "expertt"}, "has the column 'expertt': did you mean 'expert'?"),
        ({"training_seed": 9}, "row 'a', column 'expert', seed 9: the table has the seeds 0, 1, 2; add this one"),
        ({"training_seed": 1}, "row 'a', column 'expert', seed 1 has two evaluations, of"),
        ({"training_seed": 0.5}, "training_seed of row 'a', column 'expert', seed 0.5 is 0.5: expected a whole number"),
        ({"episodes": 1.5}, "episodes of row 'a', column 'expert', seed 0 is 1.5: expected a whole number"),
        ({"training_steps": "many"}, "training_steps of row 'a', column 'expert', seed 0 is 'many': expected a whole"),
        ({"run": None}, "run of row 'a', column 'expert', seed 0 is missing"),
        ({"run": "algo=0/dataset=expert/1"}, "algo=0/dataset=expert/1 is given as the seeds 0 and 1"),
    ],
)
def test_evaluations_that_do_not_fit_are_refused(change, message):
    spec = spec_of("ab")
    frame = frame_of(spec, random_scores(spec)).astype(object)
    for name, value in change.items():
        frame.loc[0, name] = value
    with pytest.raises(UserError) as caught:
        assemble(spec, frame)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_that_the_frame_lacks():
    spec = spec_of("ab")
    frame = frame_of(spec, random_scores(spec))
    for name in ("row", "column", "run", "training_seed", "normalised_score"):
        with pytest.raises(UserError, match=f"the evaluations of table have no column '{name}'"):
            assemble(spec, frame.drop(columns=name))
    table = assemble(spec, frame[["row", "column", "run", "training_seed", "normalised_score"]])
    assert table.efforts[0].steps is None
    found = {check.name: check.found for check in table.checks if not check.met}
    assert {found[name] for name in ("common data", "training budget", "episodes", "same episodes")} == {"not stated"}


# The protocol


def checks_of(spec, frame):
    return {check.name: check for check in assemble(spec, frame).checks}


def test_a_protocol_that_is_met():
    rows = {
        "planner": RowSpec(("algo=madiff",), tuning_trials=4),
        "cloning": RowSpec(("algo=bc",), tuning_trials=4, cloning=True),
    }
    spec = spec_of(rows, seeds=range(10))
    checks = checks_of(spec, frame_of(spec, random_scores(spec)))
    assert len(checks) == 10
    assert all(check.met for check in checks.values())
    assert checks["common data"].found == "expert fingerprint-, mixed fingerprint-"
    assert checks["same episodes"].found == "256 from seed 3000000"


def test_each_point_of_the_protocol_is_seen():
    rows = {"a": RowSpec(("algo=a",), tuning_trials=4, cloning=True), "b": RowSpec(("algo=b",), tuning_trials=4)}
    spec = spec_of(rows, seeds=range(10))
    frame = frame_of(spec, random_scores(spec))
    first = frame["row"] == "a"

    def unmet(spec=spec, **changed):
        return {name for name, check in checks_of(spec, frame.assign(**changed)).items() if not check.met}

    assert unmet() == set()
    assert unmet(fingerprint=frame["fingerprint"].where(~first, "other")) == {"common data"}
    assert unmet(training_steps=frame["training_steps"].where(~first, 9000)) == set()  # the same seconds
    longer = frame["training_seconds"].where(~first, 900.0)
    assert unmet(training_seconds=longer) == set()  # the same steps
    steps = frame["training_steps"].where(~first, 9000)
    assert unmet(training_seconds=longer, training_steps=steps) == {"training budget"}
    spent = frame["training_seconds"].mask(first, 1198.0).mask(~first, 1203.0)  # both ended by the budget
    assert unmet(training_seconds=spent, training_steps=steps) == set()
    assert unmet(training_seconds=frame["training_seconds"].where(~first, 1300.0)) == {"within the budget"}
    assert unmet(seed=frame["seed"].where(~first, 1)) == {"same episodes"}
    assert unmet(episodes=20) == {"episodes"}
    assert unmet(replace(spec, selected_on_test=True)) == unmet(replace(spec, selected_on_test=None))
    assert unmet(replace(spec, selected_on_test=True)) == {"no selection on test"}
    untuned = {**rows, "b": replace(rows["b"], tuning_trials=5)}
    assert unmet(replace(spec, rows=untuned)) == {"equal tuning"}
    assert unmet(replace(spec, rows={**rows, "a": replace(rows["a"], cloning=False)})) == {"cloning"}


def test_rows_of_equal_trainings_share_them():
    rows = {"0": RowSpec(("algo=a",), ("guidance.scale=0",)), "1": RowSpec(("algo=a",), ("guidance.scale=1",))}
    spec = spec_of(rows)
    table = assemble(spec, frame_of(spec, random_scores(spec)))
    assert len({one.run for one in table.evaluations}) == 6
    assert [(effort.runs, effort.steps, effort.seconds) for effort in table.efforts] == [
        (6, (5000, 5000), (600.5, 600.5))
    ] * 2

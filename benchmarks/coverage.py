"""How often 95% intervals hold the true value, by simulation, for 2 to 30 seeds.

    python benchmarks/coverage.py [replicates=4000]

Scores are standardised: every task has its own mean and standard deviation, the law's shape is the same in all four.
"Common seeds" share half of their luck between tasks. The probability of improvement is of a method one standard
deviation better; the profile's threshold is the mean of the tasks. Prints a table and writes benchmarks/coverage.json,
whose widths are medians in standard deviations of a task's scores.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from core.statistics.inputs import Array
from core.statistics.intervals import Bounds, Statistic, bootstrap_t, interquartile_mean_of, mean_of, student_t
from core.statistics.shares import wilson

SEEDS = (2, 3, 5, 10, 30)
RESAMPLES = 399
CHUNK = 500_000  # scores resampled at once: what stays in the cache

MEANS = {1: np.zeros(1), 4: np.array([20.0, 45.0, 70.0, 90.0])}
SPREADS = {1: np.ones(1), 4: np.array([6.0, 12.0, 10.0, 4.0])}

Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

#: Draws, their mean and their standard deviation; the comment gives the skewness.
LAWS: dict[str, tuple[Draw, float, float]] = {
    "normal": (lambda g, size: g.normal(size=size), 0.0, 1.0),
    "gamma": (lambda g, size: g.gamma(2, size=size), 2.0, 2**0.5),  # 1.4
    "exponential": (lambda g, size: g.exponential(size=size), 1.0, 1.0),  # 2
    "log-normal": (lambda g, size: g.lognormal(0, 0.5, size=size), np.exp(0.125), 0.60390),  # 1.75
    "log-normal, heavy": (lambda g, size: g.lognormal(0, 1, size=size), np.exp(0.5), 2.16120),  # 6.2
    "beta near 100": (lambda g, size: 100 * g.beta(19, 1, size=size), 95.0, 4.75595),  # -1.7
    "one in ten fails": (lambda g, size: g.normal(90, 5, size) - 70 * (g.random(size) < 0.1), 83.0, 21.5870),  # -2.5
    "65% at exactly 100": (
        lambda g, size: 100 - (g.random(size) < 0.35) * g.uniform(0, 60, size),
        89.5,
        17.5997,
    ),  # -1.7
}


@dataclass(frozen=True)
class Row:
    """Coverage of one interval, in percent, in one setting."""

    statistic: str
    interval: str
    tasks: int
    common_seeds: bool
    scores: str
    seeds: int
    coverage: float
    width: float
    replicates: int


def draw(law: str, generator: np.random.Generator, count: int, seeds: int, tasks: int, common: bool = False) -> Array:
    """Scores [count, seeds, tasks]; with common seeds, a task has the seed's own luck with probability 1/2."""
    sample, mean, spread = LAWS[law]
    scores = sample(generator, (count, seeds, tasks))
    if common:
        shared = sample(generator, (count, seeds, 1))
        scores = np.where(generator.random(scores.shape) < 0.5, shared, scores)
    return MEANS[tasks] + SPREADS[tasks] * (scores - mean) / spread


def percentile(statistic: Statistic, scores: Array, generator: np.random.Generator, resamples: int) -> Bounds:
    """The plain percentile bootstrap, stratified: the contrast."""
    seeds, tasks = scores.shape[-2:]
    picks = generator.integers(seeds, size=(resamples, seeds, tasks))
    values = statistic(scores[..., picks, np.arange(tasks)])[0]
    low, high = np.quantile(values, [0.025, 0.975], axis=-1)
    return statistic(scores)[0], low, high


def truths(law: str, tasks: int) -> dict[str, float]:
    """The values that intervals should hold; from half a million scores a task where there is no formula."""
    scores = draw(law, np.random.default_rng(0), 1, 500_000, tasks)[0]
    below = [np.searchsorted(np.sort(task), task + spread) for task, spread in zip(scores.T, SPREADS[tasks])]
    return {
        "mean": float(MEANS[tasks].mean()),
        "IQM": float(interquartile_mean_of(scores)[0]),
        "P(improvement)": float(np.mean(below)) / len(scores),
        "profile": float((scores > MEANS[tasks].mean()).mean()),
    }


def by_scores(scores: Array, common: bool) -> Iterator[tuple[str, str, Array, Array]]:
    """Statistic, interval, low and high of all samples [count, S, M] for the mean and the interquartile mean."""
    yield "mean", "t", *student_t(scores, 0.95, common)[1:]
    pieces = -(-scores.size * RESAMPLES // CHUNK)
    for name, statistic in (("mean", mean_of), ("IQM", interquartile_mean_of)):
        generator = np.random.default_rng(0)
        bounds = [bootstrap_t(statistic, x, 0.95, generator, RESAMPLES, common) for x in np.array_split(scores, pieces)]
        yield name, "bootstrap-t", *(np.concatenate(side) for side in list(zip(*bounds))[1:])
        if name == "mean" and not common:
            bounds = [percentile(statistic, x, generator, RESAMPLES) for x in np.array_split(scores, pieces)]
            yield name, "percentile", *(np.concatenate(side) for side in list(zip(*bounds))[1:])


def by_shares(scores: Array, others: Array) -> Iterator[tuple[str, str, Array, Array]]:
    """The same for the probability of improvement of the first by one standard deviation, and for the profile."""
    seeds, tasks = scores.shape[-2:]
    wins = (scores[:, :, None] + SPREADS[tasks] > others[:, None]).mean(axis=(1, 2))
    above = (scores > MEANS[tasks].mean()).mean(axis=1)
    yield "P(improvement)", "wilson", *wilson(wins, seeds, joint=False, confidence=0.95)
    yield "profile", "wilson", *wilson(above, seeds, joint=False, confidence=0.95)


def measure(law: str, seeds: int, tasks: int, common: bool, truth: dict[str, float], replicates: int) -> list[Row]:
    generator = np.random.default_rng((seeds, tasks))
    scores = draw(law, generator, replicates, seeds, tasks, common)
    found = list(by_scores(scores, common))
    if not common:
        found += by_shares(scores, draw(law, generator, replicates, seeds, tasks))
    rows = []
    for statistic, interval, low, high in found:
        held = (low <= truth[statistic]) & (truth[statistic] <= high)
        unit = SPREADS[tasks].mean() if statistic in ("mean", "IQM") else 1.0
        coverage, width = round(100 * float(held.mean()), 1), round(float(np.median(high - low) / unit), 3)
        rows.append(Row(statistic, interval, tasks, common, law, seeds, coverage, width, replicates))
    return rows


def main(replicates: int) -> None:
    rows: list[Row] = []
    for tasks, common in ((1, False), (4, False), (4, True)):
        for law in ("normal", "gamma") if common else LAWS:
            truth = truths(law, tasks)
            for seeds in (3, 5, 10) if common else SEEDS:
                rows += measure(law, seeds, tasks, common, truth, replicates)
    show(rows)
    Path(__file__).with_suffix(".json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def show(rows: list[Row]) -> None:
    kinds = dict.fromkeys((row.tasks, row.common_seeds, row.statistic, row.interval, row.scores) for row in rows)
    print(f"{'':62}" + "".join(f"{seeds:>14}" for seeds in SEEDS) + " seeds: coverage / width")
    for kind in kinds:
        cells = {
            row.seeds: f"{row.coverage:.1f} / {row.width:.2f}"
            for row in rows
            if kind == (row.tasks, row.common_seeds, row.statistic, row.interval, row.scores)
        }
        tasks, common, statistic, interval, law = kind
        label = f"{tasks} task{'s' * (tasks > 1)}{', common' * common}"
        print(f"{label:16} {statistic:14} {interval:11} {law:17}" + "".join(f"{cells.get(s, ''):>14}" for s in SEEDS))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)

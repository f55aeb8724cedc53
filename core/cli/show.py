"""Evaluations as a terminal shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from core.evaluations import Row
from core.progress import console
from core.runs import Run
from core.statistics import Facts, protocol, protocol_lines


def table(rows: Sequence[Row]) -> Table:
    """Rows as they are printed."""
    result = Table(box=SIMPLE)
    for heading, side in (
        ("dataset", "left"), ("method", "left"), ("sampler", "left"), ("scale", "right"), ("returns", "right"),
        ("return", "right"), ("95% interval", "right"), ("normalised", "right"), ("cost", "right"),
        ("over limit", "right"), ("episodes", "right"), ("ms a decision", "right"),
    ):  # fmt: skip
        result.add_column(heading, justify=side)  # type: ignore[arg-type]
    for row in rows:
        result.add_row(
            row.dataset,
            row.method,
            row.sampler,
            "" if row.guidance_scale is None else f"{row.guidance_scale:g}",
            "" if row.returns is None else f"{row.returns:g}",
            f"{row.return_mean:.2f}",
            f"{row.interval[0]:.2f} to {row.interval[1]:.2f}",
            "" if row.normalised_score is None else f"{row.normalised_score:.1f}",
            f"{row.cost_mean:.2f}",
            "" if row.violation_rate is None else f"{row.violation_rate:.1%} of {row.cost_limit:g}",
            str(row.episodes),
            f"{1000 * row.seconds_per_decision:.3f}",
        )
    return result


def print_protocol(evaluated: Sequence[tuple[Run, Sequence[Row]]]) -> None:
    """Say which points of the protocol the evaluations of some runs meet; a point that nothing states is not met."""
    console.print("Protocol (Formanek et al. 2024):", highlight=False)
    for line in protocol_lines(protocol(facts_of(evaluated))):
        console.print(f"  {line}", markup=False, highlight=False)


def facts_of(evaluated: Sequence[tuple[Run, Sequence[Row]]]) -> list[Facts]:
    """What runs and their evaluations state of each method."""
    methods = dict.fromkeys(run.method for run, rows in evaluated if rows)
    facts = []
    for method in methods:
        mine = [(run, rows) for run, rows in evaluated if rows and run.method == method]
        every = [row for _, rows in mine for row in rows]
        facts.append(
            Facts(
                method,
                datasets=tuple(sorted({str(run.config["dataset"].get("fingerprint"))[:12] for run, _ in mine})),
                seeds=tuple(sorted({int(run.config["trainer"].get("seed", 0)) for run, _ in mine})),
                episodes=min(row.episodes for row in every),
                steps=round(sum(row.training_steps for row in every) / len(every)),
                seconds=round(sum(row.training_seconds for row in every) / len(every), 1),
                cloning=all(_clones(run.config["algo"]) for run, _ in mine),
            )
        )
    return facts


def _clones(algo: Mapping[str, Any]) -> bool:
    """Whether a configuration is plain behaviour cloning of all data."""
    return algo.get("name") == "cloning" and not algo.get("condition") and algo.get("best") == 1.0

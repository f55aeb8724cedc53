"""Evaluations as a terminal shows them."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from core.evaluations import Row


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

"""One self-contained page that shows what runs have learned."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from core.evaluations import Row
from core.figures import Figure
from core.files import write_text
from core.statistics import Check

_NONE = "–"  # noqa: RUF001


@dataclass(frozen=True)
class _Column:
    """A column of the results: its heading, its class in the page, and a row's entry."""

    heading: str
    kind: str
    entry: Callable[[Row], str]


def _decision(row: Row) -> str:
    return _NONE if row.seconds_per_decision is None else _significant(1000 * row.seconds_per_decision)


_COLUMNS = (
    _Column("Method", "text", lambda row: row.method),
    _Column("Sampler", "text", lambda row: row.sampler or _NONE),
    _Column("Guidance scale", "number", lambda row: _optional(row.guidance_scale, "g")),
    _Column("Return rank asked", "number", lambda row: _optional(row.returns, "g")),
    _Column("Return, mean", "number mean", lambda row: _score(row.return_mean)),
    _Column("95% interval", "number", lambda row: _interval(row.interval)),
    _Column("Normalised score", "number", lambda row: _optional(row.normalised_score, ".1f")),
    _Column("Cost per episode", "number", lambda row: _score(row.cost_mean)),
    _Column("Episodes", "number", lambda row: f"{row.episodes:,}"),
    _Column("ms per decision", "number", _decision),
    _Column("Training", "number", lambda row: _duration(row.training_seconds)),
)


@dataclass(frozen=True)
class _Line:
    """A row of the table: its entries, and what its mean is beside the highest of its dataset."""

    entries: list[str]
    mark: str  # "best", "close" or ""


def write_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    rows: list[Row],
    checks: Sequence[Check],
    figures: list[Figure],
    reproduce: list[str],
    versions: dict[str, str],
) -> None:
    """Write a page that needs nothing beside itself: the same arguments give the same bytes.

    Args:
        path: of the HTML file, replaced as a whole.
        rows: the table, grouped by dataset; datasets and rows keep the order in which they come.
        checks: points of the protocol, shown under the table as met or not. figures: shown below it.
        reproduce: command lines that lead to these results, in order.
        versions: what the results may depend on; empty entries are left out.
    """
    environment = Environment(
        loader=PackageLoader("core"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    datasets = list(dict.fromkeys(map(_data, rows)))
    page = environment.get_template("report.html").render(
        title=title,
        subtitle=subtitle,
        columns=_COLUMNS,
        groups=[(dataset, _lines([row for row in rows if _data(row) == dataset])) for dataset in datasets],
        checks=checks,
        figures=figures,
        reproduce=reproduce,
        versions={name: value for name, value in versions.items() if value},
    )
    write_text(path, page)


def _data(row: Row) -> str:
    """What a row is compared within: its dataset, and how the environment was shifted."""
    return row.dataset + (f", {row.shift}" if row.shift else "")


def _lines(rows: Sequence[Row]) -> list[_Line]:
    """The rows of one dataset."""
    best = max((row.return_mean for row in rows if math.isfinite(row.return_mean)), default=math.nan)
    floor = min((row.interval[0] for row in rows if row.return_mean == best), default=math.nan)

    def mark(row: Row) -> str:
        if len(rows) < 2:
            return ""
        if row.return_mean == best:
            return "best"
        return "close" if row.interval[1] >= floor else ""

    return [_Line([column.entry(row) for column in _COLUMNS], mark(row)) for row in rows]


def _optional(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)


def _score(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.1f}"


def _interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{_score(low)} to {_score(high)}" if math.isfinite(low) and math.isfinite(high) else "unknown"


def _significant(value: float) -> str:
    """About three significant digits, never in powers of ten."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:,.{max(0, min(6, 2 - math.floor(math.log10(abs(value)))))}f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{_significant(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"

"""A table as a figure: drawn without a display, the same bytes for the same numbers."""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from core.errors import UserError
from core.figures import DASHES, colour, marker, shorten, style
from core.files import reason, replacing
from core.statistics import performance_profile
from core.tables.assemble import Scores
from core.tables.layout import NONE, score_name
from core.tables.results import Cell, Table

#: Panels side by side, of a table with many columns.
ACROSS = 3
#: Dots for an inch: the 11 points of the text are 31 pixels.
DPI = 200


def draw(table: Table, path: Path) -> None:
    """Draw the table as its `figure.kind` says, and write it as PNG.

    Raises:
        UserError: the file cannot be written; what it held before is still there.
    """
    data = png(table)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}; free the disk or choose another folder") from error


def png(table: Table) -> bytes:
    """The bytes of the figure, without date or version."""
    kinds: dict[str, Callable[[Table], Figure]] = {"lines": _lines, "intervals": _intervals, "profile": _profile}
    with style():
        figure = kinds[table.spec.figure.kind](table)
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _axis_name(table: Table) -> str:
    return score_name(table.spec) + ("" if table.spec.higher_is_better else ", lower is better")


def _lines(table: Table) -> Figure:
    """Scores against the rows' `x`: a colour for each column, a marker for each series; other rows are dashed lines."""
    spec = table.spec
    series = list(dict.fromkeys(row.series for row in spec.rows.values() if row.x is not None))
    across = [label for label, row in spec.rows.items() if row.x is None]
    entries = len(spec.columns) + len(across) + (len(series) if len(series) > 1 else 0)
    figure = Figure(figsize=(6.4, 3.9 + 0.24 * math.ceil(entries / 2)), layout="constrained")
    axes = figure.subplots()
    for index, column in enumerate(spec.columns):
        for name, mark in zip(series, range(len(series))):
            labels = [label for label, row in spec.rows.items() if row.x is not None and row.series == name]
            _curve(axes, table, sorted(labels, key=lambda label: spec.rows[label].x or 0.0), column, index, mark)
        for place, label in enumerate(across):
            estimate = table.cell(label, column).estimate
            if estimate is not None:
                axes.axhline(estimate.value, color=colour(index), dashes=_dashes(place), linewidth=_width(place))
    places = sorted({row.x for row in spec.rows.values() if row.x is not None})
    if len(places) <= 8:
        axes.set_xticks(places, [f"{x:g}" for x in places])
    axes.set(xlabel=spec.figure.x_label, ylabel=_axis_name(table))
    axes.grid(True)
    cut = _limit(axes, table, "y")
    handles: list[Artist] = [Line2D([], [], color=colour(index)) for index in range(len(spec.columns))]
    names = list(spec.columns)
    if len(series) > 1:
        handles += [Line2D([], [], color="#555555", marker=marker(index)) for index in range(len(series))]
        names += [name or "other" for name in series]
    handles += [
        Line2D([], [], color="#555555", dashes=_dashes(place), linewidth=_width(place)) for place in range(len(across))
    ]
    _legend(figure, handles, [*names, *(_counted_least(table, label) for label in across)])
    _title(figure, table, _over_seeds(table, "bands: 95% intervals over seeds" + cut))
    return figure


def _curve(axes: Axes, table: Table, labels: Sequence[str], column: str, index: int, mark: int) -> None:
    """One series in one column; a cell without an interval breaks the band, a missing one the line."""
    cells = [table.cell(label, column) for label in labels]
    places = [float(table.spec.rows[label].x or 0.0) for label in labels]
    values = [math.nan if cell.estimate is None else cell.estimate.value for cell in cells]
    low, high = (np.array([_ends(cell)[end] for cell in cells]) for end in (0, 1))
    axes.plot(places, values, color=colour(index), marker=marker(mark))
    axes.fill_between(places, low, high, color=colour(index), alpha=0.15, linewidth=0)
    if len(labels) == 1:
        axes.vlines(places, low, high, color=colour(index))
    for x, cell in zip(places, cells):
        if cell.over_episodes is not None:
            axes.plot([x, x], cell.over_episodes, color=colour(index), marker="_", linewidth=0.8)


def _ends(cell: Cell) -> tuple[float, float]:
    """Ends of the interval over seeds; NaN, which is not drawn, where it is missing or infinite."""
    if cell.estimate is None or not (math.isfinite(cell.estimate.low) and math.isfinite(cell.estimate.high)):
        return math.nan, math.nan
    return cell.estimate.low, cell.estimate.high


def _intervals(table: Table) -> Figure:
    """A panel for each column: a dot and an interval for each row, with the seeds as small dots."""
    spec = table.spec
    rows, columns = list(spec.rows), list(spec.columns)
    down = math.ceil(len(columns) / ACROSS)
    across = math.ceil(len(columns) / down)
    names = [shorten(row, 36) for row in rows]
    width = 0.09 * max(map(len, names)) + 2.7 * across
    figure = Figure(figsize=(max(width, 5.2), 1.1 + down * (0.75 + 0.27 * len(rows))), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True, sharex=spec.averaged)
    cut = ""
    for index, axes in enumerate(panels.ravel()):
        if index >= len(columns):
            axes.set_axis_off()
            continue
        cells = [table.cell(row, columns[index]) for row in rows]
        for place, cell in enumerate(cells):
            _dot(axes, cell, place, colour(index))
        axes.set_title(shorten(columns[index], 34), loc="left")
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(labelbottom=not spec.averaged or index + across >= len(columns))
        axes.grid(True, axis="x")
        cut = _limit(axes, table, "x", None if spec.averaged else columns[index]) or cut
    figure.supxlabel(_axis_name(table), fontsize=11)
    filled = "filled: not told apart from the best; " if any(cell.best for cell in table.cells) else ""
    note = _over_seeds(table, f"{filled}bars: 95% intervals over seeds; small dots: seeds{cut}")
    _title(figure, table, note + ("" if all(cell.asked for cell in table.cells) else f"; {NONE}: not run"))
    return figure


def _dot(axes: Axes, cell: Cell, place: int, tint: str) -> None:
    if cell.estimate is None:
        text = "missing" if cell.asked else NONE
        axes.annotate(text, (0.02, place), xycoords=("axes fraction", "data"), va="center", color="#555555")
        return
    low, high = _ends(cell)
    axes.hlines(place, low, high, color=tint, linewidth=1.8)
    if cell.over_episodes is not None:
        axes.plot(cell.over_episodes, [place, place], color=tint, marker="|", linewidth=0.8)
    axes.plot(cell.scores, [place + 0.24] * len(cell.scores), color="#777777", marker=".", markersize=3, linestyle="")
    axes.plot(cell.estimate.value, place, color=tint, marker="o", markerfacecolor=tint if cell.best else "white")


def _limit(axes: Axes, table: Table, axis: str, column: str | None = None) -> str:
    """Hold an axis to the scores and as much again, so that the widest interval does not flatten the rest.

    Returns what to say of it where an interval leaves the axis, else "".
    """
    cells = [cell for cell in table.cells if column in (None, cell.column)]
    scores = [score for cell in cells for score in cell.scores]
    if not scores:
        return ""
    ends = [end for cell in cells for end in cell.over_episodes or _ends(cell) if math.isfinite(end)]
    low, high = min(scores), max(scores)
    span = (high - low) or max(abs(high), 1.0) * 0.1
    first, last = max(min([low, *ends]), low - span), min(max([high, *ends]), high + span)
    margin = 0.06 * (last - first or span)
    (axes.set_ylim if axis == "y" else axes.set_xlim)(first - margin, last + margin)
    return "; intervals that leave the axis go on" if any(not first <= end <= last for end in ends) else ""


def _profile(table: Table) -> Figure:
    """Share of runs, over all columns, that are better than each score; a line for each row."""
    spec = table.spec
    rows, columns = list(spec.rows), list(spec.columns)
    scores = Scores(table.evaluations)
    every = [one.score for one in table.evaluations]
    low, high = (min(every), max(every)) if every else (0.0, 1.0)
    margin = 0.04 * ((high - low) or 1.0)
    levels = np.linspace(low - margin, high + margin, 201)
    sign = 1 if spec.higher_is_better else -1
    figure = Figure(figsize=(6.4, 3.9 + 0.24 * math.ceil(len(rows) / 2)), layout="constrained")
    axes = figure.subplots()
    handles: list[Artist] = []
    for index, row in enumerate(rows):
        tint, look = colour(index), (0.0, _dashes(index // 7 - 1) if index >= 7 else ())
        handles.append(Line2D([], [], color=tint, linestyle=look))
        seeds = scores.seeds([row], columns)
        if not seeds:
            continue
        profile = performance_profile(sign * scores.values(row, columns, seeds), sign * levels, joint=table.joint)
        axes.plot(levels, profile.share, color=tint, linestyle=look, drawstyle="steps-mid")
        if len(seeds) > 1 and len(rows) <= 7:
            axes.fill_between(levels, profile.low, profile.high, color=tint, alpha=0.1, linewidth=0, step="mid")
    axes.set(xlabel=_axis_name(table), ylabel="share of trainings that are better", ylim=(-0.03, 1.03))
    axes.grid(True)
    common = len(spec.common_seeds)
    seeds_of = {row: len(scores.seeds([row], columns)) for row in rows}
    whole = {row: spec.whole(row) for row in rows}
    names = [_counted(row, seeds_of[row], common) if whole[row] else f"{row} ({NONE})" for row in rows]
    _legend(figure, handles, names)
    bands = "bands: 95% intervals at each score" if len(rows) <= 7 else "intervals are not drawn for so many rows"
    note = f"{common} seeds; {bands}" if common > 1 else "1 seed: no intervals"
    _title(figure, table, note + ("" if all(whole.values()) else f"; {NONE}: not run in every column"))
    return figure


def _counted_least(table: Table, row: str) -> str:
    """A row's name, with its seeds in the column that lacks most of them."""
    cell = max((cell for cell in table.cells if cell.row == row), key=lambda cell: len(cell.missing))
    return _counted(row, len(cell.seeds), len(cell.seeds) + len(cell.missing))


def _counted(row: str, seeds: int, wanted: int) -> str:
    """A row's name, with its seeds where some are missing."""
    if seeds == wanted:
        return row
    return f"{row} ({seeds} of {wanted} seeds)" if seeds else f"{row} (missing)"


def _dashes(index: int) -> tuple[float, ...]:
    return DASHES[index % len(DASHES)]


def _width(index: int) -> float:
    """Another width once all dashes are in use."""
    return 1.3 + 1.2 * (index // len(DASHES) % 3)


def _legend(figure: Figure, handles: Sequence[Artist], names: Sequence[str]) -> None:
    columns = 2 if len(names) > 1 and max(map(len, names)) <= 32 else 1
    figure.legend(handles, [shorten(name, 60) for name in names], loc="outside lower center", ncols=columns)


def _over_seeds(table: Table, how: str) -> str:
    """How many seeds a column has, and what is drawn of them."""
    counts = [len(table.spec.seeds_of(column)) for column in table.spec.columns]
    low, high = min(counts), max(counts)
    seeds = f"{low} to {high} seeds" if low < high else f"{high} seeds"
    thin = any(cell.over_episodes for cell in table.cells)
    if high == 1:
        return "1 seed; thin: 95% intervals over its episodes" if thin else "1 seed: no intervals"
    return f"{seeds}; {how}" + ("; thin: over the episodes of one seed" if thin else "")


def _title(figure: Figure, table: Table, note: str) -> None:
    width = 13 * figure.get_figwidth()
    figure.suptitle(f"{_wrapped(table.spec.title, width)}\n{_wrapped(note, width)}", fontsize=10, x=0.01, ha="left")


def _wrapped(text: str, most: float) -> str:
    """Text in lines of about `most` characters, broken between words."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) + 1 > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)

"""Figures of a report: drawn without a display, the same bytes for the same numbers."""

import base64
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from core.evaluations import Row

#: Okabe and Ito's colours, which stay apart for the colour-blind; without the yellow, too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: Nine markers beside seven colours: 63 series before one looks like another.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
#: Dashes of lines without markers: on, off, on, off, ... in line widths.
DASHES = ((6, 2), (2, 1.5), (6, 1.5, 1, 1.5), (10, 2), (6, 1.5, 1, 1.5, 1, 1.5))
#: Width in inches: at a phone's 320 pixels the 11 points of the text are still 11 pixels.
WIDTH = 4.4

_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 11,
    "legend.fontsize": 10,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "text.parse_math": False,  # a name may contain dollars
    "svg.fonttype": "none",
    "svg.hashsalt": "convoy",
}


@dataclass(frozen=True)
class Figure:
    """A finished figure.

    Attributes:
        title: what it shows. caption: how to read it.
        mime: "image/svg+xml" or "image/gif". data: the file's bytes.
        alt: what it shows in words and numbers, for those who do not see it.
    """

    title: str
    caption: str
    mime: str
    data: bytes
    alt: str = ""

    @property
    def uri(self) -> str:
        """The figure as a data URI."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode('ascii')}"


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults and ours, whatever the user's own settings, which are restored at the end."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def svg(canvas: Canvas, title: str, caption: str, alt: str) -> Figure:
    """The drawn canvas as SVG with text as text, without date or version."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Figure(title, caption, "image/svg+xml", buffer.getvalue(), alt)


def colour(index: int) -> str:
    """Colour of the series with this index."""
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    """Marker of the series with this index."""
    return MARKERS[index % len(MARKERS)]


def shorten(name: str, most: int) -> str:
    """A name for a place that holds `most` characters: names differ at their ends, so the middle goes."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[len(name) - (most - 1) // 2 :]}"


def learning_curves(curves: dict[str, list[dict[str, float]]], metric: str = "loss") -> Figure:
    """A metric of each run against its seconds of training, on a logarithmic axis where all its values are positive.

    Args:
        curves: rows of each run's metrics, with "seconds"; rows without the metric are left out.
        metric: its name in the rows.
    """
    title = f"Learning curves: {metric}"
    drawn = {name: _thinned([row for row in rows if metric in row], metric) for name, rows in curves.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    with style():
        canvas = Canvas(figsize=(WIDTH, 3.0 + 0.22 * len(drawn)), layout="constrained")
        axes = canvas.subplots()
        if not drawn:
            return _empty(canvas, axes, title, f"No run has logged {metric} yet.")
        for index, (name, points) in enumerate(drawn.items()):
            seconds, values = zip(*points, strict=True)
            every = max(1, len(points) // 7)
            axes.plot(seconds, values, color=colour(index), marker=marker(index), markevery=every, label=name)
        if all(value > 0 for points in drawn.values() for _, value in points):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="seconds of training", ylabel=metric)
        axes.grid(True)
        legend(canvas, axes.get_legend_handles_labels())
        caption = (
            "Means between two rows of the metrics. Different methods minimise different losses: compare the shape "
            "of their curves, not the height."
        )
        ends = [f"{name} from {p[0][1]:.3g} to {p[-1][1]:.3g} in {p[-1][0]:.0f} s" for name, p in drawn.items()]
        return svg(canvas, title, caption, f"Line chart of {metric}: {'; '.join(ends)}.")


def return_against_scale(rows: list[Row]) -> Figure:
    """Mean return with its 95% interval against the guidance scale, one panel for each dataset.

    Methods of the same dataset without a guidance scale are horizontal lines, their intervals bands. What is not
    finite, such as the interval of a single episode, is not drawn.
    """
    title = "Return against guidance scale"
    rows = [row for row in rows if math.isfinite(row.return_mean)]
    label = _labels(rows)
    datasets = list(dict.fromkeys(row.dataset for row in rows if row.guidance_scale is not None))
    shown = [row for row in rows if row.dataset in datasets]
    scales = sorted({row.guidance_scale for row in shown if row.guidance_scale is not None})
    guided = list(dict.fromkeys(label(row) for row in shown if row.guidance_scale is not None))
    names = guided + list(dict.fromkeys(label(row) for row in shown if row.guidance_scale is None))
    with style():
        height = max(1, len(datasets)) * 2.8 + 0.2 + 0.22 * len(names)
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        panels = canvas.subplots(max(1, len(datasets)), 1, squeeze=False)[:, 0]
        if not datasets:
            return _empty(canvas, panels[0], title, "No evaluation has a guidance scale.")
        entries: dict[str, Artist] = {}
        for panel, dataset in zip(panels, datasets, strict=True):
            panel.set_title(shorten(dataset, 38), loc="left")
            for index, name in enumerate(names):
                same = [row for row in shown if row.dataset == dataset and label(row) == name]
                if same:
                    entries.setdefault(name, _draw_returns(panel, same, index, len(guided)))
            panel.set_ylabel("return")
            panel.grid(True)
            if len(scales) <= 7:
                panel.set_xticks(scales, [f"{scale:g}" for scale in scales])
            if len(scales) == 1:
                panel.set_xlim(scales[0] - 1, scales[0] + 1)
        panels[-1].set_xlabel("guidance scale")
        ordered = [name for name in names if name in entries]
        legend(canvas, ([entries[name] for name in ordered], ordered))
        caption = (
            "Mean over episodes of the team's return, higher is better; bars and bands are 95% confidence intervals "
            "of the mean. Horizontal lines are methods without a guidance scale."
        )
        sentences = [
            _sentence(dataset, [row for row in shown if row.dataset == dataset], label) for dataset in datasets
        ]
        return svg(canvas, title, caption, " ".join(sentences))


def series_names(rows: Sequence[Row], *attributes: str) -> Callable[[Row], str]:
    """Names for the rows' series: the method, and those of the attributes that tell rows of one method apart."""
    words = {"returns": "return rank {:g}", "guidance_scale": "scale {:g}"}

    def name(row: Row) -> str:
        alike = [other for other in rows if other.method == row.method]
        told = {one: getattr(row, one) for one in attributes if len({getattr(other, one) for other in alike}) > 1}
        said = [words.get(one, "{}").format(value) for one, value in told.items() if value not in (None, "")]
        return ", ".join([row.method, *said])

    return name


def _labels(rows: Sequence[Row]) -> Callable[[Row], str]:
    """Names for the series of guidance scales."""
    name = series_names(rows, "sampler", "returns")

    def label(row: Row) -> str:
        guided = any(other.guidance_scale is not None for other in rows if other.method == row.method)
        return name(row) + (", unguided" if guided and row.guidance_scale is None else "")

    return label


def _draw_returns(panel: Axes, rows: list[Row], index: int, guided: int) -> Artist:
    """One series, of which `guided` in all have a guidance scale; returns its entry of the legend."""
    finite = [row for row in rows if all(map(math.isfinite, row.interval))]
    tint = colour(index)
    if rows[0].guidance_scale is None:
        dashes = DASHES[index % len(DASHES)]
        for row in rows:
            panel.axhline(row.return_mean, color=tint, dashes=dashes)
        for row in finite:
            panel.axhspan(*row.interval, color=tint, alpha=0.13, linewidth=0)
        return Line2D([], [], color=tint, dashes=dashes)
    points = [(row.guidance_scale, row.return_mean) for row in rows if row.guidance_scale is not None]
    scales = sorted({x for x, _ in points})
    shift = 0.012 * ((scales[-1] - scales[0]) or 1.0) * (index - (guided - 1) / 2)  # or bars would hide one another
    groups = [[y for x, y in points if x == scale] for scale in scales]
    panel.plot([x + shift for x in scales], [sum(group) / len(group) for group in groups], color=tint)
    panel.plot([x + shift for x, _ in points], [y for _, y in points], color=tint, marker=marker(index), linestyle="")
    for row in finite:
        assert row.guidance_scale is not None
        mean, (low, high) = row.return_mean, row.interval
        error = [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]
        panel.errorbar(row.guidance_scale + shift, mean, error, color=tint, capsize=3, linewidth=1.3)
    return Line2D([], [], color=tint, marker=marker(index))


def _sentence(dataset: str, rows: Sequence[Row], label: Callable[[Row], str]) -> str:
    """The panel of a dataset in words: the best of each series."""
    best: dict[str, Row] = {}
    for row in rows:
        name = label(row)
        best[name] = max(best.get(name, row), row, key=lambda row: row.return_mean)
    scales = {
        name: "" if row.guidance_scale is None else f" at scale {row.guidance_scale:g}" for name, row in best.items()
    }
    parts = [f"{name} {row.return_mean:.2f}{scales[name]}" for name, row in best.items()]
    return f"Highest mean return on {dataset}: {'; '.join(parts)}."


def _thinned(rows: list[dict[str, float]], metric: str, most: int = 300) -> list[tuple[float, float]]:
    """Points (seconds, metric) of the rows, means of neighbours where there are more than `most`."""
    size = math.ceil(len(rows) / most)
    groups = [rows[first : first + size] for first in range(0, len(rows), max(1, size))]
    return [(group[-1]["seconds"], sum(row[metric] for row in group) / len(group)) for group in groups]


def legend(canvas: Canvas, entries: tuple[Sequence[Artist], Sequence[str]]) -> None:
    """One legend below all panels, in two columns where the names are short."""
    handles, names = entries
    columns = 2 if len(names) > 1 and max(map(len, names)) <= 16 else 1
    canvas.legend(handles, [shorten(name, 40) for name in names], loc="outside lower center", ncols=columns)


def _empty(canvas: Canvas, axes: Axes, title: str, message: str) -> Figure:
    axes.set_axis_off()
    axes.text(0.5, 0.5, message, ha="center", va="center", wrap=True)
    return svg(canvas, title, message, message)

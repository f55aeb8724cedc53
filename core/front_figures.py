"""Figures of costs: what policies return and cost under budgets, and what the episodes of a dataset do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from torch import Tensor

from core.data import Trajectories
from core.errors import UserError
from core.evaluations import Row
from core.figures import WIDTH, colour, legend, marker, series_names, shorten, style
from core.files import reason, replacing

#: Dots for an inch of a PNG.
DPI = 160

_CLOUD = "#c2c2c2"
_LIMIT: dict[str, Any] = {"color": "#555555", "dashes": (2, 1.5)}


@dataclass(frozen=True)
class Front:
    """Evaluations of one task under budgets.

    Attributes:
        title: of the task and its data. rows: each with a budget.
        data: costs and returns [E] of the dataset's episodes, averaged over the agents; None where it is not at hand.
    """

    title: str
    rows: Sequence[Row]
    data: tuple[Tensor, Tensor] | None = None


def costs_and_returns(trajectories: Trajectories) -> tuple[Tensor, Tensor]:
    """Cost and return of each episode [E], averaged over the agents."""
    return trajectories.episode_sums(trajectories.costs).mean(dim=1), trajectories.scores


def draw_fronts(fronts: Sequence[Front], path: Path) -> None:
    """Draw return and cost against the budget, side by side for each front, and write it as PNG or SVG.

    Points are means over episodes with their 95% intervals, the lines pass through the means over trainings. The data's
    episodes lie at their own cost; those that cost more than any budget are left out.

    Raises:
        UserError: no front, another kind of file, or one that cannot be written.
    """
    if not fronts:
        raise UserError("nothing was evaluated under a budget: convoy evaluate run=FOLDER budget=20,40,80")
    rows = [row for front in fronts for row in front.rows]
    name = series_names(rows, "sampler", "guidance_scale", "returns", "shift")
    names = list(dict.fromkeys(map(name, rows)))
    with style():
        figure = Canvas(figsize=(WIDTH * len(fronts), 5.6 + 0.22 * (len(names) + 2)), layout="constrained")
        grid = figure.subplots(2, len(fronts), squeeze=False, sharex="col", height_ratios=(5, 4))
        for (above, below), front in zip(grid.T, fronts, strict=True):
            most = 1.06 * max(row.budget or 0.0 for row in front.rows) or 1.0
            if front.data is not None:
                costs, returns = front.data
                near = costs <= most
                above.scatter(costs[near], returns[near], s=5, color=_CLOUD, linewidths=0, rasterized=True)
            for index, series in enumerate(names):
                mine = [row for row in front.rows if name(row) == series]
                _curve(above, [(row.budget or 0.0, row.return_mean, *row.interval) for row in mine], index)
                _curve(below, [(row.budget or 0.0, row.cost_mean, *_interval(row)) for row in mine], index)
            below.plot([0, most], [0, most], **_LIMIT)
            above.set_title(shorten(front.title, 44), loc="left")
            above.set(ylabel="return", xlim=(-0.02 * most, most))
            below.set(ylabel="cost of an episode", xlabel="budget")
            for axes in (above, below):
                axes.grid(True)
        handles: list[Artist] = [Line2D([], [], color=colour(k), marker=marker(k)) for k in range(len(names))]
        handles.append(Line2D([], [], **_LIMIT))
        names.append("cost = budget")
        if any(front.data is not None for front in fronts):
            handles.append(Line2D([], [], color=_CLOUD, marker=".", linestyle=""))
            names.append("episodes of the data, at their cost")
        legend(figure, (handles, names))
        _save(figure, path)


def draw_episodes(
    title: str, trajectories: Trajectories, path: Path, *, behaviours: Sequence[str] = (), budget: float | None = None
) -> None:
    """Draw the return of each episode against its cost, a colour for each behaviour, and write it as PNG or SVG.

    Args:
        behaviours: what the trajectories' tags count. budget: what a ratio of 1 means, a line.

    Raises:
        UserError: another kind of file, or one that cannot be written.
    """
    costs, returns = costs_and_returns(trajectories)
    tags = trajectories.tags
    with style():
        figure = Canvas(figsize=(WIDTH, 3.8 + 0.22 * len(tags.unique())), layout="constrained")
        axes = figure.subplots()
        for index, tag in enumerate(tags.unique().tolist()):
            name = behaviours[tag] if 0 <= tag < len(behaviours) else "an episode"
            look: dict[str, Any] = {"s": 6, "color": colour(index), "alpha": 0.5, "linewidths": 0, "rasterized": True}
            axes.scatter(costs[tags == tag], returns[tags == tag], label=name, **look)
        if budget is not None:
            axes.axvline(budget, **_LIMIT, label="budget of ratio 1")
        axes.set_title(shorten(title, 44), loc="left")
        axes.set(xlabel="cost of an episode", ylabel="return")
        axes.grid(True)
        legend(figure, axes.get_legend_handles_labels())
        _save(figure, path)


def check_figure(path: Path) -> None:
    """Raise a UserError for a name that is neither .png nor .svg."""
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"cannot tell the kind of figure of {path.name!r}: name it .png or .svg")


def _curve(axes: Axes, points: Sequence[tuple[float, float, float, float]], index: int) -> None:
    """One series of (x, mean, low, high), with a line through the means of what shares its x."""
    places = sorted({x for x, *_ in points})
    groups = [[mean for x, mean, *_ in points if x == place] for place in places]
    axes.plot(places, [sum(group) / len(group) for group in groups], color=colour(index))
    for x, mean, low, high in points:
        finite = math.isfinite(low) and math.isfinite(high)
        error = [[max(mean - low, 0.0)], [max(high - mean, 0.0)]] if finite else None
        axes.errorbar(x, mean, error, color=colour(index), marker=marker(index), capsize=3, linewidth=1.3)


def _interval(row: Row) -> tuple[float, float]:
    """Of the cost; infinite for a single episode."""
    low, high = row.cost_low, row.cost_high
    return (-math.inf, math.inf) if low is None or high is None else (low, high)


def _save(figure: Canvas, path: Path) -> None:
    """Write the figure whole, without date or version."""
    check_figure(path)
    nothing = {"Software": None} if path.suffix == ".png" else dict.fromkeys(("Date", "Creator", "Format", "Type"))
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=DPI, metadata=nothing)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}; free the disk or choose another folder") from error

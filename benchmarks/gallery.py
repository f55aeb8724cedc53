"""The gallery: samplers, spacings, schedules and kinds of guidance against closed forms, in pictures and numbers.

    python benchmarks/gallery.py [--quick] [--folder docs/gallery]

Writes trajectories.png, errors.png, energy.png, classifier_free.png, distillation.png and gallery.json, and prints the
tables of docs/gallery.md, in about two minutes on one core. `--quick` does the same with too few samples, to try it.
`gallery_numbers` computes what is drawn here, `gallery_exact` has the closed forms.
"""

import argparse
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gallery_numbers as numbers
import torch
from gallery_exact import TILTS, Mixture, Tilt
from gallery_numbers import CLASSES, MODES, Curve, Few, Guided, Size, Tilted, Walk
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from torch import Tensor

from core.figures import DASHES, colour, marker, style

Row = dict[str, Any]
SHADES = ("#f2f2f2", "#e4e4e4", "#d2d2d2", "#bdbdbd")
#: The panels of errors.png, and their titles.
PANELS = {
    "samplers": f"samplers, lambda grid to t = {numbers.STOP:g}",
    "laws": "sample sets, time grid",
    "spacings": "2M to the data, by spacing",
    "schedules": "2M to the data, by schedule",
}
#: Points of a sample that are drawn.
SHOWN = 1200


def panels_of(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A canvas with panels of that size in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    canvas = Figure(figsize=(columns * width, rows * height), layout=layout)
    return canvas, list(canvas.subplots(rows, columns, squeeze=False, **options).flat)


def plane(panels: Sequence[Axes], columns: int, limit: float) -> None:
    """Axes of the plane, labelled at the left and at the bottom."""
    for index, axes in enumerate(panels):
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axes.set_xlabel("x" if index // columns == (len(panels) - 1) // columns else "")
        axes.set_ylabel("y" if index % columns == 0 else "")


def heights(log_density: Callable[[Tensor], Tensor], limit: float) -> tuple[Tensor, Tensor, Tensor]:
    """A density over the plane as contours want it: x, y and its share of the largest value."""
    axis = torch.linspace(-limit, limit, 121, dtype=torch.float64)
    values = log_density(torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1))
    return axis, axis, (values - values.max()).exp()


def scatter(axes: Axes, mixture: Mixture, x: Tensor) -> None:
    """Samples in the colour of the nearest mean."""
    x = x[:SHOWN].double()
    nearest = torch.cdist(x, mixture.means).argmin(dim=1)
    for index in range(len(mixture.means)):
        axes.plot(*x[nearest == index].T, ".", color=colour(index), markersize=2, alpha=0.5)


def draw_trajectories(walks: Sequence[Walk]) -> Figure:
    canvas, panels = panels_of(4, 3, 2.75, 3.0, sharex=True, sharey=True)
    for axes, walk in zip(panels, walks, strict=True):
        axes.contourf(*heights(MODES.log_density, 3.2), levels=[0.02, 0.1, 0.3, 0.6, 1.0], colors=SHADES)
        iterates = torch.stack(walk.trace)
        ends = torch.cdist(iterates[-1], MODES.means).argmin(dim=1).tolist()
        for index, end in enumerate(ends):
            axes.plot(*iterates[:, index].T, color=colour(end), linewidth=0.9, alpha=0.7)
        axes.plot(*iterates[-1].T, ".", color="black", markersize=4)
        axes.set_title(f"{walk.name}\n{walk.evaluations} evaluations")
    plane(panels, 3, 3.2)
    return canvas


def draw_errors(curves: Sequence[Curve], floor: Sequence[float]) -> Figure:
    canvas, panels = panels_of(2, 2, 4.4, 3.7)
    for axes, (panel, title) in zip(panels, PANELS.items(), strict=True):
        for index, curve in enumerate(curve for curve in curves if curve.panel == panel):
            axes.loglog(
                curve.evaluations,
                curve.errors,
                color=colour(index),
                marker=marker(index),
                label=curve.name,
                markersize=5,
            )
        if panel == "laws":
            axes.axhspan(min(floor), max(floor), color=SHADES[1], label="exact sets")
        counts = sorted({count for curve in curves for count in curve.evaluations if count & (count - 1) == 0})
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set(title=title, xlabel="network evaluations")
        axes.set_ylabel("energy distance to the data" if panel == "laws" else "median error of the flow")
        axes.grid(True)
        axes.legend(loc="lower left" if panel == "samplers" else "upper right", fontsize=8.5)
    return canvas


def draw_energies(rows: Sequence[Tilted]) -> Figure:
    """Guidance of the estimate on the left, moves on the right."""
    canvas, panels = panels_of(2, 2, 4.4, 3.2, sharex=True)
    edges = torch.linspace(-2.5, 4, 45, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    for index, axes in enumerate(panels):
        tilt, moves = TILTS[index // 2], index % 2 == 1
        exact = torch.exp(-((middle - tilt.mean) ** 2) / (2 * tilt.variance)) / (2 * torch.pi * tilt.variance) ** 0.5
        axes.fill_between(middle, exact, color=SHADES[1], label="exact")
        shown = [row for row in rows if (row.energy, row.sampler) == (tilt.name, "DDPM-20" if moves else "2M-100")]
        shown = [row for row in shown if row.guidance.startswith("move") == moves]
        for place, row in enumerate(shown):
            density = torch.histogram(row.samples, edges, density=True).hist
            line = axes.plot(middle, density, color=colour(place), label=row.guidance, linewidth=2)[0]
            line.set_dashes((None, None) if place == 0 else DASHES[place - 1])
        axes.set(
            title=f"{tilt.name} energy, {'DDPM-20 with moves' if moves else '2M-100, estimate guided'}", ylim=(0, 0.95)
        )
        axes.set(ylabel="" if moves else "density", xlabel="x" if index > 1 else "")
        axes.legend(loc="upper right", fontsize=8.5)
    return canvas


def draw_guided(rows: Sequence[Guided]) -> Figure:
    canvas, panels = panels_of(2, 3, 2.9, 2.9)
    for axes, row in zip(panels, rows, strict=False):
        scatter(axes, CLASSES, row.samples)
        law = partial(CLASSES.power_density, label=0, scale=row.scale)
        axes.contour(*heights(law, 3.2), levels=[0.05, 0.3, 0.7], colors="black", linewidths=1.0)
        axes.set_title(f"scale {row.scale:g}")
    plane(panels[:5], 3, 3.2)
    scales = [row.scale for row in rows]
    last = panels[5]
    last.plot(scales, [row.mean for row in rows], color=colour(0), marker=marker(0), label="samples")
    last.plot(scales, [row.power_mean for row in rows], color="black", dashes=DASHES[0], label="power law")
    last.set(title="mean", xlabel="scale", ylabel="x of the mean")
    last.grid(True)
    last.legend(loc="lower right", fontsize=8.5)
    return canvas


def draw_few(rows: Sequence[Few]) -> Figure:
    """The student and the data in the first row, then the teacher's samplers."""
    canvas, panels = panels_of(3, 4, 2.2, 2.35, sharex=True, sharey=True)
    names = ("student", "data", "teacher, DDIM", "teacher, 2M")
    for axes, row in zip(panels, sorted(rows, key=lambda row: names.index(row.name)), strict=True):
        scatter(axes, MODES, row.samples)
        steps = f": {row.evaluations} step{'s' * (row.evaluations > 1)}" if row.evaluations else ""
        axes.set_title(row.name + steps, fontsize=10)
    plane(panels, 4, 3.2)
    return canvas


def save(canvas: Figure, path: Path) -> None:
    """As PNG in 96 colours, a third of the size."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=110)
    Image.open(buffer).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


def rounded(value: Any) -> Any:
    """What JSON holds: rows without their samples, numbers to four digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items() if key not in ("samples", "trace")}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return value if isinstance(value, int | str) else rounded(vars(value))


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


def error_table(rows: Sequence[Row], panel: str) -> str:
    rows = [row for row in rows if row["panel"] == panel]
    lines = [[row["name"], *(f"{error:.1e}" for error in row["errors"])] for row in rows]
    return table([panel, *rows[0]["evaluations"]], lines)


def energy_table(rows: Sequence[Row], tilt: Tilt) -> str:
    rows = [row for row in rows if row["energy"] == tilt.name]
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    cells = {(row["guidance"], row["sampler"]): f"{row['mean']:.3f}, {row['variance']:.3f}" for row in rows}
    lines = [["exact", *[f"{tilt.mean:.3f}, {tilt.variance:.3f}"] * len(samplers)]]
    for guidance in dict.fromkeys(row["guidance"] for row in rows):
        lines.append([guidance, *(cells.get((guidance, sampler), "") for sampler in samplers)])
    return table([f"{tilt.name} energy", *samplers], lines)


def guided_table(rows: Sequence[Row]) -> str:
    keys = ("mean", "deviation", "share", "power_mean", "power_deviation")
    lines = [[f"{row['scale']:g}", *(f"{row[key]:.3f}" for key in keys)] for row in rows]
    return table(["scale", "mean", "deviation", "share in the class", "power law: mean", "deviation"], lines)


def few_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        shares = ", ".join(f"{share:.3f}" for share in row["shares"])
        lines.append([row["name"], row["evaluations"] or "", shares, f"{row['spread']:.3f}", f"{row['distance']:.1e}"])
    return table(["", "evaluations", "shares of the modes", "spread", "energy distance"], lines)


def tables(record: Row) -> list[str]:
    """The tables of docs/gallery.md from what gallery.json holds."""
    return [
        *(error_table(record["errors"], panel) for panel in PANELS),
        *(energy_table(record["energy"], tilt) for tilt in TILTS),
        guided_table(record["classifier_free"]),
        few_table(record["distillation"]),
    ]


def main(folder: Path, size: Size) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    walks = numbers.walks()
    errors, gaps = numbers.flow_errors(size)
    laws, floor = numbers.law_errors(size, generator)
    energy, guided, few = numbers.tilted(size), numbers.guided(size), numbers.distilled(size, generator)
    with style(), rc_context({"text.parse_math": True}):
        save(draw_trajectories(walks), folder / "trajectories.png")
        save(draw_errors([*errors, *laws], floor), folder / "errors.png")
        save(draw_energies(energy), folder / "energy.png")
        save(draw_guided(guided), folder / "classifier_free.png")
        save(draw_few(few), folder / "distillation.png")
    record = {
        "trajectories": walks,
        "errors": [*errors, *laws],
        "reference_gaps": gaps,
        "exact_sets": floor,
        "energy": energy,
        "classifier_free": guided,
        "distillation": few,
    }
    record = rounded(record)
    (folder / "gallery.json").write_text(json.dumps(record, indent=1) + "\n")
    print("\n\n".join(tables(record)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="with too few samples")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / "docs" / "gallery")
    arguments = parser.parse_args()
    main(arguments.folder, numbers.QUICK if arguments.quick else Size())

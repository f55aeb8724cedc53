"""Pictures of teams of mpe/spread: a joint plan being denoised, and teams at work."""

import io

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from PIL import Image
from torch import Tensor

from core.data import Trajectories
from core.figures import WIDTH, Figure, colour, marker, shorten, style, svg

#: Radius of an agent.
RADIUS = 0.15
#: Steps that a trail reaches back.
_TRAIL = 6
#: Frames of an animation at most: longer episodes are shown at every second step, or third, ...
_FRAMES = 60
#: Bytes of an animation at most: larger ones lose frames.
_BYTES = 400_000
_LANDMARK = "#444444"


def positions_and_landmarks(observations: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute positions of the agents and of the landmarks, both [..., A, 2], from observations [..., A, O].

    An agent of mpe/spread observes its velocity, its position, and relative to itself the A landmarks.

    Raises:
        ValueError: the observations are too small to hold these.
    """
    agents, size = observations.shape[-2:]
    if size < 4 + 2 * agents:
        raise ValueError(
            f"observations of mpe/spread with {agents} agents have at least {4 + 2 * agents} entries, got {size}"
        )
    positions = observations[..., 2:4]
    relative = observations[..., 0, 4 : 4 + 2 * agents].unflatten(-1, (agents, 2))
    return positions, positions[..., :1, :] + relative


def plan_figure(trace: tuple[Tensor, ...], index: int = 0) -> Figure:
    """A joint plan while it is denoised, in about five stages from the first noise to the result.

    Args:
        trace: planned observations [B, T, A, O] at each of K + 1 stages, as `Plan.trace`.
        index: which of the B plans.

    Raises:
        ValueError: the trace is empty, which is so unless the plan was made with trace=True.
    """
    if not trace:
        raise ValueError("the plan has no trace: make it with plan(..., trace=True)")
    steps = len(trace) - 1
    stages = sorted({round(stage) for stage in np.linspace(0, steps, min(5, steps + 1)).tolist()})
    # At the last stage the first step is clamped at the present: there alone the landmarks are no noise.
    present, landmarks = (x[0] for x in positions_and_landmarks(trace[-1][index].detach().cpu()))
    paths = [positions_and_landmarks(trace[stage][index].detach().cpu())[0] for stage in stages]
    with style():
        rows = (len(stages) + 2) // 2  # the last cell is the legend's
        canvas = Canvas(figsize=(WIDTH, 2.35 * rows), layout="constrained")
        cells = canvas.subplots(rows, 2).ravel()
        limit = 1.05 * max(1.0, *(float(values.abs().max()) for values in (*paths, landmarks)))
        for cell, stage, path in zip(cells, stages, paths, strict=False):
            cell.set_title(_stage_name(stage, steps), fontsize=10)
            _square(cell, limit)
            _draw_plan(cell, stage, path, present, landmarks)
        for cell in cells[len(stages) :]:
            cell.set_axis_off()
        cells[-1].legend(handles=_plan_legend(len(present)), loc="center", handletextpad=0.6)
        caption = (
            f"Planned positions of {len(present)} agents over {len(paths[0])} time steps, all denoised together. Dots "
            "fade with time; large symbols are the present positions, rings the landmarks."
        )
        gaps = torch.cdist(paths[-1][-1], landmarks).amin(dim=1)
        ends = ", ".join(f"{gap:.2f}" for gap in gaps.tolist())
        alt = (
            f"{len(stages)} stages of {steps} denoising steps, from noise to the result, where the agents "
            f"end at these distances from their nearest landmarks: {ends}."
        )
        return svg(canvas, "A joint plan while it is denoised", caption, alt)


def _stage_name(stage: int, steps: int) -> str:
    if stage == steps:
        return "result" if steps < 2 else f"result, {steps} steps"
    return "noise" if stage == 0 else f"after {stage} step{'s' * (stage > 1)}"


def _square(panel: Axes, limit: float) -> None:
    panel.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
    panel.spines[:].set_visible(True)
    panel.spines[:].set_color("#bbbbbb")


def _draw_plan(panel: Axes, stage: int, path: Tensor, present: Tensor, landmarks: Tensor) -> None:
    """Planned positions [T, A, 2] beside the present ones and the landmarks, [A, 2] each."""
    panel.plot(*landmarks.T.numpy(), "o", markersize=11, markerfacecolor="none", color=_LANDMARK, markeredgewidth=1.4)
    fading = np.linspace(0.95, 0.3, len(path))
    for agent in range(path.shape[1]):
        x, y = path[:, agent].T.numpy()
        panel.plot(x, y, color=colour(agent), linewidth=1, alpha=0.55)
        tints = [to_rgba(colour(agent), alpha) for alpha in fading]
        panel.scatter(x, y, s=14, color=tints, linewidths=0, gid=f"stage-{stage}-agent-{agent + 1}")
        panel.plot(*present[agent].tolist(), marker(agent), color=colour(agent), markersize=8, markeredgecolor="black")


def _plan_legend(agents: int) -> list[Line2D]:
    shown = list(range(min(agents, 6)))
    entries = [
        Line2D([], [], color=colour(agent), marker=marker(agent), markeredgecolor="black", label=f"agent {agent + 1}")
        for agent in shown
    ]
    ring = Line2D([], [], linestyle="", marker="o", markersize=11, markerfacecolor="none", color=_LANDMARK)
    ring.set_label("landmark")
    return [*entries, ring]


class _Stage:
    """One panel of an animation: an episode whose artists move from frame to frame."""

    def __init__(self, panel: Axes, name: str, trajectories: Trajectories, episode: int):
        rows = slice(int(trajectories.offsets[episode]), int(trajectories.offsets[episode + 1]))
        positions, landmarks = positions_and_landmarks(trajectories.observations[rows].detach().cpu())
        self.positions, self.landmarks = positions.numpy(), landmarks[0].numpy()
        self.returns = np.cumsum([0.0, *trajectories.rewards[rows].mean(dim=1).tolist()])
        touching = trajectories.costs[rows].cpu().numpy() > 0
        self.touching = np.concatenate([np.zeros_like(touching[:1]), touching[:-1]])  # of the step that led here
        self.name = shorten(name, 26)
        self.panel = panel
        panel.plot(*self.landmarks.T, "x", markersize=6, color=_LANDMARK)
        for centre in self.landmarks:  # wider than an agent, so that it is seen when it is covered
            panel.add_patch(
                Circle(centre, 1.4 * RADIUS, fill=False, edgecolor=_LANDMARK, linestyle="--", linewidth=1.2)
            )
        agents = range(self.positions.shape[1])
        self.trails = [panel.plot([], [], color=colour(agent), linewidth=2.5, alpha=0.45)[0] for agent in agents]
        self.discs = [Circle((0, 0), RADIUS, facecolor=colour(agent), linewidth=2, zorder=3) for agent in agents]
        self.numbers = [panel.text(0, 0, str(agent + 1), zorder=4) for agent in agents]
        for disc, number in zip(self.discs, self.numbers, strict=True):
            panel.add_patch(disc)
            number.set(color="white", ha="center", va="center_baseline", fontsize=11, fontweight="bold")

    @property
    def length(self) -> int:
        return len(self.positions)

    @property
    def reach(self) -> float:
        return max(float(np.abs(values).max()) for values in (self.positions, self.landmarks))

    def show(self, step: int) -> None:
        """Draw the team at a step, or at the end of a shorter episode."""
        step = min(step, self.length - 1)
        trails = self.positions[max(0, step - _TRAIL) : step + 1]
        for agent, (disc, number) in enumerate(zip(self.discs, self.numbers, strict=True)):
            disc.set_center(self.positions[step, agent])
            disc.set(edgecolor="black" if self.touching[step, agent] else "white")
            number.set_position(self.positions[step, agent])
            self.trails[agent].set_data(*trails[:, agent].T)
        self.panel.set_title(f"{self.name}\nstep {step}, return {self.returns[step]:.1f}", loc="left", fontsize=13)


def rollout_animation(rollouts: dict[str, Trajectories], episode: int = 0) -> Figure:
    """The same episode of several methods as an animated GIF, one panel for each, two side by side.

    Args:
        rollouts: trajectories of mpe/spread by the name of their method, with the same seeds in the same order.
        episode: which of them; a shorter one waits at its end for the others.

    Raises:
        ValueError: there are no rollouts, or one has no such episode.
    """
    if not rollouts:
        raise ValueError("an animation needs the rollouts of at least one method")
    for name, trajectories in rollouts.items():
        if not 0 <= episode < trajectories.episodes:
            raise ValueError(f"{name} has no episode {episode}: choose one of 0 to {trajectories.episodes - 1}")
    with style():
        columns = min(2, len(rollouts))
        rows = -(-len(rollouts) // columns)
        canvas = Canvas(figsize=(3.2 * columns, 3.7 * rows), dpi=100)
        drawing = FigureCanvasAgg(canvas)
        cells = canvas.subplots(rows, columns, squeeze=False).ravel()
        stages = [_Stage(cell, *entry, episode) for cell, entry in zip(cells, rollouts.items(), strict=False)]
        limit = max(1.0, *(stage.reach for stage in stages)) + RADIUS
        for cell in cells[: len(stages)]:
            _square(cell, limit)
        for cell in cells[len(stages) :]:
            cell.set_axis_off()
        # Fixed, not fitted to each frame: only what moves may differ between frames, or the file grows.
        canvas.subplots_adjust(0.01, 0.005, 0.99, 1 - 0.53 / (3.7 * rows), wspace=0.04, hspace=0.19)
        length = max(stage.length for stage in stages)
        stride = -(-(length - 1) // (_FRAMES - 1)) or 1
        frames = []
        for step in sorted({*range(0, length, stride), length - 1}):
            for stage in stages:
                stage.show(step)
            drawing.draw()
            frames.append(Image.fromarray(np.asarray(drawing.buffer_rgba())).convert("RGB"))
    ends = ", ".join(f"{stage.name} {stage.returns[stage.length - 1]:.1f}" for stage in stages)
    caption = (
        "One episode with the same start for each method. Discs are agents, with short trails; a black rim means that "
        "the agent touches another. Dashed rings are the landmarks to be covered."
    )
    alt = f"Animation of {len(stages[0].discs)} agents over {length - 1} steps. Team return at the end: {ends}."
    return Figure("Teams at work", caption, "image/gif", _gif(frames), alt)


def _gif(frames: list[Image.Image]) -> bytes:
    """An endless animation with one palette for all frames, which rests at the last."""
    palette = frames[-1].quantize(64, dither=Image.Dither.NONE)
    # The palette's white is a mean of near-whites: a page's card would show through as a frame around the picture.
    palette.putpalette([255 if value > 248 else value for value in palette.getpalette() or []])
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    every = 1
    while True:
        first, *others = [*indexed[:-1:every], indexed[-1]]
        durations = [120 * every] * len(others) + [1800]
        buffer = io.BytesIO()
        first.save(buffer, "GIF", save_all=True, append_images=others, duration=durations, loop=0, disposal=1)
        if buffer.tell() <= _BYTES or len(others) < 2:
            return buffer.getvalue()
        every += 1

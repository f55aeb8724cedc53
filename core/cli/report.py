"""`convoy report`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import marl
from core.acting import Acting, GuidanceConfig, PlanningConfig
from core.algorithm import Algorithm
from core.cli.cells import algorithm_of, task_of
from core.cli.show import protocol_facts
from core.errors import UserError
from core.evaluations import Row
from core.figures import Figure, learning_curves, return_against_scale
from core.progress import bar, console
from core.report import write_report
from core.rollout import rollout
from core.runs import Run, versions
from core.samplers import SamplerConfig
from core.statistics import protocol
from core.training import read_metrics
from marl.figures import plan_figure, rollout_animation

_USAGE = "convoy report FOLDER...  [output=FILE]"

#: The episode that is drawn: the first of every evaluation, whatever comes of it.
_SEED = 1_000_000


def command(arguments: list[str]) -> None:
    options = [argument for argument in arguments if argument.startswith("output=")]
    folders = [argument.removeprefix("run=") for argument in arguments if argument not in options]
    if not folders or folders[0] in ("-h", "--help"):
        console.print(_USAGE, markup=False)
        return
    unknown = [folder for folder in folders if "=" in folder]
    if unknown:
        raise UserError(f"unknown option {unknown[0]!r}: write {_USAGE}")
    runs = [Run.open(Path(folder).expanduser()) for folder in folders]
    rows = [row for run in runs for row in run.rows()]
    if not rows:
        raise UserError(f"{folders[0]} has no evaluations yet: convoy evaluate run={folders[0]}")
    output = Path(options[-1].removeprefix("output=")) if options else runs[0].folder / "report.html"
    report_page(output, runs, rows, title=" and ".join(run.folder.name for run in runs), reproduce=_commands(runs))
    console.print(f"wrote {output}", highlight=False)


def _commands(runs: Sequence[Run]) -> list[str]:
    """The commands that make the runs again."""
    lines = []
    for run in runs:
        config = run.config
        options = f"task={config['task']['name']} algo={run.method} dataset={config['dataset']['id']}"
        lines.append(f"convoy train {options} trainer.seed={config['trainer']['seed']} run={run.folder}")
        lines.append(f"convoy evaluate run={run.folder}")
    return lines


def report_page(output: Path, runs: Sequence[Run], rows: list[Row], *, title: str, reproduce: list[str]) -> None:
    """Write the page of some runs: their evaluations, learning curves, the guidance ablation, a plan and rollouts."""
    curves = {f"{run.method} on {run.dataset}": read_metrics(run.folder / "metrics.csv") for run in runs}
    figures = [learning_curves(curves)]
    if len({row.guidance_scale for row in rows} - {None}) > 1:
        figures.append(return_against_scale(rows))
    with bar("drawing", len(runs)) as advance:
        figures += _pictures(runs, advance)
    write_report(
        output,
        title=title,
        subtitle=f"{len(runs)} trained runs, {len(rows)} evaluations",
        rows=rows,
        checks=protocol(protocol_facts([(run, run.rows()) for run in runs])),
        figures=figures,
        reproduce=reproduce,
        versions=versions(),
    )


def _pictures(runs: Sequence[Run], advance: Callable[[int], None]) -> list[Figure]:
    """A plan of the first planner being denoised, and one episode of every method on the last run's dataset."""
    figures: list[Figure] = []
    rollouts = {}
    for run in runs:
        task = task_of(run)
        if task.name != "mpe/spread":  # which the pictures show
            advance(1)
            continue
        algorithm = algorithm_of(run).load(run.folder)
        if isinstance(algorithm, marl.MADiff) and not figures:
            with task.make() as environments:
                start = environments.reset([_SEED]).observations
            known = torch.eye(len(start[0]), dtype=torch.bool)[:1] if algorithm.config.known == "own" else None
            figures.append(plan_figure(algorithm.plan(start, known=known, trace=True).trace))
        if run.dataset == runs[-1].dataset:
            guided = "scale" in algorithm.uses(algorithm.config)
            for scale in (0.0, GuidanceConfig.scale) if guided else (GuidanceConfig.scale,):
                name = f"{run.method}, scale {scale:g}" if guided else run.method
                policy = algorithm.policy(_acting(algorithm, scale))
                with task.make() as environments:
                    rollouts[name] = rollout(policy, environments, [_SEED]).trajectories
        advance(1)
    return [*figures, rollout_animation(rollouts)] if rollouts else figures


def _acting(algorithm: Algorithm, scale: float) -> Acting:
    """How a run acts in a picture: as it was trained to."""
    alone = getattr(algorithm.config, "known", "") == "own"
    sampler = SamplerConfig("consistency", steps=2) if isinstance(algorithm, marl.Distilled) else SamplerConfig()
    planning = PlanningConfig("decentralised" if alone else "centralised")
    return Acting(sampler, GuidanceConfig(scale), planning)

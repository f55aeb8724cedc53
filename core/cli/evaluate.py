"""`convoy evaluate`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.table import Table

import marl
import safe
from core.algorithm import Algorithm
from core.checkpoints import load
from core.cli.commands import Evaluate
from core.cli.compose import configure_grid
from core.config import from_dict
from core.errors import UserError, nearest
from core.progress import bar, console
from core.rollout import rollout
from core.runs import Row, Run
from core.statistics import mean_interval


def command(arguments: list[str]) -> None:
    cells = configure_grid("evaluate", arguments)
    if not cells:
        return
    runs = {cell.run: Run.open(Path(cell.run).expanduser()) for cell in cells}
    cells = distinct(cells, runs)
    total = sum(cell.episodes * task_of(runs[cell.run]).max_cycles for cell in cells)
    rows: list[Row] = []
    with bar("evaluating", total) as advance:
        for name, run in runs.items():
            rows += evaluate(run, [cell for cell in cells if cell.run == name], advance)
    console.print(table(rows))
    for line in dict.fromkeys(_references(task_of(run)) for run in runs.values()):
        console.print(line, highlight=False)


def _references(task: marl.TaskConfig) -> str:
    """What a normalised score of the task means."""
    if task.references is None:
        return f"{task.name} with these settings has no reference scores"
    scores = task.references
    return f"normalised: 0 is {scores.random:g}, 100 is {scores.expert:g} ({scores.source})"


def distinct(cells: Sequence[Evaluate], runs: dict[str, Run]) -> list[Evaluate]:
    """The cells without those that differ only in what their run's algorithm does not use."""
    seen: dict[str, Evaluate] = {}
    for cell in cells:
        uses = _uses(runs[cell.run])
        key = [cell.run, cell.episodes, cell.seed, cell.cost_limit]
        key += [cell.temperature, cell.sampler] if "sampler" in uses else []
        key += [cell.guidance.scale] if "scale" in uses else []
        key += [cell.guidance.returns] if "returns" in uses else []
        seen.setdefault(repr(key), cell)
    return list(seen.values())


def algorithm_of(run: Run) -> type[Algorithm]:
    """The class of a run's algorithm.

    Raises:
        UserError: the run names none that exists.
    """
    name = str(run.config["algo"].get("name"))
    if name not in marl.ALGORITHMS:
        raise UserError(f"{run.folder} is a run of an unknown algorithm {name!r}: {nearest(name, marl.ALGORITHMS)}")
    return marl.ALGORITHMS[name]


def _uses(run: Run) -> frozenset[str]:
    algorithm = algorithm_of(run)
    return algorithm.uses(from_dict(algorithm.config_class, run.config["algo"], f"{run.folder}/config.yaml"))


def task_of(run: Run) -> marl.TaskConfig:
    """The task that a run was trained for.

    Raises:
        UserError: its configuration describes none.
    """
    task = from_dict(marl.TaskConfig, run.config["task"], f"{run.folder}/config.yaml")
    assert isinstance(task, marl.TaskConfig)
    return task


def evaluate(run: Run, cells: Sequence[Evaluate], progress: Callable[[int], None] = lambda steps: None) -> list[Row]:
    """Evaluate a run under each of the given sampling sides, and keep the rows in its table.

    A cell that stands in the table already is not rolled out again.

    Raises:
        UserError: the run cannot be loaded.
    """
    task, uses = task_of(run), _uses(run)
    metadata = load(run.checkpoint)[1]
    rows = []
    for cell in cells:
        torch.set_num_threads(cell.threads)
        settings: dict[str, Any] = {
            "sampler": describe(cell) if "sampler" in uses else "",
            "guidance_scale": cell.guidance.scale if "scale" in uses else None,
            "returns": cell.guidance.returns if "returns" in uses else None,
            "episodes": cell.episodes,
            "seed": cell.seed,
            "cost_limit": cell.cost_limit,
            "training_steps": int(metadata["step"]),
        }
        known = [row for row in run.rows() if settings.items() <= asdict(row).items()]
        if known:
            progress(cell.episodes * task.max_cycles)
            rows.append(known[-1])
            continue
        algorithm = algorithm_of(run).load(run.folder, cell.device)
        seeds = range(cell.seed, cell.seed + cell.episodes)
        result = rollout(algorithm.policy(cell), task.make, seeds, parallel=cell.parallel, progress=progress)
        mean, interval = mean_interval(result.trajectories.scores)
        costs = result.trajectories.episode_sums(result.trajectories.costs).mean(dim=1)
        limit = cell.cost_limit
        row = Row(
            dataset=run.dataset,
            method=run.method,
            **settings,
            return_mean=mean,
            interval=interval,
            normalised_score=task.references.normalise(mean) if task.references else None,
            cost_mean=float(costs.mean()),
            seconds_per_decision=result.seconds_per_decision,
            training_seconds=float(metadata["seconds"]),
            violation_rate=None if limit is None else safe.summarise_costs(costs, limit).violation_rate,
        )
        run.append_rows([row])
        rows.append(row)
    return rows


def describe(cell: Evaluate) -> str:
    """The sampler's part of a table."""
    return f"{cell.sampler}" + (f", temperature {cell.temperature:g}" if cell.temperature != 1 else "")


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

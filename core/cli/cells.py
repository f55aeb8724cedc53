"""What an evaluation is of: the cells of a run's grid, by what its algorithm uses."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from core.algorithm import Algorithm
from core.checkpoints import read_metadata
from core.cli.commands import Evaluate
from core.cli.registry import algorithm_class, task_from
from core.config import from_dict
from core.evaluations import Cell, Row
from core.runs import Run
from core.samplers.config import number
from core.tasks import Task


def algorithm_of(run: Run) -> type[Algorithm]:
    """The class of a run's algorithm.

    Raises:
        UserError: the run names none that exists.
    """
    return algorithm_class(str(run.config["algo"].get("name")), str(run.folder))


def uses_of(run: Run) -> frozenset[str]:
    """What changes what the policy of a run does (`core.Algorithm.uses`)."""
    algorithm = algorithm_of(run)
    return algorithm.uses(from_dict(algorithm.config_class, run.config["algo"], f"{run.folder}/config.yaml"))


def task_of(run: Run) -> Task:
    """The task that a run was trained for.

    Raises:
        UserError: its configuration describes none.
    """
    return task_from(run.config["task"], f"{run.folder}/config.yaml")


def cells_of(run: Run, commands: Sequence[Evaluate]) -> list[Cell]:
    """What each command evaluates of a run; equal for those that differ only in what its algorithm does not use."""
    uses, task = uses_of(run), task_of(run)
    steps = int(read_metadata(run.checkpoint)["step"])
    return [
        Cell(
            sampler=describe(command, uses, run.config["algo"].get("horizon", 0)) if "sampler" in uses else "",
            sampler_steps=command.sampler.steps if "sampler" in uses else None,
            guidance_scale=command.guidance.scale if "scale" in uses else None,
            returns=command.guidance.returns if "returns" in uses else None,
            episodes=command.episodes,
            seed=command.seed,
            budget=command.guidance.budget,
            training_steps=steps,
            shift=", ".join(filter(None, (command.shift.label(task), _change(command) if "budget" in uses else ""))),
        )
        for command in commands
    ]


def describe(command: Evaluate, uses: Collection[str], horizon: int = 0) -> str:
    """The sampler's part of a table: all of the sampling side that an algorithm uses and nothing else tells.

    horizon: of the plans that it was trained on.
    """
    temperature = f"temperature {number(command.temperature)}" if command.temperature != 1 else ""
    plans = command.planning
    plans = replace(plans, horizon=0) if plans.horizon == horizon else plans
    planning = str(plans) if "planning" in uses else ""
    selection = str(command.selection) if "selection" in uses else ""
    moves = str(command.move) if "move" in uses else ""
    return ", ".join(filter(None, (str(command.sampler), temperature, planning, moves, selection)))


def _change(command: Evaluate) -> str:
    """What becomes of the budget within an episode."""
    guidance = command.guidance
    if guidance.budget is None:
        return ""
    words = [f"reserve {number(guidance.reserve)}"] if guidance.reserve else []
    if guidance.budget_factor != 1:
        when = "within the episode" if guidance.budget_change < 0 else f"from step {guidance.budget_change}"
        words.append(f"budget x{number(guidance.budget_factor)} {when}")
    return ", ".join(words)


def distinct(run: Run, commands: Sequence[Evaluate]) -> list[Evaluate]:
    """The commands without those whose cell an earlier one has."""
    once: dict[Cell, Evaluate] = {}
    for cell, command in zip(cells_of(run, commands), commands, strict=True):
        once.setdefault(cell, command)
    return list(once.values())


def heeds_budgets(run: Run) -> bool:
    """Whether a run's policy does something else under another budget."""
    return "budget" in uses_of(run)


def missing(run: Run, commands: Sequence[Evaluate]) -> list[Evaluate]:
    """The commands whose cells have no row in the run's table yet, each cell once."""
    known = {row.cell for row in run.rows()}
    once = distinct(run, commands)
    return [command for cell, command in zip(cells_of(run, once), once, strict=True) if cell not in known]


def found(run: Run, commands: Sequence[Evaluate]) -> list[Row]:
    """The rows of the commands' cells."""
    rows = {row.cell: row for row in run.rows()}
    return [rows[cell] for cell in cells_of(run, commands)]

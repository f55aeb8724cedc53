"""`convoy evaluate`: every combination of the given options over trained runs, each rolled out once."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

import safe
from core.acting import GuidanceConfig
from core.algorithm import Algorithm
from core.checkpoints import read_metadata
from core.cli.cells import algorithm_of, cells_of, distinct, found, heeds_budgets, missing, task_of
from core.cli.commands import Evaluate
from core.cli.compose import configure_grid
from core.cli.pool import Job, Report, run_jobs, workers_of
from core.cli.show import print_protocol, print_rows
from core.config import swept
from core.errors import UserError
from core.evaluations import Cell, Row
from core.files import locked
from core.frames import find_runs
from core.noise import normal
from core.progress import bar, console
from core.rollout import policy_keys, rollout
from core.runs import Run, version
from core.statistics import mean_interval
from core.tasks import Task

Progress = Callable[[int], None]

#: Options that do not change a cell.
_HOW = ("parallel", "device", "threads", "workers")

#: Stream of an episode's noise that says when its budget changes.
_CHANGE = -10


def command(arguments: list[str]) -> None:
    cells = configure_grid("evaluate", arguments)
    if not cells:
        return
    for name in swept(arguments):
        if name in _HOW:
            raise UserError(f"{name} takes one value: it changes how cells are rolled out, not what they are")
    asked: dict[Path, tuple[Run, list[Evaluate]]] = {}
    runs_of = {name: _trained(name) for name in dict.fromkeys(cell.run for cell in cells)}
    for cell in cells:
        for run in runs_of[cell.run]:
            asked.setdefault(run.folder.resolve(), (run, []))[1].append(cell)
    runs = [run for run, _ in asked.values()]
    grid = [(run, distinct(run, commands)) for run, commands in asked.values()]
    evaluated = evaluate_all(grid, workers=cells[0].workers)
    print_rows(list(zip(runs, evaluated, strict=True)))
    tasks = (command.shift.of(task_of(run)) for run, commands in grid for command in commands)
    for line in dict.fromkeys(map(_references, tasks)):
        console.print(line, highlight=False)
    print_protocol(list(zip(runs, evaluated, strict=True)))


def _trained(folder: str) -> list[Run]:
    """The run of a folder, or all those in it that have a checkpoint."""
    runs = find_runs([folder])
    if len(runs) == 1:
        return runs
    for run in runs:
        if not run.checkpoint.exists():
            console.print(f"passed over {run.folder}: it has no checkpoint yet", highlight=False)
    return [run for run in runs if run.checkpoint.exists()]


def _references(task: Task) -> str:
    """What a normalised score of the task means."""
    if task.references is None:
        return f"{task.name} with these settings has no reference scores"
    scores = task.references
    return f"normalised: 0 is {scores.random:g}, 100 is {scores.expert:g} ({scores.source})"


def evaluate_all(grid: Sequence[tuple[Run, Sequence[Evaluate]]], *, workers: int = 1) -> list[list[Row]]:
    """Evaluate runs, each under its commands, and keep the rows in the runs' tables; those that stand there already
    are not rolled out again.

    Args:
        workers: processes, with the cells shared out among them; 0 takes one for each core.

    Raises:
        UserError: a run cannot be loaded, is being evaluated by another process, or cannot be written to.
    """
    workers = workers_of(workers)
    with ExitStack() as locks:
        for run, _ in grid:
            locks.enter_context(locked(run.folder / ".evaluating", "evaluating it"))
        todo = [(run, missing(run, commands)) for run, commands in grid]
        total = sum(steps_of(run, commands) for run, commands in todo)
        if workers > 1 and sum(len(commands) for _, commands in todo) > 1:
            share = -(-workers // max(1, len(todo)))
            jobs = [
                Job(f"evaluating {run.folder.name}", steps_of(run, part), _evaluate_part, (run.folder, part))
                for run, commands in todo
                for first in range(share)
                if (part := commands[first::share])
            ]
            run_jobs(jobs, workers)
        elif total:
            with bar("evaluating", total) as advance:
                for run, commands in todo:
                    roll_out(run, commands, advance)
        return [found(run, commands) for run, commands in grid]


def steps_of(run: Run, commands: Sequence[Evaluate]) -> int:
    """Environment steps, at most, of some evaluations of a run."""
    return sum(command.episodes for command in commands) * task_of(run).max_cycles


def _evaluate_part(folder: Path, commands: Sequence[Evaluate], report: Report) -> None:
    done = 0

    def progress(steps: int) -> None:
        nonlocal done
        done += steps
        report(done, "")

    roll_out(Run.open(folder), commands, progress)


def evaluate(run: Run, commands: Sequence[Evaluate], progress: Progress = lambda steps: None) -> list[Row]:
    """`evaluate_all` of one run, in this process."""
    with locked(run.folder / ".evaluating", "evaluating it"):
        roll_out(run, missing(run, commands), progress)
        return found(run, commands)


def roll_out(run: Run, commands: Sequence[Evaluate], progress: Progress = lambda steps: None) -> None:
    """Roll out each command's cell, several small ones at once, and add its row to the run's table."""
    if not commands:
        return
    tasks = {repr(command.shift): command.shift.of(task_of(run)) for command in commands}
    heeded = heeds_budgets(run)
    algorithms: dict[str, Algorithm] = {}
    with ExitStack() as stack:
        made = {shift: stack.enter_context(task.make()) for shift, task in tasks.items()}
        for pack in packs(commands, heeded):
            torch.set_num_threads(pack[0].threads)
            device, shift = pack[0].device, repr(pack[0].shift)
            task, environments = tasks[shift], made[shift]
            if device not in algorithms:
                algorithms[device] = algorithm_of(run).load(run.folder, device)
            once = {_episodes(command, heeded): command for command in pack}
            seeds = [seed for one in once.values() for seed in range(one.seed, one.seed + one.episodes)]
            guidance = [one for command in once.values() for one in guidance_of(command, task)]
            algorithm = algorithms[device].for_team(environments.spec)
            policy = algorithm.policy(pack[0], guidance if len(set(map(repr, guidance))) > 1 else ())
            result = rollout(policy, environments, seeds, parallel=pack[0].parallel, progress=progress)
            cells = cells_of(run, pack)
            if cells[0].training_steps != algorithm.steps:
                raise UserError(f"{run.folder} was trained further meanwhile: evaluate it again")
            scores = result.trajectories.scores.split([one.episodes for one in once.values()])
            costs = result.trajectories.episode_sums(result.trajectories.costs).mean(dim=1)
            outcomes = dict(zip(once, zip(scores, costs.split(list(map(len, scores))), strict=True), strict=True))
            teams = min(len(seeds), pack[0].parallel)
            # Of a mixture, no cell has a time of its own.
            seconds = result.seconds_per_decision if len(once) == 1 else None
            run.append_rows(
                [
                    _row(
                        run,
                        task,
                        cell,
                        *outcomes[_episodes(command, heeded)],
                        factor=command.guidance.budget_factor if heeded else 1.0,
                        teams=teams,
                        seconds=seconds,
                    )
                    for cell, command in zip(cells, pack, strict=True)
                ]
            )


def guidance_of(command: Evaluate, task: Task) -> list[GuidanceConfig]:
    """What each episode of a command is asked for; a change of the budget that has no time of its own comes at one
    between a quarter and three quarters of the episode, which its seed decides."""
    guidance = command.guidance
    seeds = range(command.seed, command.seed + command.episodes)
    if guidance.budget is None or guidance.budget_factor == 1 or guidance.budget_change >= 0:
        return [guidance] * len(seeds)
    shares = torch.special.ndtr(normal(policy_keys(seeds), (1,), stream=_CHANGE)).flatten()
    changes = ((0.25 + 0.5 * shares) * task.max_cycles).long().tolist()
    return [replace(guidance, budget_change=change) for change in changes]


def packs(commands: Sequence[Evaluate], heeded: bool = True) -> Iterator[list[Evaluate]]:
    """Commands that are rolled out together: what they ask of an episode may differ, their sampler may not.

    heeded: whether budgets change the episodes; otherwise commands that differ in these alone share theirs.

    A command with `parallel` episodes or more fills a batch by itself. Guidance of scale 0 or 1 then costs one network
    call for each team instead of two.
    """

    def shared(command: Evaluate) -> str:
        sampling = (command.sampler, command.planning, command.selection, command.move, command.temperature)
        return repr((*sampling, command.shift, command.parallel, command.device, command.threads))

    for _, group in groupby(sorted(commands, key=lambda one: (shared(one), _episodes(one, heeded))), key=shared):
        pack: list[Evaluate] = []
        for command in group:
            sizes = {_episodes(one, heeded): one.episodes for one in [*pack, command]}
            if len(sizes) > 1 and sum(sizes.values()) > command.parallel:
                yield pack
                pack = []
            pack.append(command)
        yield pack


def _episodes(command: Evaluate, heeded: bool) -> str:
    """What tells the episodes of commands with one sampler apart."""
    guidance = command.guidance if heeded else replace(command.guidance, budget=None)
    return repr((guidance, command.seed, command.episodes))


def _row(
    run: Run,
    task: Task,
    cell: Cell,
    scores: Tensor,
    costs: Tensor,
    *,
    factor: float,
    teams: int,
    seconds: float | None,
) -> Row:
    mean, interval = mean_interval(scores)
    allowed = None if cell.budget is None else cell.budget * factor
    spent = safe.summarise_costs(costs, allowed or 0.0)
    cost, (low, high) = mean_interval(costs)
    return Row(
        dataset=run.dataset,
        method=run.method,
        **vars(cell),
        return_mean=mean,
        interval=interval,
        normalised_score=task.references.normalise(mean) if task.references else None,
        cost_mean=cost,
        cost_low=low if math.isfinite(low) else None,
        cost_high=high if math.isfinite(high) else None,
        cost_worst=spent.worst,
        cost_tail=spent.cvar,
        seconds_per_decision=seconds,
        teams=teams,
        training_seconds=float(read_metadata(run.checkpoint)["seconds"]),
        violation_rate=None if allowed is None else spent.violation_rate,
        version=version(),
    )

"""What trained policies do when their budget changes within an episode.

    python benchmarks/budget_changes.py RUN... budget=36 [factors=1,0.5,2,0] [episodes=200] [output=FOLDER]
        [options of `convoy evaluate`, such as guidance.scale=0 planning.every=5]

Every run must heed budgets. Its episodes begin with the budget, which is multiplied by a factor at a step between a
quarter and three quarters of the episode, drawn by its seed, or at guidance.budget_change. All factors are rolled out
in one batch, from the same seeds and with changes at the same steps, so that they differ in the change alone; 1 is no
change. A new budget is feasible where what was spent by then is within it. Costs are not discounted.

Prints a line for each run and factor, with 95% intervals, and writes budget_changes.json and budget_changes.png, the
mean cost so far around the change, to `output` (benchmarks/ and docs/ unless given).
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from core.acting import GuidanceConfig
from core.cli.cells import algorithm_of, describe, heeds_budgets, task_of, uses_of
from core.cli.commands import Evaluate
from core.cli.compose import configure
from core.cli.evaluate import guidance_of
from core.cli.main import guarded
from core.data import Trajectories
from core.errors import UserError
from core.figures import colour, style
from core.files import write_text
from core.frames import find_runs
from core.rollout import rollout
from core.runs import Run, versions
from core.statistics import mean_interval
from core.statistics.shares import wilson
from core.tasks import Task

ROOT = Path(__file__).resolve().parents[1]

#: A mean or a share, and its 95% interval over episodes, None where there is none.
Mean = tuple[float, float | None, float | None]


@dataclass(frozen=True)
class Outcome:
    """Episodes whose budget was multiplied by a factor.

    Attributes:
        budget: the new one. episodes: those that still ran when it came; the rest is of them.
        feasible: share that had spent no more than it. within: share of the feasible ones that kept to it.
        before, after: mean cost up to the change and from it on. returns: mean return.
        overspent: share that the policy flagged at any time, None where it has no such flag.
    """

    factor: float
    budget: float
    episodes: int
    feasible: Mean | None
    within: Mean | None
    before: Mean | None
    after: Mean | None
    returns: Mean | None
    overspent: Mean | None

    def __str__(self) -> str:
        names = ("feasible", "within", "before", "after", "returns", "overspent")
        parts = [f"{name} {_words(getattr(self, name))}" for name in names]
        return f"x{self.factor:g} to {self.budget:g}, {self.episodes} episodes: {', '.join(parts)}"


@dataclass(frozen=True)
class Measured:
    """A run, what came of each factor, and the costs so far [E, 2 L + 1] around the change (`around`)."""

    run: Run
    outcomes: list[Outcome]
    curves: list[Tensor]


def costs_so_far(trajectories: Trajectories) -> Tensor:
    """Cost [E, L + 1] of the first 0, 1, ..., L steps of each episode, averaged over the agents; after an episode's end
    it stays."""
    rows = trajectories.decisions
    costs = torch.zeros(trajectories.episodes, int(trajectories.time.max()) + 1, dtype=torch.float64)
    costs[trajectories.episode[rows], trajectories.time[rows] + 1] = trajectories.costs[rows].double().mean(dim=1)
    return costs.cumsum(dim=1)


def around(spent: Tensor, changes: Tensor) -> Tensor:
    """Costs so far [E, L + 1] by the steps from L before the changes [E] to L after them, [E, 2 L + 1]."""
    last = spent.shape[1] - 1
    return spent.gather(1, (changes[:, None] + torch.arange(-last, last + 1)).clamp(0, last))


def outcome(
    trajectories: Trajectories, changes: Tensor, budget: float, factor: float, overspent: Tensor | None = None
) -> Outcome:
    """What came of episodes that began with a budget, multiplied by a factor from the steps `changes` [E] on; those
    that had ended by then are left out."""
    ran = changes < trajectories.offsets.diff() - 1
    spent, allowed = costs_so_far(trajectories)[ran], budget * factor
    before, total = spent.gather(1, changes[ran, None]).squeeze(1), spent[:, -1]
    feasible = before <= allowed
    return Outcome(
        factor,
        allowed,
        int(ran.sum()),
        feasible=_share(feasible),
        within=_share(total[feasible] <= allowed),
        before=_mean(before),
        after=_mean(total - before),
        returns=_mean(trajectories.scores[ran]),
        overspent=None if overspent is None else _share(overspent[ran]),
    )


def _mean(values: Tensor) -> Mean | None:
    if not len(values):
        return None
    mean, (low, high) = mean_interval(values)
    return (mean, low, high) if math.isfinite(low) else (mean, None, None)


def _share(values: Tensor) -> Mean | None:
    if not len(values):
        return None
    share = float(values.double().mean())
    low, high = wilson(np.array([share]), len(values), True, 0.95)
    return share, float(low), float(high)


def _words(value: Mean | None) -> str:
    if value is None or value[1] is None:
        return "-" if value is None else f"{value[0]:.2f}"
    return f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})"


def asked_for(command: Evaluate, task: Task, factors: Sequence[float]) -> list[GuidanceConfig]:
    """What each episode is asked for, all of the first factor first; changes come at the same steps for each."""
    drawn = guidance_of(replace(command, guidance=replace(command.guidance, budget_factor=0.0)), task)
    return [replace(one, budget_factor=factor) for factor in factors for one in drawn]


def measure(run: Run, command: Evaluate, factors: Sequence[float]) -> Measured:
    """Roll out a run under every factor.

    Raises:
        UserError: budgets are nothing to the run's policy.
    """
    if not heeds_budgets(run):
        raise UserError(f"{run.folder}, of {run.method}, does the same whatever the budget: leave it out")
    task = command.shift.of(task_of(run))
    guidance = asked_for(command, task, factors)
    changes = torch.tensor([one.budget_change for one in guidance[: command.episodes]])
    seeds = [*range(command.seed, command.seed + command.episodes)] * len(factors)
    with task.make() as environments:
        policy = algorithm_of(run).load(run.folder, command.device).policy(command, guidance)
        data = rollout(policy, environments, seeds, parallel=len(seeds)).trajectories
    flags = getattr(policy, "overspent", None)
    measured = Measured(run, [], [])
    for factor, rows in zip(factors, torch.arange(len(seeds)).split(command.episodes), strict=True):
        part, flagged = data.subset(rows), None if flags is None else flags[rows]
        ran = changes < part.offsets.diff() - 1
        measured.outcomes.append(outcome(part, changes, command.guidance.budget or 0.0, factor, flagged))
        measured.curves.append(around(costs_so_far(part)[ran], changes[ran]))
    return measured


def draw(found: Sequence[Measured], budget: float, path: Path) -> None:
    """Mean cost so far around the change, with the range of 80% of the episodes; a panel for each factor."""
    factors = [one.factor for one in found[0].outcomes]
    with style():
        figure = Figure(figsize=(3.2 * len(factors), 3.4 + 0.22 * len(found)), layout="constrained")
        panels = figure.subplots(1, len(factors), sharey=True, squeeze=False)[0]
        for place, (axes, factor) in enumerate(zip(panels, factors, strict=True)):
            far = max(one.curves[place].shape[1] // 2 for one in found)
            for index, one in enumerate(found):
                costs, tint = one.curves[place], colour(index)
                if not len(costs):  # all episodes had ended before
                    continue
                steps = torch.arange(costs.shape[1]) - costs.shape[1] // 2
                low, high = torch.quantile(costs, costs.new_tensor([0.1, 0.9]), dim=0)
                axes.plot(steps, costs.mean(dim=0), color=tint, label=f"{one.run.method}, {one.run.folder.name}")
                axes.fill_between(steps, low, high, color=tint, alpha=0.15, linewidth=0)
            for ends, allowed, name, dashes in (
                ([-far, 0], budget, "budget at first", (2, 1.5)),
                ([0, far], budget * factor, "budget from the change on", (6, 2)),
            ):
                axes.plot(ends, [allowed, allowed], color="#333333", dashes=dashes, label=name)
            axes.set_title("no change" if factor == 1 else f"budget x{factor:g}", loc="left")
            axes.set(xlabel="steps from the change", xlim=(-0.75 * far, 0.75 * far))
            axes.grid(True)
        panels[0].set_ylabel("cost so far")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


def work(arguments: Sequence[str]) -> None:
    """Measure the runs that the arguments name.

    Raises:
        UserError: no runs, no budget, or an option that means nothing.
    """
    own = {"factors": "1,0.5,2,0", "output": ""}
    folders = [argument for argument in arguments if "=" not in argument]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    own |= {name: options.pop(name) for name in own if name in options}
    if not folders:
        raise UserError("name the folders of trained runs: python benchmarks/budget_changes.py RUN... budget=36")
    command = configure("evaluate", ["run=any", *(f"{name}={value}" for name, value in options.items())])
    budget = command.guidance.budget
    if budget is None:
        raise UserError("budget= is missing: what an episode may cost before the change, such as budget=36")
    try:
        factors = [float(factor) for factor in own["factors"].split(",")]
    except ValueError as error:
        raise UserError(f"factors={own['factors']} cannot be read: write numbers, such as 0.5,2,0") from error
    torch.set_num_threads(command.threads)
    found = []
    for run in find_runs(folders):
        found.append(measure(run, command, factors))
        print(run.folder, *(f"  {one}" for one in found[-1].outcomes), sep="\n", flush=True)
    rows = [
        {"run": str(one.run.folder), "method": one.run.method, "task": one.run.config["task"]["name"]}
        | {"dataset": one.run.dataset, "asked": describe(command, uses_of(one.run))}
        | {"changes": [asdict(each) for each in one.outcomes]}
        for one in found
    ]
    record = {"budget": budget, "guidance": vars(command.guidance), "seed": command.seed, "versions": versions()}
    folder = Path(own["output"]) if own["output"] else None
    write_text(
        (folder or ROOT / "benchmarks") / "budget_changes.json", json.dumps(record | {"runs": rows}, indent=1) + "\n"
    )
    draw(found, budget, (folder or ROOT / "docs") / "budget_changes.png")


if __name__ == "__main__":
    sys.exit(guarded("budget_changes", lambda: work(sys.argv[1:])))

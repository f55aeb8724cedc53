"""`convoy data`."""

from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.table import Table

import marl
from core.cli.commands import data_root
from core.data import Dataset, list_datasets, read_dataset
from core.errors import UserError, nearest
from core.progress import bar, console
from core.statistics import mean_interval

_USAGE = "convoy data list | info DATASET  [data=FOLDER]"


def command(arguments: list[str]) -> None:
    options = [argument for argument in arguments if argument.startswith("data=")]
    words = [argument for argument in arguments if argument not in options]
    if not words or words[0] in ("-h", "--help"):
        console.print(_USAGE, markup=False)
        return
    verbs = ("list", "info")
    if words[0] not in verbs:
        raise UserError(f"unknown verb {words[0]!r} of convoy data: {nearest(words[0], verbs)}")
    root = data_root(options[-1].removeprefix("data=") if options else None)
    if words[0] == "list":
        if len(words) > 1:
            raise UserError(f"convoy data list takes no {words[1]!r}: write {_USAGE}")
        names = list_datasets(root)
        if not names:
            raise UserError(f"no datasets in {root}: collect one with convoy collect task=mpe/spread quality=expert")
        _print_summary(names, root)
    else:
        if len(words) != 2:
            raise UserError(f"convoy data info takes one dataset: write {_USAGE}")
        with console.status(f"reading {words[1]}"):
            dataset = read_dataset(words[1], root)
        _info(dataset)


def _print_summary(names: list[str], root: Path) -> None:
    result = Table(title=str(root), box=SIMPLE)
    for heading in ("dataset", "behaviour", "episodes", "steps", "agents", "mean return", "spread", "normalised", "MB"):
        left = heading in ("dataset", "behaviour")
        result.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=heading == "dataset")
    unreadable: list[str] = []
    with bar("reading", len(names)) as advance:
        for name in names:
            try:
                dataset = read_dataset(name, root)
            except UserError as error:
                result.add_row(name, "unreadable")
                unreadable.append(str(error))
                advance(1)
                continue
            scores = dataset.trajectories.scores
            result.add_row(
                name,
                dataset.provenance.quality,
                str(dataset.trajectories.episodes),
                str(dataset.trajectories.steps),
                str(dataset.trajectories.agents),
                f"{scores.mean():.2f}",
                f"{scores.std():.2f}",
                _normalised(dataset, float(scores.mean())),
                f"{dataset.bytes / 1e6:.1f}",
            )
            advance(1)
    console.print(result)
    if unreadable:
        raise UserError("; ".join(unreadable))


def _normalised(dataset: Dataset, score: float) -> str:
    references = dataset.provenance.references
    return f"{marl.References(**references).normalise(score):.1f}" if references else ""


def _info(dataset: Dataset) -> None:
    trajectories, provenance = dataset.trajectories, dataset.provenance
    scores = trajectories.scores
    mean, interval = mean_interval(scores)
    result = Table(title=dataset.id, show_header=False, box=SIMPLE)
    lengths = trajectories.offsets[1:] - trajectories.offsets[:-1] - 1
    levels = torch.quantile(scores, torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])).tolist()
    costs = trajectories.episode_sums(trajectories.costs)
    facts = {
        "task": f"{provenance.task or 'unknown'}, rules {provenance.rules or 'unknown'}",
        "behaviour": f"{provenance.quality}: {', '.join(f'{k} {v}' for k, v in provenance.behaviour.items())}",
        "episodes": f"{trajectories.episodes} of {int(lengths.min())} to {int(lengths.max())} steps, "
        f"{trajectories.steps} in all",
        "agents": f"{trajectories.agents}: {', '.join(provenance.agents)}",
        "observation, action": f"{trajectories.observations.shape[-1]}, {trajectories.actions.shape[-1]} an agent",
        "mean return": f"{mean:.3f}, 95% interval {interval[0]:.3f} to {interval[1]:.3f}",
        "normalised": _normalised(dataset, mean),
        "spread": f"standard deviation {scores.std():.3f}; "
        f"least, 10%, median, 90%, most: {', '.join(f'{level:.2f}' for level in levels)}",
        "cost": f"{costs.mean():.3f} an episode and agent",
        "ends": f"{int(trajectories.terminated.sum())} terminated, "
        f"{int((~trajectories.terminated).sum())} cut off by time",
        "seed": str(provenance.seed),
        "made by": provenance.generator,
        "licence": provenance.licence,
        "size": f"{dataset.bytes / 1e6:.1f} MB",
    }
    for tag in trajectories.tags.unique().tolist():
        if 0 <= tag < len(provenance.behaviours) and len(trajectories.tags.unique()) > 1:
            chosen = scores[trajectories.tags == tag]
            facts[f"  {provenance.behaviours[tag]}"] = f"{len(chosen)} episodes, mean return {chosen.mean():.3f}"
    for name, fact in facts.items():
        result.add_row(name, fact)
    console.print(result)

"""`convoy data`."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from rich.box import SIMPLE
from rich.table import Table

import marl
import safe
from core.cli.commands import data_root
from core.data import Dataset, Provenance, Trajectories, list_datasets, read_dataset, write_dataset
from core.data.importers import ImportOptions, download_minari, import_foreign
from core.errors import UserError, nearest
from core.front_figures import check_figure, draw_episodes
from core.progress import bar, console
from core.runs import versions
from core.statistics import mean_interval
from core.tasks import References
from marl.environments import REFERENCES

_USAGE = (
    "convoy data list | info DATASET [figure=FILE.png] | import PATH id=DATASET | import minari:DATASET  [data=FOLDER]"
)

_REMOTE = "minari:"


@dataclass(frozen=True)
class Import(ImportOptions):
    """Import a file or folder of another format as a dataset, or download one of Minari's: `import minari:ID`.

    Attributes:
        id: of the new dataset, such as mpe/spread/omar/expert-v0. format: "omar", "hdf5" or "vault", by the look of the
            path unless given.
        task, rules, quality: what made the data, read off an id of the form TASK/RULES/QUALITY-v0 of a known task.
        licence: of the data. data: folder of datasets, Minari's own unless given.
        overwrite: replace a dataset of the same id.
    """

    id: str = ""
    format: str = "auto"
    task: str = ""
    rules: str = ""
    quality: str = ""
    licence: str = ""
    data: str = ""
    overwrite: bool = False


_OPTIONS = tuple(f"{one.name}=" for one in fields(Import))


def command(arguments: list[str]) -> None:
    given = {name: [one for one in arguments if one.startswith(f"{name}=")] for name in ("data", "figure")}
    options, figures = given["data"], [Path(one.removeprefix("figure=")) for one in given["figure"]]
    words = [argument for argument in arguments if not argument.startswith(("data=", "figure="))]
    if not words or words[0] in ("-h", "--help"):
        console.print(_USAGE, markup=False)
        return
    if words[0] == "import":
        rest = list(arguments)
        rest.remove("import")
        _import(rest)
        return
    verbs = ("list", "info", "import")
    if words[0] not in verbs:
        raise UserError(f"unknown verb {words[0]!r} of convoy data: {nearest(words[0], verbs)}")
    root = data_root(options[-1].removeprefix("data=") if options else None)
    if words[0] == "list":
        if idle := [*words[1:], *given["figure"]]:
            raise UserError(f"convoy data list takes no {idle[0]!r}: write {_USAGE}")
        names = list_datasets(root)
        if not names:
            raise UserError(f"no datasets in {root}: collect one with convoy collect task=mpe/spread quality=expert")
        _print_summary(names, root)
    else:
        if len(words) != 2:
            raise UserError(f"convoy data info takes one dataset: write {_USAGE}")
        for figure in figures:
            check_figure(figure)
        with console.status(f"reading {words[1]}"):
            dataset = read_dataset(words[1], root)
        _info(dataset)
        for figure in figures:
            task = safe.TASKS.get(dataset.provenance.task)
            draw_episodes(
                dataset.id,
                dataset.trajectories,
                figure.expanduser(),
                behaviours=dataset.provenance.behaviours,
                budget=task.budget if task else None,
            )
            console.print(f"wrote {figure}", highlight=False)


def _import(arguments: Sequence[str]) -> None:
    if not arguments or {"-h", "--help"} & set(arguments):
        for text in (_USAGE, "", inspect.getdoc(Import), "", inspect.getdoc(ImportOptions)):
            console.print(text, markup=False, highlight=False)
        return
    path = next((argument for argument in arguments if not argument.startswith(_OPTIONS)), None)
    if path is None:
        raise UserError(f"convoy data import needs a path: write {_USAGE}")
    config = _options([argument for argument in arguments if argument != path])
    dataset_id, data, notes = _download(path, config) if path.startswith(_REMOTE) else _convert(Path(path), config)
    console.print(
        f"wrote {dataset_id} to {data_root(config.data)}: {data.episodes} episodes, {data.steps} steps, "
        f"A = {data.agents}, mean return {data.scores.mean():.2f}",
        *(f"  {note}" for note in notes),
        sep="\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _options(arguments: Sequence[str]) -> Import:
    """The options that name=value arguments give."""
    hints = get_type_hints(Import)
    given: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r} is not an option: write name=value")
        if name not in hints:
            raise UserError(f"unknown option {name!r} of convoy data import: {nearest(name, hints)}")
        kind = (get_args(hints[name]) or (hints[name],))[0]  # bool of bool | None
        try:
            given[name] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError) as error:
            wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            raise UserError(f"{argument!r} cannot be read: {name} is {wanted}") from error
    return Import(**given)


def _download(path: str, config: Import) -> tuple[str, Trajectories, Sequence[str]]:
    """One of Minari's own datasets: its id, its data, and notes."""
    idle = [one.name for one in fields(Import) if getattr(config, one.name) != one.default]
    if odd := sorted(set(idle) - {"data", "overwrite"}):
        raise UserError(f"{odd[0]}= means nothing for one of Minari's datasets: leave it out")
    with console.status(f"downloading {path}"):
        dataset, notes = download_minari(path.removeprefix(_REMOTE), data_root(config.data), overwrite=config.overwrite)
    return dataset.id, dataset.trajectories, notes


def _convert(path: Path, config: Import) -> tuple[str, Trajectories, Sequence[str]]:
    """A foreign file or folder, written as a dataset: its id, its data, and notes."""
    config, root, path = _named(config), data_root(config.data), path.expanduser()
    if (root / config.id).exists() and not config.overwrite:
        raise UserError(f"dataset {config.id} already exists in {root}: pass overwrite=true to replace it")
    options = {one.name: getattr(config, one.name) for one in fields(ImportOptions)}
    with console.status(f"reading {path}"):
        imported = import_foreign(config.format, path, ImportOptions(**options))
    data = imported.trajectories
    chosen = {one.name: options[one.name] for one in fields(ImportOptions) if options[one.name] != one.default}
    scale = {"action_scale": imported.action_scale} if imported.action_scale != 1 else {}
    provenance = Provenance(
        task=config.task,
        rules=config.rules,
        quality=config.quality,
        behaviour={"source": str(path.resolve()), "format": imported.format, **chosen, **scale},
        behaviours=list(imported.behaviours),
        agents=[f"agent_{agent}" for agent in range(data.agents)],
        layout=imported.layout,
        episodes=data.episodes,
        references=_references(config.task, config.rules, data.agents),
        generator=f"convoy-rl {versions()['convoy-rl']}",
        licence=config.licence,
    )
    with console.status(f"writing {config.id}"):
        write_dataset(config.id, data, provenance, root, overwrite=config.overwrite)
    return config.id, data, imported.notes


def _named(config: Import) -> Import:
    """The options with what the id tells of task, rules and quality, or with the id that these make."""
    if not config.id:
        if not (config.task and config.rules and config.quality):
            raise UserError("id= is missing: name the dataset, such as id=mpe/spread/omar/expert-v0")
        config = replace(config, id=f"{config.task}/{config.rules}/{config.quality}-v0")
    task = config.task or next((name for name in marl.TASKS if config.id.startswith(f"{name}/")), "")
    rest = config.id.removeprefix(f"{task}/").split("/")
    rules = config.rules or (rest[0] if task in marl.TASKS and len(rest) == 2 else "")
    if task in marl.TASKS:
        try:
            marl.TaskConfig(task, rules)
        except ValueError as error:
            raise UserError(f"{error}, by rules= or in the id's TASK/RULES/QUALITY-v0") from error
    return replace(config, task=task, rules=rules, quality=config.quality or re.sub(r"-v\d+$", "", rest[-1]))


def _references(task: str, rules: str, agents: int) -> dict[str, Any]:
    """Scores that normalise the task's own team's returns, if they are known; the published prey made foreign data."""
    if task not in marl.TASKS or marl.TaskConfig(task, rules).agents != agents:
        return {}
    known = [REFERENCES.get((task, rules, prey)) for prey in ("", "published")]
    return next((asdict(references) for references in known if references), {})


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
                f"{_deviation(scores):.2f}",
                _normalised(dataset, float(scores.mean())),
                f"{dataset.bytes / 1e6:.1f}",
            )
            advance(1)
    console.print(result)
    if unreadable:
        raise UserError("; ".join(unreadable))


def _deviation(scores: torch.Tensor) -> float:
    return float(scores.std()) if len(scores) > 1 else 0.0


def _quantiles(values: torch.Tensor) -> str:
    levels = torch.quantile(values, torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])).tolist()
    return f"least, 10%, median, 90%, most: {', '.join(f'{level:.2f}' for level in levels)}"


def _normalised(dataset: Dataset, score: float) -> str:
    references = dataset.provenance.references
    return f"{References(**references).normalise(score):.1f}" if references else ""


def _info(dataset: Dataset) -> None:
    trajectories, provenance = dataset.trajectories, dataset.provenance
    scores = trajectories.scores
    mean, interval = mean_interval(scores)
    result = Table(title=dataset.id, show_header=False, box=SIMPLE)
    lengths = trajectories.offsets[1:] - trajectories.offsets[:-1] - 1
    costs = trajectories.episode_sums(trajectories.costs).mean(dim=1)
    facts = {
        "task": (provenance.task or "unknown") + (f", rules {provenance.rules}" if provenance.rules else ""),
        "behaviour": f"{provenance.quality}: {', '.join(f'{k} {v}' for k, v in provenance.behaviour.items())}",
        "episodes": f"{trajectories.episodes} of {int(lengths.min())} to {int(lengths.max())} steps, "
        f"{trajectories.steps} in all",
        "agents": f"{trajectories.agents}: {', '.join(provenance.agents)}",
        "observation, action": f"{trajectories.observations.shape[-1]}, {trajectories.actions.shape[-1]} an agent",
        "mean return": f"{mean:.3f}, 95% interval {interval[0]:.3f} to {interval[1]:.3f}",
        "normalised": _normalised(dataset, mean),
        "spread": f"standard deviation {_deviation(scores):.3f}; {_quantiles(scores)}",
        "cost": f"{costs.mean():.3f} an episode and agent" + (f"; {_quantiles(costs)}" if bool(costs.any()) else ""),
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

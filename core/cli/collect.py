"""`convoy collect`."""

from collections.abc import Callable
from dataclasses import asdict

import torch

from core.cli.commands import Collect, data_root
from core.cli.compose import configure
from core.data import Provenance, write_dataset
from core.errors import UserError
from core.files import check_writable
from core.progress import bar, console
from core.runs import versions


def command(arguments: list[str]) -> None:
    config = configure("collect", arguments)
    if config is None:
        return
    # Writing an episode takes about as long as ten steps of it.
    with bar(f"collecting {config.quality}", config.episodes * (config.task.max_cycles + 10)) as advance:
        dataset_id, score = collect(config, advance)
        advance(config.episodes * 10)
    console.print(
        f"wrote {dataset_id} to {data_root(config.data)}: {config.episodes} episodes, mean return {score:.2f}",
        highlight=False,
    )


def collect(config: Collect, progress: Callable[[int], None] = lambda steps: None) -> tuple[str, float]:
    """Collect a dataset and write it; returns its id and mean score.

    Raises:
        UserError: unknown quality, a dataset that exists, or a folder that cannot be written.
    """
    torch.set_num_threads(1)
    task = config.task
    dataset_id = task.dataset_id(config.quality)
    root = data_root(config.data)
    if (root / dataset_id).exists() and not config.overwrite:
        raise UserError(f"dataset {dataset_id} already exists in {root}: pass overwrite=true to replace it")
    check_writable(root)
    with task.make() as environments:
        made = task.collect(
            config.quality,
            environments,
            config.episodes,
            config.seed,
            parallel=config.parallel,
            progress=progress,
        )
        agents, spec = list(environments.agents), environments.spec
    trajectories, references = made.trajectories, task.references
    layout = {"discrete": spec.discrete, "sizes": list(spec.sizes), "entities": [list(kind) for kind in spec.entities]}
    provenance = Provenance(
        task=task.name,
        rules=task.rules,
        quality=config.quality,
        behaviour=made.description,
        behaviours=list(made.behaviours),
        agents=agents,
        layout={name: value for name, value in layout.items() if value},
        environment=task.settings,
        seed=config.seed,
        episodes=trajectories.episodes,
        references=asdict(references) if references else {},
        generator=f"convoy-rl {versions()['convoy-rl']}",
        licence="CC0-1.0",
    )
    write_dataset(dataset_id, trajectories, provenance, root, overwrite=config.overwrite)
    return dataset_id, float(trajectories.scores.mean())

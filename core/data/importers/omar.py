"""OMAR's folders of .npy files (Pan et al. 2022), one file for each agent and quantity."""

import re
from pathlib import Path

import numpy as np

from core.data.importers.arrays import Axes, is_choice, open_npy
from core.data.importers.steps import Imported, ImportOptions, Steps, assemble, find_breaks, find_ends
from core.errors import UserError

_KINDS = ("obs", "acs", "rews", "next_obs", "dones")
_FILE = re.compile(rf"({'|'.join(_KINDS)})_(\d+)\.npy")
_SEED = re.compile(r"seed_(\d+)_data")


def import_omar(path: Path, options: ImportOptions | None = None) -> Imported:
    """Read a folder of `obs_i.npy`, `acs_i.npy`, `rews_i.npy`, `next_obs_i.npy` and `dones_i.npy`, agent i's N steps in
    their order, or all `seed_k_data` folders in it, each of which has a tag.

    An episode ends where all agents are done, where the next step's observation is not the one that followed, and after
    `options.length` steps. Ends are time limits unless `options.terminal`.

    Raises:
        UserError: a file is missing or malformed, or the files disagree.
    """
    options = options or ImportOptions()
    folders = omar_folders(path)
    if not folders:
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) if path.is_dir() else "no folder"
        raise UserError(
            f"{path} is no OMAR data ({found or 'empty'}): name a folder with obs_0.npy, or with seed_0_data and others"
        )
    axes = Axes()
    parts = [_read(folder, options, axes) for folder in folders]
    return assemble(parts, [folder.name for folder in folders], options)


def omar_folders(path: Path) -> list[Path]:
    """The folders of .npy files that a path means: itself, or its seeds' in their order."""
    if not path.is_dir():
        return []
    if any(_FILE.fullmatch(entry.name) for entry in path.iterdir()):
        return [path]
    seeds = {int(match[1]): entry for entry in path.iterdir() if (match := _SEED.fullmatch(entry.name))}
    return [seeds[seed] for seed in sorted(seeds)]


def _read(folder: Path, options: ImportOptions, of_all: Axes) -> Steps:
    """One folder. All but its number of steps must agree with the others, which `of_all` remembers."""
    found = [int(match[2]) for entry in folder.iterdir() if (match := _FILE.fullmatch(entry.name))]
    agents = max(found, default=0) + 1
    if options.agents > agents:
        raise UserError(f"agents={options.agents}, but {folder} has files of {agents}: choose fewer")
    of_all.settle("agents", agents, str(folder))
    axes = Axes({name: size for name, size in of_all.sizes.items() if name != "N"})
    files = [
        {kind: open_npy(folder / f"{kind}_{agent}.npy") for kind in _KINDS} for agent in range(options.agents or agents)
    ]
    observations = [axes.numbers(of["obs"], f"N O{agent}") for agent, of in enumerate(files)]
    following = [axes.numbers(of["next_obs"], f"N O{agent}") for agent, of in enumerate(files)]
    discrete = is_choice(files[0]["acs"], "N")
    actions = [
        axes.choices(of["acs"], "N") if discrete else axes.numbers(of["acs"], f"N U{agent}")
        for agent, of in enumerate(files)
    ]
    rewards = np.stack([axes.numbers(of["rews"], "N") for of in files], axis=1)
    done = np.all([axes.flags(of["dones"], "N") for of in files], axis=0)
    of_all.sizes.update(axes.sizes)

    breaks = find_breaks(str(folder), observations, following, done)
    last, notes = find_ends(str(folder), done, breaks, options.length)
    return Steps(
        where=str(folder),
        actions_in=[of["acs"].where for of in files],
        observations=observations,
        actions=actions,
        rewards=rewards,
        costs=np.zeros_like(rewards),
        last=last,
        terminated=done[last] & bool(options.terminal),
        finals=[values[last] for values in following],
        discrete=discrete,
        notes=tuple(notes),
    )

"""HDF5 files of D4RL (Fu et al. 2020) and DSRL (Liu et al. 2023): one agent's steps in a row."""

from pathlib import Path

import numpy as np

from core.data.importers.arrays import Axes, Field, is_choice
from core.data.importers.steps import Imported, ImportOptions, Steps, assemble, find_breaks, find_ends
from core.errors import UserError
from core.files import reason


def import_hdf5(path: Path, options: ImportOptions | None = None) -> Imported:
    """Read the datasets `observations` [N, O], `actions` [N, U] or [N], `rewards`, `terminals` and `timeouts` [N], and
    where there are `next_observations` [N, O] and `costs` [N]. What else there is, such as `infos/...`, is left out.

    An episode ends where `terminals` or `timeouts` say so, where the next step's observation is not the one that
    followed, and after `options.length` steps. Files without `next_observations` do not say how an episode ends: see
    `options.final`. Old files without `timeouts` need `options.length`.

    Raises:
        UserError: the file is no HDF5, is cut short, or an array is missing or malformed.
    """
    options = options or ImportOptions()
    fields = _read(path, ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations", "costs"))
    for name in ("observations", "actions", "rewards", "terminals"):
        if name not in fields:
            raise UserError(f"{path} has no {name}: it is no D4RL or DSRL file")
    axes = Axes()
    observations = axes.numbers(fields["observations"], "N O")
    discrete = is_choice(fields["actions"], "N")
    actions = axes.choices(fields["actions"], "N") if discrete else axes.numbers(fields["actions"], "N U")
    rewards = axes.numbers(fields["rewards"], "N")
    costs = axes.numbers(fields["costs"], "N") if "costs" in fields else np.zeros_like(rewards)
    terminal = axes.flags(fields["terminals"], "N")
    done = terminal
    if "timeouts" in fields:
        done = terminal | axes.flags(fields["timeouts"], "N")
    elif not options.length:
        raise UserError(f"{path} has no timeouts: say with length= after how many steps an episode is cut off")
    following = axes.numbers(fields["next_observations"], "N O") if "next_observations" in fields else None
    breaks = np.zeros_like(done)
    if following is not None:
        breaks = find_breaks(str(path), [observations], [following], done)
    last, notes = find_ends(str(path), done, breaks, options.length)
    steps = Steps(
        where=str(path),
        actions_in=[fields["actions"].where],
        observations=[observations],
        actions=[actions],
        rewards=rewards[:, None],
        costs=costs[:, None],
        last=last,
        terminated=terminal[last] & (options.terminal is not False),
        finals=None if following is None else [following[last]],
        discrete=discrete,
        notes=tuple(notes),
    )
    return assemble([steps], [path.name], options)


def _read(path: Path, names: tuple[str, ...]) -> dict[str, Field]:
    """The datasets of these names that a file has; wide floats arrive as float32."""
    import h5py

    fields = {}
    try:
        with h5py.File(path, "r") as file:
            for name in names:
                dataset = file.get(name)
                if isinstance(dataset, h5py.Dataset):
                    wide = dataset.dtype.kind == "f" and dataset.dtype.itemsize > 4
                    values = (dataset.astype(np.float32) if wide else dataset)[()]
                    fields[name] = Field(f"{path}, {name}", np.asarray(values))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as HDF5: {reason(error)}; copy or download it again") from error
    return fields

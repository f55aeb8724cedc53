"""Exports of OG-MARL's vaults (Formanek et al. 2023) as .npz: a team's steps in a row."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from core.data.importers.arrays import Axes, Field, is_choice
from core.data.importers.steps import Imported, ImportOptions, Steps, assemble, find_ends
from core.errors import UserError
from core.files import reason

#: What NumPy and zipfile say of a damaged archive, or of Python objects in it.
_BROKEN = (OSError, ValueError, EOFError, KeyError, SyntaxError, NotImplementedError, zipfile.BadZipFile, zlib.error)

_NAMES = ("observations", "actions", "rewards", "terminals", "truncations", "infos/legals")


def import_vault(path: Path, options: ImportOptions | None = None) -> Imported:
    """Read the arrays `observations` [T, A, O], `actions` [T, A, U], or [T, A] for choices, `rewards`, `terminals` and
    `truncations` [T, A], and where there are legal choices, `infos/legals` [T, A, U]. A leading axis of one, as vaults
    have it, is dropped; `infos/state` is left out.

    An episode ends where every agent's `terminals` or `truncations` say so, and after `options.length` steps; it
    terminated where all `terminals` do. Vaults do not say how an episode ends: see `options.final`.

    Raises:
        UserError: the file is no .npz, is cut short, or an array is missing or malformed.
    """
    options = options or ImportOptions()
    fields = _read(path)
    for name in ("observations", "actions", "rewards", "terminals"):
        if name not in fields:
            raise UserError(f"{path} has no {name}: it is no export of a vault, whose keys {', '.join(_NAMES)} are")
    axes = Axes()
    observations = axes.numbers(fields["observations"], "T A O")
    discrete = is_choice(fields["actions"], "T A")
    actions = axes.choices(fields["actions"], "T A") if discrete else axes.numbers(fields["actions"], "T A U")
    rewards = axes.numbers(fields["rewards"], "T A")
    terminal = axes.flags(fields["terminals"], "T A")
    cut = axes.flags(fields["truncations"], "T A") if "truncations" in fields else np.zeros_like(terminal)
    legal = axes.flags(fields["infos/legals"], "T A choices") if discrete and "infos/legals" in fields else None
    agents = range(options.agents or observations.shape[1])
    if len(agents) > observations.shape[1]:
        raise UserError(f"agents={options.agents}, but {path} has {observations.shape[1]}: choose fewer")
    done = np.all(terminal | cut, axis=1)
    last, notes = find_ends(str(path), done, np.zeros_like(done), options.length)
    if legal is not None:
        taken = np.take_along_axis(legal, actions[..., None].clip(max=legal.shape[-1] - 1), axis=2)
        if share := float(1 - taken.mean()):
            notes.append(f"{share:.1%} of the actions in {path} are not legal by its own masks")
    steps = Steps(
        where=str(path),
        actions_in=[fields["actions"].where] * len(agents),
        observations=[observations[:, agent] for agent in agents],
        actions=[actions[:, agent] for agent in agents],
        rewards=rewards[:, : len(agents)],
        costs=np.zeros((len(rewards), len(agents)), np.float32),
        last=last,
        terminated=terminal[last].all(axis=1) & (options.terminal is not False),
        legal=None if legal is None else legal[:, : len(agents)],
        discrete=discrete,
        notes=tuple(notes),
    )
    return assemble([steps], [path.name], options)


def _read(path: Path) -> dict[str, Field]:
    """The arrays of these names that a file has, without a leading axis of one."""
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no .npz file, or cut short: export the vault again with numpy.savez")
    fields: dict[str, Field] = {}
    where = str(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = {key.replace(".", "/"): key for key in archive.files}
            for name in _NAMES:
                if name in keys:
                    where = f"{path}, {keys[name]}"
                    fields[name] = Field(where, np.asarray(archive[keys[name]]))
    except _BROKEN as error:
        raise UserError(f"{where} cannot be read: {reason(error)}; export the vault again") from error
    if (observed := fields.get("observations")) is None or observed.values.ndim != 4:
        return fields
    for field in fields.values():
        if field.values.shape[:1] != (1,):
            raise UserError(
                f"{field.where} has shape {list(field.values.shape)}: all arrays of a vault begin with an axis of one, "
                "or none does"
            )
    return {name: Field(field.where, field.values[0]) for name, field in fields.items()}

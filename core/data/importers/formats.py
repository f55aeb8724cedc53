"""The formats that can be imported, and which one a path holds."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from core.data.importers.hdf5 import import_hdf5
from core.data.importers.omar import import_omar, omar_folders
from core.data.importers.steps import Imported, ImportOptions
from core.data.importers.vault import import_vault
from core.data.trajectories import Trajectories
from core.errors import UserError, nearest
from core.files import reason

_HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Format:
    """A foreign format.

    Attributes:
        read: (path, options) -> Imported. holds: whether a path looks like it. about: what it is, in a few words.
        unused: options that mean nothing to it.
    """

    read: Callable[[Path, ImportOptions], Imported]
    holds: Callable[[Path], bool]
    about: str
    unused: tuple[str, ...] = ()


def _is_hdf5(path: Path) -> bool:
    return path.is_file() and (path.suffix in (".hdf5", ".h5") or _begins(path, _HDF5))


def _is_npz(path: Path) -> bool:
    return path.is_file() and (path.suffix == ".npz" or zipfile.is_zipfile(path))


def _begins(path: Path, signature: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(signature)) == signature
    except OSError:
        return False


#: Formats by their names.
FORMATS = {
    "omar": Format(
        import_omar, lambda path: bool(omar_folders(path)), "a folder of OMAR's obs_0.npy and others", ("final",)
    ),
    "hdf5": Format(import_hdf5, _is_hdf5, "a D4RL or DSRL file", ("agents",)),
    "vault": Format(import_vault, _is_npz, "an OG-MARL vault exported as .npz"),
}


def guess_format(path: Path) -> str:
    """The name of the format that a path holds.

    Raises:
        UserError: there is nothing at the path, or nothing that is known.
    """
    if not path.exists():
        raise UserError(f"there is no {path}: name a file or folder")
    for name, kind in FORMATS.items():
        if kind.holds(path):
            return name
    if (path / "data" / "main_data.hdf5").exists() or (path / "main_data.hdf5").exists():
        raise UserError(f"{path} is a Minari dataset: copy its folder below the folder of datasets, under its own id")
    known = "; ".join(f"{name}, {kind.about}" for name, kind in FORMATS.items())
    hint = "; a vault's folder must be exported as .npz first" if path.is_dir() else ""
    raise UserError(f"{path} is of no known format: {known}{hint}")


def import_foreign(kind: str, path: Path | str, options: ImportOptions) -> Imported:
    """Read foreign data of a format in `FORMATS`, or of the one that the path looks like for "auto".

    Raises:
        UserError: unknown format, an option that the format has no use for, or malformed data.
    """
    path = Path(path).expanduser()
    if kind != "auto" and kind not in FORMATS:
        raise UserError(f"unknown format {kind!r}: {nearest(kind, FORMATS)}")
    try:
        name = guess_format(path) if kind == "auto" or not path.exists() else kind
        for option in fields(ImportOptions):
            if option.name in FORMATS[name].unused and getattr(options, option.name) != option.default:
                raise UserError(f"{option.name}= means nothing for format {name}: leave it out")
        return replace(FORMATS[name].read(path, options), format=name)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}; check its permissions") from error


def read_foreign(kind: str, path: Path | str, **options: Any) -> Trajectories:
    """The trajectories of foreign data; options are the fields of `ImportOptions`.

    Raises:
        UserError: as `import_foreign`.
    """
    return import_foreign(kind, path, ImportOptions(**options)).trajectories

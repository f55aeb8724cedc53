"""Arrays of foreign files, checked where they enter."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from core.errors import UserError
from core.files import reason

#: Axes after which numbers follow, not vectors: some write them as vectors of one.
_COUNTED = ("N", "T", "A")

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Field:
    """An array and where it was found: the file and, in it, the array's name."""

    where: str
    values: np.ndarray


def open_npy(path: Path) -> Field:
    """A .npy file, mapped into memory.

    Raises:
        UserError: it is missing, no .npy file, cut short, or holds Python objects.
    """
    try:
        return Field(str(path), open_memmap(path, mode="r"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: copy the whole folder") from error
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as .npy: {reason(error)}; copy it again or export it anew") from error


@dataclass
class Axes:
    """Sizes of named axes, settled by the first array that has them; `sizes` holds each with that array's place."""

    sizes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def numbers(self, array: Field, axes: str) -> np.ndarray:
        """Finite numbers with the given axes, such as "N O"; one more of size 1 is dropped where numbers are expected.

        Raises:
            UserError: another kind of entries, another rank, a size that disagrees, no entries, or one not finite.
        """
        values = self._shaped(array, axes)
        if values.dtype.kind not in "fiub":
            raise UserError(f"{array.where} holds {values.dtype}: numbers are expected, export them as float32")
        low, high = float(values.min()), float(values.max())
        if not (low >= -_LARGEST and high <= _LARGEST):
            odd = high if low >= -_LARGEST else low
            raise UserError(
                f"{array.where} holds {odd:g}: finite numbers in float32 are expected, export the data anew"
            )
        return values

    def flags(self, array: Field, axes: str) -> np.ndarray:
        """Booleans, or the numbers 0 and 1, with the given axes.

        Raises:
            UserError: as `numbers`, or an entry is neither 0 nor 1.
        """
        values = self.numbers(array, axes)
        raised = values == 1
        if odd := values[~raised & (values != 0)][:1].tolist():
            raise UserError(f"{array.where} holds {odd[0]:g}: 0 or 1 is expected, export the flags anew")
        return np.asarray(raised)

    def choices(self, array: Field, axes: str) -> np.ndarray:
        """Indices of discrete actions with the given axes.

        Raises:
            UserError: as `numbers`, or an entry is no index.
        """
        values = self.numbers(array, axes)
        if values.dtype.kind not in "iu" or values.min() < 0:
            odd = int(values.min()) if values.dtype.kind in "iu" else values.dtype
            raise UserError(
                f"{array.where} has shape {list(array.values.shape)}, so its actions are choices, but holds {odd}: "
                "choices are integers from 0 on, continuous actions have an axis more"
            )
        return values

    def settle(self, name: str, size: int, where: str) -> None:
        """Note an axis' size.

        Raises:
            UserError: an earlier array has another.
        """
        settled, first = self.sizes.setdefault(name, (size, where))
        if size != settled:
            raise UserError(
                f"{where} has {size} entries along {_plain(name)}, but {first} has {settled}: "
                "they must be of one recording"
            )

    def _shaped(self, array: Field, axes: str) -> np.ndarray:
        names, values = axes.split(), array.values
        if names[-1] in _COUNTED and values.ndim == len(names) + 1 and values.shape[-1] == 1:
            values = values[..., 0]
        if values.ndim != len(names):
            raise UserError(f"{array.where} has shape {list(values.shape)}: [{_plain(', '.join(names))}] is expected")
        if 0 in values.shape:
            raise UserError(f"{array.where} is empty: its shape is {list(values.shape)}")
        for name, size in zip(names, values.shape, strict=True):
            self.settle(name, size, array.where)
        return values


def _plain(axes: str) -> str:
    """Names of axes without the agents' numbers that tell O0 from O1."""
    return re.sub(r"\d", "", axes)


def is_choice(actions: Field, axes: str) -> bool:
    """Whether actions are choices: they have the given axes alone, or integers along a further one of size 1."""
    rank, values = len(axes.split()), actions.values
    return values.ndim == rank or (values.ndim == rank + 1 and values.shape[-1] == 1 and values.dtype.kind in "iu")

"""What a barrier is: b(x) >= 0 where a plan is safe, in physical units, with its linearisation."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor

from core.data.normalisers import Affine, Normaliser

#: What a barrier ties together, and the block of entries that each of its values reads: the d entries of one agent at
#: one waypoint, those of all agents at one waypoint [A, d], or one agent's at a waypoint and the next [2, d].
COUPLINGS = ("nothing", "agents", "steps")


@dataclass(frozen=True)
class Linearised:
    """A barrier at a plan, float64: to first order it is values + gradients . u after a move u of a block.

    Attributes:
        values: [..., T, A, m], [..., T, m] where it couples agents, [..., T - 1, A, m] where it couples steps.
        gradients: the values' shape, followed by that of a block: [d], [A, d] or [2, d].
        entries: the d entries of an observation that a block is made of.
    """

    values: Tensor
    gradients: Tensor
    entries: tuple[int, ...]


class Barrier(ABC):
    """Base of barriers: m functions of some entries of a plan [..., T, A, O], at least 0 where it is safe.

    Each takes plans in physical units, or normalised ones with their normaliser, which must be affine: constraints
    carry over exactly through no other. Gradients are then in normalised units, values stay physical.

    Attributes:
        entries: which of the O entries it reads, d of them.
        couples: "nothing", "agents" or "steps".
    """

    entries: tuple[int, ...]
    couples: str = "nothing"

    @abstractmethod
    def at(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gradients at blocks [..., T, A, d], float64; [..., T - 1, A, 2, d] where it couples steps."""

    def __call__(self, x: Tensor, normaliser: Normaliser | None = None) -> Tensor:
        return self.linearised(x, normaliser).values

    def linearised(self, x: Tensor, normaliser: Normaliser | None = None) -> Linearised:
        """Values and gradients at a plan [..., T, A, O].

        Raises:
            ValueError: a plan without these entries, without the steps or agents that are coupled, or a normaliser
                that is not affine.
        """
        if x.ndim < 3 or x.shape[-1] <= max(self.entries):
            raise ValueError(
                f"a barrier on the entries {self.entries} needs a plan [..., T, A, O] that has them, "
                f"got {list(x.shape)}"
            )
        block = _taken(x, self.entries)
        if normaliser is None:
            return Linearised(*self.at(self._coupled(block)), self.entries)
        scale, shift = affine_of(normaliser, self.entries)
        values, gradients = self.at(self._coupled(block * scale + shift))
        return Linearised(values, gradients * scale, self.entries)

    def _coupled(self, block: Tensor) -> Tensor:
        if self.couples == "agents" and block.shape[-2] < 2:
            raise ValueError(f"{type(self).__name__} needs at least two agents, got a plan of {block.shape[-2]}")
        if self.couples != "steps":
            return block
        if block.shape[-3] < 2:
            raise ValueError(f"{type(self).__name__} needs at least two waypoints, got a plan of {block.shape[-3]}")
        return torch.stack([block[..., :-1, :, :], block[..., 1:, :, :]], dim=-2)

    def to(self, device: torch.device | str) -> Self:
        """The barrier with its tensors on a device, so that nothing is copied there in a loop."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                object.__setattr__(moved, name, value.to(device))
        return moved


def affine_of(normaliser: Normaliser, entries: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scale and shift [d], float64, of some entries: value = normalised * scale + shift.

    Raises:
        ValueError: the normaliser is not affine, or has no such entry.
    """
    if not normaliser.affine:
        raise ValueError(
            f"constraints need an affine normaliser, through which they carry over exactly, and this plan's is a "
            f"{type(normaliser).__name__}: train with normaliser=minmax or normaliser=standard"
        )
    if normaliser.features <= max(entries):
        raise ValueError(
            f"a barrier on the entries {tuple(entries)} needs a normaliser of them, got one of {normaliser.features}"
        )
    affine = cast(Affine, normaliser)
    return _taken(affine.scale, entries), _taken(affine.shift, entries)


def _taken(values: Tensor, entries: Sequence[int]) -> Tensor:
    """Some entries of [..., O], float64; unlike an index made of numbers, nothing is copied to the device."""
    return torch.stack([values[..., entry] for entry in entries], dim=-1).double()


def checked_entries(entries: Sequence[int], size: int | None = None) -> tuple[int, ...]:
    """Entries as a tuple.

    Raises:
        ValueError: none, negative or repeated ones, or not `size` of them.
    """
    found = tuple(int(entry) for entry in entries)
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise ValueError(f"a barrier's entries are distinct places 0, 1, ... in an observation, got {found}")
    if size is not None and len(found) != size:
        raise ValueError(f"a barrier of {size} dimensions needs as many entries, got {found}")
    return found


def joined(barriers: Sequence[Barrier], x: Tensor, normaliser: Normaliser | None = None) -> Linearised:
    """Several barriers as one, on the entries that any of them reads.

    Where one of them couples agents, all are over the block of a waypoint [A, d], otherwise over that of an agent at a
    waypoint [d].

    Raises:
        ValueError: none are given, or one couples steps: those are for pairs of waypoints, by themselves.
    """
    if not barriers or any(barrier.couples == "steps" for barrier in barriers):
        raise ValueError("at least one barrier is needed, and only those that couple no steps can be joined")
    found = [barrier.linearised(x, normaliser) for barrier in barriers]
    entries = tuple(sorted({entry for one in found for entry in one.entries}))
    together = any(barrier.couples == "agents" for barrier in barriers)
    values, gradients = [], []
    for barrier, one in zip(barriers, found, strict=True):
        none = torch.zeros_like(one.gradients[..., 0])
        columns = [one.gradients[..., one.entries.index(k)] if k in one.entries else none for k in entries]
        value, gradient = one.values, torch.stack(columns, dim=-1)
        if together and barrier.couples == "nothing":
            own = torch.eye(value.shape[-2], dtype=value.dtype, device=value.device)
            gradient = (gradient[..., None, :] * own[:, None, :, None]).flatten(-4, -3)
            value = value.flatten(-2)
        values.append(value)
        gradients.append(gradient)
    return Linearised(torch.cat(values, dim=-1), torch.cat(gradients, dim=-3 if together else -2), entries)

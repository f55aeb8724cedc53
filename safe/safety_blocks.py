"""The blocks of a plan that barriers are projected in: an agent's waypoint, a team's, or pairs of waypoints."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.data.normalisers import Normaliser
from safe.barriers import Barrier, Linearised, joined
from safe.barriers.base import affine_of


@dataclass(frozen=True)
class Blocks:
    """Barriers that are met together, m in each of N blocks, with the n entries of a block in one row.

    Pairs of waypoints overlap, so that a projection takes every other one, those that begin at `first`, `first` + 2...
    Without a `first` all are read, which serves to look at them.

    Attributes:
        barriers: those that couple no steps, or a single one that does.
    """

    barriers: tuple[Barrier, ...]
    normaliser: Normaliser | None
    first: int | None = None

    @property
    def couples(self) -> str:
        """What a block ties together, as `Barrier.couples` has it."""
        kinds = [barrier.couples for barrier in self.barriers]
        return next((kind for kind in kinds if kind != "nothing"), "nothing")

    def at(self, x: Tensor) -> Linearised:
        """Values [..., N, m] and gradients [..., N, m, n] at a plan."""
        if self.couples == "steps":
            found = self.barriers[0].linearised(x, self.normaliser)
            values, gradients = self._alternate(found.values, -3), self._alternate(found.gradients, -5)
        else:
            found = joined(self.barriers, x, self.normaliser)
            values, gradients = found.values, found.gradients
        return Linearised(values, gradients if self.couples == "nothing" else gradients.flatten(-2), found.entries)

    def take(self, x: Tensor, entries: Sequence[int]) -> Tensor:
        """The blocks [..., N, n] of a plan [..., T, A, O]."""
        block = torch.stack([x[..., entry] for entry in entries], dim=-1)
        if self.couples == "steps":
            return self._alternate(torch.cat([block[..., :-1, :, :], block[..., 1:, :, :]], dim=-1), -3)
        return block.flatten(-2) if self.couples == "agents" else block

    def put(self, x: Tensor, blocks: Tensor, entries: Sequence[int]) -> Tensor:
        """The plan with other blocks, of alternate pairs."""
        x = x.clone()
        if self.couples == "steps":
            first, steps = self.first or 0, x.shape[-3]
            places = [slice(first, steps - 1, 2), slice(first + 1, steps, 2)]
        else:
            places, blocks = [slice(None)], blocks.reshape(*x.shape[:-1], len(entries))
        for place, part in zip(places, blocks.split(len(entries), dim=-1), strict=True):
            for column, entry in enumerate(entries):
                x[..., place, :, entry] = part[..., column].to(x.dtype)
        return x

    def weights(self, entries: Sequence[int], size: int) -> Tensor | None:
        """Weights [n] under which the distances of blocks of so many entries are physical."""
        if self.normaliser is None:
            return None
        return affine_of(self.normaliser, entries)[0].square().repeat(size // len(entries))

    def _alternate(self, pairs: Tensor, dim: int) -> Tensor:
        """Every other one of values of pairs, which lie along a dimension counted from the end."""
        if self.first is None:
            return pairs
        return pairs.movedim(dim, 0)[self.first :: 2].movedim(0, dim)


def blocks_of(
    barriers: Sequence[Barrier], normaliser: Normaliser | None, steps: int, *, whole: bool = False
) -> Iterator[Blocks]:
    """The groups of barriers that are projected one after the other in a plan of so many waypoints; with `whole`, as
    they are looked at."""
    single = tuple(barrier for barrier in barriers if barrier.couples != "steps")
    if single:
        yield Blocks(single, normaliser)
    for barrier in barriers:
        if barrier.couples == "steps":
            for first in (None,) if whole else (0, 1)[: max(1, steps - 1)]:
                yield Blocks((barrier,), normaliser, first)

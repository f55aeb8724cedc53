"""Normalisers of observations, fitted to data and saved with the model.

Entity-wise observations are an agent's own entries followed by tokens: `count` of `size` entries of each kind, such as
landmarks and other agents (`core.environments.TeamSpec.entities`). Their normaliser has one statistic for each own
entry and one for each entry of a kind's tokens, pooled over them, so that it serves any number of tokens.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

AFFINE = ("standard", "minmax")
NORMALISERS = (*AFFINE, "cdf")

#: (count, size) of each kind of token.
Entities = Sequence[tuple[int, int]]


def normaliser_of(kind: str, features: int) -> "Normaliser":
    """A normaliser of observations of so many entries, or of so many statistics where they are entity-wise.

    Raises:
        ValueError: there is none of that kind.
    """
    if kind not in NORMALISERS:
        raise ValueError(f"unknown normaliser {kind!r}: choose one of {', '.join(NORMALISERS)}")
    return CDF(features) if kind == "cdf" else Affine(features, kind)


class Normaliser(nn.Module, ABC):
    """Base of normalisers, which map each entry by a function of its own.

    What they learn are buffers whose first dimension are the entries. `low` and `high` are the data's bounds in
    normalised units. `affine` says whether linear constraints carry over exactly.
    """

    affine: ClassVar[bool]
    low: Tensor
    high: Tensor

    def __init__(self, features: int):
        super().__init__()
        self.features = features
        for name, value in (("low", -1.0), ("high", 1.0)):
            self.register_buffer(name, torch.full((features,), value))

    def fit(self, values: Tensor, known: Tensor | None = None, entities: Entities = ()) -> Self:
        """Take the statistics of values [..., O], pooled over all other dimensions.

        Args:
            known: bool, broadcasts to the values: the entries that count. Padding would shift the statistics. An entry
                that is never known is taken for a constant 0.
            entities: of entity-wise values, whose statistics are those of own entries and tokens.

        Raises:
            ValueError: the values' entries are not those of the normaliser.
        """
        own = self._own(entities)
        width = own + sum(count * size for count, size in entities)
        if values.ndim < 2 or values.shape[-1] != width:
            raise ValueError(f"values to fit must be [..., {width}], got {list(values.shape)}")
        blocks = _blocks(values, own, entities)
        masks = [None] * len(blocks) if known is None else _blocks(known.expand(values.shape), own, entities)
        found = [self._statistics(*_at_least_one(block, mask)) for block, mask in zip(blocks, masks, strict=True)]
        for name in found[0]:
            getattr(self, name).copy_(torch.cat([statistics[name] for statistics in found]))
        return self

    def expand(self, entities: Entities) -> Self:
        """The normaliser of entity-wise observations with these tokens; itself where there are none."""
        if not entities:
            return self
        own = self._own(entities)
        places, start = [torch.arange(own)], own
        for count, size in entities:
            places.append(torch.arange(start, start + size).repeat(count))
            start += size
        columns = torch.cat(places).to(self.low.device)
        expanded = copy.copy(self)
        expanded.features = len(columns)
        expanded._buffers = {name: buffer[columns] for name, buffer in self.named_buffers()}
        return expanded

    def _own(self, entities: Entities) -> int:
        own = self.features - sum(size for _, size in entities)
        if own < 0:
            raise ValueError(f"a normaliser of {self.features} statistics has none for tokens {tuple(entities)}")
        return own

    @abstractmethod
    def _statistics(self, values: Tensor, known: Tensor | None) -> dict[str, Tensor]:
        """All buffers, from values [N, F] of which `known` [N, F] count."""

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """Normalised values [..., O]."""

    @abstractmethod
    def invert(self, normalised: Tensor) -> Tensor:
        """The values [..., O] that were normalised."""


class Affine(Normaliser):
    """normalised = (value - shift) / scale per entry.

    "standard": zero mean and unit variance. "minmax": onto [-1, 1]. Entries that never change keep scale 1.
    """

    affine = True
    shift: Tensor
    scale: Tensor

    def __init__(self, features: int, kind: str = "standard"):
        super().__init__(features)
        if kind not in AFFINE:
            raise ValueError(f"unknown normaliser {kind!r}: choose one of {', '.join(AFFINE)}")
        self.kind = kind
        for name, value in (("shift", 0.0), ("scale", 1.0)):
            self.register_buffer(name, torch.full((features,), value))

    def _statistics(self, values: Tensor, known: Tensor | None) -> dict[str, Tensor]:
        values = values.double()
        if known is None:
            low, high = values.amin(dim=0), values.amax(dim=0)
            mean, deviation = values.mean(dim=0), values.std(dim=0, correction=0)
        else:
            total = known.sum(dim=0)
            low, high = (torch.where(known, values, end) for end in (torch.inf, -torch.inf))
            low, high = (torch.where(total > 0, end, 0.0) for end in (low.amin(dim=0), high.amax(dim=0)))
            total = total.clamp(min=1)
            mean = torch.where(known, values, 0.0).sum(dim=0) / total
            deviation = (torch.where(known, values - mean, 0.0).square().sum(dim=0) / total).sqrt()
        shift, scale = (mean, deviation) if self.kind == "standard" else ((low + high) / 2, (high - low) / 2)
        scale = torch.where(scale > 1e-6, scale, 1.0)
        return {"shift": shift, "scale": scale, "low": (low - shift) / scale, "high": (high - shift) / scale}

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.shift) / self.scale

    def invert(self, normalised: Tensor) -> Tensor:
        return normalised * self.scale + self.shift


class CDF(Normaliser):
    """normalised = 2 F(value) - 1 with F each entry's empirical distribution function, the papers' normaliser.

    F(value) is the share of the data at most as large, linear between knots: data points, evenly spread in rank, so
    that with as many knots as there are data it is the published one. A repeated value is one knot, so F has no jumps
    and the inverse is exact. As published, values beyond the data are clamped to it, by the inverse too. Entries that
    never change map to 0, and everything is inverted to their constant.
    """

    affine = False
    quantiles: Tensor
    levels: Tensor

    def __init__(self, features: int, knots: int = 1000):
        """Args: knots: quantiles kept of each entry, the extremes included."""
        super().__init__(features)
        if knots < 2:
            raise ValueError(f"a CDF normaliser needs at least 2 knots, got {knots}")
        self.knots = knots
        for name in ("quantiles", "levels"):
            self.register_buffer(name, torch.linspace(-1, 1, knots).repeat(features, 1))

    def _statistics(self, values: Tensor, known: Tensor | None) -> dict[str, Tensor]:
        columns = values.T if known is None else torch.where(known, values, torch.inf).T
        ordered = columns.contiguous().sort(dim=1).values
        total = torch.full_like(ordered[:, :1], len(values)) if known is None else known.sum(dim=0)[:, None]
        total = total.double()
        spread = torch.linspace(0, 1, self.knots, dtype=torch.float64, device=values.device)
        ranks = (spread * (total - 1).clamp(min=0)).round().long()
        quantiles = torch.where(total > 0, ordered.gather(1, ranks), 0.0)
        levels = 2 * torch.searchsorted(ordered, quantiles, right=True) / total.clamp(min=1) - 1
        levels = torch.where(quantiles[:, :1] < quantiles[:, -1:], levels, 0.0)
        return {"quantiles": quantiles, "levels": levels, "low": levels[:, 0], "high": levels[:, -1]}

    def forward(self, values: Tensor) -> Tensor:
        return _interpolate(values, self.quantiles, self.levels)

    def invert(self, normalised: Tensor) -> Tensor:
        return _interpolate(normalised, self.levels, self.quantiles)


def _interpolate(values: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Values [..., F] through functions that are linear between knots (inputs [F, K], outputs [F, K]), and constant
    beyond them. Knots may coincide."""
    columns = values.reshape(-1, len(inputs)).T.to(inputs.dtype).contiguous()
    columns = columns.clamp(inputs[:, :1], inputs[:, -1:])
    left = (torch.searchsorted(inputs, columns, right=True) - 1).clamp(0, inputs.shape[1] - 2)
    start, end = inputs.gather(1, left), inputs.gather(1, left + 1)
    low, high = outputs.gather(1, left), outputs.gather(1, left + 1)
    share = (columns - start) / torch.where(end > start, end - start, 1.0)
    return torch.lerp(low, high, share).T.reshape(values.shape).to(values.dtype)


def _blocks(values: Tensor, own: int, entities: Entities) -> list[Tensor]:
    """Own entries [N, own], and the tokens [N * count, size] of each kind."""
    flat = values.reshape(-1, values.shape[-1])
    parts = flat.split([own, *(count * size for count, size in entities)], dim=1)
    return [parts[0], *(part.reshape(-1, size) for part, (_, size) in zip(parts[1:], entities, strict=True))]


def _at_least_one(block: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A block as it is, and one without rows, of a kind of which there is no token, as a row that is not known."""
    if len(block):
        return block, known
    row = block.new_zeros(1, block.shape[1])
    return row, torch.zeros_like(row, dtype=torch.bool)

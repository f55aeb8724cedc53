"""A network over entity-wise observations, for teams of any size among any number of things."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _Tokens(nn.Module):
    """MLP of each token [..., N, token] and of what its agent knows [..., context]: -> [..., N, outputs].

    A first layer of both side by side, of which the agent's part is computed once for all its tokens.
    """

    def __init__(self, context: int, token: int, width: int, outputs: int):
        super().__init__()
        self.context = nn.Linear(context, width)
        self.token = nn.Linear(token, width, bias=False)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs))

    def forward(self, context: Tensor, tokens: Tensor) -> Tensor:
        return self.rest(self.context(context)[..., None, :] + self.token(tokens))


class EntityNetwork(nn.Module):
    """Wraps a network over plans, so that the tokens of an observation can be of any number and in any order.

    An agent's observation is its own entries followed by tokens, `count` of `size` entries of each kind
    (`core.environments.TeamSpec.entities`), and the planner's status: 1 where it is known, 0 where it is generated, -1
    where the agent is absent. At each time step every token is read together with itself and its agent at the current
    step, by an MLP for each kind; mean and maximum over the tokens of a kind, beside the agent's own entries, are an
    agent's features, which go through the inner network. There agents exchange. From its output and what went in, own
    entries are read linearly, and each token by an MLP for its kind.

    Permuting the tokens of a kind permutes what is said of them and nothing else, and permuting the agents permutes the
    output where that holds for the inner network. No parameter depends on a count: `expand`, or a state loaded into a
    network with other counts, plans for other teams. This is ours; MADiff's observations are of fixed size.
    """

    def __init__(
        self,
        own: int,
        entities: Sequence[tuple[int, int]],
        inner: Callable[[int], nn.Module],
        *,
        width: int = 64,
        current: int = 0,
        others: int | None = None,
    ):
        """Args:
        own: an agent's own entries, without the status.
        entities: (count, size) of each kind of token.
        inner: makes a network (x [B, T, A, W], t, cond, present) -> [B, T, A, W] from the width W of the features.
        width: W, also of the MLPs.
        current: the time step of the current observation, after the history.
        others: place in `entities` of the kind that stands for an agent's fellows, in their order without itself. Those
            absent are then left out of its mean and maximum.
        """
        super().__init__()
        if own < 0 or width < 1 or not entities or min(size for _, size in entities) < 1:
            raise ValueError(
                f"entity-wise observations need own >= 0 entries and tokens of at least one, got {own}, {entities}"
            )
        if others is not None and not 0 <= others < len(entities):
            raise ValueError(f"others is the place of one of {len(entities)} kinds of tokens, got {others}")
        self.own = own
        self.entities = tuple(entities)
        self.width = width
        self.current = current
        self.others = others
        context = 2 * (own + 1)  # own entries and status, now and at the current step
        sizes = [size for _, size in entities]
        self.read = nn.ModuleList([_Tokens(context, 2 * size, width, width) for size in sizes])
        self.merge = nn.Linear(context + 2 * width * len(sizes), width)
        self.inner = inner(width)
        self.head = nn.Linear(context + width, own)
        self.write = nn.ModuleList([_Tokens(context + width, 2 * size, width, size) for size in sizes])

    @property
    def time(self) -> Any:
        """The inner network's embedding of times."""
        return self.inner.time

    def expand(self, entities: Sequence[tuple[int, int]]) -> "EntityNetwork":
        """The same network, with the same parameters, for other numbers of tokens.

        Raises:
            ValueError: the tokens are of other kinds.
        """
        if [size for _, size in entities] != [size for _, size in self.entities]:
            raise ValueError(
                f"the network knows tokens of {[size for _, size in self.entities]} entries, "
                f"got entities {tuple(entities)}: only their counts may differ"
            )
        expanded = copy.copy(self)
        expanded.entities = tuple(entities)
        return expanded

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """x [B, T, A, D], its last entry the status -> [B, T, A, D], where the status' place says 0.

        t, cond: of the inner network. present: [B, A] bool, the agents that take part, None where all do.

        Raises:
            ValueError: the entries of x are not those of the observations and the status.
        """
        widths = [self.own, *(count * size for count, size in self.entities), 1]
        if x.shape[-1] != sum(widths):
            raise ValueError(
                f"observations of {self.own} own entries and tokens {self.entities} have {sum(widths)} entries with "
                f"the status, got {list(x.shape)}: `expand` makes the network of another team"
            )
        if present is not None:
            x = torch.where(present[:, None, :, None], x, 0.0)
        own, *flat, status = x.split(widths, dim=-1)
        context = self._beside_the_current(torch.cat([own, status], dim=-1))
        masks = [self._mask(x.shape[2], kind, present) for kind in range(len(flat))]
        tokens = [
            self._beside_the_current(_masked(part.unflatten(-1, entities), mask))
            for part, entities, mask in zip(flat, self.entities, masks, strict=True)
        ]
        pooled = [_pool(read(context, kind), mask) for read, kind, mask in zip(self.read, tokens, masks, strict=True)]
        h = self.merge(torch.cat([context, *pooled], dim=-1))
        h = self.inner(h, t, cond) if present is None else self.inner(h, t, cond, present)
        known = torch.cat([h, context], dim=-1)
        said = [write(known, kind).flatten(-2) for write, kind in zip(self.write, tokens, strict=True)]
        return torch.cat([self.head(known), *said, torch.zeros_like(status)], dim=-1)

    def _beside_the_current(self, part: Tensor) -> Tensor:
        """Entries [B, T, ..., d] beside the same at the current step, [B, T, ..., 2 d]."""
        return torch.cat([part, part[:, self.current : self.current + 1].expand_as(part)], dim=-1)

    def _mask(self, agents: int, kind: int, present: Tensor | None) -> Tensor | None:
        """Which tokens of a kind are there, [B, 1, A, N], None where all are."""
        if present is None or kind != self.others:
            return None
        count = self.entities[kind][0]
        if count != agents - 1:
            raise ValueError(f"an agent of {agents} has {agents - 1} fellows, but {count} tokens for them")
        fellows = torch.arange(count, device=present.device).expand(agents, -1)
        fellows = fellows + (fellows >= torch.arange(agents, device=present.device)[:, None])
        return present[:, None, fellows]


def _masked(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens if mask is None else torch.where(mask[..., None], tokens, 0.0)


def _pool(features: Tensor, mask: Tensor | None) -> Tensor:
    """Mean and maximum over the tokens that are there, [..., N, W] -> [..., 2 W]; zeros where none is."""
    if not features.shape[-2]:
        return features.new_zeros(*features.shape[:-2], 2 * features.shape[-1])
    if mask is None:
        return torch.cat([features.mean(dim=-2), features.amax(dim=-2)], dim=-1)
    there = mask[..., None]
    total = there.sum(dim=-2)
    mean = torch.where(there, features, 0.0).sum(dim=-2) / total.clamp(min=1)
    largest = torch.where(there, features, torch.finfo(features.dtype).min).amax(dim=-2)
    return torch.cat([mean, torch.where(total > 0, largest, 0.0)], dim=-1)

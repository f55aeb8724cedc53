"""Trajectories of teams in memory, and windows of them gathered by index."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

#: Fields that may be None.
MASKS = ("legal", "present")


@dataclass(frozen=True)
class Trajectories:
    """E episodes of A agents, stored flat over S rows. An episode of L steps takes L + 1 rows, so that every row has
    its observation; the actions, rewards and costs of its last row are zeros. A single agent is A = 1.

    Attributes:
        observations: [S, A, O]. actions: [S, A, U]. rewards, costs: [S, A], of the step that starts at the row.
        offsets: [E + 1], first row of each episode and, last, S.
        terminated: [E] bool, False where the episode was cut off by its time limit.
        tags: [E] integers that say which behaviour made an episode, -1 where unknown; all are, unless given.
        legal: [S, A, U] bool, the choices of discrete actions that an agent has; None where it has all.
        present: [S, A] bool, the agents that take part; None where all do.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    costs: Tensor
    offsets: Tensor
    terminated: Tensor
    tags: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    legal: Tensor | None = None
    present: Tensor | None = None

    def __post_init__(self) -> None:
        rows = self.observations.shape[0]
        if not (self.actions.shape[0] == self.rewards.shape[0] == self.costs.shape[0] == rows == int(self.offsets[-1])):
            raise ValueError(f"observations, actions, rewards, costs and offsets disagree about the {rows} rows")
        if int(self.offsets[0]) != 0 or int(self.offsets.diff().min()) < 2:
            raise ValueError("offsets begin at 0, and every episode needs at least one step")
        if not len(self.tags):
            object.__setattr__(self, "tags", torch.full((self.episodes,), -1))
        for name in MASKS:
            mask = getattr(self, name)
            if mask is not None and (mask.dtype != torch.bool or mask.shape[:2] != self.observations.shape[:2]):
                raise ValueError(
                    f"{name} must be a boolean mask [{rows}, {self.agents}, ...], got {mask.dtype} {list(mask.shape)}"
                )
        if not len(self.terminated) == len(self.tags) == self.episodes:
            raise ValueError(f"terminated and tags need one entry for each of the {self.episodes} episodes")

    @property
    def episodes(self) -> int:
        return len(self.offsets) - 1

    @property
    def steps(self) -> int:
        """Environment steps, all agents together counting once."""
        return self.observations.shape[0] - self.episodes

    @property
    def agents(self) -> int:
        return self.observations.shape[1]

    @cached_property
    def episode(self) -> Tensor:
        """Episode of each row [S]."""
        return torch.repeat_interleave(torch.arange(self.episodes), self.offsets[1:] - self.offsets[:-1])

    @cached_property
    def time(self) -> Tensor:
        """Step within its episode of each row [S]."""
        return torch.arange(self.observations.shape[0]) - self.offsets[:-1][self.episode]

    @cached_property
    def last(self) -> Tensor:
        """Row of the final observation of each row's episode [S]."""
        return (self.offsets[1:] - 1)[self.episode]

    @cached_property
    def decisions(self) -> Tensor:
        """The rows that hold an action: all but the last of each episode."""
        return torch.nonzero(torch.arange(self.observations.shape[0]) < self.last).squeeze(1)

    def episode_sums(self, values: Tensor) -> Tensor:
        """Sum over each episode of a row quantity [S, ...] -> [E, ...]."""
        return values.new_zeros(self.episodes, *values.shape[1:]).index_add_(0, self.episode, values)

    @cached_property
    def returns(self) -> Tensor:
        """Undiscounted return of each episode and agent [E, A]."""
        return self.episode_sums(self.rewards)

    @cached_property
    def scores(self) -> Tensor:
        """Score of each episode [E]: its return, averaged over agents."""
        return self.returns.mean(dim=1)

    def fingerprint(self) -> str:
        """Hash of the contents, by which stored data is checked and a resumed run knows its data again."""
        digest = hashlib.blake2b(digest_size=16)
        for name in ("observations", "actions", "rewards", "costs", "offsets", "terminated", "tags"):
            digest.update(getattr(self, name).contiguous().numpy().tobytes())
        for name in MASKS:
            if (mask := getattr(self, name)) is not None:
                digest.update(name.encode() + mask.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def returns_to_go(self, discount: float = 1.0) -> Tensor:
        """Discounted sum of the rewards from each row to the end of its episode [S, A]."""
        return self._to_go(self.rewards, discount)

    def costs_to_go(self, discount: float = 1.0) -> Tensor:
        """Discounted sum of the costs from each row to the end of its episode [S, A]."""
        return self._to_go(self.costs, discount)

    def _to_go(self, values: Tensor, discount: float) -> Tensor:
        result = values.double().clone()
        for ends in _steps_from_the_end(self.last):
            result[ends] += discount * result[ends + 1]
        return result.to(values.dtype)

    def subset(self, episodes: Tensor) -> "Trajectories":
        """The trajectories of the given episodes [N], at least one, in the given order."""
        if not len(episodes):
            raise ValueError("a subset needs at least one episode")
        starts, ends = self.offsets[:-1][episodes], self.offsets[1:][episodes]
        rows = torch.cat([torch.arange(a, b) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)])
        return Trajectories(
            self.observations[rows],
            self.actions[rows],
            self.rewards[rows],
            self.costs[rows],
            torch.cat([ends.new_zeros(1), torch.cumsum(ends - starts, 0)]),
            self.terminated[episodes],
            self.tags[episodes],
            *(mask if mask is None else mask[rows] for mask in (self.legal, self.present)),
        )

    @staticmethod
    def concatenate(parts: Sequence["Trajectories"]) -> "Trajectories":
        lengths = torch.cat([part.offsets[1:] - part.offsets[:-1] for part in parts])
        names = ("observations", "actions", "rewards", "costs", "terminated", "tags")
        return Trajectories(
            offsets=torch.cat([lengths.new_zeros(1), torch.cumsum(lengths, 0)]),
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in names},
            legal=_joined(parts, "legal"),
            present=_joined(parts, "present"),
        )


def _joined(parts: Sequence[Trajectories], name: str) -> Tensor | None:
    """A mask of all parts, True in those that have none."""
    masks = [getattr(part, name) for part in parts]
    like = next((mask for mask in masks if mask is not None), None)
    if like is None:
        return None
    full = [like.new_ones(len(part.observations), *like.shape[1:]) for part in parts]
    return torch.cat([full[i] if mask is None else mask for i, mask in enumerate(masks)])


def _steps_from_the_end(last: Tensor) -> list[Tensor]:
    """Rows grouped by their distance 1, 2, ... from the end of their episode."""
    distance = last - torch.arange(len(last))
    order = torch.argsort(distance, stable=True)
    groups = torch.split(order, torch.bincount(distance).tolist())
    return list(groups[1:])

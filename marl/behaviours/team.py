"""What scripted teams have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from core.noise import normal
from core.rollout import Context, Reactive, policy_keys

#: Streams of a seed's noise: the steps of an episode have their numbers, what is drawn once is below.
_ONCE = -2


class Script(Protocol):
    """How a scripted team acts.

    Attributes:
        misled: share of the episodes, spread evenly, in which the team goes the wrong way.
        noise: standard deviation of the Gaussian added to each action.
        delay: age, in steps, of the observation that is acted on.
        uniform: whether every action is drawn uniformly instead.
    """

    @property
    def misled(self) -> float: ...

    @property
    def noise(self) -> float: ...

    @property
    def delay(self) -> int: ...

    @property
    def uniform(self) -> bool: ...


S = TypeVar("S", bound=Script)


class ScriptedTeam(Reactive, ABC, Generic[S]):
    """A team that follows a script; its randomness in an episode follows from the seed alone.

    Attributes:
        behaviours: names of the behaviours that `tags` counts. actions: U, entries of an action.
    """

    behaviours: ClassVar[tuple[str, ...]] = ("guided", "misled")

    def __init__(self, steering: S, actions: int = 2):
        self.steering = steering
        self.actions = actions

    @property
    def description(self) -> dict[str, Any]:
        """The script as plain data, for a dataset's metadata."""
        return {"team": type(self).__name__, **asdict(self.steering)}  # type: ignore[call-overload]

    def tags(self, seeds: Sequence[int]) -> Tensor:
        """Behaviour of each episode [B], an index into `behaviours`.

        Seed k is misled where k times the share passes an integer: evenly spread, and exact over any run of seeds.
        """
        share = self.steering.misled
        return torch.tensor([int((k + 1) * share) - int(k * share) for k in seeds])

    def reset(self, seeds: Sequence[int]) -> None:
        self.keys = policy_keys(seeds)
        self.misled = self.tags(seeds).bool()
        self.past: list[Tensor] = []

    def act(self, observations: Tensor, context: Context) -> Tensor:
        """[B, A, O] -> [B, A, U] in [-1, 1]."""
        observations = observations.cpu()
        shape, noise = (observations.shape[1], self.actions), self.steering.noise
        if self.steering.uniform:
            return 2 * torch.special.ndtr(normal(self.keys, shape, stream=context.step)) - 1
        if context.step == 0:
            self._begin(observations)
        self.past = [*self.past, observations][-1 - self.steering.delay :]
        action = self._steer(self.past[0]).clamp(-1, 1)
        return (action + noise * normal(self.keys, shape, stream=context.step)).clamp(-1, 1) if noise else action

    @abstractmethod
    def _begin(self, observations: Tensor) -> None:
        """Settle what holds for whole episodes, from their first observations."""

    @abstractmethod
    def _steer(self, observations: Tensor) -> Tensor:
        """Actions [B, A, U] of observations as old as the script says."""

    def _draws(self, count: int, number: int = 0) -> Tensor:
        """Normal numbers [B, count], drawn once in an episode; another `number` gives others."""
        return normal(self.keys, (count,), stream=_ONCE - number)

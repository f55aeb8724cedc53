"""Augmented random search for linear policies: minutes on a CPU for behaviours of every quality."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from core.data import Trajectories
from core.environments import Environments, TeamSpec
from core.errors import UserError
from core.noise import normal
from core.rollout import Context, Reactive, policy_keys, rollout

#: Stream of a seed's noise that is drawn once in an episode; its steps have their numbers.
_ONCE = -2


@dataclass(frozen=True)
class SearchConfig:
    """Augmented random search (Mania et al. 2018, V2-t).

    Attributes:
        iterations: updates of the policy. directions: N, tried both ways in each. best: of them that an update uses.
        step: alpha of an update. noise: nu, how far along the directions is tried.
        episodes: of each policy that is tried.
        penalty: lambda of the objective, return - lambda * cost of an episode, averaged over the agents.
        alive: reward of a step that counts for nothing, such as what some tasks give for not falling.
        seed: of the directions and, times a million, of the first episode.
    """

    iterations: int = 100
    directions: int = 16
    best: int = 8
    step: float = 0.02
    noise: float = 0.03
    episodes: int = 1
    penalty: float = 0.0
    alive: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.iterations, self.directions, self.best, self.episodes) < 1:
            raise ValueError(f"iterations, directions, best and episodes must be at least 1, got {self}")
        if self.best > self.directions:
            raise ValueError(f"best must be at most the {self.directions} directions, got {self.best}")
        if not (self.step > 0 and self.noise > 0 and self.penalty >= 0):
            raise ValueError(f"step and noise must be positive and penalty at least 0, got {self}")


@dataclass(frozen=True)
class Linear:
    """Linear controllers u = clip(W (o - mean) / deviation, -1, 1), one or, by leading dimensions, many.

    Attributes:
        weights: W [..., A, U, O]. mean, deviation: [..., A, O], of the observations.
    """

    weights: Tensor
    mean: Tensor
    deviation: Tensor

    def __getitem__(self, index: int | Tensor) -> "Linear":
        return Linear(self.weights[index], self.mean[index], self.deviation[index])

    def act(self, observations: Tensor) -> Tensor:
        """[B, A, O] -> [B, A, U], of one controller for all or one for each."""
        standardised = (observations.to(self.weights) - self.mean) / self.deviation
        return (self.weights @ standardised[..., None]).squeeze(-1).clamp(-1, 1).to(observations.dtype)

    @staticmethod
    def stack(controllers: Sequence["Linear"]) -> "Linear":
        """Controllers of one shape, along a new leading dimension."""
        fields = ("weights", "mean", "deviation")
        return Linear(*(torch.stack([getattr(each, name) for each in controllers]) for name in fields))


class LinearPolicy(Reactive):
    """Linear controllers that take turns: of K, the episode of seed s takes number s modulo K.

    Actions have Gaussian noise, whose deviation each episode draws from [0, noise].

    Attributes:
        behaviours: names that `tags` counts, F; controller k is of behaviour k modulo F.
        description: what made the controllers, as plain data.
    """

    def __init__(
        self,
        controllers: Linear,
        noise: float = 0.0,
        behaviours: tuple[str, ...] = ("linear",),
        description: Mapping[str, Any] | None = None,
    ):
        """Args: controllers: one, or K along a leading dimension."""
        single = controllers.weights.ndim == 3
        self.controllers = Linear.stack([controllers]) if single else controllers
        self.noise = noise
        self.behaviours = behaviours
        self.description = {"controller": "LinearPolicy", "noise": noise, **(description or {})}

    def tags(self, seeds: Sequence[int]) -> Tensor:
        """Behaviour of each episode [B], an index into `behaviours`."""
        return self._turns(seeds) % len(self.behaviours)

    def reset(self, seeds: Sequence[int]) -> None:
        self.keys = policy_keys(seeds)
        self.chosen = self.controllers[self._turns(seeds)]
        self.level = self.noise * torch.special.ndtr(normal(self.keys, (1, 1), stream=_ONCE))

    def act(self, observations: Tensor, context: Context) -> Tensor:
        """[B, A, O] -> [B, A, U] in [-1, 1]."""
        actions = self.chosen.act(observations.cpu())
        if not self.noise:
            return actions
        return (actions + self.level * normal(self.keys, actions.shape[1:], stream=context.step)).clamp(-1, 1)

    def _turns(self, seeds: Sequence[int]) -> Tensor:
        return torch.as_tensor(seeds, dtype=torch.int64) % len(self.controllers.weights)


@dataclass(frozen=True)
class Searched:
    """What came of I iterations.

    Attributes:
        config: of the search.
        controllers: the controller before each iteration and, last, the result, [I + 1, ...].
        steps: [I], environment steps by the end of each. returns, costs: [I], of its episodes, on average.
    """

    config: SearchConfig
    controllers: Linear
    steps: Tensor
    returns: Tensor
    costs: Tensor

    @property
    def policy(self) -> LinearPolicy:
        """The controller that was found."""
        return LinearPolicy(self.controllers[-1], description={"search": asdict(self.config)})


class _Tried(Reactive):
    """One controller for each episode of a batch."""

    def __init__(self, controllers: Linear):
        self.controllers = controllers

    def act(self, observations: Tensor, context: Context) -> Tensor:
        return self.controllers.act(observations.cpu())


class _Moments:
    """Mean and deviation of all observations so far, in float64 (Chan et al. 1979)."""

    def __init__(self, shape: tuple[int, int]):
        self.count = 0
        self.mean, self.squares = torch.zeros(2, *shape, dtype=torch.float64)

    def add(self, values: Tensor) -> Self:
        """Values [N, A, O]."""
        count, mean = self.count + len(values), values.mean(dim=0, dtype=torch.float64)
        shift = mean - self.mean
        self.squares = self.squares + (values - mean).square().sum(dim=0)
        self.squares = self.squares + shift.square() * (self.count * len(values) / count)
        self.mean, self.count = self.mean + shift * (len(values) / count), count
        return self

    def controller(self, weights: Tensor) -> Linear:
        """The controller of these weights and, where entries never change, of a deviation of 1."""
        deviation = (self.squares / max(self.count, 1)).sqrt()
        return Linear(weights, self.mean, torch.where(deviation > 1e-6, deviation, 1.0))


def search(
    environments: Environments,
    config: SearchConfig,
    progress: Callable[[int], None] = lambda steps: None,
) -> Searched:
    """Search for a linear policy from nothing. Each iteration is one batch of 2 N episodes for each of its `episodes`;
    the two ways along a direction begin alike.

    Args:
        environments: of continuous actions. progress: told of environment steps.

    Raises:
        UserError: discrete actions.
    """
    weights = torch.zeros(_shape(environments.spec), dtype=torch.float64)
    moments = _Moments((weights.shape[0], weights.shape[2]))
    controllers, curve = [moments.controller(weights)], []
    steps = 0
    for iteration in range(config.iterations):
        directions = normal([config.seed], (config.directions, *weights.shape), iteration, torch.float64)[0]
        done = _try(environments, controllers[-1], directions, config, iteration, progress)
        weights = weights + _update(_objective(done, config), directions, config)
        controllers.append(moments.add(done.observations[done.decisions]).controller(weights))
        steps += done.steps
        curve.append((steps, float(done.scores.mean()), float(_of_episodes(done, done.costs).mean())))
    along, returns, costs = (torch.tensor(values) for values in zip(*curve))
    return Searched(config, Linear.stack(controllers), along, returns, costs)


def spanning(
    environments: Environments,
    config: SearchConfig,
    penalties: Sequence[float],
    *,
    stages: int = 8,
    noise: float = 0.2,
    progress: Callable[[int], None] = lambda steps: None,
) -> LinearPolicy:
    """A policy whose episodes span rewards and costs: for each penalty what a search for it found, and, for data of
    lower quality, what it had before; its behaviours are the penalties.

    Args:
        stages: controllers of each search, evenly spaced over its iterations, the last included.
        noise: greatest deviation of an episode's noise on actions. progress: told of environment steps.
    """
    searches = [search(environments, replace(config, penalty=penalty), progress) for penalty in penalties]
    taken = (torch.arange(1, stages + 1) * config.iterations / stages).round().long().clamp(min=1)
    # Turns go through the penalties first, so that few episodes are of all of them too.
    controllers = Linear.stack([found.controllers[int(stage)] for stage in taken for found in searches])
    description = {
        "search": {**asdict(config), "penalty": list(penalties)},
        "stages": taken.tolist(),
        "returns": [round(float(found.returns[-1]), 4) for found in searches],
        "costs": [round(float(found.costs[-1]), 4) for found in searches],
    }
    return LinearPolicy(controllers, noise, tuple(f"penalty {penalty:g}" for penalty in penalties), description)


def _shape(spec: TeamSpec) -> tuple[int, int, int]:
    if spec.discrete:
        raise UserError(f"the search is for continuous actions, and the environment's are {spec.action_dim} choices")
    return spec.agents, spec.action_dim, spec.observation_dim


def _try(
    environments: Environments,
    now: Linear,
    directions: Tensor,
    config: SearchConfig,
    iteration: int,
    progress: Callable[[int], None],
) -> Trajectories:
    """Episodes [E * 2 * N] of the policies on both sides of `now`."""
    both = now.weights + config.noise * torch.cat([directions, -directions])
    tried = Linear(both.repeat(config.episodes, 1, 1, 1), now.mean, now.deviation)
    shape = (config.episodes, 2, config.directions)
    first = config.seed * 1_000_000 + iteration * config.episodes * config.directions
    seeds = first + torch.arange(shape[0] * shape[2]).reshape(shape[0], 1, shape[2]).expand(shape).flatten()
    return rollout(_Tried(tried), environments, seeds.tolist(), parallel=len(seeds), progress=progress).trajectories


def _objective(done: Trajectories, config: SearchConfig) -> Tensor:
    """Mean objective of each policy tried [2, N]."""
    values = done.scores.double() - config.penalty * _of_episodes(done, done.costs).double()
    values = values - config.alive * (done.offsets.diff() - 1)
    return values.unflatten(0, (config.episodes, 2, config.directions)).mean(dim=0)


def _of_episodes(done: Trajectories, values: Tensor) -> Tensor:
    """Sum over each episode [E], averaged over agents."""
    return done.episode_sums(values).mean(dim=1)


def _update(objective: Tensor, directions: Tensor, config: SearchConfig) -> Tensor:
    """step / (best * deviation of the objectives used) * sum over the best of (r+ - r-) direction; none where all that
    was tried is worth the same."""
    kept = objective.amax(dim=0).topk(config.best).indices
    used = objective[:, kept]
    deviation = used.std(correction=0)
    if not deviation > 0:
        return torch.zeros_like(directions[0])
    return config.step / (config.best * deviation) * torch.einsum("n,n...->...", used[0] - used[1], directions[kept])

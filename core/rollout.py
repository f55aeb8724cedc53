"""Rolling out any policy in many environments at once: the one path for collecting data and for evaluating."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.data.trajectories import Trajectories
from core.environments import Environments, Observed


@dataclass(frozen=True)
class Context:
    """What a policy is told beside the observations: the step within the episode, which episodes still run [B], and,
    where it matters, the legal choices [B, A, U] and the agents that take part [B, A]."""

    step: int
    active: Tensor
    legal: Tensor | None = None
    present: Tensor | None = None


class Policy(Protocol):
    """Anything that acts for B teams at once, learned or scripted."""

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin B episodes; a policy's own randomness in an episode follows from its seed alone."""

    def act(self, observations: Tensor, context: Context) -> Tensor:
        """[B, A, O] -> [B, A, U]."""

    def observe(self, rewards: Tensor, costs: Tensor, done: Tensor) -> None:
        """What the last step gave: rewards and costs [B, A], and which episodes ended [B]."""


class Reactive:
    """Base of policies that need no memory of rewards."""

    def reset(self, seeds: Sequence[int]) -> None:
        return None

    def observe(self, rewards: Tensor, costs: Tensor, done: Tensor) -> None:
        return None


def policy_keys(seeds: Sequence[int]) -> Tensor:
    """Keys [B] of a policy's own noise (`core.normal`), none of which an environment begins an episode by."""
    return -1 - torch.as_tensor(seeds, dtype=torch.int64)


@dataclass(frozen=True)
class Rollout:
    """Finished episodes, and the time that the policy alone took for the decision of one team."""

    trajectories: Trajectories
    seconds_per_decision: float


def rollout(
    policy: Policy,
    environments: Environments,
    seeds: Sequence[int],
    *,
    parallel: int = 256,
    progress: Callable[[int], None] = lambda steps: None,
) -> Rollout:
    """One episode for each seed, up to `parallel` of them at once with one call of the policy for all.

    Args:
        policy: acts for a batch of teams.
        environments: of the task, `core.ParallelEnvironments` of any PettingZoo ParallelEnv; the caller closes them.
        seeds: seed of each episode, for the environment's reset and the policy's own randomness.
        progress: called with the number of environment steps just made.
    """
    parts: list[Trajectories] = []
    seconds, decisions = 0.0, 0
    for first in range(0, len(seeds), parallel):
        chunk = list(seeds[first : first + parallel])
        observed = environments.reset(chunk)
        policy.reset(chunk)
        recorder = _Recorder(len(chunk))
        step = 0
        while bool(recorder.active.any()):
            context = Context(step, recorder.active.clone(), observed.legal, observed.present)
            begin = time.perf_counter()
            actions = policy.act(observed.observations, context).cpu().clone()
            seconds += time.perf_counter() - begin
            stepped = environments.step(actions)
            running = int(recorder.active.sum())
            decisions += running
            rewards, costs = recorder.record(
                observed, actions, stepped.rewards.cpu(), stepped.costs.cpu(), stepped.terminated.cpu(),
                stepped.truncated.cpu(),
            )  # fmt: skip
            observed = stepped.observed
            policy.observe(rewards, costs, ~recorder.active)
            progress(running)
            step += 1
        parts.append(recorder.trajectories(observed))
    return Rollout(Trajectories.concatenate(parts), seconds / decisions)


class _Recorder:
    """The rows of B running episodes."""

    def __init__(self, batch: int):
        self.active = torch.ones(batch, dtype=torch.bool)
        self.lengths = torch.zeros(batch, dtype=torch.int64)
        self.terminated = torch.zeros(batch, dtype=torch.bool)
        self.seen: list[Observed] = []
        self.done: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(
        self, observed: Observed, actions: Tensor, rewards: Tensor, costs: Tensor, terminated: Tensor, truncated: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keep a step; returns its rewards and costs, zeros where the episode is over."""
        running = self.active[:, None]
        rewards, costs = (torch.where(running, values, 0.0) for values in (rewards, costs))
        self.seen.append(observed)
        self.done.append((actions, rewards, costs))
        self.lengths += self.active
        self.terminated |= self.active & terminated
        self.active = self.active & ~(terminated | truncated)
        return rewards, costs

    def trajectories(self, final: Observed) -> Trajectories:
        """All episodes, each with its final observation."""
        # What follows an episode's end is never read, so that the rows of the longest serve all.
        kept = torch.arange(len(self.seen) + 1) <= self.lengths[:, None]
        seen = [*self.seen, final]
        real = (torch.arange(len(seen)) < self.lengths[:, None])[kept]

        def rows(values: Sequence[Tensor]) -> Tensor:
            return torch.stack([value.cpu() for value in values], dim=1)[kept]

        def padded(place: int) -> Tensor:
            values = [step[place] for step in self.done]
            taken = rows([*values, torch.zeros_like(values[0])])
            return torch.where(real.reshape(-1, *[1] * (taken.ndim - 1)), taken, 0.0)

        def marks(name: str) -> Tensor | None:
            """A mask where any step has one."""
            values = [getattr(one, name) for one in seen]
            like = next((value for value in values if value is not None), None)
            if like is None:
                return None
            return rows([torch.ones_like(like) if value is None else value for value in values])

        return Trajectories(
            rows([one.observations for one in seen]),
            padded(0),
            padded(1),
            padded(2),
            torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(self.lengths + 1, 0)]),
            self.terminated,
            legal=marks("legal"),
            present=marks("present"),
        )

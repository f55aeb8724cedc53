"""Rolling out any policy in many environments at once: the one path for collecting data and for evaluating."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from core.data.trajectories import Trajectories


@dataclass(frozen=True)
class Context:
    """What a policy is told beside the observations: the step within the episode, and which episodes still run [B]."""

    step: int
    active: Tensor


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


@dataclass(frozen=True)
class Rollout:
    """Finished episodes, and the time that the policy alone took for the decision of one team."""

    trajectories: Trajectories
    seconds_per_decision: float


class _Recorder:
    """One environment and the rows of its running episode."""

    def __init__(self, environment: Any, seed: int):
        self.environment = environment
        self.agents = list(environment.possible_agents)
        self.rows: list[tuple[np.ndarray, ...]] = []
        self.terminated = False
        self.observation = self._stack(environment.reset(seed=seed)[0])

    def _stack(self, values: dict[str, Any]) -> np.ndarray:
        return np.stack([np.asarray(values[agent], dtype=np.float32) for agent in self.agents])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Act for all agents; returns rewards [A], costs [A] and whether the episode ended."""
        observations, rewards, terminations, truncations, infos = self.environment.step(
            dict(zip(self.agents, actions, strict=True))
        )
        reward = np.array([rewards[agent] for agent in self.agents], dtype=np.float32)
        cost = np.array([infos[agent].get("cost", 0.0) for agent in self.agents], dtype=np.float32)
        self.rows.append((self.observation, actions, reward, cost))
        self.observation = self._stack(observations)
        self.terminated = all(terminations.values())
        return reward, cost, all(terminations[agent] or truncations[agent] for agent in self.agents)

    def trajectory(self) -> Trajectories:
        observations, actions, rewards, costs = (np.stack(column) for column in zip(*self.rows, strict=True))

        def padded(values: np.ndarray, final: np.ndarray | None = None) -> Tensor:
            final = np.zeros_like(values[0]) if final is None else final
            return torch.from_numpy(np.concatenate([values, final[None]]))

        return Trajectories(
            padded(observations, self.observation),
            padded(actions),
            padded(rewards),
            padded(costs),
            torch.tensor([0, len(self.rows) + 1]),
            torch.tensor([self.terminated]),
            torch.tensor([-1]),
        )


def rollout(
    policy: Policy,
    make: Callable[[], Any],
    seeds: Sequence[int],
    *,
    parallel: int = 256,
    progress: Callable[[int], None] = lambda steps: None,
    environments: list[Any] | None = None,
) -> Rollout:
    """One episode for each seed, up to `parallel` of them at once with one call of the policy for all.

    Args:
        policy: acts for a batch of teams.
        make: makes one PettingZoo ParallelEnv with Box actions; a cost is read from each agent's info["cost"].
        seeds: seed of each episode, for the environment's reset and the policy's own randomness.
        progress: called with the number of environment steps just made.
        environments: those made so far, taken first and added to, which the caller closes. Making one can take as
            long as an episode in it.
    """
    if environments is not None:
        return _rollout(policy, make, seeds, parallel, progress, environments)
    environments = []
    try:
        return _rollout(policy, make, seeds, parallel, progress, environments)
    finally:
        for environment in environments:
            environment.close()


def _rollout(
    policy: Policy,
    make: Callable[[], Any],
    seeds: Sequence[int],
    parallel: int,
    progress: Callable[[int], None],
    environments: list[Any],
) -> Rollout:
    parts: list[Trajectories] = []
    seconds, decisions = 0.0, 0
    for first in range(0, len(seeds), parallel):
        chunk = list(seeds[first : first + parallel])
        environments += [make() for _ in range(len(chunk) - len(environments))]
        recorders = [_Recorder(environment, seed) for environment, seed in zip(environments, chunk, strict=False)]
        policy.reset(chunk)
        active = torch.ones(len(chunk), dtype=torch.bool)
        step = 0
        while bool(active.any()):
            observations = torch.from_numpy(np.stack([recorder.observation for recorder in recorders]))
            begin = time.perf_counter()
            actions = policy.act(observations, Context(step, active.clone())).cpu().clone()
            seconds += time.perf_counter() - begin
            running = torch.nonzero(active).squeeze(1).tolist()
            decisions += len(running)
            rewards, costs = torch.zeros(actions.shape[:2]), torch.zeros(actions.shape[:2])
            for index in running:
                reward, cost, done = recorders[index].step(actions[index].numpy())
                rewards[index], costs[index] = torch.from_numpy(reward), torch.from_numpy(cost)
                active[index] = not done
            policy.observe(rewards, costs, ~active)
            progress(len(running))
            step += 1
        parts += [recorder.trajectory() for recorder in recorders]
    return Rollout(Trajectories.concatenate(parts), seconds / decisions)

"""Episodes of every quality, of any task: what datasets are made of."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.actions import execute
from core.data import Trajectories
from core.environments import Environments, TeamSpec
from core.errors import UserError
from core.noise import normal
from core.rollout import Context, Reactive, policy_keys, rollout
from marl.behaviours import scripted_team
from marl.environments import TaskConfig
from marl.learner import learn
from marl.learner_config import LearnerConfig

#: The quality that is what a learner did on its way to a medium return.
REPLAY = "medium-replay"

#: Episodes that tell what medium is.
_SCORED = 1000


@dataclass(frozen=True)
class Collected:
    """Episodes and what made them: a description, as plain data, and the names that their tags count."""

    trajectories: Trajectories
    description: dict[str, Any]
    behaviours: tuple[str, ...]


class Uniform(Reactive):
    """Every action uniform in [-1, 1], or any legal choice."""

    def __init__(self, spec: TeamSpec):
        self.spec = spec

    def reset(self, seeds: Sequence[int]) -> None:
        self.keys = policy_keys(seeds)

    def act(self, observations: Tensor, context: Context) -> Tensor:
        shape = (self.spec.agents, self.spec.action_dim)
        drawn = 2 * torch.special.ndtr(normal(self.keys, shape, stream=context.step)) - 1
        return execute(drawn, self.spec.discrete, context.legal)


def collect_episodes(
    task: TaskConfig,
    quality: str,
    environments: Environments,
    episodes: int,
    seed: int,
    *,
    parallel: int = 256,
    progress: Callable[[int], None] = lambda steps: None,
) -> Collected:
    """Episodes of a quality.

    Args:
        quality: of the task's scripted teams; "medium-replay", what a learner did on its way to a medium return; of
            an environment that is not our own, "random" alone.
        environments: of the task. episodes: how many, at most, of a replay. seed: of the first, or of the learner.
        parallel: stepped at once. progress: told of environment steps.

    Raises:
        UserError: unknown quality.
    """
    seeds = range(seed, seed + episodes)
    if quality == REPLAY and not task.foreign:
        return _replay(task, environments, episodes, seed, progress)
    if task.foreign and quality != "random":
        raise UserError(
            f"only quality=random can be collected in {task.name}: import other data with convoy data import"
        )
    team = Uniform(environments.spec) if task.foreign else scripted_team(task.name, quality, task.rules)
    trajectories = rollout(team, environments, seeds, parallel=parallel, progress=progress).trajectories
    if isinstance(team, Uniform):
        return Collected(trajectories, {"team": "Uniform"}, ())
    return Collected(replace(trajectories, tags=team.tags(seeds)), team.description, team.behaviours)


def _replay(
    task: TaskConfig, environments: Environments, episodes: int, seed: int, progress: Callable[[int], None]
) -> Collected:
    """What a learner did until its mean return was the medium team's."""
    medium = scripted_team(task.name, "medium", task.rules)
    scored = rollout(medium, environments, range(seed, seed + _SCORED), parallel=_SCORED).trajectories
    target = float(scored.scores.mean())
    config = LearnerConfig.for_task(task.name, seed=seed, episodes=episodes, target=target)
    done = 0

    def report(steps: int, _score: float) -> None:
        nonlocal done
        progress(steps - done)
        done = steps

    with tempfile.TemporaryDirectory() as folder:
        learned = learn(environments, config, Path(folder), report)
    description = {"team": "MATD3", **asdict(config), "reached": learned.reached}
    return Collected(learned.replay, description, tuple(f"part {stage + 1}" for stage in range(config.stages)))

"""Episodes of every quality, of any task: what datasets are made of."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from core.environments import Environments
from core.errors import UserError
from core.rollout import rollout
from core.tasks import Collected, Task
from core.uniform import Uniform
from marl.behaviours import scripted_team
from marl.learner import learn
from marl.learner_config import LearnerConfig

#: The quality that is what a learner did on its way to a medium return.
REPLAY = "medium-replay"

#: Episodes that tell what medium is.
_SCORED = 1000


def collected(
    task: Task,
    quality: str,
    environments: Environments,
    episodes: int,
    seed: int,
    *,
    parallel: int,
    progress: Callable[[int], None],
) -> Collected:
    """`core.Task.collect` of a team's task; the qualities are those of its scripted teams, "medium-replay", what a
    learner did on its way to a medium return, and "random" alone where the environment is not our own."""
    seeds = range(seed, seed + episodes)
    if quality == REPLAY and not task.foreign:
        return _replay(task, environments, episodes, seed, progress)
    if task.foreign and quality != "random":
        raise UserError(
            f"only quality=random can be collected in {task.name}: import other data with convoy data import"
        )
    team = Uniform(environments.spec) if task.foreign else scripted_team(task.name, quality, task.rules)
    trajectories = rollout(team, environments, seeds, parallel=parallel, progress=progress).trajectories
    return Collected(replace(trajectories, tags=team.tags(seeds)), team.description, team.behaviours)


def _replay(
    task: Task, environments: Environments, episodes: int, seed: int, progress: Callable[[int], None]
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

"""Team tasks: which environment, under which rules, and what its scores are measured against."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pettingzoo import ParallelEnv

from core.environments import Environments
from core.errors import UserError, nearest
from core.parallel_envs import ParallelEnvironments
from core.tasks import Collected, References, Task
from marl.collecting import collected
from marl.foreign import foreign_env, gymnasium_id, is_foreign
from marl.particles import ParticleParallelEnv, Particles, load_prey

#: Names of the tasks that are our own; any PettingZoo ParallelEnv or gymnasium.Env is one by its import path.
TASKS = ("mpe/spread", "mpe/tag", "mpe/world")

#: Rule sets of the multi-agent particle environments: today's package, and the fork that published results rest on.
RULES = ("mpe2", "omar")


_MEASURED = "uniform random actions and the scripted expert, measured by benchmarks/references.py"
_PUBLISHED = "published with MADiff (arXiv 2305.17330)"

#: Reference scores of (task, rules, prey); the prey is "" where there is none.
REFERENCES = {
    ("mpe/spread", "mpe2", ""): References(-26.1, -5.9, _MEASURED),
    ("mpe/spread", "omar", ""): References(159.8, 516.8, _PUBLISHED),
    ("mpe/tag", "mpe2", "flight"): References(0.8, 71.3, _MEASURED),
    ("mpe/tag", "mpe2", "learned"): References(4.9, 22.0, _MEASURED),
    ("mpe/tag", "omar", "flight"): References(-9.5, 114.3, _MEASURED),
    ("mpe/tag", "omar", "learned"): References(-5.5, 55.5, _MEASURED),
    ("mpe/tag", "omar", "published"): References(-4.1, 185.6, _PUBLISHED),
    ("mpe/world", "mpe2", "flight"): References(-0.4, 67.7, _MEASURED),
    ("mpe/world", "mpe2", "learned"): References(5.7, 39.7, _MEASURED),
    ("mpe/world", "omar", "flight"): References(-9.6, 39.4, _MEASURED),
    ("mpe/world", "omar", "learned"): References(-8.2, 21.5, _MEASURED),
    ("mpe/world", "omar", "published"): References(-6.8, 79.5, _PUBLISHED),
}


@dataclass
class TaskConfig(Task):
    """A team task.

    Attributes:
        name: "mpe/spread", "mpe/tag", "mpe/world"; "MODULE" or "MODULE:CALLABLE" of any PettingZoo ParallelEnv or
            gymnasium.Env; a single agent's that Gymnasium registers, such as "gym/Pendulum-v1"; or multi-agent
            MuJoCo's, such as "mamujoco/HalfCheetah-2x3".
        rules: "mpe2", today's package, or "omar", those of the fork that the offline papers report on.
        agents: number of agents; 0 is the task's own, 3 in ours (mpe2's world has a leader besides). landmarks: of
            spread, 0 for as many as agents.
        max_cycles: steps of an episode, which then is truncated, never terminated.
        prey: what moves the prey of tag and world: "flight" is scripted, "learned" a network of ours, and a path names
            the file of a published one.
        entities: spread's observations as one token for each landmark and other agent, for teams of any size.
        circle, missing, speed: shifted environments (`marl.particles.Particles`): landmarks on a circle, landmarks that
            are missing, a factor on the agents' force and speed.
        options: keyword arguments of an environment that is not our own.
    """

    name: str = "mpe/spread"
    rules: str = "mpe2"
    agents: int = 0
    max_cycles: int = 25
    landmarks: int = 0
    prey: str = "flight"
    entities: bool = False
    circle: int = 0
    missing: int = 0
    speed: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in TASKS and not is_foreign(self.name):
            raise ValueError(
                f"unknown task {self.name!r}: {nearest(self.name, TASKS)} Environments that are not our own are "
                "MODULE:CALLABLE, a name of PettingZoo's such as classic/rps-v2, one of Gymnasium's such as "
                "gym/Pendulum-v1, or mamujoco/SCENARIO-CONFIGURATION."
            )
        if self.foreign:
            self.rules = ""  # its own
            for each in fields(self):
                if each.name not in ("name", "rules", "options") and getattr(self, each.name) != each.default:
                    raise ValueError(f"task.{each.name} is of our own tasks, {self.name} takes task.options alone")
        elif self.rules not in RULES:
            raise ValueError(f"unknown task.rules {self.rules!r}: choose one of {', '.join(RULES)}")
        if self.agents < 0 or self.max_cycles < 1:
            raise ValueError(
                f"task.agents must be at least 0 and task.max_cycles at least 1, got {self.agents}, {self.max_cycles}"
            )
        if self.name in TASKS and self.options:
            raise ValueError(f"task.options is for environments that are not our own, got {self.options}")
        if not self.foreign and not self.agents:
            self.agents = 3

    @property
    def foreign(self) -> bool:
        return self.name not in TASKS

    @property
    def environment_id(self) -> str:
        return gymnasium_id(self.name)

    @property
    def prey_name(self) -> str:
        """Name of what moves the prey, "" where there is none."""
        if self.foreign or self.name == "mpe/spread":
            return ""
        return self.prey if self.prey in ("flight", "learned") else load_prey(self.prey, self.scenario, self.rules).name

    @property
    def scenario(self) -> str:
        return self.name.removeprefix("mpe/")

    @property
    def references(self) -> References | None:
        """Reference scores, which hold for the task as it is published or measured alone."""
        standard = TaskConfig(self.name, self.rules, prey=self.prey, entities=self.entities)
        return REFERENCES.get((self.name, self.rules, self.prey_name)) if self == standard else None

    @property
    def settings(self) -> dict[str, Any]:
        """What tells the environment from the task's usual one, and what moves the prey, as plain data."""
        if self.foreign:
            return {"options": self.options}
        usual = TaskConfig(self.name, self.rules)
        changed = {name: value for name, value in vars(self).items() if value != getattr(usual, name)}
        if not self.prey_name:
            return changed
        prey = load_prey(self.prey, self.scenario, self.rules)
        return changed | {"prey": prey.name, "prey_description": prey.description}

    def make(self, device: str = "cpu") -> Environments:
        return ParallelEnvironments(self.parallel_env) if self.foreign else self._particles(device)

    def parallel_env(self, render_mode: str | None = None) -> ParallelEnv:
        """One environment of the task as PettingZoo has it.

        Raises:
            UserError: the environment cannot be made with these settings.
        """
        if self.foreign:
            return foreign_env(self.name, self.options | ({"render_mode": render_mode} if render_mode else {}))
        return ParticleParallelEnv(self._particles("cpu"), render_mode=render_mode)

    def _particles(self, device: str) -> Particles:
        return Particles(
            self.scenario,
            self.rules,
            agents=self.agents,
            landmarks=self.landmarks,
            max_cycles=self.max_cycles,
            prey=load_prey(self.prey, self.scenario, self.rules) if self.prey_name else None,
            missing=self.missing,
            circle=self.circle,
            speed=self.speed,
            entities=self.entities,
            device=device,
        )

    def collect(
        self,
        quality: str,
        environments: Environments,
        episodes: int,
        seed: int,
        *,
        parallel: int = 256,
        progress: Callable[[int], None] = lambda steps: None,
    ) -> Collected:
        return collected(self, quality, environments, episodes, seed, parallel=parallel, progress=progress)

    def dataset_id(self, quality: str) -> str:
        if self.foreign:
            options = "-".join([quality, *(f"{name}{value}" for name, value in sorted(self.options.items()))])
            if len(options) > 100:
                options = f"{quality}-{hashlib.blake2b(options.encode(), digest_size=4).hexdigest()}"
            return f"{_plain(self.name)}/{_plain(options)}-v0"
        own = TaskConfig(self.name, self.rules)
        parts = [f"{self.agents}x{self.max_cycles}"] if (self.agents, self.max_cycles) != (own.agents, 25) else []
        parts += [f"{self.landmarks}landmarks"] if self.landmarks not in (0, self.agents) else []
        parts += [Path(self.prey_name).stem] if self.prey_name not in ("", "flight") else []
        parts += ["entities"] if self.entities else []
        parts += [f"{name}{value:g}" for name, value, none in self._shifts() if value != none]
        return f"{self.name}/{self.rules}/{_plain('-'.join([quality, *parts]))}-v0"

    def _shifts(self) -> list[tuple[str, float, float]]:
        return [("circle", self.circle, 0), ("missing", self.missing, 0), ("speed", self.speed, 1)]


def _plain(text: str) -> str:
    """In letters that a Minari id takes."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")


def parallel_env(name: str, rules: str = "mpe2", *, render_mode: str | None = None, **settings: Any) -> ParallelEnv:
    """A task as a PettingZoo ParallelEnv with Box actions in [-1, 1] and info["cost"] for every agent.

    Args:
        settings: further fields of `TaskConfig`, such as agents=5.

    Raises:
        UserError: unknown task, rules or setting.
    """
    try:
        return TaskConfig(name, rules, **settings).parallel_env(render_mode)
    except (TypeError, ValueError) as error:
        raise UserError(str(error).replace("TaskConfig.__init__()", "marl.parallel_env")) from error

"""Tasks with a cost: what each is made of, in one entry, and their configuration."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Protocol, cast

from torch import Tensor

from core.environments import Environments
from core.errors import UserError, nearest
from core.rollout import Policy, rollout
from core.tasks import Collected, References, Task
from core.uniform import Uniform
from safe.controllers import Detour, GoToGoal, Swing, SwingUp
from safe.disk_controllers import Passing, PassRight
from safe.disks import Disks
from safe.fronts import even
from safe.locomotion import BUDGET, LOCOMOTION, STEPS, Locomotion
from safe.mazes import MAZES, Maze
from safe.pendulum import SafePendulum
from safe.point_robot import PointRobot
from safe.waypoints import Steering, WaypointPolicy

#: Cells along costs and along returns by which a quality's episodes are spread.
_CELLS = (20, 20)


class Behaviour(Policy, Protocol):
    """A policy that data come from.

    Attributes:
        behaviours: names that `tags` counts. description: the policy as plain data.
    """

    @property
    def behaviours(self) -> tuple[str, ...]: ...

    @property
    def description(self) -> dict[str, Any]: ...

    def tags(self, seeds: Sequence[int]) -> Tensor:
        """Behaviour of each episode [B], an index into `behaviours`."""


@dataclass(frozen=True)
class Quality:
    """Where data of a quality come from.

    Attributes:
        behaviour: makes the policy, from the task, its environments, and for what is learned a seed and what is told of
            its environment steps.
        drawn: episodes rolled out for each one kept; above 1, those are kept that cover costs and returns evenly.
    """

    behaviour: Callable[["SafeTaskConfig", Environments, int, Callable[[int], None]], Behaviour]
    drawn: int = 1


@dataclass(frozen=True)
class SafeTask:
    """A task with a cost.

    Attributes:
        make: the environments, from max_cycles, the device and the options. steps: of an episode.
        budget: cost of an episode that a budget of ratio 1 allows, undiscounted and averaged over the agents.
        qualities: of its data, by name. references: mean returns that normalise a return.
    """

    make: Callable[..., Environments]
    steps: int
    budget: float
    qualities: Mapping[str, Quality]
    references: References | None = None


def _swing(habits: Swing, drawn: int = 1) -> Quality:
    return Quality(lambda task, *_: SwingUp(habits, task.max_cycles), drawn)


def _drive(habits: Detour, drawn: int = 1) -> Quality:
    return Quality(lambda task, *_: GoToGoal(habits, task.max_cycles), drawn)


_RANDOM = Quality(lambda task, environments, *_: Uniform(environments.spec))


def _robot(robot: Locomotion) -> SafeTask:
    """Data are of linear policies that are searched for when they are collected."""
    qualities = {
        "front": Quality(lambda task, environments, seed, told: robot.front(environments, seed, told), drawn=2),
        "expert": Quality(lambda task, environments, seed, told: robot.expert(environments, seed, told)),
        "random": _RANDOM,
    }
    return SafeTask(robot.make, STEPS, BUDGET, qualities)


def _maze(maze: Maze) -> SafeTask:
    def ways(drawn: int = 1, **steering: Any) -> Quality:
        def made(task: "SafeTaskConfig", *_: Any) -> WaypointPolicy:
            hazards = task.options.get("hazards")
            here = maze if hazards is None else maze.placed(hazards)
            return WaypointPolicy(here.geometry, Steering(**steering))

        return Quality(made, drawn)

    qualities = {
        "front": ways(drawn=2),
        "shortest": ways(avoidance=(0.0,), noise=0.0),
        "careful": ways(avoidance=(30.0,), noise=0.0),
        "random": _RANDOM,
    }
    assert maze.budget is not None
    return SafeTask(maze.make, maze.steps, maze.budget, qualities, maze.references)


def _disks(scenario: str, budget: float, random: float, straight: float) -> SafeTask:
    def passing(drawn: int = 1, **habits: Any) -> Quality:
        def made(task: "SafeTaskConfig", environments: Environments, *_: Any) -> PassRight:
            return PassRight(Passing(**habits), cast(Disks, environments).radius, task.max_cycles)

        return Quality(made, drawn)

    qualities = {
        "front": passing(drawn=4, noise=0.3, lapsing=0.15, uniform=0.05, distance=(0.0, 1.25)),
        "straight": passing(distance=(0.0, 0.0)),
        "careful": passing(distance=(1.25, 1.25)),
        "random": _RANDOM,
    }
    references = References(random, straight, "uniform random actions and going straight, 4000 episodes each")
    return SafeTask(partial(Disks, scenario), 50, budget, qualities, references)


#: Our own tasks. Returns: `random` of uniform actions, `expert` of the best controller that has no regard for cost.
TASKS: dict[str, SafeTask] = {
    "safe/pendulum": SafeTask(
        make=SafePendulum,
        steps=200,
        budget=60.0,  # TREBI's; 16.70 discounted by 0.99
        qualities={
            "front": _swing(Swing(noise=0.3, lapsing=0.25, uniform=0.05, lean=(-23.5, 10.0), turning=0.5), drawn=4),
            "upright": _swing(Swing()),
            "random": _RANDOM,
        },
        references=References(99.5, 180.1, "uniform random actions and standing upright, 4000 episodes each"),
    ),
    "safe/point_robot": SafeTask(
        make=PointRobot,
        steps=300,
        budget=17.0,  # ours: what driving straight costs where it crosses a hazard
        qualities={
            "front": _drive(
                Detour(noise=0.5, lapsing=0.15, uniform=0.05, margin=(-0.8, 0.5), speed=(0.8, 2.0)), drawn=4
            ),
            "straight": _drive(Detour(margin=(-0.8, -0.8), speed=(1.5, 1.5))),
            "careful": _drive(Detour(margin=(0.2, 0.2), speed=(1.5, 1.5))),
            "random": _RANDOM,
        },
        references=References(0.94, 3.87, "uniform random actions and driving straight, 4000 episodes each"),
    ),
    **{f"safe/{name}": _robot(robot) for name, robot in LOCOMOTION.items()},
    **{f"safe/maze-{name}": _maze(maze) for name, maze in MAZES.items()},
    # Budgets are ours: what going straight costs.
    "safe/disks-crossing": _disks("crossing", 3.9, -0.03, 5.15),
    "safe/disks-swap": _disks("swap", 2.5, -0.06, 5.15),
    "safe/disks-random": _disks("random", 0.8, -0.06, 5.15),
}


@dataclass
class SafeTaskConfig(Task):
    """A task with a cost.

    Attributes:
        name: of `safe.TASKS`. max_cycles: steps of an episode; 0 is the task's own.
        options: keyword arguments of the environment, such as `state`, what every episode of an analytic one begins in.
    """

    name: str = "safe/pendulum"
    max_cycles: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    rules: ClassVar[str] = ""  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise ValueError(f"unknown task {self.name!r}: {nearest(self.name, TASKS)}")
        if self.max_cycles < 0:
            raise ValueError(f"task.max_cycles must be at least 1, or 0 for the task's own, got {self.max_cycles}")
        self.max_cycles = self.max_cycles or self._entry.steps

    @property
    def _entry(self) -> SafeTask:
        return TASKS[self.name]

    @property
    def references(self) -> References | None:
        """Mean returns that normalise a return, which hold for the task's usual settings alone."""
        return None if self.settings else self._entry.references

    @property
    def settings(self) -> dict[str, Any]:
        cycles = {} if self.max_cycles == self._entry.steps else {"max_cycles": self.max_cycles}
        return cycles | ({"options": self.options} if self.options else {})

    @property
    def budget(self) -> float:
        return self._entry.budget

    def make(self, device: str = "cpu") -> Environments:
        try:
            return self._entry.make(max_cycles=self.max_cycles, device=device, **self.options)
        except TypeError as error:
            raise UserError(f"task.options={self.options} do not fit {self.name}: {error}") from error

    def dataset_id(self, quality: str) -> str:
        name = quality if self.max_cycles == self._entry.steps else f"{quality}-{self.max_cycles}"
        if self.options:
            options = json.dumps(self.options, sort_keys=True, default=str)
            name = f"{name}-{hashlib.blake2b(options.encode(), digest_size=4).hexdigest()}"
        return f"{self.name}/{re.sub(r'[^A-Za-z0-9_]+', '-', name).strip('-')}-v0"

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
        qualities = self._entry.qualities
        if quality not in qualities:
            raise UserError(f"unknown quality {quality!r} of {self.name}: {nearest(quality, qualities)}")
        drawn = qualities[quality].drawn
        policy = qualities[quality].behaviour(self, environments, seed, progress)
        seeds = range(seed, seed + episodes * drawn)
        made = rollout(
            policy, environments, seeds, parallel=parallel, progress=lambda steps: progress(steps // drawn)
        ).trajectories
        kept = even(replace(made, tags=policy.tags(seeds)), _CELLS, episodes)
        return Collected(kept, {**policy.description, "drawn": drawn}, policy.behaviours)

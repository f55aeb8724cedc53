"""Running robots with a cost: MuJoCo's, for one agent or for a team of the robot's parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gymnasium
from pettingzoo import ParallelEnv

from core.environments import Environments
from core.errors import UserError, nearest
from core.mujoco import import_mujoco
from core.parallel_envs import ParallelEnvironments
from core.single import SingleAgentEnv
from safe.costs import Cost, CostWrapper, HeightLimit, TeamCostWrapper, VelocityLimit
from safe.search import LinearPolicy, SearchConfig, search, spanning

#: Steps of an episode, as published.
STEPS = 1000

#: Cost of an episode that a ratio of 1 means, ours: ratios 1/4, 1/2 and 1 are DSRL's limits 20, 40 and 80.
BUDGET = 80.0

#: Cost penalties of the searches whose policies make the data of a task.
PENALTIES = (0.0, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Locomotion:
    """A robot of Gymnasium's, "-v5", and what it must not do.

    Published velocity thresholds are of "-v4", which Gymnasium calls out of date and multi-agent MuJoCo left; "-v5"
    moves alike but for the friction of Walker2d's right foot, now the left's.

    Attributes:
        robot: its name. cost: of a step. team: multi-agent MuJoCo's configuration, "" for a single agent.
        options: keyword arguments of Gymnasium's environment.
        search: settings of the searches for policies that make data.
    """

    robot: str
    cost: Cost
    team: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    search: SearchConfig = field(default_factory=SearchConfig)

    def parallel_env(self, max_cycles: int = 0, **options: Any) -> ParallelEnv:
        """One episode as PettingZoo has it.

        Args:
            max_cycles: steps, 0 for 1000. options: further keyword arguments of Gymnasium's environment.

        Raises:
            UserError: the mamujoco extra is not installed.
        """
        mamujoco = import_mujoco()
        options = {**self.options, "max_episode_steps": max_cycles or STEPS, **options}
        if self.team:
            return TeamCostWrapper(mamujoco.parallel_env(self.robot, self.team, **options), self.cost)
        environment = gymnasium.make(f"{self.robot}-v5", disable_env_checker=True, **options)
        return SingleAgentEnv(CostWrapper(environment, self.cost))

    def make(self, max_cycles: int = 0, device: str = "cpu", **options: Any) -> Environments:
        """Episodes of the robot, on the CPU whatever the device; other arguments are those of `parallel_env`."""
        return ParallelEnvironments(partial(self.parallel_env, max_cycles, **options))

    def front(
        self, environments: Environments, seed: int = 0, progress: Callable[[int], None] = lambda steps: None
    ) -> LinearPolicy:
        """A policy whose episodes span rewards and costs, searched for by that seed with each of `PENALTIES`."""
        return spanning(environments, replace(self.search, seed=seed), PENALTIES, progress=progress)

    def expert(
        self, environments: Environments, seed: int = 0, progress: Callable[[int], None] = lambda steps: None
    ) -> LinearPolicy:
        """A policy searched for by that seed without regard to cost."""
        return search(environments, replace(self.search, seed=seed), progress).policy


#: Ant's observations without contact forces, and its reward, as "-v4" and Safety-Gymnasium have them.
_ANT = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0}

#: Searches for robots that cannot fall, and for those that are paid for each step in which they have not.
_CRAWLER = SearchConfig(directions=8, best=4)
_UPRIGHT = SearchConfig(directions=8, best=4, alive=1.0)

#: Robots by name. Velocity thresholds are Safety-Gymnasium's, for one agent and for teams; heights are SafeDiffuser's.
LOCOMOTION = {
    "halfcheetah": Locomotion("HalfCheetah", VelocityLimit(3.2096), search=_CRAWLER),
    "hopper": Locomotion("Hopper", VelocityLimit(0.7402), search=_UPRIGHT),
    "walker2d": Locomotion("Walker2d", VelocityLimit(2.3415), search=_UPRIGHT),
    "swimmer": Locomotion("Swimmer", VelocityLimit(0.2282), search=_CRAWLER),
    "ant": Locomotion("Ant", VelocityLimit(2.6222, planar=True), options=_ANT, search=_UPRIGHT),
    "hopper-height": Locomotion("Hopper", HeightLimit(1.5), search=_UPRIGHT),
    "walker2d-height": Locomotion("Walker2d", HeightLimit(1.3), search=_UPRIGHT),
    "ant-2x4": Locomotion("Ant", VelocityLimit(2.522, planar=True), "2x4", search=_UPRIGHT),
    "ant-4x2": Locomotion("Ant", VelocityLimit(2.418, planar=True), "4x2", search=_UPRIGHT),
    "halfcheetah-2x3": Locomotion("HalfCheetah", VelocityLimit(3.227), "2x3", search=_CRAWLER),
    "halfcheetah-6x1": Locomotion("HalfCheetah", VelocityLimit(2.932), "6x1", search=_CRAWLER),
    "hopper-3x1": Locomotion("Hopper", VelocityLimit(0.9613), "3x1", search=_UPRIGHT),
    "humanoid-9-8": Locomotion("Humanoid", VelocityLimit(0.58, planar=True), "9|8", search=_UPRIGHT),
    "swimmer-2x1": Locomotion("Swimmer", VelocityLimit(0.04891), "2x1", search=_CRAWLER),
    "walker2d-2x3": Locomotion("Walker2d", VelocityLimit(1.641), "2x3", search=_UPRIGHT),
}


def locomotion_of(name: str) -> Locomotion:
    """The robot of a name.

    Raises:
        UserError: there is none.
    """
    if name not in LOCOMOTION:
        raise UserError(f"unknown robot {name!r}: {nearest(name, LOCOMOTION)}")
    return LOCOMOTION[name]

"""Mazes with hazards: gymnasium-robotics' PointMaze, where the shortest way costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv
from torch import Tensor

from core.environments import Environments
from core.errors import UserError, nearest
from core.mujoco import import_mujoco
from core.parallel_envs import ParallelEnvironments
from core.single import SingleAgentEnv
from core.tasks import References
from safe.costs import CostWrapper, Disc, Hazards

#: Metres: the radius of the ball, how near its centre must come to the goal, and how far, along either axis, it begins
#: from the centre of a cell, as the goal does.
BALL, REACHED, SPREAD = 0.1, 0.45, 0.25


@dataclass(frozen=True)
class MazeGeometry:
    """A maze in metres, its centre being the origin, x to the right and y up.

    Attributes:
        wall: [R, C] bool, of the cells, from the top left. size: of a cell's side.
        walls, free: centres of the cells of each kind, [W, 2] and [F, 2]. begin: [F] bool, the free cells in which
            episodes begin and goals are: those of which no hazard touches where that may be.
        low, high: [2], the maze's corners, outer walls included.
        hazards: discs that cost.
    """

    wall: Tensor
    walls: Tensor
    free: Tensor
    begin: Tensor
    low: Tensor
    high: Tensor
    hazards: tuple[Disc, ...]
    size: float = 1.0


@dataclass(frozen=True)
class Maze:
    """A maze of gymnasium-robotics, with hazards.

    The ball is pushed through it by a force, 0.01 s a step, at up to 5 m/s along an axis. It begins in one cell and
    is to reach another, both drawn by the seed among those that no hazard touches. A step gives 1 within 0.45 m of the
    goal, and costs 1 with the ball's centre in a hazard. The episode goes on at the goal (PointMaze-v3's
    continuing_task, without new goals), so that its return is the time that it spends there, as in Maze2D.

    Hazards are ours: some lie along one wall of a corridor, which is passed safely along the other; others close one
    of two ways.

    Attributes:
        environment: Gymnasium's id. rows: of cells, walls being "#". hazards: discs. steps: of an episode.
        budget: cost of an episode that a ratio of 1 means, ours: what the shortest ways cost.
        references: mean returns of uniform random actions and of the shortest ways, without regard to cost.
    """

    environment: str
    rows: tuple[str, ...]
    hazards: tuple[Disc, ...]
    steps: int
    budget: float | None = None
    references: References | None = None

    @property
    def geometry(self) -> MazeGeometry:
        """The maze in metres."""
        wall = torch.tensor([[cell == "#" for cell in row] for row in self.rows])
        high = torch.tensor([len(self.rows[0]), len(self.rows)]) / 2
        row, column = torch.meshgrid(*(torch.arange(count) + 0.5 for count in wall.shape), indexing="ij")
        centres = torch.stack([column - high[0], high[1] - row], dim=-1)
        free = centres[~wall]
        begin = torch.ones(len(free), dtype=torch.bool)
        for disc in self.hazards:
            away = ((free - torch.tensor([disc.x, disc.y])).abs() - SPREAD).clamp(min=0)
            begin &= away.norm(dim=-1) > disc.radius
        return MazeGeometry(wall, centres[wall], free, begin, -high, high, self.hazards)

    def placed(self, hazards: Sequence[Sequence[float]]) -> "Maze":
        """The maze with other hazards, each (x, y, radius) in metres; its scales hold no longer.

        Raises:
            UserError: hazards that are none, or that leave fewer than two cells free of them.
        """
        try:
            discs = tuple(Disc(*hazard) for hazard in hazards)
        except (TypeError, ValueError) as error:
            raise UserError(f"hazards are (x, y, radius) in metres, got {hazards}: {error}") from error
        maze = replace(self, hazards=discs, budget=None, references=None)
        if (left := int(maze.geometry.begin.sum())) < 2:
            raise UserError(f"hazards leave {left} cells to begin in and to reach, and a maze needs 2: got {hazards}")
        return maze

    def parallel_env(
        self,
        max_cycles: int = 0,
        *,
        continuing: bool = True,
        hazards: Sequence[Sequence[float]] | None = None,
        **options: Any,
    ) -> ParallelEnv:
        """One episode of the maze as PettingZoo has it.

        Args:
            max_cycles: steps, 0 for the maze's own. continuing: whether an episode goes on at the goal, or ends there.
            hazards: in place of the maze's, as `placed` takes them.
            options: further keyword arguments of Gymnasium's environment, such as reward_type="dense".

        Raises:
            UserError: the mamujoco extra is not installed, or hazards are as `placed` refuses them.
        """
        if hazards is not None:
            return self.placed(hazards).parallel_env(max_cycles, continuing=continuing, **options)
        import_mujoco()
        environment = gymnasium.make(
            self.environment,
            max_episode_steps=max_cycles or self.steps,
            disable_env_checker=True,
            maze_map=self._map(),
            continuing_task=continuing,
            **options,
        )
        Path(environment.unwrapped.tmp_xml_file_path).unlink(missing_ok=True)  # type: ignore[attr-defined]
        return SingleAgentEnv(_Flat(CostWrapper(environment, Hazards(self.hazards))))

    def make(self, max_cycles: int = 0, device: str = "cpu", **options: Any) -> Environments:
        """Episodes of the maze, on the CPU whatever the device; other arguments are those of `parallel_env`."""
        return ParallelEnvironments(partial(self.parallel_env, max_cycles, **options))

    def _map(self) -> list[list[int | str]]:
        """The maze as gymnasium-robotics reads it, "c" being where episodes begin and goals are."""
        geometry = self.geometry
        begin = iter(geometry.begin.tolist())
        return [[1 if wall else "c" if next(begin) else 0 for wall in row] for row in geometry.wall.tolist()]


class _Flat(gymnasium.ObservationWrapper):
    """Observations of position, velocity and goal, [x, y, vx, vy, goal x, goal y]."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.observation_space = spaces.Box(-math.inf, math.inf, (6,), np.float64)

    def observation(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([observation["observation"], observation["desired_goal"]])


def _scores(random: float, shortest: float) -> References:
    return References(random, shortest, "uniform random actions and the shortest ways, 200 episodes each")


#: Mazes by name.
MAZES = {
    "umaze": Maze(
        "PointMaze_UMaze-v3",
        ("#####", "#...#", "###.#", "#...#", "#####"),
        (Disc(0.6, 0.0, 0.45), Disc(0.0, 0.6, 0.4)),
        300,
        18.0,
        _scores(14.9, 234.0),
    ),
    "medium": Maze(
        "PointMaze_Medium-v3",
        ("########", "#..##..#", "#..#...#", "##...###", "#..#...#", "#.#..#.#", "#...#..#", "########"),
        (Disc(-1.5, -2.5, 0.5), Disc(-0.5, 0.1, 0.45), Disc(1.5, -0.9, 0.45)),
        600,
        14.0,
        _scores(7.9, 494.4),
    ),
    "large": Maze(
        "PointMaze_Large-v3",
        (
            "############",
            "#....#.....#",
            "#.##.#.#.#.#",
            "#......#...#",
            "#.####.###.#",
            "#..#.#.....#",
            "##.#.#.#.###",
            "#..#...#...#",
            "############",
        ),
        (Disc(-1.5, 2.0, 0.5), Disc(4.5, 0.0, 0.5), Disc(-0.5, 0.6, 0.45), Disc(0.1, 0.0, 0.45), Disc(1.5, -0.6, 0.45)),
        800,
        23.0,
        _scores(6.8, 606.1),
    ),
}


def maze_of(name: str) -> Maze:
    """The maze of a name.

    Raises:
        UserError: there is none.
    """
    if name not in MAZES:
        raise UserError(f"unknown maze {name!r}: {nearest(name, MAZES)}")
    return MAZES[name]


def maze_geometry(name: str) -> MazeGeometry:
    """Walls, cells, bounds and hazards of a maze, for figures and for placing barriers.

    Raises:
        UserError: there is no maze of that name.
    """
    return maze_of(name).geometry

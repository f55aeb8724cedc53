"""Finding the way through a maze, nearer to or farther from its hazards: the behaviours that maze data comes from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.ndimage import distance_transform_edt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from core.noise import normal
from core.rollout import Context, Reactive, policy_keys
from safe.mazes import BALL, MazeGeometry

#: Stream of a seed's noise that is drawn once in an episode; its steps have their numbers.
_ONCE = -2


@dataclass(frozen=True)
class Steering:
    """How a ball is steered along its way.

    Attributes:
        avoidance: what a metre inside a hazard adds to the length of a way, in metres; an episode takes one of these.
        margin: metres around a hazard over which that falls to 0.
        kp, kd: gains of u = clip(kp (waypoint - p) - kd v, -1, 1), per metre and per metre a second.
        ahead: metres along the way that the waypoint is ahead.
        clearance: metres between the ball's centre and walls, along the way.
        spacing: metres between the points that ways are made of.
        noise: greatest standard deviation of the Gaussian added to each action; an episode draws its own from 0 to it.
    """

    avoidance: tuple[float, ...] = (0.0, 0.15, 0.35, 0.7, 3.0, 30.0)
    margin: float = 0.15
    kp: float = 10.0
    kd: float = 1.5
    ahead: float = 0.5
    clearance: float = 0.2
    spacing: float = 0.1
    noise: float = 0.5

    def __post_init__(self) -> None:
        if not self.avoidance or min(self.avoidance) < 0:
            raise ValueError(f"avoidance needs one number or more, at least 0, got {self.avoidance}")
        if min(self.margin, self.ahead, self.spacing) <= 0 or self.clearance < BALL:
            raise ValueError(f"margin, ahead and spacing must be positive and clearance at least {BALL}, got {self}")


class Ways:
    """Shortest ways over a grid of points, their lengths weighed by hazards.

    Attributes:
        points: [P, 2], all that are clear of walls. level: [L, P], factor on lengths of each avoidance.
    """

    def __init__(self, geometry: MazeGeometry, steering: Steering):
        fine = round(geometry.size / steering.spacing)
        self.geometry, self.spacing = geometry, geometry.size / fine
        wall = geometry.wall.repeat_interleave(fine, 0).repeat_interleave(fine, 1)
        clear = torch.from_numpy(distance_transform_edt(~wall.numpy())) - 0.5 > steering.clearance / self.spacing - 1e-6
        row, column = torch.nonzero(clear).unbind(1)
        self.points = self.spacing * (torch.stack([column, -row], dim=1) + torch.tensor([0.5, -0.5]))
        self.points = self.points + torch.tensor([geometry.low[0], geometry.high[1]])
        number = torch.full(clear.shape, -1)
        number[row, column] = torch.arange(len(row))
        near = distance_transform_edt(~clear.numpy(), return_distances=False, return_indices=True)
        #: Number of the point nearest to each place of the grid.
        self.nearest = number[tuple(torch.from_numpy(near).long())]
        self.start, self.end = _neighbours(number)
        self.level = 1 + torch.tensor(steering.avoidance)[:, None] * _inside(self.points, geometry, steering.margin)

    def point(self, places: Tensor) -> Tensor:
        """Numbers [B] of the points nearest to places [B, 2]."""
        across = ((places[:, 0] - self.geometry.low[0]) / self.spacing).long().clamp(0, self.nearest.shape[1] - 1)
        down = ((self.geometry.high[1] - places[:, 1]) / self.spacing).long().clamp(0, self.nearest.shape[0] - 1)
        return self.nearest[down, across]

    def towards(self, goals: Tensor, levels: Tensor) -> Tensor:
        """The point that follows each on the way to a goal [B, P]; the goal's own follows itself.

        Args: goals: places [B, 2]. levels: [B], which avoidance the ways are of.
        """
        following = torch.empty(len(goals), len(self.points), dtype=torch.int64)
        ends = self.point(goals)
        lengths = (self.points[self.start] - self.points[self.end]).norm(dim=1)
        for level in levels.unique():
            here = levels == level
            weighed = lengths * (self.level[level, self.start] + self.level[level, self.end]) / 2
            shape = (len(self.points), len(self.points))
            graph = csr_array((weighed.numpy(), (self.start.numpy(), self.end.numpy())), shape=shape)
            # Ways are the same both ways: what precedes a point from the goal follows it to the goal.
            before = dijkstra(graph, indices=ends[here].numpy(), return_predecessors=True)[1]
            following[here] = torch.from_numpy(before).long()
        itself = torch.arange(len(self.points))
        return torch.where(following < 0, itself, following)


class WaypointPolicy(Reactive):
    """A ball that finds its way with one of the avoidances, the episode of seed s with number s modulo their count, and
    is steered along it. It sees [x, y, vx, vy, goal x, goal y].

    Attributes:
        behaviours: names of the avoidances, that `tags` counts. description: the steering, as plain data.
    """

    def __init__(self, geometry: MazeGeometry, steering: Steering | None = None):
        self.steering = steering or Steering()
        self.ways = Ways(geometry, self.steering)
        self.behaviours = tuple(f"avoidance {value:g}" for value in self.steering.avoidance)
        self.description: dict[str, Any] = {"controller": "WaypointPolicy", **asdict(self.steering)}

    def tags(self, seeds: Sequence[int]) -> Tensor:
        """Behaviour of each episode [B], an index into `behaviours`."""
        return torch.as_tensor(seeds, dtype=torch.int64) % len(self.behaviours)

    def reset(self, seeds: Sequence[int]) -> None:
        self.keys = policy_keys(seeds)
        self.levels = self.tags(seeds)
        self.shaken = self.steering.noise * torch.special.ndtr(normal(self.keys, (1,), stream=_ONCE))

    def act(self, observations: Tensor, context: Context) -> Tensor:
        """[B, 1, 6] -> [B, 1, 2] in [-1, 1]."""
        place, velocity, goal = observations[:, 0].cpu().split(2, dim=1)
        if context.step == 0:
            self.following = self.ways.towards(goal, self.levels)
        force = self.steering.kp * (self._waypoint(place, goal) - place) - self.steering.kd * velocity
        action = force.clamp(-1, 1) + self.shaken * normal(self.keys, (2,), stream=context.step)
        return action.clamp(-1, 1)[:, None]

    def _waypoint(self, place: Tensor, goal: Tensor) -> Tensor:
        """Where each ball is steered to [B, 2]: a point ahead on its way, or the goal at the end of it."""
        point = self.ways.point(place)[:, None]
        for _ in range(max(1, round(self.steering.ahead / self.ways.spacing))):
            point = self.following.gather(1, point)
        there = self.following.gather(1, point) == point
        return torch.where(there, goal, self.ways.points[point[:, 0]])


def _inside(points: Tensor, geometry: MazeGeometry, margin: float) -> Tensor:
    """How far points [P, 2] are inside a hazard [P]: 1 in it, falling to 0 over the margin around it."""
    inside = torch.zeros(len(points))
    for disc in geometry.hazards:
        depth = disc.radius - (points - torch.tensor([disc.x, disc.y])).norm(dim=1)
        inside = inside.maximum((1 + depth / margin).clamp(0, 1))
    return inside


def _neighbours(number: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs (start, end) [2 M] of neighbouring points, by side or corner; number: of each place, -1 where none."""
    height, width = number.shape
    pairs = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = number[: height - down, max(0, -right) : width - max(0, right)]
        there = number[down:, max(0, right) : width + min(0, right)]
        both = (here >= 0) & (there >= 0)
        pairs.append(torch.stack([here[both], there[both]]))
    found = torch.cat(pairs, dim=1)
    return torch.cat([found[0], found[1]]), torch.cat([found[1], found[0]])

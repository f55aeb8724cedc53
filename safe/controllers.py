"""Controllers of the analytic tasks, whose episodes trade reward against cost: what their data come from."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from core.noise import normal
from core.rollout import Context, Reactive, policy_keys
from safe.pendulum import wrapped
from safe.point_robot import FIELD, GOAL, HAZARD_RADIUS, HAZARDS

#: Stream of what is drawn once in an episode; the steps of an episode are streams of their own.
_ONCE = -2

#: Deceleration, in m/s^2, that a robot counts on when it heads for a wall or a hazard; it can brake by 1.
_BRAKING = 0.9


@dataclass(frozen=True)
class Habits:
    """What sets episodes apart whatever the task; each episode's own follows from its seed.

    Attributes:
        noise: greatest standard deviation of the Gaussian added to each action; an episode's is uniform up to this.
        lapsing: share of the episodes in which all actions between two uniformly drawn steps are uniform.
        uniform: share of the episodes in which all actions are uniform.
    """

    noise: float = 0.0
    lapsing: float = 0.0
    uniform: float = 0.0

    def __post_init__(self) -> None:
        if min(self.noise, self.lapsing, self.uniform) < 0 or self.lapsing + self.uniform > 1:
            raise ValueError(
                f"noise and shares must be at least 0 and the shares at most 1 in all, got noise {self.noise}, lapsing "
                f"{self.lapsing} and uniform {self.uniform}"
            )


H = TypeVar("H", bound=Habits)


class Controller(Reactive, ABC, Generic[H]):
    """A policy of one agent that follows a rule, with the habits of a data set's episodes.

    Attributes:
        behaviours: names of the behaviours that `tags` counts.
    """

    behaviours: ClassVar[tuple[str, ...]] = ("guided", "lapsing", "uniform")

    def __init__(self, habits: H, steps: int):
        """Args: habits: of its episodes. steps: of an episode."""
        self.habits, self.steps = habits, steps

    @property
    def description(self) -> dict[str, Any]:
        """The controller as plain data, for a dataset's metadata."""
        return {"controller": type(self).__name__, **asdict(self.habits)}

    def tags(self, seeds: Sequence[int]) -> Tensor:
        """Behaviour of each episode [B], an index into `behaviours`."""
        share = _uniform(policy_keys(seeds), 4, _ONCE)[:, 0]
        return (share > 1 - self.habits.uniform - self.habits.lapsing).long() + (share > 1 - self.habits.uniform)

    def reset(self, seeds: Sequence[int]) -> None:
        self.keys, behaviour = policy_keys(seeds), self.tags(seeds)
        _, noise, *lapse = _uniform(self.keys, 4, _ONCE).unbind(dim=1)
        self._noise = self.habits.noise * noise[:, None]
        begin, end = (torch.stack(lapse).sort(dim=0).values * self.steps).unbind()
        self._lapse = begin.where(behaviour == 1, 0.0), end.where(behaviour == 1, math.inf).where(behaviour > 0, 0.0)
        self._begin(_uniform(self.keys, 4, _ONCE - 1))

    def act(self, observations: Tensor, context: Context) -> Tensor:
        """[B, 1, O] -> [B, 1, U] in [-1, 1]."""
        steered = self._steer(observations[:, 0].cpu().double(), context.step)
        drawn = normal(self.keys, steered.shape[1:], stream=context.step, dtype=torch.float64)
        guided = steered.clamp(-1, 1) + self._noise * drawn
        begin, end = self._lapse
        lapses = (begin <= context.step) & (context.step < end)
        action = torch.where(lapses[:, None], 2 * torch.special.ndtr(drawn) - 1, guided.clamp(-1, 1))
        return action[:, None].float()

    @abstractmethod
    def _begin(self, shares: Tensor) -> None:
        """Settle what holds for whole episodes, by numbers [B, 4] uniform in [0, 1]."""

    @abstractmethod
    def _steer(self, seen: Tensor, step: int) -> Tensor:
        """Actions [B, U] of observations [B, O] at a step of the episodes, both float64."""


@dataclass(frozen=True)
class Swing(Habits):
    """How a pendulum is held.

    Attributes:
        lean: range of the angle held, in degrees; an episode's is uniform in it. The least held is -23.5.
        turning: share of the episodes that go over to another such angle at a uniformly drawn step.
    """

    lean: tuple[float, float] = (0.0, 0.0)
    turning: float = 0.0


class SwingUp(Controller[Swing]):
    """Swings a pendulum up by its energy, then holds it at an angle.

    With E = theta'^2 / 2 + 15 (cos theta - 1), the energy above that of standing: where |theta| < 60 degrees and
    E > -9, a = (-15 sin theta - 20 (theta - lean) - 6 theta') / 6, elsewhere a = sign(-E theta').
    """

    def _begin(self, shares: Tensor) -> None:
        low, high = self.habits.lean
        self.leans = torch.deg2rad(low + shares[:, :2] * (high - low))
        self.turn = (shares[:, 3] * self.steps).where(shares[:, 2] < self.habits.turning, math.inf)

    def _steer(self, seen: Tensor, step: int) -> Tensor:
        cos, sin, speed = seen.unbind(dim=1)
        lean = torch.where(step < self.turn, self.leans[:, 0], self.leans[:, 1])
        energy = speed**2 / 2 + 15 * (cos - 1)
        hold = (-15 * sin - 20 * wrapped(torch.atan2(sin, cos) - lean) - 6 * speed) / 6
        swing = torch.where(energy * speed > 0, -1.0, 1.0)  # at rest, any push begins
        return torch.where((cos > 0.5) & (energy > -9), hold, swing)[:, None]


@dataclass(frozen=True)
class Detour(Habits):
    """How a robot drives to the goal.

    Attributes:
        margin: range of the distance kept from the hazards' edges, in metres; an episode's is uniform in it. At a
            hazard's negative radius, -0.8, it drives straight through.
        speed: range of the speed on a straight, in metres a second; likewise.
    """

    margin: tuple[float, float] = (0.0, 0.0)
    speed: tuple[float, float] = (1.0, 1.0)


class GoToGoal(Controller[Detour]):
    """Drives to the goal along tangents of the hazards, each grown by the episode's margin.

    Where a grown hazard lies before the goal, the robot makes for the tangent that it needs to turn least for, the more
    so the faster it is; inside one it makes for its outside. It turns at 4 times the error of its heading, is slower by
    the cube of that error's cosine, and brakes for the wall or hazard that it heads for.
    """

    def _begin(self, shares: Tensor) -> None:
        low, high = (torch.tensor(ends) for ends in zip(self.habits.margin, self.habits.speed, strict=True))
        margin, self.speed = (low + shares[:, :2] * (high - low)).unbind(dim=1)
        self.radius = (HAZARD_RADIUS + margin).clamp(min=0)

    def _steer(self, seen: Tensor, step: int) -> Tensor:
        position, speed, forward = seen[:, :2], seen[:, 2], seen[:, 3:]
        hazards = position.new_tensor(HAZARDS) - position[:, None]
        away = wrapped(self._course(position, hazards, _angle(forward), speed) - _angle(forward))
        free = torch.minimum(_to_walls(position, forward), self._to_hazards(hazards, forward)).clamp(min=0)
        allowed = torch.minimum(self.speed * away.cos().clamp(min=0) ** 3, (2 * _BRAKING * free).sqrt())
        return torch.stack([4 * (allowed - speed), 4 * away], dim=1)

    def _course(self, position: Tensor, hazards: Tensor, heading: Tensor, speed: Tensor) -> Tensor:
        """Angle to make for [B]: of the goal, or of a tangent of the nearest hazard that is before it."""
        goal = position.new_tensor(GOAL) - position
        course, rows = _angle(goal), torch.arange(len(goal))
        for place in hazards.norm(dim=2).argsort(dim=1, descending=True).unbind(dim=1):
            hazard = hazards[rows, place]
            distance, bearing = hazard.norm(dim=1), _angle(hazard)
            inside = distance < self.radius
            outward = math.pi / 2 + 2 * (1 - distance / self.radius)
            half = torch.where(inside, outward, torch.asin((self.radius / distance).clamp(max=1)))
            before = (wrapped(course - bearing).abs() < half) & (inside | (distance < goal.norm(dim=1)))
            sides = bearing[:, None] + half[:, None] * half.new_tensor([-1.0, 1.0])
            detour, turn = (wrapped(sides - angle[:, None]).abs() for angle in (course, heading))
            chosen = (detour + speed[:, None] ** 2 * turn).argmin(dim=1)
            course = torch.where(before, sides[rows, chosen], course)
        return course

    def _to_hazards(self, hazards: Tensor, forward: Tensor) -> Tensor:
        """Distance straight on [B] to the nearest grown hazard that the robot is not in."""
        along, squared = (hazards * forward[:, None]).sum(dim=2), hazards.square().sum(dim=2)
        half = self.radius[:, None] ** 2 - squared + along**2  # squared, of the chord
        ahead = (along > 0) & (half > 0) & (squared > self.radius[:, None] ** 2) & (self.radius[:, None] > 0)
        return (along - half.clamp(min=0).sqrt()).where(ahead, math.inf).amin(dim=1)


def _to_walls(position: Tensor, forward: Tensor) -> Tensor:
    """Distance straight on [B] to the edge of the field."""
    return ((FIELD - position * forward.sign()) / forward.abs().clamp(min=1e-9)).amin(dim=1)


def _angle(vectors: Tensor) -> Tensor:
    """Angle [B] of vectors [B, 2]."""
    return torch.atan2(vectors[:, 1], vectors[:, 0])


def _uniform(keys: Tensor, count: int, stream: int) -> Tensor:
    """Numbers [B, count] uniform in [0, 1], by keys [B]."""
    return torch.special.ndtr(normal(keys, (count,), stream=stream, dtype=torch.float64))

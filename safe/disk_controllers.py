"""How disks find their way among each other: what the data of `safe.disks` come from."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.rollout import Context
from safe.controllers import Controller, Habits
from safe.disks import INTERVAL, OWN, SPEED, others


@dataclass(frozen=True)
class Passing(Habits):
    """How disks pass each other.

    Attributes:
        distance: range of the distance kept between centres, in diameters; an episode's is uniform in it. At 0 they go
            straight, at 1 they all but touch.
    """

    distance: tuple[float, float] = (1.0, 1.0)


class PassRight(Controller[Passing]):
    """A team of which each disk chooses a velocity that hits nobody soon, and rather passes to the right.

    Velocities tried are rest, that straight to the goal, and 16 directions at a third, two thirds and all of the speed
    limit. Taken is the one that minimises |v - w| + 0.3 m / (s + 0.1 s): w is the velocity to the goal and a tenth of
    it to the right, which decides where both sides are as good; s is the time to the first collision, if within a
    second. Each disk supposes that others turn aside by as much as itself, so that with the velocities v_i and v_j of
    now the relative one will be 2 v - v_i - v_j (reciprocal velocity obstacles, van den Berg et al. 2008).
    """

    def __init__(self, habits: Passing, radius: float, steps: int):
        """Args: habits: of its episodes. radius: of a disk, in metres. steps: of an episode."""
        super().__init__(habits, steps)
        self.radius = radius

    def act(self, observations: Tensor, context: Context) -> Tensor:
        """[B, A, O] -> [B, A, 2] in [-1, 1], of the whole team as of one agent."""
        self._shape = observations.shape[1:]
        return super().act(observations.flatten(1)[:, None], context).unflatten(2, (-1, 2))[:, 0]

    def _begin(self, shares: Tensor) -> None:
        low, high = self.habits.distance
        self.kept = low + shares[:, 0] * (high - low)  # in diameters

    def _steer(self, seen: Tensor, step: int) -> Tensor:
        velocity, position, goal, away = seen.unflatten(1, self._shape).split([2, 2, 2, self._shape[1] - OWN], dim=2)
        way = (goal - position) / INTERVAL
        straight = SPEED * way / way.norm(dim=2, keepdim=True).clamp(min=SPEED)
        tried = _tried(straight)
        relative = 2 * tried[:, :, :, None] - (velocity[:, :, None] + velocity[:, others(self._shape[0])])[:, :, None]
        reach = (2 * self.radius * self.kept)[:, None, None, None]
        soon = _collision(away.unflatten(2, (-1, 2))[:, :, None], relative, reach).amin(dim=3)
        risk = torch.where(soon < 1, 0.3 / (soon + INTERVAL), 0.0)
        rightward = torch.stack([straight[..., 1], -straight[..., 0]], dim=2)
        best = ((tried - (straight + 0.1 * rightward)[:, :, None]).norm(dim=3) + risk).argmin(dim=2)
        return tried.gather(2, best[:, :, None, None].expand(-1, -1, 1, 2)).flatten(1) / SPEED


def _tried(straight: Tensor) -> Tensor:
    """Velocities to choose from [B, A, V, 2], around those straight to the goals [B, A, 2]."""
    course = torch.atan2(straight[..., 1], straight[..., 0])[..., None] + torch.arange(16) * (math.pi / 8)
    directions = torch.stack([course.cos(), course.sin()], dim=-1)
    around = torch.cat([directions * (SPEED * share) for share in (1 / 3, 2 / 3, 1.0)], dim=2)
    return torch.cat([straight[:, :, None], torch.zeros_like(around[:, :, :1]), around], dim=2)


def _collision(away: Tensor, velocity: Tensor, reach: Tensor) -> Tensor:
    """Seconds until another at `away` [..., 2] comes within reach at a relative velocity; 0 for one that is within it
    and comes nearer, infinite for one that never does."""
    closing = (away * velocity).sum(dim=-1)
    squared = velocity.square().sum(dim=-1)
    beyond = away.square().sum(dim=-1) - reach**2
    chord = closing**2 - squared * beyond
    time = (closing - chord.clamp(min=0).sqrt()) / squared.clamp(min=1e-9)
    hit = (closing > 0) & (chord > 1e-9)  # above rounding, as nothing is hit at a reach of 0
    return torch.where(hit, time.clamp(min=0), math.inf)

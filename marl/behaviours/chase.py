"""The scripted predators of mpe/tag and mpe/world."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from marl.behaviours.team import ScriptedTeam


@dataclass(frozen=True)
class Pursuit:
    """How a scripted team of predators steers.

    Attributes:
        kp, kd: gains of u = clip(kp (aim - p) - kd v, -1, 1), per unit of distance and of velocity.
        lead: seconds of the prey's velocity that the aim is ahead of the prey.
        approach: "direct" aims there; "sides" beside it, by `flank` times the squared distance, each predator to one of
            A sides that are 360 / A degrees apart, handed out in one of A! ways when the episode begins; "none" draws
            every action uniformly instead.
        flank: per unit of distance.
        misled: share of the episodes, spread evenly, in which the team chases the prey's mirror image through the
            origin.
        noise: standard deviation of the Gaussian added to each action.
        delay: age, in steps, of the observation that is acted on.
    """

    kp: float = 8.0
    kd: float = 0.0
    lead: float = 0.2
    approach: str = "direct"
    flank: float = 0.5
    misled: float = 0.0
    noise: float = 0.0
    delay: int = 0

    @property
    def uniform(self) -> bool:
        return self.approach == "none"


class ChaseTeam(ScriptedTeam[Pursuit]):
    """Predators that close in on the prey.

    All know what the first of them sees: the leader, from whom no forest hides the prey. Each of two prey is chased by
    half of them, shared out by distance. In actions that have room for words the first predator says where its prey is
    and how it moves.

    Args:
        prey: P, 1 or 2, which an observation ends with, [..., relative position 2P, velocity 2P, `rest` others].
    """

    def __init__(self, steering: Pursuit, prey: int = 1, rest: int = 0, actions: int = 2):
        super().__init__(steering, actions)
        self.prey = prey
        self.rest = rest

    def _begin(self, observations: Tensor) -> None:
        if self.steering.approach != "sides":
            return
        agents = observations.shape[1]
        angle = self._draws(agents).argsort(dim=1) * (2 * math.pi / agents)
        self.sides = torch.stack([angle.cos(), angle.sin()], dim=-1)

    def _steer(self, observations: Tensor) -> Tensor:
        steering = self.steering
        velocity, position = observations[..., 0:2], observations[..., 2:4]
        where, moving = self._chased(observations)
        aim = where + steering.lead * moving
        if steering.approach == "sides":
            aim = aim + self.sides * steering.flank * (where - position).square().sum(dim=-1, keepdim=True)
        force = steering.kp * (aim - position) - steering.kd * velocity
        words = torch.zeros(*force.shape[:2], self.actions - 2)
        words[:, 0] = torch.cat([where, moving], dim=-1)[:, 0, : words.shape[-1]]
        return torch.cat([force, words], dim=-1)

    def _chased(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Position and velocity of each predator's prey [B, A, 2], mirrored in episodes that are misled."""
        agents = observations.shape[1]
        first = observations[:, 0, : observations.shape[2] - self.rest]
        relative, moving = first[:, -4 * self.prey :].unflatten(1, (2, self.prey, 2)).unbind(1)
        where = first[:, None, 2:4] + relative
        sign = torch.where(self.misled, -1.0, 1.0)[:, None, None]
        where, moving = where * sign, moving * sign
        # Those that have the first prey nearest, compared with the second, chase the first.
        distance = torch.cdist(observations[..., 2:4], where)
        order = (distance[..., 0] - distance[..., -1]).argsort(dim=1).argsort(dim=1)
        choice = (order * self.prey // agents)[..., None].expand(-1, -1, 2)
        return torch.gather(where, 1, choice), torch.gather(moving, 1, choice)

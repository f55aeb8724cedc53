"""The scripted team of mpe/spread."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import pad

from marl.behaviours.team import ScriptedTeam


@dataclass(frozen=True)
class Steering:
    """How a scripted team of spread steers.

    Attributes:
        kp, kd: gains of u = clip(kp (target - p) - kd v, -1, 1), per unit of distance and of velocity.
        assignment: who takes which landmark, settled when the episode begins: "optimal" minimises the summed distance
            (linear assignment), "random" draws one of the A! assignments, "none" draws every action uniformly instead.
        misled: share of the episodes, spread evenly, in which the team steers to the landmarks' mirror images through
            the origin.
        noise: standard deviation of the Gaussian added to each action.
        delay: age, in steps, of the observation that is acted on.
    """

    kp: float = 8.0
    kd: float = 2.0
    assignment: str = "optimal"
    misled: float = 0.0
    noise: float = 0.0
    delay: int = 0

    @property
    def uniform(self) -> bool:
        return self.assignment == "none"


class SpreadTeam(ScriptedTeam[Steering]):
    """Each agent takes a landmark; where there are fewer landmarks than agents, the others stay where they begin."""

    def _begin(self, observations: Tensor) -> None:
        self.targets = self._targets(observations)

    def _steer(self, observations: Tensor) -> Tensor:
        velocity, position = observations[..., 0:2], observations[..., 2:4]
        return self.steering.kp * (self.targets - position) - self.steering.kd * velocity

    def _targets(self, observations: Tensor) -> Tensor:
        """Target of each agent [B, A, 2]."""
        agents, count = observations.shape[1], landmark_count(observations)
        position = observations[..., 2:4]
        relative = observations[:, 0, 4 : 4 + 2 * count].unflatten(1, (count, 2))
        there = relative.any(dim=2)  # a landmark that is missing is seen at (0, 0)
        landmarks = position[:, :1] + relative
        landmarks = torch.where(self.misled[:, None, None], -landmarks, landmarks)
        # One place for each agent, the last choice one without a landmark.
        places = (0, max(agents - count, 0))
        landmarks, there = pad(landmarks, (0, 0, *places)), pad(there, places)
        nowhere = torch.where(there, 0.0, 1e3)
        if self.steering.assignment == "random":
            order = (self._draws(landmarks.shape[1]) + nowhere).argsort(dim=1)[:, :agents]
            choice = torch.gather(order, 1, self._draws(agents, 1).argsort(dim=1))
        else:
            distance = (torch.cdist(position, landmarks) * there[:, None] + nowhere[:, None]).numpy()
            choice = torch.from_numpy(np.stack([linear_sum_assignment(cost)[1] for cost in distance]))
        targets = torch.gather(landmarks, 1, choice[..., None].expand(-1, -1, 2))
        return torch.where(torch.gather(there, 1, choice)[..., None], targets, position)


def landmark_count(observations: Tensor) -> int:
    """Landmarks, present or missing, that observations [B, A, O] of spread list: velocity and position, landmarks
    relative, others relative and, but in entity-wise ones, what the others say."""
    agents, entries = observations.shape[1:]
    first = observations[0, 0]
    others = (observations[0, 1:, 2:4] - first[2:4]).flatten()
    said, unsaid = (entries - 4 * agents) // 2, (entries - 2 * agents - 2) // 2
    start = 4 + 2 * said
    return said if said > 0 and torch.allclose(first[start : start + len(others)], others, atol=1e-4) else unsaid

"""Scripted teams: the behaviours that collected data comes from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from core.errors import UserError, nearest
from core.noise import normal
from core.rollout import Context, Reactive


@dataclass(frozen=True)
class Steering:
    """How a scripted team steers.

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


#: The behaviour behind each quality of a task's dataset.
QUALITIES = {
    "mpe/spread": {
        "expert": Steering(),
        "medium": Steering(noise=1.0, delay=2),
        "random": Steering(assignment="none"),
        "mixed": Steering(misled=0.5),
        "multimodal": Steering(assignment="random"),
    }
}


def scripted_team(task: str, quality: str) -> "SpreadTeam":
    """The team that collects a task's dataset of a quality.

    Raises:
        UserError: unknown quality.
    """
    qualities = QUALITIES[task]
    if quality not in qualities:
        raise UserError(f"unknown quality {quality!r} of {task}: {nearest(quality, qualities)}")
    return SpreadTeam(qualities[quality])


class SpreadTeam(Reactive):
    """Scripted team of mpe/spread, reading only the agents' own observations."""

    #: Names of the behaviours that `tags` counts.
    behaviours = ("guided", "misled")

    def __init__(self, steering: Steering):
        self.steering = steering

    def tags(self, seeds: Sequence[int]) -> Tensor:
        """Behaviour of each episode [B], an index into `behaviours`.

        Seed k is misled where k times the share passes an integer: evenly spread, and exact over any run of seeds.
        """
        share = self.steering.misled
        return torch.tensor([int((k + 1) * share) - int(k * share) for k in seeds])

    def reset(self, seeds: Sequence[int]) -> None:
        self.keys = torch.as_tensor(seeds, dtype=torch.int64)
        self.misled = self.tags(seeds).bool()
        self.past: list[Tensor] = []

    def act(self, observations: Tensor, context: Context) -> Tensor:
        agents = observations.shape[1]
        if self.steering.assignment == "none":
            return 2 * torch.special.ndtr(normal(self.keys, (agents, 2), stream=context.step)) - 1
        if context.step == 0:
            self.targets = self._targets(observations)
        self.past = [*self.past, observations][-1 - self.steering.delay :]
        seen = self.past[0]
        velocity, position = seen[..., 0:2], seen[..., 2:4]
        force = self.steering.kp * (self.targets - position) - self.steering.kd * velocity
        if self.steering.noise:
            force = force.clamp(-1, 1) + self.steering.noise * normal(self.keys, (agents, 2), stream=context.step)
        return force.clamp(-1, 1)

    def _targets(self, observations: Tensor) -> Tensor:
        """Target of each agent [B, A, 2]."""
        batch, agents, _ = observations.shape
        position = observations[..., 2:4]
        landmarks = observations[:, 0, None, 2:4] + observations[:, 0, 4 : 4 + 2 * agents].reshape(batch, agents, 2)
        landmarks = torch.where(self.misled[:, None, None], -landmarks, landmarks)
        if self.steering.assignment == "random":
            choice = normal(self.keys, (agents,), stream=-2).argsort(dim=1)
        else:
            distance = torch.cdist(position, landmarks).numpy()
            choice = torch.from_numpy(np.stack([linear_sum_assignment(cost)[1] for cost in distance]))
        return torch.gather(landmarks, 1, choice[..., None].expand(-1, -1, 2))

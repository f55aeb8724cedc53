"""PointRobot: drive to a goal between two hazards (FISOR, arXiv 2401.10700)."""

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from core.environments import TeamSpec
from safe.environments import Analytic, AnalyticEnv

#: Centres of the hazards and their radius; centre of the goal and its radius; half the side of the field. All metres.
HAZARDS = ((0.4, -1.2), (-0.4, 1.2))
HAZARD_RADIUS = 0.8
GOAL = (2.2, 2.2)
GOAL_RADIUS = 0.3
FIELD = 3.0

#: The fixed start that is published beside the uniform one, as (x, y, speed, heading).
FIXED_START = (-1.8, 0.0, 2.0, math.pi / 4)

_DT = 0.05


class PointRobot(Analytic):
    """B robots in the plane, each with a position (x, y), a speed v and a heading theta; a step is 0.05 s.

    An action is (v', theta') in [-1, 1]^2; x' = v cos theta and y' = v sin theta, by Euler's explicit rule. Episodes
    begin uniformly in the field [-3, 3]^2, v in 0.5 to 2 m/s and theta in pi/4 to 3 pi/4. They are terminated in the
    goal and outside the field.

    The reward of a step is the decrease of the distance to the goal's centre, and 1 more on reaching the goal. Its cost
    is 1 if it ends in a hazard, within 0.8 m of its centre, else 0.

    Observed are (x, y, v, cos theta, sin theta). Goal and hazards never move, so that vectors to them would say
    nothing new, and a planner that moves a planned position out of a hazard finds it in one place only.
    """

    spec = TeamSpec(1, 5, 2)
    low = (-FIELD, -FIELD, 0.5, math.pi / 4)
    high = (FIELD, FIELD, 2.0, 3 * math.pi / 4)

    def __init__(
        self, *, max_cycles: int = 300, state: Sequence[float] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(max_cycles=max_cycles, state=state, device=device)
        self._places = torch.tensor([GOAL, *HAZARDS], dtype=torch.float64, device=self.device)

    def _seen(self, state: Tensor) -> Tensor:
        heading = state[:, 3:]
        return torch.cat([state[:, :3], heading.cos(), heading.sin()], dim=1)

    def _moved(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        speed, heading = state[:, 2:3], state[:, 3:]
        after = state + _DT * torch.cat([speed * heading.cos(), speed * heading.sin(), action], dim=1)
        distance = (after[:, None, :2] - self._places).norm(dim=2)
        reached = distance[:, 0] <= GOAL_RADIUS
        reward = (state[:, :2] - self._places[0]).norm(dim=1) - distance[:, 0] + reached
        cost = (distance[:, 1:] < HAZARD_RADIUS).any(dim=1)
        return after, reward, cost, reached | (after[:, :2].abs() > FIELD).any(dim=1)


class PointRobotEnv(AnalyticEnv):
    """One robot of `PointRobot` for Gymnasium, "convoy/PointRobot-v0"."""

    batch = PointRobot

    def _seen(self) -> np.ndarray:
        x, y, speed, heading = self.state
        return np.array([x, y, speed, math.cos(heading), math.sin(heading)])

    def _move(self, action: np.ndarray) -> tuple[float, float, bool]:
        x, y, speed, heading = map(float, self.state)
        before = math.dist((x, y), GOAL)
        x, y = x + speed * math.cos(heading) * _DT, y + speed * math.sin(heading) * _DT
        self.state = np.array([x, y, speed + action[0] * _DT, heading + action[1] * _DT])
        after = math.dist((x, y), GOAL)
        reached = after <= GOAL_RADIUS
        cost = float(min(math.dist((x, y), hazard) for hazard in HAZARDS) < HAZARD_RADIUS)
        return before - after + float(reached), cost, reached or max(abs(x), abs(y)) > FIELD

    def _draw(self, axes: Any) -> None:
        from matplotlib.patches import Circle

        for centre in HAZARDS:
            axes.add_patch(Circle(centre, HAZARD_RADIUS, color="#f3c9c4"))
        axes.add_patch(Circle(GOAL, GOAL_RADIUS, color="#9fd3b4"))
        x, y, _, heading = self.state
        axes.plot(x, y, "o", color="#345fbe")
        axes.plot([x, x + 0.35 * math.cos(heading)], [y, y + 0.35 * math.sin(heading)], color="#345fbe")
        axes.set(xlim=(-FIELD, FIELD), ylim=(-FIELD, FIELD))


gymnasium.register("convoy/PointRobot-v0", "safe.point_robot:PointRobotEnv", max_episode_steps=300)

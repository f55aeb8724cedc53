"""SafePendulum: swing up and stand where standing costs (TREBI, arXiv 2306.00603)."""

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from core.environments import TeamSpec
from safe.environments import Analytic, AnalyticEnv

_DT = 0.05
_FASTEST = 8.0


class SafePendulum(Analytic):
    """B pendulums of 1 kg and 1 m, hinged at an end, theta = 0 upright; gravity is 10 m/s^2, a step 0.05 s.

    An action a is the torque u = 2 a newton metres: theta'' = 15 sin(theta) + 3 u, by semi-implicit Euler; theta moves
    with the new speed before that is limited to 8 rad/s. Episodes begin hanging, theta within pi +- 0.2 and theta'
    within +- 0.1. Observed are (cos theta, sin theta, theta').

    The reward of a step is 1 - (theta^2 + 0.1 theta'^2 + 0.001 u^2) / 17, theta in [-pi, pi), its cost
    `pendulum_cost(theta)`, both of the state that the action is taken in. Standing upright costs 0.5 a step.
    """

    spec = TeamSpec(1, 3, 1)
    low = (math.pi - 0.2, -0.1)
    high = (math.pi + 0.2, 0.1)

    def __init__(
        self, *, max_cycles: int = 200, state: Sequence[float] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(max_cycles=max_cycles, state=state, device=device)

    def _seen(self, state: Tensor) -> Tensor:
        theta, speed = state.unbind(dim=1)
        return torch.stack([theta.cos(), theta.sin(), speed], dim=1)

    def _moved(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        theta, speed = state.unbind(dim=1)
        torque = 2 * action[:, 0]
        reward = 1 - (wrapped(theta) ** 2 + 0.1 * speed**2 + 0.001 * torque**2) / 17
        faster = speed + _DT * (15 * theta.sin() + 3 * torque)
        after = torch.stack([theta + _DT * faster, faster.clamp(-_FASTEST, _FASTEST)], dim=1)
        return after, reward, pendulum_cost(theta), torch.zeros_like(theta, dtype=torch.bool)


def pendulum_cost(theta: Tensor) -> Tensor:
    """Cost of a step at angles theta [...], in radians: (50 - |25 - theta|) / 50 for theta in [-25, 75] degrees, else
    0."""
    degrees = torch.rad2deg(wrapped(theta))
    return torch.where((degrees >= -25) & (degrees <= 75), 1 - (25 - degrees).abs() / 50, 0.0)


def wrapped(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


class SafePendulumEnv(AnalyticEnv):
    """One pendulum of `SafePendulum` for Gymnasium, "convoy/SafePendulum-v0"."""

    batch = SafePendulum

    def _seen(self) -> np.ndarray:
        theta, speed = self.state
        return np.array([math.cos(theta), math.sin(theta), speed])

    def _move(self, action: np.ndarray) -> tuple[float, float, bool]:
        theta, speed = self.state
        angle, torque = math.atan2(math.sin(theta), math.cos(theta)), 2 * float(action[0])
        penalty = angle**2 + 0.1 * speed**2 + 0.001 * torque**2
        degrees = math.degrees(angle)
        cost = (50 - abs(25 - degrees)) / 50 if -25 <= degrees <= 75 else 0.0
        speed += (3 * 10 / 2 * math.sin(theta) + 3 * torque) * _DT
        self.state = np.array([theta + speed * _DT, min(max(speed, -_FASTEST), _FASTEST)])
        return float((17 - penalty) / 17), cost, False

    def _draw(self, axes: Any) -> None:
        costly = np.radians(np.linspace(-25, 75, 50))
        axes.fill([0, *np.sin(costly)], [0, *np.cos(costly)], color="#f3c9c4")
        axes.plot([0, math.sin(self.state[0])], [0, math.cos(self.state[0])], color="#345fbe", linewidth=6)
        axes.plot(0, 0, "o", color="#191919")
        axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))


gymnasium.register("convoy/SafePendulum-v0", "safe.pendulum:SafePendulumEnv", max_episode_steps=200)

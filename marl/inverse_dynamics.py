"""From planned observations to actions."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.networks import mlp

SOURCES = ("data", "estimate")


@dataclass
class InverseConfig:
    """How actions are read off a plan.

    Attributes:
        hidden: units of both hidden layers.
        source: the successors it is trained on: "data" takes the true ones, as published; "estimate" the denoiser's
            estimates of them, whose errors are those of the plans it will read.
        noise_below: with "estimate", only noise levels below this diffusion time count: at high noise an estimate is
            the average of all successors and says nothing of the action.
        noise: standard deviation, in normalised units, of Gaussian noise on the successors of "data".
    """

    hidden: int = 256
    source: str = "data"
    noise_below: float = 0.4
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"unknown inverse.source {self.source!r}: choose one of {', '.join(SOURCES)}")
        if not 0 < self.noise_below <= 1:
            raise ValueError(f"inverse.noise_below lies in (0, 1], got {self.noise_below}")
        if self.noise < 0:
            raise ValueError(f"inverse.noise must be at least 0, got {self.noise}")


class InverseDynamics(nn.Module):
    """MLP a_t = f(o_t, o_{t+1}), one for all agents, on normalised observations (MADiff, section 4.2)."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: int = 256):
        super().__init__()
        self.net = mlp(2 * observation_dim, action_dim, hidden)

    def forward(self, observations: Tensor, successors: Tensor) -> Tensor:
        """Two [..., O] -> [..., U]."""
        return self.net(torch.cat([observations, successors], dim=-1))

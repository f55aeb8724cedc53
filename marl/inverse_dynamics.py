"""From planned observations to actions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from core.actions import action_loss
from core.data import WindowBatch
from core.networks import mlp

SOURCES = ("data", "estimate")


@dataclass
class InverseConfig:
    """How actions are read off a plan.

    Attributes:
        hidden: units of both hidden layers.
        entries: observation entries that it reads; all of them where the list is empty.
        source: the successors it is trained on: "data" takes the true ones, as published; "estimate" the denoiser's
            estimates of them, whose errors are those of the plans it will read.
        noise_below: with "estimate", only noise levels below this diffusion time count: at high noise an estimate is
            the average of all successors and says nothing of the action.
        noise: standard deviation, in normalised units, of Gaussian noise on the successors of "data".
    """

    hidden: int = 256
    entries: list[int] = field(default_factory=list)
    source: str = "data"
    noise_below: float = 0.4
    noise: float = 0.0

    def __post_init__(self) -> None:
        if any(entry < 0 for entry in self.entries) or len(set(self.entries)) < len(self.entries):
            raise ValueError(f"inverse.entries must be distinct and at least 0, got {list(self.entries)}")
        if self.source not in SOURCES:
            raise ValueError(f"unknown inverse.source {self.source!r}: choose one of {', '.join(SOURCES)}")
        if not 0 < self.noise_below <= 1:
            raise ValueError(f"inverse.noise_below lies in (0, 1], got {self.noise_below}")
        if self.noise < 0:
            raise ValueError(f"inverse.noise must be at least 0, got {self.noise}")


class InverseDynamics(nn.Module):
    """MLP a_t = f(o_t, o_{t+1}), one for all agents, on normalised observations (MADiff, section 4.2)."""

    entries: Tensor

    def __init__(self, observation_dim: int, action_dim: int, hidden: int = 256, entries: Sequence[int] = ()):
        """Reads the given entries of the O of an observation, all of them where none are given."""
        super().__init__()
        if max(entries, default=0) >= observation_dim:
            raise ValueError(f"inverse.entries names entry {max(entries)} of observations of {observation_dim} entries")
        self.register_buffer("entries", torch.tensor(list(entries) or list(range(observation_dim))), persistent=False)
        self.net = mlp(2 * len(self.entries), action_dim, hidden)

    def forward(self, observations: Tensor, successors: Tensor) -> Tensor:
        """Two [..., O] -> [..., U]."""
        pair = [values.index_select(-1, self.entries) for values in (observations, successors)]
        return self.net(torch.cat(pair, dim=-1))


def inverse_loss(
    inverse: InverseDynamics,
    config: InverseConfig,
    batch: WindowBatch,
    estimate: Tensor,
    t: Tensor,
    *,
    history: int,
    discrete: bool,
    generator: torch.Generator,
) -> Tensor:
    """Loss of the actions, over the real steps of windows, of agents that are there before and after them.

    Args:
        estimate: the denoiser's clean estimate [B, T, A, O] of the windows at times t [B].
        history: steps of the windows that are given and not estimated.
    """
    weight = batch.valid[:, :-1, None].to(estimate.dtype)
    if batch.present is not None:
        weight = weight * (batch.present[:, :-1] & batch.present[:, 1:])
    successors = batch.observations[:, 1:]
    if config.source == "estimate":
        successors = estimate[:, 1:]
        planned = torch.arange(weight.shape[1], device=weight.device) >= history
        weight = weight * (t < config.noise_below)[:, None, None] * planned[:, None]
    elif config.noise:
        noise = torch.randn(successors.shape, generator=generator, device=successors.device)
        successors = successors + config.noise * noise
    raw = inverse(batch.observations[:, :-1], successors)
    legal = None if batch.legal is None else batch.legal[:, :-1]
    error = action_loss(raw, batch.actions[:, :-1], discrete, legal)
    weight = weight.expand_as(error)
    return (weight * error).sum() / weight.sum().clamp(min=1)

"""MA-TD3+BC: what the critics like, as long as the data does it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.data import Transitions
from marl.deterministic import Deterministic, DeterministicConfig


@dataclass
class TD3BCConfig(DeterministicConfig):
    """TD3+BC (Fujimoto and Gu 2021) for every agent of a team.

    Attributes:
        alpha: weight of the values, divided by their own mean size, beside a cloning loss of weight 1.
    """

    name: str = "td3_bc"
    alpha: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(0, "alpha")


class TD3BC(Deterministic):
    """TD3 whose actor also clones the data; each agent's values are divided by their own mean size."""

    config_class = TD3BCConfig

    def actor_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """(pi(o) - a)^2 - lambda Q(o, pi(o)) with lambda = alpha / mean |Q|, no gradient in lambda."""
        outputs = self.actor(batch.observations)
        values = self.judged(batch, self.relaxed(outputs, batch.legal))
        weight = self.config.alpha / self.agent_means(values.detach().abs(), batch).clamp(min=1e-6)
        cloning = self.mean(self.distance(outputs, batch.actions, batch), batch)
        return {"loss": cloning - self.mean(weight * values, batch), "cloning": cloning}

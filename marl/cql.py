"""MA-CQL: critics that think little of what the data does not do."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.critics import CriticConfig
from core.data import Transitions
from marl.deterministic import Deterministic, DeterministicConfig


@dataclass
class CQLConfig(DeterministicConfig):
    """Conservative Q-learning (Kumar et al. 2020) for every agent of a team, on TD3 as in OMAR's paper (Pan et al.
    2022); `critic.conservative` is its penalty's weight.

    Attributes:
        restraint: weight of the actor's squared outputs, without which its tanh saturates and it learns no more.
    """

    name: str = "cql"
    restraint: float = 0.1
    critic: CriticConfig = field(default_factory=lambda: CriticConfig(conservative=0.1))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(0, "restraint")
        if not self.critic.conservative > 0:
            raise ValueError(
                "algo.critic.conservative must be positive for cql, as nothing else keeps it to the data, got "
                f"{self.critic.conservative}"
            )


class CQL(Deterministic):
    """A deterministic actor that does what conservative critics like.

    The penalty compares the data's actions with uniform ones and with the slowly moving actor's, noise on them, without
    the correction by their densities that a stochastic actor would have.
    """

    config_class = CQLConfig

    def actor_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        outputs = self.actor(batch.observations)
        value = self.mean(self.judged(batch, self.relaxed(outputs, batch.legal)), batch)
        size = self.mean((outputs**2).mean(dim=-1), batch)
        return {"loss": self.config.restraint * size - value, "value": value, "size": size}

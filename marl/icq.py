"""ICQ: cloning and critics of the data's actions alone, the good ones weighing more."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.data import Transitions
from marl.deterministic import Deterministic, DeterministicConfig


@dataclass
class ICQConfig(DeterministicConfig):
    """Implicit constraint Q-learning (Yang et al. 2021) for every agent of a team.

    Attributes:
        beta: temperature of the weights of cloning; the smaller, the fewer actions are cloned.
        target_beta: the same of the critics' targets; the smaller, the more they are those of the best actions alone.
    """

    name: str = "icq"
    every: int = 1
    beta: float = 1.0
    target_beta: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.beta > 0 and self.target_beta > 0):
            raise ValueError(f"algo.beta and algo.target_beta must be positive, got {self.beta} and {self.target_beta}")
        if self.critic.expectile:
            raise ValueError("icq has targets of its own: set algo.critic.expectile=0")


class ICQ(Deterministic):
    """Weighted cloning by a deterministic actor, which is a Gaussian one of fixed deviation.

    The critics' targets need the data's next action. Steps after which the episode was cut off have none: they teach
    the critics nothing, and the actor what the others do.
    """

    config_class = ICQConfig

    def weights(self, values: Tensor, beta: float, there: Tensor | None) -> Tensor:
        """Each agent's softmax(values / beta) over the steps that are `there`, times their number, [B, A]; 0 for the
        others."""
        if there is None:
            return len(values) * (values / beta).softmax(dim=0)
        masked = torch.where(there, values / beta, torch.finfo(values.dtype).min)
        return torch.where(there, there.sum(dim=0) * masked.softmax(dim=0), 0.0)

    def actor_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        assert self.critics is not None
        with torch.no_grad():
            values = self.critics.values(batch.observations, batch.actions).amin(dim=0)
            weights = self.weights(values, self.config.beta, batch.present)
        cloning = self.distance(self.actor(batch.observations), batch.actions, batch)
        return {"loss": self.mean(weights * cloning, batch), "cloning": self.mean(cloning, batch)}

    @torch.no_grad()
    def targets(self, batch: Transitions, generator: torch.Generator) -> Tensor:
        """r + discount w Q'(o', a'), a' the data's."""
        assert self.critics is not None and batch.following_actions is not None and batch.followed is not None
        there = batch.followed if batch.present is None else batch.followed & batch.present
        following = self.critics.values(batch.following, batch.following_actions, target=True).amin(dim=0)
        return batch.rewards + batch.discount * self.weights(following, self.config.target_beta, there) * following

    def critic_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.followed is not None
        known = batch.followed | (batch.discount == 0)
        present = known if batch.present is None else known & batch.present
        return super().critic_loss(replace(batch, present=present), generator)

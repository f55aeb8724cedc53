"""OMAR: conservative critics, whose best actions are searched for, as gradients stop at the nearest hill."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from core.critics import CriticConfig
from core.data import Transitions
from marl.deterministic import Deterministic, DeterministicConfig


@dataclass
class OMARConfig(DeterministicConfig):
    """Offline multi-agent RL with actor rectification (Pan et al. 2022).

    Attributes:
        rectification: share of the loss that moves the actor to the actions found; the rest follows the critics'
            gradient.
        rounds, samples: of the cross-entropy method that finds them. deviation: of its first round.
        sharpness: of the softmax of values by which the next round's mean and deviation are taken.
        restraint: as in `marl.CQLConfig`.
    """

    name: str = "omar"
    rectification: float = 0.5
    rounds: int = 3
    samples: int = 10
    deviation: float = 2.0
    sharpness: float = 1.0
    restraint: float = 0.1
    critic: CriticConfig = field(default_factory=lambda: CriticConfig(conservative=0.1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rectification <= 1:
            raise ValueError(f"algo.rectification is a share in [0, 1], got {self.rectification}")
        self.check(1, "rounds", "samples")
        self.check(0, "deviation", "sharpness", "restraint")


class OMAR(Deterministic):
    """A deterministic actor between the gradient of the critics and the best actions that a search finds."""

    config_class = OMARConfig

    def actor_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """-(1 - c) Q(o, pi(o)) + c (pi(o) - a)^2, a what was found, and the restraint."""
        outputs = self.actor(batch.observations)
        own = self.relaxed(outputs, batch.legal)
        best = self.best(batch, own.detach(), generator)
        value = self.mean(self.judged(batch, own), batch)
        gap = self.mean(self.distance(outputs, best, batch), batch)
        size = self.mean((outputs**2).mean(dim=-1), batch)
        share, restraint = self.config.rectification, self.config.restraint
        return {"loss": share * gap - (1 - share) * value + restraint * size, "value": value, "gap": gap, "size": size}

    @torch.no_grad()
    def best(self, batch: Transitions, own: Tensor, generator: torch.Generator) -> Tensor:
        """Each agent's best action found [B, A, U], its `own` one included; of discrete choices, all are tried."""
        config, size = self.config, own.shape[-1]
        if self.spec.discrete:
            choices = torch.eye(size, device=own.device)[:, None, None].expand(-1, *own.shape)
            values = self.judged(batch, choices).movedim(0, -1)
            if batch.legal is not None:
                values = values.masked_fill(~batch.legal, -torch.inf)
            return F.one_hot(values.argmax(dim=-1), size).to(own)
        mean, deviation = own, torch.full_like(own, config.deviation)
        tried, found = [own[None]], [self.judged(batch, own[None])]
        for _ in range(config.rounds):
            noise = torch.randn((config.samples, *own.shape), generator=generator, device=own.device)
            tried.append((mean + deviation * noise).clamp(-1, 1))
            found.append(self.judged(batch, tried[-1]))
            weights = (config.sharpness * found[-1]).softmax(dim=0)[..., None]
            mean = (weights * tried[-1]).sum(dim=0)
            deviation = (weights * (tried[-1] - mean) ** 2).sum(dim=0).sqrt()
        index = torch.cat(found).argmax(dim=0)[None, ..., None].expand(1, *own.shape)
        return torch.cat(tried).gather(0, index)[0]

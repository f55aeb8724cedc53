"""SRPO: a deterministic policy that a diffusion model of the data keeps in its support."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.algorithm import Phase
from core.data import Transitions
from core.denoiser import NetworkDenoiser
from core.environments import TeamSpec
from core.losses import diffusion_loss
from core.networks import ConcatMLP, linear_of
from core.schedules import per_sample, schedule_of
from marl.deterministic import Deterministic, DeterministicConfig


@dataclass
class SRPOConfig(DeterministicConfig):
    """Score-regularised policy optimisation (Chen et al. 2024) for every agent of a team.

    Attributes:
        alpha: weight of the values, divided by their own mean size, beside a score of weight 1.
        prediction, schedule: of the diffusion model. warmup: steps of it alone before the policy learns.
    """

    name: str = "srpo"
    alpha: float = 1.0
    prediction: str = "noise"
    schedule: str = "linear"
    warmup: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(0, "alpha", "warmup")
        schedule_of(self.schedule)


class SRPO(Deterministic):
    """No sampling at any time: the policy follows its critics and the score of the data's actions.

    The policy's gradient is that of alpha Q / mean |Q| less that of KL(policy, data) over all noise levels, sigma^2
    (eps(a_t, o, t) - eps) with a_t the policy's noisy action (Chen et al. 2024, eq. 12).
    """

    config_class = SRPOConfig

    def __init__(self, config: SRPOConfig, spec: TeamSpec):
        super().__init__(config, spec)
        if spec.discrete:
            raise ValueError("SRPO needs actions that noise can be added to, got discrete choices")
        network = ConcatMLP(
            spec.action_dim,
            condition_dim=spec.observation_dim,
            hidden=config.hidden,
            layers=config.layers,
            activation="silu",
            linear=linear_of(0 if config.shared else spec.agents),
        )
        self.behaviour = NetworkDenoiser(network, schedule_of(config.schedule), config.prediction)
        self.register_buffer("updates", torch.zeros(()))
        self.updates: Tensor

    def actor_phases(self) -> Sequence[Phase]:
        return [Phase("behaviour", list(self.behaviour.parameters()), self._behaviour_loss), *super().actor_phases()]

    def _behaviour_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        weights = None if batch.present is None else batch.present[..., None].to(batch.actions)
        loss, _, _ = diffusion_loss(
            self.behaviour, batch.actions, cond=batch.observations, weights=weights, generator=generator
        )
        return {"loss": loss}

    def actor_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        actions = self.actor(batch.observations).tanh()
        values = self.judged(batch, actions)
        weight = self.config.alpha / self.agent_means(values.detach().abs(), batch).clamp(min=1e-6)
        slope = self.mean((self.score_gap(batch.observations, actions, generator) * actions).sum(dim=-1), batch)
        loss = slope - self.mean(weight * values, batch)
        return {"loss": loss * (self.updates >= self.config.warmup), "value": self.mean(values.detach(), batch)}

    @torch.no_grad()
    def score_gap(self, observations: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
        """sigma^2 (eps(a_t, o, t) - eps) at a random time, the slope of the KL divergence in the actions [B, A, U]."""
        schedule = self.behaviour.schedule
        t = torch.rand(len(actions), generator=generator, device=actions.device, dtype=torch.float64)
        t = 0.02 + 0.96 * t  # at either end the network says nothing
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        x = schedule.diffuse(actions, noise, t)
        alpha, sigma = per_sample(schedule.alpha(t), x), per_sample(schedule.sigma(t), x)
        said = (x - alpha * self.behaviour(x, t, observations)) / sigma
        return sigma**2 * (said - noise)

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        self.updates += 1

"""BCQ-Lagrangian: actions like the data's, moved a little to where critics see more reward for less cost."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from core.acting import Acting, GuidanceConfig, SelectionConfig
from core.actor_critic import ActorCritic, ActorCriticPolicy
from core.algorithm import Phase
from core.critics import CriticConfig, Critics
from core.data import Trajectories, Transitions
from core.environments import TeamSpec
from core.errors import UserError
from core.networks import mlp


@dataclass
class BCQLagrangianConfig:
    """BCQ (Fujimoto et al. 2019) with a multiplier for the costs (as in Liu et al. 2024). The range, the weight of the
    divergence and the gains are the usual ones; the rest is a small network of ours for a CPU.

    Attributes:
        cost_limit: largest mean cost of an episode, averaged over the agents.
        hidden, layers: of the policy's MLPs.
        range: largest change of a proposed action.
        divergence: weight of the proposals' KL divergence beside their squared error.
        latent_bound: within which proposals are drawn.
        proportional, integral, derivative: gains of the multiplier.
        polyak: step of the slowly moving perturbation, which acts, towards the learned one.
        critic: of rewards and of costs alike; a backup is of the best of its `candidates`.
        selection: of the best proposal, likewise.
    """

    name: str = "bcq_lagrangian"
    cost_limit: float = 20.0
    hidden: int = 128
    layers: int = 2
    range: float = 0.05
    divergence: float = 0.5
    latent_bound: float = 0.5
    proportional: float = 0.1
    integral: float = 0.003
    derivative: float = 0.001
    polyak: float = 0.05
    critic: CriticConfig = field(
        default_factory=lambda: CriticConfig(hidden=128, discount=0.97, polyak=0.05, candidates=5)
    )
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(5))

    def __post_init__(self) -> None:
        if self.name != "bcq_lagrangian":
            raise ValueError(
                f"algo.name is bcq_lagrangian here, got {self.name!r}: choose another algorithm with algo="
            )
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(f"algo.hidden and algo.layers must be at least 1, got {self.hidden} and {self.layers}")
        for name in ("cost_limit", "range", "divergence", "proportional", "integral", "derivative"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"algo.{name} must be finite and at least 0, got {getattr(self, name)}")
        if self.latent_bound <= 0 or not 0 < self.polyak <= 1:
            raise ValueError(
                "algo.latent_bound must be positive and algo.polyak in (0, 1], got "
                f"{self.latent_bound} and {self.polyak}"
            )
        if self.critic.conservative or self.critic.expectile:
            raise ValueError("algo.critic.conservative and algo.critic.expectile are 0 here: proposals are the data's")


class PID(nn.Module):
    """A multiplier that follows how far a cost is above its limit (Stooke et al. 2020, algorithm 2).

    total <- (total + error)_+,  multiplier = (K_P error + K_I total + K_D (error - error before)_+)_+
    """

    total: Tensor
    before: Tensor
    multiplier: Tensor

    def __init__(self, proportional: float, integral: float, derivative: float):
        super().__init__()
        self.gains = (proportional, integral, derivative)
        for name in ("total", "before", "multiplier"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def follow(self, error: Tensor) -> None:
        """Take the error of a step, a cost less its limit."""
        proportional, integral, derivative = self.gains
        self.total.add_(error).clamp_(min=0)
        rise = (error - self.before).clamp(min=0)
        self.before.copy_(error)
        self.multiplier.copy_((proportional * error + integral * self.total + derivative * rise).clamp(min=0))


class BCQLagrangian(ActorCritic):
    """A variational autoencoder proposes each agent's actions, and a perturbation moves them by at most `range` to
    where Q_r - multiplier Q_c is larger. The best of some proposals by that is taken, by critics that judge just this.

    Rewards are judged by the lower of twin critics, costs, in units of their deviation in the data, by the higher of
    twins of their own. The multiplier follows what these expect from the data's states on, and its limit is that of an
    episode, as a discounted sum if it is spread evenly.
    """

    config_class = BCQLagrangianConfig
    cost_scale: Tensor
    cost_limit: Tensor
    estimate: Tensor

    def __init__(self, config: BCQLagrangianConfig, spec: TeamSpec):
        if spec.discrete:
            raise ValueError("bcq_lagrangian moves actions a little, which choices cannot: choose another algorithm")
        super().__init__(config, spec)
        seen, acted, sizes = spec.observation_dim, spec.action_dim, (config.hidden, config.layers)
        self.encoder = mlp(seen + acted, 2 * acted, *sizes, activation="relu")
        self.decoder = mlp(seen + acted, acted, *sizes, activation="relu")
        self.perturbation = mlp(seen + acted, acted, *sizes, activation="relu")
        self.target = copy.deepcopy(self.perturbation).requires_grad_(False)
        self.cost_critics = Critics(config.critic, spec.agents, seen, acted)
        self.pid = PID(config.proportional, config.integral, config.derivative)
        for name in ("cost_scale", "cost_limit", "estimate"):
            self.register_buffer(name, torch.ones(()))

    def prepare(self, trajectories: Trajectories) -> Transitions:
        transitions = super().prepare(trajectories)
        discount, length = self.config.critic.discount, trajectories.steps / trajectories.episodes
        steps = (1 - discount**length) / (1 - discount) if discount < 1 else length
        self.cost_scale.copy_(1 / trajectories.costs[trajectories.decisions].std(correction=0).clamp(min=1e-3))
        self.cost_limit.copy_(self.config.cost_limit / length * steps * self.cost_scale)
        return replace(transitions, costs=transitions.costs * self.cost_scale)

    def proposed(self, observations: Tensor, latents: Tensor) -> Tensor:
        """Actions like the data's [..., U], of observations [..., O] and latents [..., U]."""
        return self.decoder(torch.cat([observations, latents], dim=-1)).tanh()

    def perturbed(self, network: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        """Actions [..., U], each entry moved by at most the range."""
        moved = self.config.range * network(torch.cat([observations, actions], dim=-1)).tanh()
        return (actions + moved).clamp(-1, 1)

    def propose(
        self, observations: Tensor, noise: Tensor, acting: Acting | None = None, scales: Tensor | None = None
    ) -> Tensor:
        seen = observations[:, None].expand(*noise.shape[:-1], -1)
        bound = self.config.latent_bound
        return self.perturbed(self.target, seen, self.proposed(seen, noise.clamp(-bound, bound)))

    def actor_phases(self) -> Sequence[Phase]:
        proposals = [*self.encoder.parameters(), *self.decoder.parameters()]
        learned = [parameter for parameter in self.cost_critics.parameters() if parameter.requires_grad]
        return [
            Phase("cost", learned, self.cost_loss),
            Phase("proposal", proposals, self.proposal_loss),
            Phase("policy", list(self.perturbation.parameters()), self.policy_loss),
        ]

    @torch.no_grad()
    def targets(self, batch: Transitions, generator: torch.Generator) -> Tensor:
        """What the critics of rewards learn of each step, [B, A]."""
        assert self.critics is not None
        following = self.critics.values(batch.following, self._followed(batch, generator), target=True)
        return batch.rewards + batch.discount * following.amin(dim=0)

    def cost_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """Squared error of the twin critics of costs. The multiplier's estimate is what they expect after a step."""
        with torch.no_grad():
            following = self.cost_critics.values(batch.following, self._followed(batch, generator), target=True)
            following = following.amax(dim=0)
            estimate = self.mean(following, batch)
            self.estimate.copy_(estimate)
        values = self.cost_critics.values(batch.observations, batch.actions)
        error = self.mean((values - batch.costs - batch.discount * following) ** 2, batch) * 2
        return {"loss": error, "q": self.mean(values.detach(), batch), "estimate": estimate}

    def _followed(self, batch: Transitions, generator: torch.Generator) -> Tensor:
        """What the policy would do after each step [B, A, U]."""
        return self.best(batch.following, self._drawn(batch.following, self.config.critic.candidates, generator))

    def proposal_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """The autoencoder's squared error and its divergence from standard normal latents (Kingma and Welling 2014)."""
        encoded = self.encoder(torch.cat([batch.observations, batch.actions], dim=-1))
        mean, log_deviation = encoded[..., : self.spec.action_dim], encoded[..., self.spec.action_dim :].clamp(-4, 15)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        actions = self.proposed(batch.observations, mean + log_deviation.exp() * noise)
        error = self.mean(((actions - batch.actions) ** 2).mean(dim=-1), batch)
        divergence = (mean**2 + (2 * log_deviation).exp() - 1) / 2 - log_deviation
        return {"loss": error + self.config.divergence * self.mean(divergence.mean(dim=-1), batch), "error": error}

    def policy_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """multiplier Q_c - Q_r of a perturbed proposal."""
        bound = self.config.latent_bound
        noise = torch.randn(batch.actions.shape, generator=generator, device=batch.actions.device)
        with torch.no_grad():
            proposed = self.proposed(batch.observations, noise.clamp(-bound, bound))
        own = self.perturbed(self.perturbation, batch.observations, proposed)
        rewards, costs = (self.mean(values, batch) for values in self.judged(batch.observations, batch.actions, own))
        multiplier = self.pid.multiplier.clone()  # as it was in this step
        return {"loss": multiplier * costs - rewards, "value": rewards, "cost": costs, "multiplier": multiplier}

    def judged(self, observations: Tensor, actions: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Q_r and Q_c [..., A] where each agent does `own` [..., A, U] and takes the others' actions as they were."""
        assert self.critics is not None
        rewards = self.critics.own_values(observations, actions, own).amin(dim=0)
        return rewards, self.cost_critics.own_values(observations, actions, own).amax(dim=0)

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        self.cost_critics.follow()
        self.pid.follow(self.estimate - self.cost_limit)
        learned: list[Tensor] = list(self.perturbation.parameters())
        slow: list[Tensor] = list(self.target.parameters())
        torch._foreach_lerp_(slow, learned, self.config.polyak)

    @torch.no_grad()
    def best(self, observations: Tensor, candidates: Tensor) -> Tensor:
        """The best of each agent's candidates [B, n, A, U] by Q_r - multiplier Q_c: [B, A, U]. Where critics judge the
        team's actions, it is the best of n joint actions."""
        assert self.critics is not None
        seen = observations[:, None].expand(*candidates.shape[:-1], -1)
        costs = self.cost_critics.values(seen, candidates).amax(dim=0)
        worth = self.critics.values(seen, candidates).amin(dim=0) - self.pid.multiplier * costs
        if self.critics.config.view == "centralised":
            worth = worth.mean(dim=2, keepdim=True)
        best = worth.argmax(dim=1)[:, None, :, None].expand(-1, 1, *candidates.shape[2:])
        return candidates.gather(1, best)[:, 0]

    def choose(self, observations: Tensor, candidates: Tensor, selection: SelectionConfig, noise: Tensor) -> Tensor:
        """`best`, whatever the noise."""
        return self.best(observations, candidates)

    def policy(self, acting: Acting, guidance: Sequence[GuidanceConfig] = ()) -> ActorCriticPolicy:
        if acting.selection.pick != "best":
            raise UserError(f"bcq_lagrangian takes the best proposal: leave out selection.pick={acting.selection.pick}")
        return super().policy(acting, guidance)

"""Diffusion policies for teams: DOM2 (Li et al. 2023, arXiv 2307.01472) and its single-agent relatives, one class."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.acting import Acting
from core.actor_critic import ActorCritic
from core.algorithm import Phase
from core.consistency import ConsistencyModel, consistency_loss
from core.data import Transitions
from core.denoiser import Denoiser, NetworkDenoiser, wrap
from core.edits import Box
from core.environments import TeamSpec
from core.guidance import Energy
from core.losses import diffusion_loss
from core.networks import ConcatMLP, LinearUNet, ResidualMLP, linear_of
from core.samplers import Consistency, Sampler
from core.sampling import sample
from core.schedules import schedule_of
from marl.diffusion_policy_config import DiffusionPolicyConfig


class DiffusionPolicy(ActorCritic):
    """Each agent's actions by diffusion from its own observation, improved by critics.

    The diffusion variable is x [..., A, U], actions in [-1, 1]; discrete choices are one-hot between -1 and 1. Agents
    have networks of their own, evaluated in one call, or share one; they meet in centralised critics at most, so that
    execution is decentralised.
    """

    config_class = DiffusionPolicyConfig

    def __init__(self, config: DiffusionPolicyConfig, spec: TeamSpec):
        super().__init__(config, spec)
        denoiser = NetworkDenoiser(_network(config, spec), schedule_of(config.schedule), config.prediction)
        self.actor: NetworkDenoiser | ConsistencyModel = denoiser
        if config.consistency != "none":
            self.actor = ConsistencyModel(denoiser)
        self.target = copy.deepcopy(self.actor).requires_grad_(False)
        self.register_buffer("updates", torch.zeros(()))
        self.updates: Tensor
        self.energy: nn.Module | None = None
        if config.improvement == "energy":
            linear = linear_of(0 if config.shared else spec.agents)
            self.energy = ConcatMLP(
                spec.action_dim,
                condition_dim=spec.observation_dim,
                hidden=config.hidden,
                layers=config.layers,
                activation=config.activation,
                outputs=1,
                linear=linear,
            )
        self.log_weight = nn.Parameter(torch.zeros(())) if config.divergence else None
        self.sampler: Sampler = config.sampler.build() if config.consistency == "none" else Consistency(1)
        self.box = [Box(-1.0, 1.0)]

    @staticmethod
    def uses(config: DiffusionPolicyConfig) -> frozenset[str]:
        return frozenset({"sampler", "selection", *(["scale"] if config.improvement == "energy" else [])})

    def propose(
        self, observations: Tensor, noise: Tensor, acting: Acting | None = None, scales: Tensor | None = None
    ) -> Tensor:
        if acting is None:
            return self._draw(self.target, observations, noise)
        scales = None if self.energy is None else scales
        return self._draw(self.target, observations, noise, acting.sampler.build(), acting.temperature, scales)

    def _draw(
        self,
        actor: NetworkDenoiser | ConsistencyModel,
        observations: Tensor,
        noise: Tensor,
        sampler: Sampler | None = None,
        temperature: float = 1.0,
        scales: Tensor | None = None,
        grad: bool = False,
    ) -> Tensor:
        """Actions [B, n, A, U] of observations [B, A, O] and noise [B, n, A, U], as `propose` gives them."""
        seen = observations[:, None].expand(*noise.shape[:3], -1).flatten(0, 1)
        guided: Denoiser = actor
        if scales is not None:
            each = scales.repeat_interleave(noise.shape[1])  # inside the energy, since every episode has its own
            guided = Energy(actor, lambda x, t: -each * self._preference(x, t, seen), on="noisy")
        x = sample(
            guided,
            noise.flatten(0, 1),
            sampler or self.sampler,
            cond=seen,
            edits=self.box,
            temperature=temperature,
            grad=grad,
        ).x.reshape(noise.shape)
        return (x + 1) / 2 if self.spec.discrete else x

    def actor_phases(self) -> Sequence[Phase]:
        phases = [Phase("policy", list(self.actor.parameters()), self._loss, every=self.config.every)]
        if self.energy is not None:
            phases.append(Phase("energy", list(self.energy.parameters()), self._energy_loss, every=self.config.every))
        if self.log_weight is not None:
            phases.append(Phase("weight", [self.log_weight], self._weight_loss, every=self.config.every))
        return phases

    def _loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        cloning, estimate = self._cloning(batch, generator)
        config = self.config
        if config.improvement in ("none", "energy"):
            return {"loss": cloning, "cloning": cloning}
        assert self.critics is not None
        if config.improvement == "chain":
            shape = (len(estimate), 1, *estimate.shape[1:])
            noise = torch.randn(shape, generator=generator, device=estimate.device)
            own = self._draw(self.actor, batch.observations, noise, grad=True)[:, 0]
        else:
            own = estimate.clamp(-1, 1)
            own = (own + 1) / 2 if self.spec.discrete else own
        values = self.critics.own_values(batch.observations, batch.actions, own)
        # One critic's values, divided by the size of the other's: by chance which (Wang et al. 2023).
        coin = torch.rand((), generator=generator, device=estimate.device) < 0.5
        means, sizes = self.agent_means(values, batch), self.agent_means(values.detach().abs(), batch).clamp(min=1e-6)
        value = torch.where(coin, means[0] / sizes[1], means[1] / sizes[0]).mean()
        weight = 1.0 if self.log_weight is None else self.log_weight.detach().exp()
        loss = weight * cloning - config.eta * (self.updates >= config.warmup) * value
        return {"loss": loss, "cloning": cloning, "value": value}

    def _cloning(self, batch: Transitions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The loss of imitation, and clean estimates of noisy actions of the data [B, A, U]."""
        config = self.config
        x0 = 2 * batch.actions - 1 if self.spec.discrete else batch.actions
        weights = None if batch.present is None else batch.present[..., None].to(x0)
        if isinstance(self.actor, NetworkDenoiser):
            loss, estimate, _ = diffusion_loss(
                self.actor,
                x0,
                cond=batch.observations,
                weights=weights,
                weighting=config.weighting,
                generator=generator,
            )
            return loss, estimate
        if config.consistency == "training":
            # Without a teacher, the data's action tells where its noisy version leads (Song et al. 2023, algorithm 3).
            assert isinstance(self.target, ConsistencyModel)
            known = wrap(lambda x, t, cond: x0, self.actor.schedule)
            loss = consistency_loss(
                self.actor,
                self.target,
                known,
                x0,
                cond=batch.observations,
                weights=weights,
                levels=config.levels,
                generator=generator,
            )
            return loss, x0
        # Reconstruction, which is what the released CPQL minimises.
        t = torch.rand(len(x0), generator=generator, device=x0.device, dtype=torch.float64)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        error = self.actor(self.actor.schedule.diffuse(x0, noise, t), t, batch.observations) - x0
        return self.mean((error**2).mean(dim=-1), batch), x0

    def _preference(self, x: Tensor, t: Tensor, observations: Tensor) -> Tensor:
        """How much noisier actions [B, A, U] at a time are preferred, the sum over agents [B]."""
        assert self.energy is not None
        return self.energy(x, t.to(x).expand(len(x)), observations).sum(dim=(1, 2))

    def _energy_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """Contrastive energy prediction (Lu et al. 2023, eq. 12): among noisy actions of the policy at one time, the
        energy tells which are of the higher value; -sum softmax(eta Q(a)) log softmax(f(a_t)) over the actions."""
        assert self.energy is not None and self.critics is not None
        shape = (len(batch), self.config.contrast, *batch.actions.shape[1:])
        device = batch.actions.device
        with torch.no_grad():
            actions = self._draw(
                self.target, batch.observations, torch.randn(shape, generator=generator, device=device)
            )
            seen, told = (one[:, None].expand(*shape[:3], -1) for one in (batch.observations, batch.actions))
            values = self.critics.own_values(seen, told, self.executed(actions, batch.legal)).amin(dim=0)
            wanted = (self.config.eta * values).softmax(dim=1)
        t = torch.rand(len(batch), generator=generator, device=device)
        x0 = 2 * actions - 1 if self.spec.discrete else actions
        x = self.actor.schedule.diffuse(x0, torch.randn(shape, generator=generator, device=device), t)
        times = t[:, None].expand(shape[:2]).flatten()
        said = self.energy(x.flatten(0, 1), times, seen.flatten(0, 1)).reshape(shape[:3])
        return {"loss": self.mean(-(wanted * said.log_softmax(dim=1)).sum(dim=1), batch)}

    def _weight_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """Dual ascent: the weight of cloning grows while its loss exceeds the allowed one (DiffCPS, eq. 12)."""
        assert self.log_weight is not None
        with torch.no_grad():
            cloning, _ = self._cloning(batch, generator)
        return {"loss": self.log_weight * (self.config.divergence - cloning), "weight": self.log_weight.detach().exp()}

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        self.updates += 1
        learned: list[Tensor] = list(self.actor.parameters())
        slow: list[Tensor] = list(self.target.parameters())
        torch._foreach_lerp_(slow, learned, self.config.polyak)


def _network(config: DiffusionPolicyConfig, spec: TeamSpec) -> nn.Module:
    linear = linear_of(0 if config.shared else spec.agents)
    seen, hidden = spec.observation_dim, config.hidden
    if config.network == "mlp":
        return ConcatMLP(
            spec.action_dim,
            condition_dim=seen,
            hidden=hidden,
            layers=config.layers,
            activation=config.activation,
            linear=linear,
        )
    if config.network == "residual":
        return ResidualMLP(
            spec.action_dim,
            width=hidden,
            blocks=config.layers,
            condition_dim=seen,
            dropout=config.dropout,
            linear=linear,
        )
    widths = (2 * hidden, hidden, max(1, hidden // 2))
    return LinearUNet(spec.action_dim, condition_dim=seen, widths=widths, dropout=config.dropout, linear=linear)

"""MADiff: joint trajectory diffusion with attention across agents (Zhu et al. 2024, arXiv 2305.17330)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.algorithm import Acting, Algorithm, GuidanceConfig, Phase, TeamSpec
from core.data import Affine, Trajectories, WindowBatch, Windows, drop_conditions
from core.denoiser import Denoiser, NetworkDenoiser
from core.edits import Box, Clamp, Edit
from core.errors import UserError
from core.guidance import ClassifierFree
from core.losses import UniformTimes, diffusion_loss
from core.networks import TemporalUNet
from core.noise import normal
from core.rollout import Context, Reactive
from core.samplers import Sampler, SamplerConfig
from core.sampling import sample
from core.schedules import schedule_of
from marl.attention import AgentAttention
from marl.inverse_dynamics import InverseDynamics
from marl.madiff_config import PRECISIONS, MADiffConfig


@dataclass(frozen=True)
class Plan:
    """A joint plan for B teams, in the environment's units.

    Attributes:
        observations: [B, T, A, O], the first step the current one. actions: [B, T - 1, A, U].
        faults: [B], plans with numbers that are not finite.
        trace: the observations [B, T, A, O] at each stage of denoising, where asked for.
    """

    observations: Tensor
    actions: Tensor
    faults: Tensor
    trace: tuple[Tensor, ...]


class MADiff(Algorithm):
    """Centralised planner: one joint plan of all agents' observations, clamped at the current ones.

    The diffusion variable is x [B, T, A, D]: normalised observations, followed by the actions where they are diffused
    jointly. One U-Net is shared by the agents, which meet in attention; the condition is each agent's return rank.
    """

    config_class = MADiffConfig
    stackable = True

    def __init__(self, config: MADiffConfig, spec: TeamSpec):
        super().__init__(config, spec)
        self.joint = config.actions == "joint"
        self.features = spec.observation_dim + (spec.action_dim if self.joint else 0)
        network = TemporalUNet(
            self.features,
            config.horizon,
            width=config.width,
            multipliers=config.multipliers,
            kernel=config.kernel,
            activation=config.activation,
            condition_dim=1,
            mixer=self._attention if config.attention else None,
        )
        self.denoiser = NetworkDenoiser(
            network, schedule_of(config.schedule), config.prediction, autocast=PRECISIONS[config.precision]
        )
        self.inverse = (
            None
            if self.joint
            else InverseDynamics(spec.observation_dim, spec.action_dim, config.inverse.hidden, config.inverse.entries)
        )
        self.normaliser = Affine(spec.observation_dim, config.normaliser)
        self.known: Tensor
        self.weights: Tensor
        known = torch.zeros(config.horizon, 1, self.features, dtype=torch.bool)
        known[0, :, : spec.observation_dim] = True
        self.register_buffer("known", known, persistent=False)
        weights = torch.ones(config.horizon, 1, self.features)
        weights[1, :, : spec.observation_dim] = config.next_step_weight
        self.register_buffer("weights", weights, persistent=False)

    @staticmethod
    def uses(config: MADiffConfig) -> frozenset[str]:
        return frozenset({"sampler", "scale", "returns"})

    def _attention(self, channels: int, embedding: int) -> nn.Module:
        return AgentAttention(channels, embedding, heads=self.config.heads)

    # Training

    def prepare(self, trajectories: Trajectories) -> Windows:
        self.normaliser.fit(trajectories.observations.to(self.known.device))
        return self.windows(trajectories)

    def windows(self, trajectories: Trajectories) -> Windows:
        """The data's windows of T steps, normalised as the planner knows them."""
        observations = self.normaliser(trajectories.observations.to(self.known.device))
        return Windows(trajectories, observations, self.config.horizon, self.config.discount)

    def phases(self) -> Sequence[Phase]:
        return [Phase("planner", list(self.parameters()), self._loss)]

    def clean(self, batch: WindowBatch) -> Tensor:
        """What is diffused of a batch of windows, [B, T, A, D]."""
        return torch.cat([batch.observations, batch.actions], dim=-1) if self.joint else batch.observations

    def _loss(self, batch: WindowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        x0 = self.clean(batch)
        diffusion, estimate, t = diffusion_loss(
            self.denoiser,
            x0,
            clamp=Clamp(self.known, x0),
            cond=drop_conditions(batch.ranks, self.config.condition_dropout, generator),
            weights=self.weights,
            times=UniformTimes(self.config.noise_emphasis),
            weighting=self.config.weighting,
            generator=generator,
        )
        if self.inverse is None:
            return {"loss": diffusion, "diffusion": diffusion}
        inverse = self._inverse_loss(batch, estimate.detach(), t, generator)
        return {"loss": (diffusion + inverse) / 2, "diffusion": diffusion, "inverse": inverse}

    def _inverse_loss(self, batch: WindowBatch, estimate: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the actions, over the real steps of the window."""
        assert self.inverse is not None
        config = self.config.inverse
        weight = batch.valid[:, :-1].to(estimate.dtype)
        successors = batch.observations[:, 1:]
        if config.source == "estimate":
            successors = estimate[:, 1:]
            weight = weight * (t < config.noise_below)[:, None]
        elif config.noise:
            successors = successors + config.noise * torch.randn(
                successors.shape, generator=generator, device=successors.device
            )
        error = (self.inverse(batch.observations[:, :-1], successors) - batch.actions[:, :-1]) ** 2
        return (weight * error.mean(dim=(2, 3))).sum() / weight.sum().clamp(min=1)

    # Planning

    @torch.no_grad()
    def plan(
        self,
        observations: Tensor,
        returns: float | Tensor = 0.9,
        *,
        denoiser: Denoiser | None = None,
        sampler: Sampler | None = None,
        guidance_scale: float | Tensor = GuidanceConfig.scale,
        temperature: float = 1.0,
        edits: Sequence[Edit] = (),
        noise: Tensor | None = None,
        seed: int = 0,
        trace: bool = False,
    ) -> Plan:
        """One joint plan for each of B teams.

        Args:
            observations: current observations [B, A, O].
            returns: wanted return rank in [0, 1], one for all or [B, A].
            denoiser: in place of the planner's own, such as a guided one; classifier-free guidance wraps it.
            sampler: DDIM with 5 steps unless given. guidance_scale: of classifier-free guidance, one for all or [B].
            temperature: factor on the initial noise (the paper: 0.5).
            edits: further edits of the normalised plan [B, T, A, D], after the clamp.
            noise: standard normal [B, T, A, D]; drawn from `seed` unless given.
            trace: keep the stages of denoising.

        Raises:
            ValueError: the observations do not have the shape of the team's.
        """
        shape = (self.spec.agents, self.spec.observation_dim)
        if observations.ndim != 3 or observations.shape[1:] != shape:
            raise ValueError(f"observations must be [B, {shape[0]}, {shape[1]}], got {list(observations.shape)}")
        device = self.known.device
        batch = len(observations)
        if noise is None:
            noise = normal(torch.arange(batch) + (seed << 32), self.plan_shape)
        condition = torch.as_tensor(returns, dtype=torch.float32, device=device)
        if condition.ndim not in (0, 2):
            raise ValueError(f"returns must be one number or [B, A], got {list(condition.shape)}")
        result = sample(
            ClassifierFree(
                denoiser or self.denoiser,
                guidance_scale.to(device) if isinstance(guidance_scale, Tensor) else guidance_scale,
            ),
            noise.to(device),
            sampler or SamplerConfig().build(),
            cond=condition.expand(batch, self.spec.agents)[..., None],
            edits=[self._box(), self.clamp(observations.to(device)), *edits],
            temperature=temperature,
            trace=trace,
        )
        x = result.x
        if self.inverse is None:
            actions = x[:, :-1, :, self.spec.observation_dim :]
        else:
            actions = self.inverse(x[:, :-1], x[:, 1:])
        planned = self._observations(x)
        planned[:, 0] = observations  # as given, not as the normaliser's round trip leaves them
        return Plan(planned, actions.clamp(-1, 1), result.faults, tuple(map(self._observations, result.trace)))

    @property
    def plan_shape(self) -> tuple[int, int, int]:
        """Shape [T, A, D] of one plan's noise."""
        return self.config.horizon, self.spec.agents, self.features

    def clamp(self, observations: Tensor) -> Clamp:
        """The edit that holds a plan's first step at the current observations [B, A, O]."""
        values = torch.zeros(len(observations), *self.plan_shape, device=observations.device)
        values[:, 0, :, : self.spec.observation_dim] = self.normaliser(observations)
        return Clamp(self.known, values)

    def _box(self) -> Box:
        """The edit that keeps clean estimates within the data."""
        low, high = self.normaliser.low, self.normaliser.high
        if self.joint:
            ones = low.new_ones(self.spec.action_dim)
            low, high = torch.cat([low, -ones]), torch.cat([high, ones])
        return Box(low, high)

    def _observations(self, x: Tensor) -> Tensor:
        return self.normaliser.invert(x[..., : self.spec.observation_dim])

    def policy(self, acting: Acting, guidance: Sequence[GuidanceConfig] = ()) -> "MADiffPolicy":
        return MADiffPolicy(self, acting, guidance)


class MADiffPolicy(Reactive):
    """Plans anew at every step and executes the first joint action."""

    def __init__(
        self,
        planner: MADiff,
        acting: Acting,
        guidance: Sequence[GuidanceConfig] = (),
        denoiser: Denoiser | None = None,
    ):
        schedule = (denoiser or planner.denoiser).schedule
        try:
            acting.sampler.build().grid(schedule)
        except ValueError as error:
            raise UserError(f"sampler {acting.sampler} does not fit the planner's {schedule}: {error}") from error
        self.planner = planner
        self.denoiser = denoiser
        self.acting = acting
        self.guidance = guidance
        self.scale: float | Tensor = acting.guidance.scale
        self.returns: float | Tensor = acting.guidance.returns

    def reset(self, seeds: Sequence[int]) -> None:
        self.keys = torch.as_tensor(seeds, dtype=torch.int64)
        if self.guidance:
            self.scale, returns = GuidanceConfig.of_episodes(self.guidance, seeds)
            self.returns = returns[:, None].expand(-1, self.planner.spec.agents)

    def act(self, observations: Tensor, context: Context) -> Tensor:
        plan = self.planner.plan(
            observations,
            self.returns,
            denoiser=self.denoiser,
            sampler=self.acting.sampler.build(),
            guidance_scale=self.scale,
            temperature=self.acting.temperature,
            noise=normal(self.keys, self.planner.plan_shape, stream=context.step),
        )
        if bool(plan.faults.any()):
            raise UserError(
                f"{int(plan.faults.sum())} of {len(observations)} plans at step {context.step} are not finite: "
                "lower guidance.scale, or train the run again"
            )
        return plan.actions[:, 0]

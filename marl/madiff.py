"""MADiff: joint trajectory diffusion with attention across agents (Zhu et al. 2024, arXiv 2305.17330)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from core.algorithm import Acting, Algorithm, GuidanceConfig, Phase, TeamSpec
from core.data import Affine, Trajectories, WindowBatch, Windows, drop_conditions
from core.denoiser import PREDICTIONS, Clip, Denoiser, NetworkDenoiser
from core.edits import Clamp, Edit
from core.errors import UserError
from core.guidance import ClassifierFree
from core.losses import diffusion_loss
from core.networks import TemporalUNet
from core.noise import normal
from core.rollout import Context, Reactive
from core.samplers import Sampler, SamplerConfig
from core.sampling import sample
from core.schedules import SCHEDULES
from marl.attention import AgentAttention
from marl.inverse_dynamics import InverseConfig, InverseDynamics

ACTIONS = ("inverse", "joint")


@dataclass
class MADiffConfig:
    """MADiff's model and loss. The defaults are the small preset, ours; configs/algo/madiff_published.yaml the paper's.

    Attributes:
        horizon: time steps T of a plan, the current one included.
        width, multipliers, kernel, activation: of the temporal U-Net.
        attention: False trains the same network without any exchange between the agents. heads: of the attention.
        prediction: "noise", "x0" or "v". schedule: "cosine" or "linear". normaliser: "standard" or "minmax".
        noise_emphasis: how much more often high noise is trained than low; 1 is uniform (`core.diffusion_loss`).
        condition_dropout: share of the training items whose condition is dropped.
        discount: of the return that is conditioned on.
        next_step_weight: weight of the first planned step in the loss: actions depend on it alone.
        actions: "inverse" reads them off planned observations; "joint" diffuses them beside the observations.
        inverse: of the inverse dynamics.
    """

    name: str = "madiff"
    horizon: int = 8
    width: int = 64
    multipliers: list[int] = field(default_factory=lambda: [1, 2])
    kernel: int = 5
    activation: str = "silu"
    attention: bool = True
    heads: int = 4
    prediction: str = "x0"
    schedule: str = "linear"
    noise_emphasis: float = 2.0
    normaliser: str = "standard"
    condition_dropout: float = 0.25
    discount: float = 1.0
    next_step_weight: float = 2.0
    actions: str = "inverse"
    inverse: InverseConfig = field(default_factory=InverseConfig)

    def __post_init__(self) -> None:
        if self.name != "madiff":
            raise ValueError(f"algo.name is madiff here, got {self.name!r}: choose another algorithm with algo=")
        for name in ("width", "kernel", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"algo.{name} must be at least 1, got {getattr(self, name)}")
        if self.horizon < 2:
            raise ValueError(f"algo.horizon must be at least 2, the current step and one planned, got {self.horizon}")
        for name, choices in (("prediction", PREDICTIONS), ("schedule", SCHEDULES), ("actions", ACTIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown algo.{name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"algo.condition_dropout lies in [0, 1), got {self.condition_dropout}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"algo.discount lies in (0, 1], got {self.discount}")
        if self.next_step_weight <= 0 or self.noise_emphasis <= 0:
            raise ValueError(
                f"algo.next_step_weight and algo.noise_emphasis must be positive, "
                f"got {self.next_step_weight} and {self.noise_emphasis}"
            )
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"algo.multipliers must be positive integers, one a level, got {list(self.multipliers)}")


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
        self.denoiser = NetworkDenoiser(network, SCHEDULES[config.schedule](), config.prediction)
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

    def _attention(self, channels: int, length: int, embedding: int) -> nn.Module:
        return AgentAttention(channels, embedding, heads=self.config.heads)

    # Training

    def prepare(self, trajectories: Trajectories) -> Windows:
        observations = trajectories.observations.to(self.known.device)
        self.normaliser.fit(observations)
        return Windows(trajectories, self.normaliser(observations), self.config.horizon, self.config.discount)

    def phases(self) -> Sequence[Phase]:
        return [Phase("planner", list(self.parameters()), self._loss)]

    def _loss(self, batch: WindowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        x0 = torch.cat([batch.observations, batch.actions], dim=-1) if self.joint else batch.observations
        diffusion, estimate, t = diffusion_loss(
            self.denoiser,
            x0,
            clamp=Clamp(self.known, x0),
            cond=drop_conditions(batch.ranks, self.config.condition_dropout, generator),
            weights=self.weights,
            noise_emphasis=self.config.noise_emphasis,
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
        sampler: Sampler | None = None,
        guidance_scale: float = GuidanceConfig.scale,
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
            sampler: DDIM with 5 steps unless given. guidance_scale: of classifier-free guidance.
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
            self._guided(guidance_scale),
            noise.to(device),
            sampler or SamplerConfig().build(),
            cond=condition.expand(batch, self.spec.agents)[..., None],
            edits=[self.clamp(observations.to(device)), *edits],
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

    def _guided(self, scale: float) -> Denoiser:
        low, high = self.normaliser.low, self.normaliser.high
        if self.joint:
            ones = low.new_ones(self.spec.action_dim)
            low, high = torch.cat([low, -ones]), torch.cat([high, ones])
        return Clip(ClassifierFree(self.denoiser, scale), low, high)

    def _observations(self, x: Tensor) -> Tensor:
        return self.normaliser.invert(x[..., : self.spec.observation_dim])

    def policy(self, acting: Acting) -> "MADiffPolicy":
        return MADiffPolicy(self, acting)


class MADiffPolicy(Reactive):
    """Plans anew at every step and executes the first joint action."""

    def __init__(self, planner: MADiff, acting: Acting):
        self.planner = planner
        self.acting = acting

    def reset(self, seeds: Sequence[int]) -> None:
        self.keys = torch.as_tensor(seeds, dtype=torch.int64)

    def act(self, observations: Tensor, context: Context) -> Tensor:
        plan = self.planner.plan(
            observations,
            self.acting.guidance.returns,
            sampler=self.acting.sampler.build(),
            guidance_scale=self.acting.guidance.scale,
            temperature=self.acting.temperature,
            noise=normal(self.keys, self.planner.plan_shape, stream=context.step),
        )
        if bool(plan.faults.any()):
            raise UserError(
                f"{int(plan.faults.sum())} of {len(observations)} plans at step {context.step} are not finite: "
                "lower guidance.scale, or train the run again"
            )
        return plan.actions[:, 0]

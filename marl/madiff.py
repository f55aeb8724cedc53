"""MADiff: joint trajectory diffusion with attention across agents (Zhu et al. 2024, arXiv 2305.17330)."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from core.acting import Acting, GuidanceConfig
from core.actions import execute
from core.algorithm import Algorithm, Phase
from core.data import Trajectories, WindowBatch, Windows, drop_conditions
from core.data.normalisers import Normaliser, normaliser_of
from core.denoiser import Denoiser
from core.edits import Box, Clamp, Edit
from core.environments import TeamSpec
from core.errors import UserError
from core.guidance import ClassifierFree
from core.losses import UniformTimes, diffusion_loss
from core.noise import normal
from core.samplers import Sampler, SamplerConfig
from core.sampling import WarmStart, sample
from marl.inverse_dynamics import InverseDynamics, inverse_loss
from marl.knowledge import Knowledge, draw_known
from marl.madiff_config import MADiffConfig
from marl.planning import MADiffPolicy, Plan
from marl.team_network import TeamNetwork, denoiser_of, expanded, network_of, own_entries


class MADiff(Algorithm):
    """Planner of joint plans of all agents' observations, given the current ones of all agents or of some.

    The diffusion variable is x [B, T, A, D]: normalised observations, followed by the actions where they are diffused
    jointly, and by the status channel of `marl.team_network.TeamNetwork` where it may vary who is known. The first
    `history` steps are the past; unknown agents' is 0. One network is shared by the agents, which meet in attention;
    the condition is each agent's return rank.
    """

    config_class = MADiffConfig
    stackable = True

    def __init__(self, config: MADiffConfig, spec: TeamSpec):
        super().__init__(config, spec)
        self.joint = config.actions == "joint"
        self.status = config.known != "all" or bool(spec.entities)
        if self.joint and spec.entities:
            raise ValueError("algo.actions=joint does not go with entity-wise observations: use algo.actions=inverse")
        self.features = spec.observation_dim + (spec.action_dim if self.joint else 0) + self.status
        network = network_of(config, spec, self.features)
        self.denoiser = denoiser_of(config, spec, TeamNetwork(network) if self.status else network)
        self.inverse = (
            None
            if self.joint
            else InverseDynamics(
                spec.observation_dim,
                spec.action_dim,
                config.inverse.hidden,
                config.inverse.entries or list(range(own_entries(spec))),
            )
        )
        # Tokens of a kind share their statistics.
        statistics = own_entries(spec) + sum(size for _, size in spec.entities)
        self.normaliser = normaliser_of(config.normaliser, statistics)
        self.weights: Tensor
        self.register_buffer("weights", self._weights(), persistent=False)

    @property
    def knowledge(self) -> Knowledge:
        """How what is known stands in a plan's sample."""
        spec = self.spec
        return Knowledge(self.config.history, spec.observation_dim, self.features, self.status, spec.sizes)

    @property
    def scaled(self) -> Normaliser:
        """The normaliser of the team's observations."""
        return self.normaliser.expand(self.spec.entities)

    def for_team(self, spec: TeamSpec) -> Algorithm:
        """The planner for another team, with the same parameters: of any size, where observations are entity-wise.

        Raises:
            UserError: the team sees or does something else.
        """
        kinds = [size for _, size in spec.entities]
        alike = own_entries(spec) == own_entries(self.spec) and spec.action_dim == self.spec.action_dim
        joined = (self.config.noise_factor, self.config.data_factor)
        if spec == self.spec or not kinds or not alike or spec.discrete != self.spec.discrete or "weighted" in joined:
            return super().for_team(spec)
        planner = copy.copy(self)
        planner._modules = dict(self._modules)  # which share their parameters
        planner.spec = spec
        planner.features = spec.observation_dim + self.status
        planner.denoiser = expanded(self.denoiser, spec)
        planner._buffers = {"weights": planner._weights().to(self.weights)}
        return planner

    def _weights(self) -> Tensor:
        """Weights [T, 1, D] of a window's entries in the loss."""
        config = self.config
        weights = torch.ones(config.history + config.horizon, 1, self.features)
        weights[config.history + 1, :, : self.spec.observation_dim] = config.next_step_weight
        return weights

    @staticmethod
    def uses(config: MADiffConfig) -> frozenset[str]:
        return frozenset({"sampler", "planning", "scale", "returns"})

    # Training

    def prepare(self, trajectories: Trajectories) -> Windows:
        if trajectories.present is not None and not self.status:
            raise UserError("agents leave early in these data: train with algo.known=random, which tells who is there")
        observations = trajectories.observations.to(self.weights.device)
        self.normaliser.fit(observations, self._counted(trajectories), self.spec.entities)
        return self.windows(trajectories)

    def _counted(self, trajectories: Trajectories) -> Tensor | None:
        """Which entries of the observations are real, broadcast to [S, A, O]; None where all are."""
        own, present = self.knowledge.own(self.weights.device), trajectories.present
        if present is None:
            return own if self.spec.sizes else None
        return own & present.to(own.device)[..., None]

    def windows(self, trajectories: Trajectories) -> Windows:
        """The data's windows of T steps, normalised as the planner knows them."""
        observations = self.normalised(trajectories.observations, trajectories.present)
        config = self.config
        return Windows(trajectories, observations, config.horizon, config.discount, history=config.history)

    def normalised(self, observations: Tensor, present: Tensor | None = None) -> Tensor:
        """Observations [..., A, O] as the planner knows them: what pads them is 0, and so are agents that are not
        `present` [..., A]."""
        observations = observations.to(self.weights)
        there = self.knowledge.own(observations.device)
        if present is not None:
            there = there & present.to(there.device)[..., None]
        return torch.where(there, self.scaled(observations), 0.0)

    def phases(self) -> Sequence[Phase]:
        return [Phase("planner", list(self.parameters()), self._loss)]

    def clean(self, batch: WindowBatch) -> Tensor:
        """What is diffused of a batch of windows, [B, T, A, D]."""
        parts = [batch.observations, batch.actions] if self.joint else [batch.observations]
        return torch.cat([*parts, torch.zeros_like(batch.observations[..., : self.status])], dim=-1)

    def given(self, batch: WindowBatch, generator: torch.Generator) -> Clamp:
        """What training gives of a batch of windows, as a plan is given it."""
        now = self.config.history
        present = None if batch.present is None else batch.present[:, now]
        items, steps, agents, _ = batch.observations.shape
        known = draw_known(self.config.known, items, agents, batch.observations.device, generator, present)
        return self.knowledge.clamp(batch.observations[:, : now + 1], known, present, steps)

    def _loss(self, batch: WindowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        x0 = self.clean(batch)
        clamp = self.given(batch, generator)
        diffusion, estimate, t = diffusion_loss(
            self.denoiser,
            x0,
            clamp=clamp,
            cond=drop_conditions(batch.ranks, self.config.condition_dropout, generator),
            weights=self.weights if batch.present is None else self.weights * batch.present[..., None],
            times=UniformTimes(self.config.noise_emphasis),
            weighting=self.config.weighting,
            generator=generator,
        )
        if self.inverse is None:
            return {"loss": diffusion, "diffusion": diffusion}
        estimate = estimate[..., : self.spec.observation_dim].detach()
        inverse = inverse_loss(
            self.inverse,
            self.config.inverse,
            batch,
            estimate,
            t,
            history=self.config.history,
            discrete=self.spec.discrete,
            generator=generator,
        )
        return {"loss": (diffusion + inverse) / 2, "diffusion": diffusion, "inverse": inverse}

    # Planning

    @torch.no_grad()
    def plan(
        self,
        observations: Tensor,
        returns: float | Tensor = 0.9,
        *,
        known: Tensor | None = None,
        present: Tensor | None = None,
        legal: Tensor | None = None,
        horizon: int = 0,
        start: WarmStart | None = None,
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
            observations: current observations [B, A, O], or with those before them, [B, C, A, O] with the current one
                last; where the history is longer, the first is repeated, as at the beginning of an episode.
            returns: wanted return rank in [0, 1], one for all or [B, A].
            known: bool [B, A], whose observations are given; the others' are generated. All unless given.
            present: bool [B, A], who takes part, or [B, C, A] with the steps before; all unless given. Either needs a
                model of algo.known=random or own.
            legal: bool [B, A, U], the legal choices of the first action.
            horizon: time steps of the plan; as trained unless given.
            start: sample [B, C + T, A, D] of an earlier plan to start from, and the diffusion time to do so at.
            denoiser: in place of the planner's own, such as a guided one; classifier-free guidance wraps it.
            sampler: DDIM with 5 steps unless given. guidance_scale: of classifier-free guidance, one for all or [B].
            temperature: factor on the initial noise (the paper: 0.5).
            edits: further edits of the normalised plan [B, C + T, A, D], after the clamp.
            noise: standard normal [B, C + T, A, D]; drawn from `seed` unless given.
            trace: keep the stages of denoising.

        Raises:
            ValueError: the observations do not have the shape of the team's, the horizon does not fit the network, or
                the model was not trained to be told who is known or present.
        """
        past, device = self.knowledge.past(observations, self.spec.agents), self.weights.device
        batch, agents = past.shape[0], past.shape[2]
        if (self.config.known == "all" and known is not None) or (not self.status and present is not None):
            raise ValueError(
                "this planner is told of all agents: train with algo.known=random to give known or present"
            )
        if present is not None:
            seen = self.knowledge.repeated(present[..., None])[..., 0]
            past, present = self.normalised(past, seen), seen[:, -1]
        else:
            past = self.normalised(past)
        if noise is None:
            noise = normal(torch.arange(batch) + (seed << 32), self.plan_shape(horizon, agents))
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
            cond=condition.expand(batch, agents)[..., None],
            edits=[self._box(), self.knowledge.clamp(past, known, present, noise.shape[1]), *edits],
            start=start,
            temperature=temperature,
            trace=trace,
        )
        planned = self._observations(result.x)
        current = observations if observations.ndim == 3 else observations[:, -1]
        if known is None:
            planned[:, 0] = current  # as given, not as the normaliser's round trip leaves them
        else:
            planned[:, 0] = torch.where(known.to(device)[..., None], current.to(device), planned[:, 0])
        raw = self._raw_actions(result.x[:, self.config.history :])
        actions = torch.cat(
            [execute(raw[:, :1], self.spec.discrete, None if legal is None else legal[:, None]),
             execute(raw[:, 1:], self.spec.discrete)], dim=1
        )  # fmt: skip
        return Plan(planned, actions, result.faults, tuple(map(self._observations, result.trace)), result.x)

    @torch.no_grad()
    def action(self, sample: Tensor, step: int, observations: Tensor, legal: Tensor | None = None) -> Tensor:
        """The joint action [B, A, U] at a step of a plan's sample, from where the team is by then [B, A, O]."""
        now = self.config.history + step
        if self.inverse is None:
            raw = self._raw_actions(sample[:, now : now + 2])[:, 0]
        else:
            successors = sample[:, now + 1, :, : self.spec.observation_dim]
            raw = self.inverse(self.normalised(observations), successors)
        return execute(raw, self.spec.discrete, legal)

    def _raw_actions(self, x: Tensor) -> Tensor:
        """What a sample's steps [B, T, A, D] say of their actions, [B, T - 1, A, U]."""
        seen = self.spec.observation_dim
        if self.inverse is None:
            return x[:, :-1, :, seen : seen + self.spec.action_dim]
        return self.inverse(x[:, :-1, :, :seen], x[:, 1:, :, :seen])

    def plan_shape(self, horizon: int = 0, agents: int = 0) -> tuple[int, int, int]:
        """Shape [C + T, A, D] of one plan's noise.

        Raises:
            ValueError: the network cannot take the horizon.
        """
        steps = self.config.history + (horizon or self.config.horizon)
        unit = self.config.unit
        if steps % unit or (horizon or 2) < 2:
            raise ValueError(
                f"a plan of {horizon} steps after {self.config.history} of history does not fit the network: their sum "
                f"must be a multiple of {unit}"
            )
        return steps, agents or self.spec.agents, self.features

    def _box(self) -> Box:
        """The edit that keeps clean estimates within the data."""
        scaled = self.scaled
        ones = scaled.low.new_ones(self.features - self.spec.observation_dim)
        return Box(torch.cat([scaled.low, -ones]), torch.cat([scaled.high, ones]))

    def _observations(self, x: Tensor) -> Tensor:
        """Planned observations [B, T, A, O] of a sample, whose padding is 0."""
        planned = self.scaled.invert(x[:, self.config.history :, :, : self.spec.observation_dim])
        return torch.where(self.knowledge.own(x.device), planned, 0.0)

    def policy(self, acting: Acting, guidance: Sequence[GuidanceConfig] = ()) -> MADiffPolicy:
        return MADiffPolicy(self, acting, guidance)

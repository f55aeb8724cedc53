"""TREBI: plans within a budget that is given at run time (Lin et al. 2023, arXiv 2306.00603)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from core.acting import Acting, GuidanceConfig, MoveConfig
from core.actions import execute
from core.algorithm import Algorithm, Phase
from core.data import Trajectories, WindowBatch, drop_conditions
from core.data.normalisers import normaliser_of
from core.denoiser import NetworkDenoiser
from core.edits import Box, Clamp, Edit, GradientMove
from core.environments import TeamSpec
from core.errors import UserError
from core.guidance import ClassifierFree
from core.losses import UniformTimes, diffusion_loss
from core.networks import PlanValues, TemporalUNet
from core.noise import normal
from core.samplers import Sampler, SamplerConfig
from core.sampling import sample
from core.schedules import schedule_of
from safe.budgeted import BudgetedPolicy
from safe.trebi_config import TrebiConfig
from safe.windows import BudgetBatch, BudgetWindows


@dataclass(frozen=True)
class BudgetedPlan:
    """Plans of B teams, in the environment's units.

    Attributes:
        observations: [B, T, A, O], the first step the current one. actions: [B, T, A, U].
        returns, costs: [B], what the models expect until the end of the episode, averaged over the agents.
        feasible: [B], whether a candidate was expected to keep to the budget; otherwise the plan is the cheapest one.
        faults: [B], plans with numbers that are not finite.
    """

    observations: Tensor
    actions: Tensor
    returns: Tensor
    costs: Tensor
    feasible: Tensor
    faults: Tensor


class Trebi(Algorithm):
    """Planner of windows of actions and observations within a budget, by any of three means, which compose: gradient
    moves of the iterate, up the return and, where the cost exceeds the budget, down the cost (TREBI; without a budget,
    Diffuser); classifier-free guidance on a wanted return and the budget; the best of several candidates.

    The diffusion variable is x [B, T, 1, D]: all agents' actions and normalised observations at a time step. The models
    of return and cost know, beside a noisy window, how much of the episode is left, as the end of an episode is mostly
    beyond the window.
    """

    config_class = TrebiConfig
    stackable = True

    def __init__(self, config: TrebiConfig, spec: TeamSpec):
        super().__init__(config, spec)
        if spec.discrete:
            raise ValueError("trebi plans actions that are numbers, and these are choices")
        self.acted, self.seen = spec.agents * spec.action_dim, spec.agents * spec.observation_dim
        features, current = self.acted + self.seen, 0 if config.global_condition else None
        shape = {"kernel": config.kernel, "activation": config.activation, "current": current}
        network = TemporalUNet(
            features,
            config.horizon,
            width=config.width,
            multipliers=config.multipliers,
            condition_dim=3,
            **shape,  # type: ignore[arg-type]
        )
        self.denoiser = NetworkDenoiser(network, schedule_of(config.schedule), config.prediction)
        self.values = PlanValues(
            features,
            config.horizon,
            2,
            width=config.value_width,
            multipliers=config.value_multipliers,
            condition_dim=1,
            **shape,  # type: ignore[arg-type]
        )
        self.normaliser = normaliser_of(config.normaliser, spec.observation_dim)
        # Statistics of the data: their returns to go, the largest cost to go, and the steps of a whole episode.
        for name in ("return_mean", "return_scale", "cost_scale", "length"):
            self.register_buffer(name, torch.ones(()))
        self.return_mean: Tensor
        self.return_scale: Tensor
        self.cost_scale: Tensor
        self.length: Tensor

    @staticmethod
    def uses(config: TrebiConfig) -> frozenset[str]:
        return frozenset({"sampler", "planning", "selection", "move", "scale", "returns", "budget"})

    # Training

    def prepare(self, trajectories: Trajectories) -> BudgetWindows:
        if trajectories.present is not None:
            raise UserError("agents leave early in these data, and trebi plans for all of a team to the end")
        config, device = self.config, self.length.device
        observations = trajectories.observations.to(device)
        self.normaliser.fit(observations)
        decisions = trajectories.decisions
        returns = trajectories.returns_to_go(config.discount).mean(dim=1)[decisions]
        self.return_mean.copy_(returns.mean())
        self.return_scale.copy_(returns.std(correction=0).clamp(min=1e-6))
        self.cost_scale.copy_(trajectories.costs_to_go(config.cost_discount).mean(dim=1).amax().clamp(min=1e-6))
        length = int(trajectories.offsets.diff().max()) - 1
        self.length.fill_(length)
        return BudgetWindows(
            trajectories, self.normaliser(observations), config.horizon, length, config.discount, config.cost_discount
        )

    def phases(self) -> Sequence[Phase]:
        return [Phase("planner", list(self.denoiser.parameters()), self._planner_loss),
                Phase("values", list(self.values.parameters()), self._value_loss)]  # fmt: skip

    def clean(self, window: WindowBatch) -> Tensor:
        """What is diffused of B windows, [B, T, 1, D]."""
        parts = [rearrange(part, "b t a d -> b t 1 (a d)") for part in (window.actions, window.observations)]
        return torch.cat(parts, dim=-1)

    def given(self, current: Tensor) -> Clamp:
        """What a plan is given: the current normalised observations [B, A, O]."""
        mask = torch.zeros(1, self.config.horizon, 1, self.acted + self.seen, dtype=torch.bool, device=current.device)
        mask[:, 0, :, self.acted :] = True
        values = torch.cat([current.new_zeros(len(current), self.acted), current.flatten(1)], dim=1)
        return Clamp(mask, values[:, None, None])

    def _planner_loss(self, batch: BudgetBatch, generator: torch.Generator) -> dict[str, Tensor]:
        condition = self._condition(batch.ranks, batch.costs, batch.remaining)
        loss, _, _ = diffusion_loss(
            self.denoiser,
            self.clean(batch.window),
            clamp=self.given(batch.window.observations[:, 0]),
            cond=drop_conditions(condition, self.config.condition_dropout, generator),
            times=UniformTimes(self.config.noise_emphasis),
            weighting=self.config.weighting,
            generator=generator,
        )
        return {"loss": loss}

    def _condition(self, ranks: Tensor, costs: Tensor, remaining: Tensor) -> Tensor:
        """[B, 1, 3]; what may cost more than anything in the data may cost as much as that."""
        shares = (costs / self.cost_scale).clamp(max=1.0)
        return torch.stack([ranks, shares, remaining], dim=-1)[:, None]

    def _value_loss(self, batch: BudgetBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Expectile errors of return and cost to the episode's end, told of a noisy window."""
        x0 = self.clean(batch.window)
        schedule = self.denoiser.schedule
        t = UniformTimes()(len(x0), schedule, generator, x0.device)
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        clamp = self.given(batch.window.observations[:, 0])
        x = clamp.noisy(schedule.diffuse(x0, noise, t), schedule.scale(t))
        found = self.values(x, t, batch.remaining[:, None, None])
        wanted = [(batch.returns - self.return_mean) / self.return_scale, batch.costs / self.cost_scale]
        gaps = torch.stack(wanted, dim=1) - found
        optimism = self.config.optimism
        upper = gaps.new_tensor([optimism, 1 - optimism])
        errors = (2 * torch.where(gaps > 0, upper, 1 - upper) * gaps**2).mean(dim=0)
        return {"loss": errors.sum(), "return_error": errors[0], "cost_error": errors[1]}

    # Planning

    def judged(self, x: Tensor, t: Tensor, remaining: Tensor) -> tuple[Tensor, Tensor]:
        """Returns and costs [B] to the end of the episode of noisy plans x [B, T, 1, D] at times t [B] or [], with so
        much of the episode left [B]."""
        returns, costs = self.values(x, t.expand(len(x)), remaining[:, None, None]).unbind(dim=1)
        return returns * self.return_scale + self.return_mean, costs * self.cost_scale

    def worth(self, budgets: Tensor, remaining: Tensor, move: MoveConfig) -> "Worth":
        """What gradient moves climb, of plans with budgets and time left [B]."""
        return Worth(self, budgets, remaining, move)

    @torch.no_grad()
    def plan(
        self,
        observations: Tensor,
        budget: float | Tensor = torch.inf,
        step: int = 0,
        *,
        returns: float | Tensor = 0.9,
        sampler: Sampler | None = None,
        guidance_scale: float | Tensor = 0.0,
        move: MoveConfig | None = None,
        candidates: int = 0,
        temperature: float = 1.0,
        edits: Sequence[Edit] = (),
        noise: Tensor | None = None,
        seed: int = 0,
    ) -> BudgetedPlan:
        """One plan for each of B teams.

        Args:
            observations: current ones [B, A, O].
            budget: what the rest of the episode may cost, averaged over the agents, in the units of the training's
                `cost_discount` from now on; one for all or [B], infinite for no limit.
            step: of the episode, of which the training data tell the length.
            returns: wanted rank in [0, 1] of the return among plans of that budget, for classifier-free guidance; [B].
            sampler: DDIM with 5 steps unless given. guidance_scale: of classifier-free guidance, 0 for none; [B].
            move: gradient moves. candidates: plans to choose from, as configured unless given.
            temperature: factor on the initial noise. edits: further edits of the normalised plan [B n, T, 1, D].
            noise: standard normal [B, n, T, 1, D]; drawn from `seed` unless given.

        Raises:
            ValueError: observations of another shape, or a budget below 0.
        """
        spec, device = self.spec, self.length.device
        batch, count = len(observations), candidates or self.config.candidates
        if observations.shape[1:] != (spec.agents, spec.observation_dim):
            wanted = f"[B, {spec.agents}, {spec.observation_dim}]"
            raise ValueError(f"observations must be {wanted}, got {list(observations.shape)}")
        budgets = torch.as_tensor(budget, dtype=torch.float32, device=device).expand(batch)
        if not bool((budgets >= 0).all()):
            raise ValueError(f"a budget must be at least 0, got {float(budgets.min())}")
        if noise is None:
            noise = normal(torch.arange(batch) + (seed << 32), (count, *self.plan_shape))
        sampler, move = sampler or SamplerConfig().build(), move or MoveConfig()
        if move.gate == "none":
            budgets = torch.full_like(budgets, torch.inf)
        remaining = torch.full((batch,), max(0.0, 1 - step / float(self.length)), device=device)
        ranks = torch.as_tensor(returns, dtype=torch.float32, device=device).expand(batch)

        def each(values: Tensor) -> Tensor:
            return values.repeat_interleave(count, dim=0)

        clamp = self.given(each(self.normaliser(observations.to(device))))
        worth = self.worth(each(budgets), each(remaining), move)
        starts = [one.start.t for one in sampler.grid(self.denoiser.schedule)]
        stop = starts[-move.until] if 0 < move.until <= len(starts) else 0.0
        climb = GradientMove(worth, move.scale, steps=move.repeats, stop=min(stop, 1 - 1e-9), mask=clamp.free)
        scale = each(guidance_scale.to(device)) if isinstance(guidance_scale, Tensor) else guidance_scale
        result = sample(
            ClassifierFree(self.denoiser, scale),
            noise.flatten(0, 1).to(device),
            sampler,
            cond=each(self._condition(ranks, budgets, remaining)),
            edits=[self._box(), clamp, *([climb] if move.scale and move.until < len(starts) else []), *edits],
            temperature=temperature,
        )
        found, costs = (
            values.unflatten(0, (batch, count))
            for values in self.judged(result.x, result.x.new_zeros(()), each(remaining))
        )
        within = costs <= budgets[:, None]
        feasible = within.any(dim=1)
        best = torch.where(feasible, found.masked_fill(~within, -torch.inf).argmax(dim=1), costs.argmin(dim=1))
        chosen = torch.arange(batch, device=device), best
        x = result.x.unflatten(0, (batch, count))[chosen]
        faults = result.faults.unflatten(0, (batch, count))[chosen]
        return BudgetedPlan(*self._decoded(x), found[chosen], costs[chosen], feasible, faults)

    @property
    def plan_shape(self) -> tuple[int, int, int]:
        """Shape [T, 1, D] of one plan's noise."""
        return self.config.horizon, 1, self.acted + self.seen

    def _decoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Observations [B, T, A, O] and actions [B, T, A, U] of plans [B, T, 1, D]."""
        agents = self.spec.agents
        actions = rearrange(x[..., : self.acted], "b t 1 (a u) -> b t a u", a=agents)
        observations = rearrange(x[..., self.acted :], "b t 1 (a o) -> b t a o", a=agents)
        return self.normaliser.invert(observations), execute(actions, False)

    def _box(self) -> Box:
        """The edit that keeps clean estimates within the data."""
        ones, agents = self.length.new_ones(self.acted), self.spec.agents
        low, high = self.normaliser.low.repeat(agents), self.normaliser.high.repeat(agents)
        return Box(torch.cat([-ones, low]), torch.cat([ones, high]))

    def policy(self, acting: Acting, guidance: Sequence[GuidanceConfig] = ()) -> BudgetedPolicy:
        return BudgetedPolicy(self, acting, guidance)


@dataclass(frozen=True)
class Worth:
    """What a gradient move climbs: R(x) - n g(x) C(x), in units of the returns' deviation and the largest cost, where
    the gate g is 1[C > z], or softly 1[C > z] exp(clip((C - z) / c, 0, 1)) with the largest cost c of the data, which
    unlike the published z is never 0. The gate has no gradient of its own."""

    trebi: Trebi
    budgets: Tensor
    remaining: Tensor
    move: MoveConfig

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, T, 1, D] at time t [] -> [B]."""
        model = self.trebi
        returns, costs = model.values(x, t.to(x).expand(len(x)), self.remaining[:, None, None]).unbind(dim=1)
        excess = costs.detach() - self.budgets / model.cost_scale
        gate = (excess > 0).to(costs)
        if self.move.gate == "soft":
            gate = gate * excess.clamp(0, 1).exp()
        return returns - self.move.cost * gate * costs

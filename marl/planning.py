"""Acting on plans: for all agents at once or each for itself, planning anew at every step or every few."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.algorithm import Acting, GuidanceConfig
from core.denoiser import Denoiser
from core.errors import UserError
from core.noise import normal
from core.rollout import Context, Reactive
from core.sampling import WarmStart

if TYPE_CHECKING:
    from marl.madiff import MADiff


@dataclass(frozen=True)
class Plan:
    """A joint plan for B teams, in the environment's units. What precedes the current step is left out.

    Attributes:
        observations: [B, T, A, O], the first step the current one. actions: [B, T - 1, A, U].
        faults: [B], plans with numbers that are not finite.
        trace: the observations [B, T, A, O] at each stage of denoising, where asked for.
        sample: the plan as it was sampled, normalised and with its history, for a warm start of the next.
    """

    observations: Tensor
    actions: Tensor
    faults: Tensor
    trace: tuple[Tensor, ...]
    sample: Tensor


class MADiffPolicy(Reactive):
    """Plans as `acting.planning` says, and executes the first joint actions of each plan.

    Decentralised, each of A agents makes a joint plan of what it sees itself, with noise of its own, and executes its
    own part: B A plans in one call.
    """

    def __init__(
        self,
        planner: "MADiff",
        acting: Acting,
        guidance: Sequence[GuidanceConfig] = (),
        denoiser: Denoiser | None = None,
    ):
        schedule = (denoiser or planner.denoiser).schedule
        try:
            acting.sampler.build().grid(schedule, acting.planning.warm)
            planner.plan_shape(acting.planning.horizon)
        except ValueError as error:
            raise UserError(f"sampler {acting.sampler} does not fit the planner's {schedule}: {error}") from error
        wanted = {"centralised": "own", "decentralised": "all"}[acting.planning.mode]
        if planner.config.known == wanted:
            raise UserError(
                f"this run was trained with algo.known={wanted}, which cannot plan {acting.planning.mode}: "
                "train with algo.known=random for both modes, or set planning.mode"
            )
        steps = acting.planning.horizon or planner.config.horizon
        if acting.planning.every >= steps:
            raise UserError(f"planning.every={acting.planning.every} needs plans longer than {steps} steps")
        self.planner = planner
        self.denoiser = denoiser
        self.acting = acting
        self.guidance = guidance
        self.alone = acting.planning.mode == "decentralised"

    def reset(self, seeds: Sequence[int]) -> None:
        agents = self.planner.spec.agents
        self.keys = torch.as_tensor(seeds, dtype=torch.int64)
        self.scale: float | Tensor = self.acting.guidance.scale
        self.returns: float | Tensor = self.acting.guidance.returns
        if self.guidance:
            scale, rank = GuidanceConfig.of_episodes(self.guidance, seeds)
            plans = agents if self.alone else 1
            self.scale, self.returns = (values.repeat_interleave(plans) for values in (scale, rank))
            self.returns = self.returns[:, None].expand(-1, agents)
        if self.alone:
            self.keys = (self.keys[:, None] * agents + torch.arange(agents)).flatten()
        self.past: list[Tensor] = []
        self.sample: Tensor | None = None

    def act(self, observations: Tensor, context: Context) -> Tensor:
        planning = self.acting.planning
        self.past = [*self.past, observations][-1 - self.planner.config.history :]
        done = context.step % planning.every
        if self.sample is None or done == 0:
            done = 0
            self.sample = self._plan(context)
        if self.alone:
            # Agent a executes row a of its own plan.
            batch, agents = observations.shape[:2]
            own = torch.arange(agents, device=self.sample.device)
            sample = self.sample.unflatten(0, (batch, agents))[:, own, :, own].movedim(0, 2)
        else:
            sample = self.sample
        return self.planner.action(sample, done, observations, context.legal)

    def _plan(self, context: Context) -> Tensor:
        """A new plan's sample, [B, T, A, D], or decentralised [B A, T, A, D]."""
        planner, planning = self.planner, self.acting.planning
        past = torch.stack(self.past, dim=1)
        known, present = None, context.present
        if self.alone:
            batch, _, agents, _ = past.shape
            past = past.repeat_interleave(agents, 0)
            known = torch.eye(agents, dtype=torch.bool).repeat(batch, 1)
            present = None if present is None else present.repeat_interleave(agents, 0)
        shape = planner.plan_shape(planning.horizon)
        start = None
        if self.sample is not None and planning.warm < 1:
            # The plan from where the team is by now, its last step repeated.
            shifted = torch.cat([self.sample[:, planning.every :], *[self.sample[:, -1:]] * planning.every], dim=1)
            start = WarmStart(shifted, planning.warm)
        plan = planner.plan(
            past,
            self.returns,
            known=known,
            present=present,
            horizon=planning.horizon,
            start=start,
            denoiser=self.denoiser,
            sampler=self.acting.sampler.build(),
            guidance_scale=self.scale,
            temperature=self.acting.temperature,
            noise=normal(self.keys, shape, stream=context.step if planning.noise == "step" else 0),
        )
        if bool(plan.faults.any()):
            raise UserError(
                f"{int(plan.faults.sum())} of {len(past)} plans at step {context.step} are not finite: "
                "lower guidance.scale, or train the run again"
            )
        return plan.sample

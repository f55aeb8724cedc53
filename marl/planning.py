"""Acting on plans: for all agents at once or each for itself, planning anew at every step or every few."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from core.acting import Acting, Asked, GuidanceConfig
from core.denoiser import Denoiser
from core.errors import UserError
from core.noise import normal
from core.rollout import Context, Reactive, policy_keys
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
    own part: B A plans, at most `CHUNK` agents' in one call. Who takes part is known to all.
    """

    #: Agents' rows of a network call, which bounds its memory.
    CHUNK = 16_384

    def __init__(
        self,
        planner: "MADiff",
        acting: Acting,
        guidance: Sequence[GuidanceConfig] = (),
        denoiser: Denoiser | None = None,
    ):
        schedule = (denoiser or planner.denoiser).schedule
        try:
            for level in {1.0, acting.planning.warm}:
                acting.sampler.build().grid(schedule, level)
        except ValueError as error:
            raise UserError(f"sampler {acting.sampler} does not fit the planner's {schedule}: {error}") from error
        try:
            planner.plan_shape(acting.planning.horizon)
        except ValueError as error:
            raise UserError(f"planning.horizon={acting.planning.horizon}: {error}") from error
        unfit = {"centralised": "own", "decentralised": "all"}[acting.planning.mode]
        if planner.config.known == unfit:
            raise UserError(
                f"this run was trained with algo.known={unfit}, which cannot plan {acting.planning.mode}: "
                "train with algo.known=random for both modes, or set planning.mode"
            )
        steps = acting.planning.horizon or planner.config.horizon
        if acting.planning.every >= steps:
            every = acting.planning.every
            raise UserError(f"planning.every={every} needs plans of more than {every} steps, and these have {steps}")
        self.planner = planner
        self.denoiser = denoiser
        self.acting = acting
        self.guidance = guidance
        self.alone = acting.planning.mode == "decentralised"

    def reset(self, seeds: Sequence[int]) -> None:
        agents = self.planner.spec.agents
        self.keys = policy_keys(seeds)
        self.scale: float | Tensor = self.acting.guidance.scale
        self.returns: float | Tensor = self.acting.guidance.returns
        if self.guidance:
            asked = Asked.of(self.guidance, seeds)
            plans = agents if self.alone else 1
            self.scale, self.returns = (each.repeat_interleave(plans) for each in (asked.scales, asked.returns))
            self.returns = self.returns[:, None].expand(-1, agents)
        if self.alone:
            self.keys = (self.keys[:, None] * agents + torch.arange(agents)).flatten()
        self.past: list[Tensor] = []
        self.there: list[Tensor | None] = []
        self.sample: Tensor | None = None
        self.begun = 0

    def act(self, observations: Tensor, context: Context) -> Tensor:
        planning = self.acting.planning
        length = self.planner.config.history + 1
        self.past = [*self.past, observations][-length:]
        self.there = [*self.there, context.present][-length:]
        if self.sample is None or context.step - self.begun >= planning.every:
            self.sample = self._plan(context)
            self.begun = context.step
        done = context.step - self.begun
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
        batch, _, agents, _ = past.shape
        known, present, running = None, self._present(batch, agents), context.active
        if self.alone:
            past, running = past.repeat_interleave(agents, 0), running.repeat_interleave(agents)
            known = torch.eye(agents, dtype=torch.bool).repeat(batch, 1)
            present = None if present is None else present.repeat_interleave(agents, 0)
        start = None
        if self.sample is not None and planning.warm < 1:
            # The plan from where the team is by now, its last step repeated.
            start = torch.cat([self.sample[:, planning.every :], *[self.sample[:, -1:]] * planning.every], dim=1)
        noise = normal(
            self.keys,
            planner.plan_shape(planning.horizon),
            stream=context.step if planning.noise == "step" else 0,
        )
        samples, faults = [], 0
        rows = max(1, self.CHUNK // agents)
        for part in (slice(first, first + rows) for first in range(0, len(past), rows)):
            plan = planner.plan(
                past[part],
                _part(self.returns, part),
                known=_part(known, part),
                present=_part(present, part),
                horizon=planning.horizon,
                start=None if start is None else WarmStart(start[part], planning.warm),
                denoiser=self.denoiser,
                sampler=self.acting.sampler.build(),
                guidance_scale=_part(self.scale, part),
                temperature=self.acting.temperature,
                noise=noise[part],
            )
            samples.append(plan.sample)
            faults += int((plan.faults.cpu() & running[part]).sum())
        if faults:
            raise UserError(
                f"{faults} of {len(past)} plans at step {context.step} are not finite: "
                "lower guidance.scale, or train the run again"
            )
        return torch.cat(samples)

    def _present(self, batch: int, agents: int) -> Tensor | None:
        """Who took part in the steps that are remembered [B, C, A], None where all did."""
        if all(one is None for one in self.there):
            return None
        everyone = torch.ones(batch, agents, dtype=torch.bool)
        return torch.stack([everyone if one is None else one.cpu() for one in self.there], dim=1)


def _part(values: Any, part: slice) -> Any:
    """Some rows of a tensor; anything else as it is."""
    return values[part] if isinstance(values, Tensor) else values

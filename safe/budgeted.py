"""Acting within budgets: plans made anew every few steps, each within what is left."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.acting import Acting, Asked, GuidanceConfig
from core.budgets import Allowance
from core.errors import UserError
from core.noise import normal
from core.rollout import Context, policy_keys

if TYPE_CHECKING:
    from safe.trebi import BudgetedPlan, Trebi


class BudgetedPolicy:
    """Plans every `acting.planning.every` steps within what is left of each episode's budget.

    Attributes:
        overspent: [B] bool, the episodes in which, at some step so far, more had been spent than was allowed, or no
            candidate was expected to keep to the budget: from then on the cheapest plan was taken.
    """

    #: Plans of a network call, which bounds its memory.
    CHUNK = 8192

    def __init__(self, trebi: "Trebi", acting: Acting, guidance: Sequence[GuidanceConfig] = ()):
        planning = acting.planning
        if planning.mode != "centralised" or planning.warm < 1 or planning.horizon or planning.noise != "step":
            raise UserError(f"trebi plans anew for all agents at once: planning.{planning} means nothing to it")
        if planning.every > trebi.config.horizon:
            raise UserError(
                f"planning.every={planning.every} needs plans of as many steps, and these have {trebi.config.horizon}"
            )
        if acting.selection.pick != "best":
            raise UserError("trebi takes the best candidate: selection.pick=softmax means nothing to it")
        self.trebi, self.acting, self.guidance = trebi, acting, guidance
        self.candidates = acting.selection.candidates or trebi.config.candidates

    def reset(self, seeds: Sequence[int]) -> None:
        self.keys = policy_keys(seeds)
        self.asked = Asked.of(self.guidance or [self.acting.guidance], seeds)
        self.allowance = Allowance(self.asked, self.trebi.config.cost_discount)
        scales = self.asked.scales
        self.scale: float | Tensor = float(scales[0]) if bool((scales == scales[0]).all()) else scales
        self.overspent = torch.zeros(len(seeds), dtype=torch.bool)

    def act(self, observations: Tensor, context: Context) -> Tensor:
        done = context.step % self.acting.planning.every
        if done == 0:
            size = max(1, self.CHUNK // self.candidates)
            rows = torch.arange(len(observations)).split(size)
            plans = [self._plan(observations, part, context.step) for part in rows]
            self.actions = torch.cat([plan.actions for plan in plans]).cpu()
            infeasible = ~torch.cat([plan.feasible for plan in plans]).cpu()
            self.overspent |= context.active & (infeasible | (self.allowance.unclamped < 0))
        return self.actions[:, done]

    def _plan(self, observations: Tensor, rows: Tensor, step: int) -> "BudgetedPlan":
        trebi, acting = self.trebi, self.acting
        return trebi.plan(
            observations[rows],
            self.allowance.left[rows],
            step,
            returns=self.asked.returns[rows],
            sampler=acting.sampler.build(),
            guidance_scale=self.scale if isinstance(self.scale, float) else self.scale[rows],
            move=acting.move,
            candidates=self.candidates,
            temperature=acting.temperature,
            noise=normal(self.keys[rows], (self.candidates, *trebi.plan_shape), stream=step),
        )

    def observe(self, rewards: Tensor, costs: Tensor, done: Tensor) -> None:
        self.allowance.spend(costs)

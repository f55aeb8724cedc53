"""SafeDiffuser's safety filter (Xiao et al. 2023, arXiv 2306.00148): a projection in every step, as an edit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from core.data.normalisers import Normaliser
from core.edits import Clamp, Edit
from core.samplers import Step
from safe.barriers import Barrier, Linearised
from safe.barriers.base import affine_of
from safe.qp import project
from safe.safety_blocks import Blocks, blocks_of
from safe.safety_rules import Rule, rule_of

#: Where a plan moves by no more than this, in its own units, its final projection has settled.
SETTLED = 1e-9
#: A barrier this far below 0 is rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class SafetyReport:
    """What a filter's constraints say of B returned plans. A pair of waypoints counts at its later one.

    Attributes:
        minimum: [B], the least barrier at what the plan was free to choose, without the margin; infinite where nothing
            was. violated: [B, T], where it is below 0.
        given: [B, T], where one is below 0 that reads clamped entries alone: a start inside an obstacle.
        contradictory: [B, T], where no move of the free entries meets all of a waypoint's constraints, to first order.
        faults: [B], plans with numbers that are not finite.
    """

    minimum: Tensor
    violated: Tensor
    given: Tensor
    contradictory: Tensor
    faults: Tensor

    @property
    def safe(self) -> Tensor:
        """[B], plans that are finite and meet every constraint wherever they were free to."""
        return ~(self.violated.any(dim=1) | self.faults)

    def __str__(self) -> str:
        """What is wrong, for an error or a log; it waits for the device."""
        parts = (
            (self.faults[:, None], "are not finite: lower the guidance's scale, or look for the step that made them so "
             "with sample(..., trace=True).first_fault()"),
            (self.contradictory & self.violated, "have constraints that contradict each other at {}: loosen one, or "
             "lower the margin"),
            (self.violated & ~self.contradictory, "violate constraints at {}: allow more rounds, and let no edit "
             "follow the filter"),
            (self.given, "were given entries at {} that violate constraints, and are safe from there on at best"),
        )  # fmt: skip
        lines = []
        for where, text in parts:
            if count := int(where.any(dim=1).sum()):
                places = where.any(dim=0).nonzero().squeeze(1).tolist()
                some = ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")
                lines.append(f"{count} of {len(where)} plans {text.format(f'waypoints {some}')}")
        return "\n".join(lines) or f"all {len(self.minimum)} plans are safe, by {float(self.minimum.min()):.3g} or more"


@dataclass(frozen=True, eq=False)
class SafetyFilter(Edit):
    """Keeps plans [B, T, A, O] where barriers are at least 0: each step's move u_ref becomes the nearest move u with
    grad b . u >= floor - b, where the mode says the floor, and what is returned is projected until it is safe.

        filter = safe.SafetyFilter([safe.Ellipse([4.5, 5.3], 1.0)], normaliser, "relaxed", clamp=clamp)
        result = core.sample(denoiser, noise, core.DDIM(20), edits=[clamp, filter])
        print(filter.report(result.x))

    It is the last of the edits, so that none undoes what it did. Nothing is remembered from step to step: whether a
    plan is safe is read off the plan that is returned. Under `core.VE`, whose samples grow with the noise, the iterate
    is taken for the plan times `Level.scale`, as clamped values are.

    Attributes:
        barriers: met together; those that couple waypoints one by one, even and odd pairs in turn. On a GPU, see `to`.
        normaliser: of the plan's entries, affine; None for plans in physical units.
        mode: "robust", "relaxed" or "time_varying", SafeDiffuser's RoS, ReS and TVS, "finite_time", SafeFlowMatcher's,
            or a rule with other numbers (`safe.Relaxed(weight=3.0)`).
        on: what is projected: "iterate", the move that a step makes, as published, or "estimate", the clean estimate at
            every call. The latter leaves far fewer plans with waypoints trapped on either side of an obstacle.
        margin: kept to every barrier, in its own units (published 0.01).
        begin: steps that begin above this time are left alone; with 0 the returned plan alone is projected.
        clamp: that of the known entries, which are never moved.
        physical: whether nearest is meant in physical units, rather than in the plan's.
        final: whether what is returned is projected, as often as `rounds`. One does where b is convex (outside an
            ellipse, apart); concave ones (inside one) need several, speed limits that a long plan breaks throughout
            very many: look at the report. A CPU makes no more of them than are needed, a GPU all. Without, the plan is
            as the last step left it.
        screen: see `safe.project`; False for what is to be recorded.

    Raises:
        ValueError: no barrier, a normaliser that is not affine or lacks a barrier's entries, or options out of range.
            While sampling, a plan that lacks them.
    """

    barriers: Sequence[Barrier]
    normaliser: Normaliser | None = None
    mode: str | Rule = "robust"
    on: str = "iterate"
    margin: float = 0.01
    begin: float = 1.0
    clamp: Clamp | None = None
    physical: bool = False
    final: bool = True
    rounds: int = 20
    screen: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "barriers", tuple(self.barriers))
        object.__setattr__(self, "mode", rule_of(self.mode))
        if not self.barriers:
            raise ValueError("a safety filter needs at least one barrier")
        if self.on not in ("iterate", "estimate"):
            raise ValueError(f"unknown on={self.on!r}: choose one of iterate, estimate")
        if not 0 <= self.margin < torch.inf or not 0 <= self.begin <= 1 or self.rounds < 1:
            raise ValueError(
                f"a safety filter needs margin >= 0, a time begin in [0, 1] and rounds >= 1, got {self.margin}, "
                f"{self.begin} and {self.rounds}"
            )
        if self.normaliser is not None:
            for barrier in self.barriers:
                affine_of(self.normaliser, barrier.entries)

    def to(self, device: torch.device | str) -> Self:
        """The filter with its barriers on a device, so that nothing is copied there in a loop."""
        return replace(self, barriers=tuple(barrier.to(device) for barrier in self.barriers))

    def estimate(self, x0: Tensor, x: Tensor, step: Step) -> Tensor:
        if self.on != "estimate" or not self._acts(step):
            return x0
        known = self._known(x0)
        moved = self._moved(known, known, *self._asked(step))
        return torch.where(moved == known, x0, moved)

    def after(self, x_new: Tensor, x_old: Tensor, step: Step) -> Tensor:
        if self.on != "iterate" or not self._acts(step):
            return x_new
        plan, goal = self._known(x_old / step.start.scale), self._known(x_new / step.end.scale)
        moved = self._moved(plan, goal, *self._asked(step))
        return torch.where(moved == goal, x_new, moved * step.end.scale)

    def finish(self, x: Tensor) -> Tensor:
        if not self.final:
            return x
        first = plan = self._known(x.double())
        for _ in range(self.rounds):
            before, plan = plan, self._moved(None, plan, torch.zeros_like, 0.0)
            if self._looks(x) and not bool(((plan - before).abs() > SETTLED).any()):
                break
        return torch.where(plan == first, x, plan.to(x.dtype))

    def report(self, x: Tensor) -> SafetyReport:
        """What the constraints say of returned plans [B, T, A, O]."""
        plan = self._known(x.detach().double())
        minimum = torch.full_like(plan[:, 0, 0, 0], torch.inf)
        nowhere = torch.zeros(plan.shape[:2], dtype=torch.bool, device=plan.device)
        violated, given, contradictory = nowhere, nowhere, nowhere
        for blocks in blocks_of(self.barriers, self.normaliser, plan.shape[1], whole=True):
            found = blocks.at(plan)
            rows = self._free(blocks, plan, found)
            below = found.values < -ROUNDING
            held = (rows == 0).all(dim=-1) & (found.gradients != 0).any(dim=-1)
            chosen = torch.where(held, torch.inf, found.values)
            minimum = torch.minimum(minimum, chosen.flatten(1).amin(dim=1))
            violated = violated | _by_waypoint(below & ~held, plan)
            given = given | _by_waypoint(below & held, plan)
            hard = torch.where(held, -1.0, self.margin - found.values)
            stuck = ~project(torch.zeros_like(rows[..., 0, :]), rows, hard, screen=self.screen).feasible
            contradictory = contradictory | _by_waypoint(stuck[..., None], plan)
        return SafetyReport(minimum, violated, given, contradictory, ~plan.flatten(1).isfinite().all(dim=1))

    def _acts(self, step: Step) -> bool:
        begins = step.end.t + step.dtau  # also of the step that a second call belongs to
        return begins <= self.begin + 1e-9 and self.begin > 0

    def _looks(self, x: Tensor) -> bool:
        """Whether the loop may depend on values."""
        return x.device.type == "cpu" if self.screen is None else self.screen

    def _known(self, x: Tensor) -> Tensor:
        return x if self.clamp is None else self.clamp(x)

    def _asked(self, step: Step) -> tuple[Callable[[Tensor], Tensor], float]:
        """What the mode asks of a step: the floor of barriers less their margin, and the weight of slack."""
        rule = rule_of(self.mode)
        return partial(rule.floor, step=step), rule.slack(step)

    def _moved(self, plan: Tensor | None, goal: Tensor, floor: Callable[[Tensor], Tensor], slack: float) -> Tensor:
        """The plan nearest to `goal` among those allowed after a step from `plan`; from where it is unless given."""
        for blocks in blocks_of(self.barriers, self.normaliser, goal.shape[-3]):
            here = goal if plan is None else plan
            found = blocks.at(here)
            b = found.values - self.margin
            start, end = (blocks.take(x, found.entries).double() for x in (here, goal))
            u = project(
                end - start,
                self._free(blocks, here, found),
                floor(b) - b,
                weights=blocks.weights(found.entries, end.shape[-1]) if self.physical else None,
                relax=slack,
                screen=self.screen,
            ).u
            goal = blocks.put(goal, torch.where(u == end - start, end, start + u), found.entries)
        return goal

    def _free(self, blocks: Blocks, plan: Tensor, found: Linearised) -> Tensor:
        """Gradients in the entries that may move."""
        if self.clamp is None:
            return found.gradients
        free = blocks.take(self.clamp.free.expand_as(plan), found.entries)
        return torch.where(free[..., None, :], found.gradients, 0.0)


def _by_waypoint(marks: Tensor, plan: Tensor) -> Tensor:
    """Marks of blocks [B, N, ...] as those of waypoints [B, T]."""
    marks = marks.flatten(2).any(dim=2)
    return torch.nn.functional.pad(marks, (plan.shape[1] - marks.shape[1], 0))

"""The sampling side of a trained model: what it is asked for, and how it plans, moves and selects."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.samplers import SamplerConfig
from core.samplers.config import number


@dataclass
class GuidanceConfig:
    """What a planner is asked for.

    Attributes:
        scale: of classifier-free guidance; 0 ignores the condition, 1 is the conditional model.
        returns: wanted return as a rank among the data, 0 the worst and 1 the best.
        budget: cost that an episode may have, averaged over the agents; None for no limit.
        reserve: share of the budget that is kept back, by whatever heeds it, for what it does not foresee.
        budget_factor: what the budget is multiplied by from step `budget_change` on; -1 has the evaluator draw a step
            for each episode.
    """

    scale: float = 1.2
    returns: float = 0.9
    budget: float | None = None
    reserve: float = 0.0
    budget_factor: float = 1.0
    budget_change: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.returns <= 1:
            raise ValueError(f"guidance.returns is a rank in [0, 1], got {self.returns}")
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"guidance.scale must be at least 0, got {self.scale}")
        if self.budget is not None and not 0 <= self.budget < math.inf:
            raise ValueError(f"guidance.budget must be finite and at least 0, got {self.budget}")
        if not 0 <= self.reserve < 1:
            raise ValueError(f"guidance.reserve is a share in [0, 1), got {self.reserve}")
        if not 0 <= self.budget_factor < math.inf or self.budget_change < -1:
            raise ValueError(
                "guidance.budget_factor must be finite and at least 0, and guidance.budget_change a step or -1, got "
                f"{self.budget_factor} and {self.budget_change}"
            )


@dataclass(frozen=True)
class Asked:
    """What B episodes are asked for, each [B]: `scales` and `returns` of `GuidanceConfig`; `budgets` less their
    reserve, infinite without; `factors` on them from step `changes` on."""

    scales: Tensor
    returns: Tensor
    budgets: Tensor
    factors: Tensor
    changes: Tensor

    @staticmethod
    def of(guidance: Sequence[GuidanceConfig], seeds: Sequence[int]) -> "Asked":
        """What episodes of some seeds are asked for: one guidance each, or one for all.

        Raises:
            ValueError: there are several, and not as many as there are episodes.
        """
        if len(guidance) not in (1, len(seeds)):
            raise ValueError(f"the policy was asked for {len(guidance)} episodes, and {len(seeds)} begin")
        every = list(guidance) * (len(seeds) if len(guidance) == 1 else 1)
        return Asked(
            torch.tensor([one.scale for one in every]),
            torch.tensor([one.returns for one in every]),
            torch.tensor([math.inf if one.budget is None else one.budget * (1 - one.reserve) for one in every]),
            torch.tensor([one.budget_factor for one in every]),
            torch.tensor([one.budget_change for one in every]),
        )


#: Who plans: one for all agents, or each for itself.
MODES = ("centralised", "decentralised")


@dataclass
class PlanningConfig:
    """How a planner uses its plans.

    Attributes:
        mode: "centralised" makes one joint plan of what all agents see; "decentralised" has each agent make a joint
            plan of what it sees itself, of which it executes its own part.
        every: steps that are executed of each plan.
        warm: diffusion time in (0, 1) at which sampling takes up the previous plan, shifted by the steps executed and
            noised; 1 begins with noise alone.
        noise: "step" draws new noise for each plan, "episode" keeps that of an episode's first plan.
        horizon: time steps of a plan, the current one included; 0 as trained.
    """

    mode: str = "centralised"
    every: int = 1
    warm: float = 1.0
    noise: str = "step"
    horizon: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"unknown planning.mode {self.mode!r}: choose one of {', '.join(MODES)}")
        if self.noise not in ("step", "episode"):
            raise ValueError(f"unknown planning.noise {self.noise!r}: choose step or episode")
        if self.every < 1 or self.horizon < 0:
            raise ValueError(
                f"planning.every must be at least 1 and planning.horizon at least 0, got {self.every}, {self.horizon}"
            )
        if not 0 < self.warm <= 1:
            raise ValueError(f"planning.warm is a diffusion time in (0, 1], got {self.warm}")

    def __str__(self) -> str:
        words = [self.mode] if self.mode != "centralised" else []
        words += [f"every {self.every} steps"] if self.every > 1 else []
        words += [f"warm {number(self.warm)}"] if self.warm < 1 else []
        words += ["one noise"] if self.noise == "episode" else []
        return ", ".join([*words, *([f"horizon {self.horizon}"] if self.horizon else [])])


PICKS = ("best", "softmax")


@dataclass
class SelectionConfig:
    """Which of several candidate actions or plans is taken.

    Attributes:
        candidates: how many are drawn; 0 as many as the algorithm was trained to be used with.
        pick: the "best" by the critics, or a "softmax" sample of `sharpness` times their values.
    """

    candidates: int = 0
    pick: str = "best"
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        if self.candidates < 0 or not 0 < self.sharpness < math.inf:
            raise ValueError(
                f"selection.candidates must be at least 0 and selection.sharpness positive, got {self.candidates}, "
                f"{self.sharpness}"
            )
        if self.pick not in PICKS:
            raise ValueError(f"unknown selection.pick {self.pick!r}: choose one of {', '.join(PICKS)}")

    def completed(self, trained: "SelectionConfig") -> "SelectionConfig":
        """Itself, or the algorithm's own where it leaves the candidates to that."""
        return self if self.candidates else trained

    def __str__(self) -> str:
        if not self.candidates:
            return ""
        return (
            f"best of {self.candidates}"
            if self.pick == "best"
            else (f"softmax {number(self.sharpness)} of {self.candidates}")
        )


GATES = ("hard", "soft", "none")


@dataclass
class MoveConfig:
    """Gradient moves of a plan's iterate while it is denoised, up its return and down its cost (TREBI, Diffuser).

    Attributes:
        scale: of a move, in posterior variances; 0 for none. cost: weight of the cost's gradient beside the return's.
        gate: when it counts: "hard", where the cost exceeds the budget; "soft", more the more it does; "none", never,
            nor does the choice among candidates heed the budget (Diffuser).
        repeats: moves of a denoising step. until: denoising steps at the end without any.
    """

    scale: float = 0.1
    cost: float = 100.0
    gate: str = "hard"
    repeats: int = 2
    until: int = 1

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise ValueError(f"unknown move.gate {self.gate!r}: choose one of {', '.join(GATES)}")
        if not (0 <= self.scale < math.inf and 0 <= self.cost < math.inf) or self.repeats < 1 or self.until < 0:
            raise ValueError(
                "move.scale, move.cost and move.until must be finite and at least 0 and move.repeats at least 1, got "
                f"{self.scale}, {self.cost}, {self.until} and {self.repeats}"
            )

    def __str__(self) -> str:
        usual, words = MoveConfig(), []
        for name in ("scale", "cost", "gate", "repeats", "until"):
            value = getattr(self, name)
            if value != getattr(usual, name):
                words.append(f"{name} {value if isinstance(value, str) else number(value)}")
        return f"moves {', '.join(words)}" if words else ""


@dataclass
class Acting:
    """The sampling side of a trained model: all of it can change without retraining.

    Attributes:
        temperature: factor on the initial noise; 0.5 is Decision Diffuser's and MADiff's "low temperature".
    """

    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    planning: PlanningConfig = field(default_factory=PlanningConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    move: MoveConfig = field(default_factory=MoveConfig)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")

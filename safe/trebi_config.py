"""The configuration of TREBI."""

from dataclasses import dataclass, field

from core.data.normalisers import NORMALISERS
from core.losses import WEIGHTINGS
from core.networks.temporal_blocks import ACTIVATIONS
from core.predictions import PREDICTIONS
from core.schedules import schedule_of


@dataclass
class TrebiConfig:
    """A planner of windows of actions and observations, and values of them. The defaults are the small preset, ours;
    configs/algo/trebi_published.yaml the paper's.

    Attributes:
        horizon: time steps of a plan, the current one included.
        width, multipliers, kernel, activation: of the temporal U-Net. value_width, value_multipliers: of the network of
            returns and costs, each of whose levels halves the steps.
        global_condition: whether the current step also enters every block, through the embedding.
        prediction, schedule, weighting, noise_emphasis: of the diffusion, as in `marl.MADiffConfig`.
        normaliser: of observations, "standard", "minmax" or "cdf".
        condition_dropout: share of the training items whose condition is dropped: the wanted return and the budget, by
            which classifier-free guidance plans; without it they are unconditional, as published.
        discount, cost_discount: of rewards and costs; 1 counts an episode's costs as they are.
        optimism: expectile of the returns that a plan is judged by, and 1 less it of the costs; 0.5 is their mean, as
            published. What follows a plan is the data's behaviour, and its mean cost may exceed a budget that a better
            future would keep to.
        candidates: plans of which the best within the budget is taken, unless an evaluation says otherwise.
    """

    name: str = "trebi"
    horizon: int = 32
    width: int = 32
    multipliers: list[int] = field(default_factory=lambda: [1, 2])
    kernel: int = 5
    activation: str = "silu"
    value_width: int = 16
    value_multipliers: list[int] = field(default_factory=lambda: [1, 2, 4])
    global_condition: bool = True
    prediction: str = "x0"
    schedule: str = "linear"
    weighting: str = "simple"
    noise_emphasis: float = 2.0
    normaliser: str = "standard"
    condition_dropout: float = 0.25
    discount: float = 1.0
    cost_discount: float = 1.0
    optimism: float = 0.8
    candidates: int = 8

    def __post_init__(self) -> None:
        if self.name != "trebi":
            raise ValueError(f"algo.name is trebi here, got {self.name!r}: choose another algorithm with algo=")
        for name, choices in (
            ("prediction", PREDICTIONS),
            ("weighting", ("simple", *WEIGHTINGS)),
            ("normaliser", NORMALISERS),
            ("activation", ACTIVATIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown algo.{name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        try:
            schedule_of(self.schedule)
        except ValueError as error:
            raise ValueError(f"algo.schedule: {error}") from None
        for name in ("width", "kernel", "value_width", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"algo.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("multipliers", "value_multipliers"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"algo.{name} must be positive integers, one a level, got {list(getattr(self, name))}")
        unit = 2 ** max(len(self.multipliers) - 1, len(self.value_multipliers))
        if self.horizon < unit or self.horizon % unit:
            raise ValueError(f"algo.horizon must be a multiple of {unit} for networks so deep, got {self.horizon}")
        if not 0 <= self.condition_dropout <= 1 or self.noise_emphasis <= 0:
            raise ValueError(
                "algo.condition_dropout lies in [0, 1] and algo.noise_emphasis must be positive, got "
                f"{self.condition_dropout} and {self.noise_emphasis}"
            )
        if not 0 < self.optimism < 1:
            raise ValueError(f"algo.optimism is an expectile in (0, 1), got {self.optimism}")
        for name in ("discount", "cost_discount"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"algo.{name} lies in (0, 1], got {getattr(self, name)}")

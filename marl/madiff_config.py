"""MADiff's configuration."""

from dataclasses import dataclass, field

import torch

from core.data.normalisers import NORMALISERS
from core.losses import WEIGHTINGS
from core.predictions import PREDICTIONS
from core.schedules import schedule_of
from marl.factorisation import DATA_FACTORISATIONS, NOISE_FACTORISATIONS
from marl.inverse_dynamics import InverseConfig

ACTIONS = ("inverse", "joint")
KNOWN = ("all", "own", "random")
NETWORKS = ("unet", "transformer")
LAYOUTS = ("light", "published")
TOKENS = ("trajectory", "step")
PRECISIONS = {"float32": None, "bf16": torch.bfloat16}


@dataclass
class MADiffConfig:
    """MADiff's model and loss. The defaults are the small preset, ours; configs/algo/madiff_published.yaml the paper's.

    Attributes:
        horizon: time steps of a plan, the current one included. history: earlier steps that it is told of.
        known: whose observations a plan is given: "all" agents' (centralised), one's "own" (decentralised), or those of
            a "random" subset, so that one model plans in either way, and with agents that take no part.
        network: "unet", or a "transformer" over time and agents. width: of either. layers: of the transformer.
        multipliers, kernel, activation: of the temporal U-Net. layout: of its decoder and
            of the attention's widths, "light" or "published", which is larger by a tenth.
        attention: False trains the same network without any exchange between the agents. heads: of the attention.
        token: what attends to the other agents': each agent's whole "trajectory" as published, or each "step" of it.
        noise_factor, data_factor: without attention, DoF's functions of the agents' own predictions and of their clean
            estimates (`marl.factorisation`): "concat", "weighted", and "attention" for the data alone.
        global_condition: whether the current step also enters every block, through the embedding; as published it is
            known by the clamp alone.
        prediction: "noise", "x0", "v", "score", "flow" or "edm". schedule: "linear", "cosine", "sigmoid", "ve", "flow",
            or a table of T steps, such as "cosine/200". weighting: of the loss over times (`core.diffusion_loss`).
        precision: "bf16" runs the network in bfloat16; samples and weights stay in float32.
        normaliser: "standard", "minmax", or "cdf" as published, which is not affine.
        noise_emphasis: how much more often high noise is trained than low; 1 is uniform (`core.UniformTimes`).
        condition_dropout: share of the training items whose condition is dropped.
        discount: of the return that is conditioned on.
        next_step_weight: weight of the first planned step in the loss: actions depend on it alone.
        actions: "inverse" reads them off planned observations; "joint" diffuses them beside the observations.
        inverse: of the inverse dynamics.
    """

    name: str = "madiff"
    horizon: int = 8
    history: int = 0
    known: str = "all"
    network: str = "unet"
    layers: int = 4
    width: int = 64
    multipliers: list[int] = field(default_factory=lambda: [1, 2])
    kernel: int = 5
    activation: str = "silu"
    layout: str = "light"
    attention: bool = True
    heads: int = 4
    token: str = "trajectory"
    noise_factor: str = "concat"
    data_factor: str = "concat"
    global_condition: bool = True
    prediction: str = "x0"
    schedule: str = "linear"
    weighting: str = "simple"
    precision: str = "float32"
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
        for name in ("width", "kernel", "heads", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"algo.{name} must be at least 1, got {getattr(self, name)}")
        if self.horizon < 2:
            raise ValueError(f"algo.horizon must be at least 2, the current step and one planned, got {self.horizon}")
        for name, choices in (
            ("prediction", PREDICTIONS),
            ("weighting", ("simple", *WEIGHTINGS)),
            ("precision", PRECISIONS),
            ("actions", ACTIONS),
            ("known", KNOWN),
            ("layout", LAYOUTS),
            ("token", TOKENS),
            ("noise_factor", NOISE_FACTORISATIONS),
            ("data_factor", DATA_FACTORISATIONS),
            ("network", NETWORKS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown algo.{name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        if self.history < 0:
            raise ValueError(f"algo.history must be at least 0, got {self.history}")
        try:
            schedule_of(self.schedule)
        except ValueError as error:
            raise ValueError(f"algo.schedule: {error}") from None
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"algo.condition_dropout lies in [0, 1), got {self.condition_dropout}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"algo.discount lies in (0, 1], got {self.discount}")
        if self.next_step_weight <= 0 or self.noise_emphasis <= 0:
            raise ValueError(
                f"algo.next_step_weight and algo.noise_emphasis must be positive, "
                f"got {self.next_step_weight} and {self.noise_emphasis}"
            )
        if self.attention and (self.noise_factor, self.data_factor) != ("concat", "concat"):
            raise ValueError(
                f"algo.noise_factor={self.noise_factor} and algo.data_factor={self.data_factor} join agents that are "
                "denoised alone: set algo.attention=false"
            )
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"algo.multipliers must be positive integers, one a level, got {list(self.multipliers)}")
        if self.normaliser not in NORMALISERS:
            raise ValueError(f"unknown normaliser {self.normaliser!r}: choose one of {', '.join(NORMALISERS)}")
        if self.history and (self.history + self.horizon) % self.unit:
            raise ValueError(
                f"algo.history={self.history} and algo.horizon={self.horizon} do not fit a U-Net of "
                f"{len(self.multipliers)} levels: their sum must be a multiple of {self.unit}"
            )
        if float(schedule_of(self.schedule).alpha(torch.ones(()))) == 0 and self.prediction in (
            "noise",
            "score",
            "edm",
        ):
            raise ValueError(
                f"algo.prediction={self.prediction} says nothing where algo.schedule={self.schedule} begins, at pure "
                "noise: predict x0, v or flow"
            )

    @property
    def unit(self) -> int:
        """What the steps of a plan with its history must be a multiple of."""
        return 2 ** (len(self.multipliers) - 1) if self.network == "unet" else 1

"""The configuration of diffusion policies."""

import math
from dataclasses import dataclass, field

from core.acting import SelectionConfig
from core.critics import CriticConfig
from core.losses import WEIGHTINGS
from core.predictions import PREDICTIONS
from core.samplers import SamplerConfig
from core.schedules import schedule_of

NETWORKS = ("unet", "mlp", "residual")
IMPROVEMENTS = ("none", "chain", "estimate", "energy")
CONSISTENCY = ("none", "reconstruction", "training")


@dataclass
class DiffusionPolicyConfig:
    """A diffusion policy of each agent's own actions. The defaults are DOM2 with a small network, ours.

    Attributes:
        network: "unet" of linear layers (DOM2), "mlp" (Diffusion-QL) or "residual" (IDQL). hidden: its width; a U-Net
            is twice as wide at first and half as wide at last. layers: of the MLP, or blocks. activation: of the MLP.
        shared: whether the agents share their weights. dropout: of the U-Net and the residual network.
        prediction, schedule, weighting: of the diffusion, as in `marl.MADiffConfig`.
        sampler: that the policy is drawn with in training, and best with afterwards.
        improvement: how the policy heeds its critics: "chain", through all of the sampler's steps (Diffusion-QL, DOM2);
            "estimate", through the clean estimate of a noisy action of the data (EDP); "energy", by an energy of noisy
            actions that guides an evaluation's sampling with `guidance.scale` (CEP); or "none", by selection alone.
        eta: weight of the values, divided by their own mean size; of an energy, their inverse temperature.
        contrast: actions of the policy that an energy is learned from.
        consistency: "reconstruction" and "training" make a consistency model of the network (CPQL), which is compared
            with the data's action, or with its slowly moving self one of `levels` below.
        divergence: above 0, the cloning loss that the weight of cloning is adapted to keep (DiffCPS).
        warmup: steps before the policy heeds its critics. every: critic's steps for one of the policy.
        polyak: step of the slowly moving policy, which acts, towards the learned one.
        critic: None clones alone. selection: as evaluated unless told otherwise.
    """

    name: str = "diffusion_policy"
    network: str = "mlp"
    hidden: int = 256
    layers: int = 2
    activation: str = "silu"
    shared: bool = True
    dropout: float = 0.0
    prediction: str = "x0"
    schedule: str = "linear"
    weighting: str = "simple"
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig("ddim", 2))
    improvement: str = "chain"
    eta: float = 0.3
    contrast: int = 8
    consistency: str = "none"
    levels: int = 18
    divergence: float = 0.0
    warmup: int = 0
    every: int = 1
    polyak: float = 0.01
    critic: CriticConfig | None = field(default_factory=lambda: CriticConfig(conservative=0.1))
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(1))

    def __post_init__(self) -> None:
        if self.name != "diffusion_policy":
            raise ValueError(
                f"algo.name is diffusion_policy here, got {self.name!r}: choose another algorithm with algo="
            )
        for name, choices in (
            ("network", NETWORKS),
            ("prediction", PREDICTIONS),
            ("improvement", IMPROVEMENTS),
            ("consistency", CONSISTENCY),
            ("weighting", ("simple", *WEIGHTINGS)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown algo.{name} {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        for name in ("hidden", "layers", "every", "levels", "contrast"):
            if getattr(self, name) < 1:
                raise ValueError(f"algo.{name} must be at least 1, got {getattr(self, name)}")
        try:
            schedule_of(self.schedule)
        except ValueError as error:
            raise ValueError(f"algo.schedule: {error}") from None
        if min(self.eta, self.divergence) < 0 or not math.isfinite(self.eta + self.divergence) or self.warmup < 0:
            raise ValueError(
                "algo.eta, algo.divergence and algo.warmup must be at least 0, got "
                f"{self.eta}, {self.divergence} and {self.warmup}"
            )
        if not 0 <= self.dropout < 1 or not 0 < self.polyak <= 1:
            raise ValueError(
                f"algo.dropout and algo.polyak lie in [0, 1) and (0, 1], got {self.dropout} and {self.polyak}"
            )
        if self.critic is None and (self.improvement != "none" or self.divergence or self.selection.candidates > 1):
            raise ValueError(
                "algo.critic=null clones alone: set algo.improvement=none, algo.divergence=0 and "
                "algo.selection.candidates=1"
            )
        if not self.selection.candidates:
            raise ValueError("algo.selection.candidates must be at least 1")
        if self.consistency != "none" and self.improvement not in ("none", "chain"):
            raise ValueError("a consistency model's one step is its chain: set algo.improvement=chain or none")

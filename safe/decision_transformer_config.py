"""How the constrained decision transformer is configured."""

import math
from dataclasses import dataclass


@dataclass
class CDTConfig:
    """Constrained decision transformer (Liu et al. 2023). The defaults are a small network of ours for a CPU; published
    are width 128, heads 8, dropout 0.1 and past actions, trained for 100,000 steps at 1e-4, and a weight decay of 1e-4.

    Attributes:
        context: time steps that an action is predicted from. actions: whether those of the past are told as well; with
            few data, the network learns to repeat them.
        width, layers, heads: of the transformer. dropout: of its layers' outputs.
        entropy: that the policy keeps, nats for each entry of an action, or for each choice of a discrete one.
        relabelled: episodes added with targets that no episode meets, as a share of the data's.
    """

    name: str = "cdt"
    context: int = 10
    actions: bool = False
    width: int = 64
    layers: int = 3
    heads: int = 4
    dropout: float = 0.0
    entropy: float = -1.0
    relabelled: float = 0.2

    def __post_init__(self) -> None:
        if self.name != "cdt":
            raise ValueError(f"algo.name is cdt here, got {self.name!r}: choose another algorithm with algo=")
        for name in ("context", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"algo.{name} must be at least 1, got {getattr(self, name)}")
        if self.width < 1 or self.width % self.heads or self.width % 2:
            raise ValueError(f"algo.width must be even and a multiple of the {self.heads} heads, got {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"algo.dropout lies in [0, 1), got {self.dropout}")
        if not math.isfinite(self.entropy):
            raise ValueError(f"algo.entropy must be finite, got {self.entropy}")
        if not 0 <= self.relabelled < math.inf:
            raise ValueError(f"algo.relabelled is a share of at least 0, got {self.relabelled}")

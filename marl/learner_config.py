"""How a learner learns."""

import math
from dataclasses import dataclass
from typing import Any

from core.critics import VIEWS
from core.device import check_device


@dataclass
class LearnerConfig:
    """TD3 (Fujimoto et al. 2018) for a team of equals, with weights shared across agents.

    Attributes:
        hidden, layers: of the actor's and the critics' MLPs.
        critic: "independent" judges an agent by what it sees and does, "centralised" by what all do (MADDPG, Lowe et
            al. 2017).
        discount: of rewards. lookahead: steps whose rewards are summed before the critics judge the rest.
        polyak: step of the target networks towards the learned ones.
        smoothing, smoothing_clip: of the target actions' noise, its standard deviation and bound.
        exploration: standard deviation of the noise on actions. actor_every: critic's updates for one of the actor.
        warmup: episodes of uniform actions before the first update. parallel: episodes begun at once.
        updates: between two such collections. episodes: at most, the warm-up's included.
        target: mean return of the last `window` episodes at which it stops.
        stages: parts, equal in episodes, that the replay's tags name.
        capacity: steps that are learned from, the latest ones.
    """

    name: str = "matd3"
    hidden: int = 64
    layers: int = 2
    critic: str = "independent"
    discount: float = 0.9
    lookahead: int = 3
    polyak: float = 0.01
    smoothing: float = 0.2
    smoothing_clip: float = 0.5
    exploration: float = 0.3
    actor_every: int = 2
    warmup: int = 200
    parallel: int = 40
    updates: int = 200
    episodes: int = 8000
    target: float = math.inf
    window: int = 200
    stages: int = 5
    capacity: int = 250_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.name != "matd3":
            raise ValueError(f"algo.name is matd3 here, got {self.name!r}: choose another algorithm with algo=")
        if self.critic not in VIEWS:
            raise ValueError(f"unknown critic {self.critic!r}: choose one of {', '.join(VIEWS)}")
        for name in (
            "hidden",
            "layers",
            "lookahead",
            "actor_every",
            "warmup",
            "parallel",
            "updates",
            "window",
            "stages",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.episodes < self.warmup + self.parallel:
            raise ValueError(
                f"episodes must allow for the warm-up's {self.warmup} and {self.parallel} more, got {self.episodes}"
            )
        if not 0 <= self.discount <= 1 or not 0 < self.polyak <= 1:
            raise ValueError(f"discount and polyak lie in [0, 1], got {self.discount} and {self.polyak}")
        check_device(self.device, "device")

    @staticmethod
    def for_task(task: str, **settings: Any) -> "LearnerConfig":
        """What a task is learned well with: what is near counts in spread, and a chase takes time."""
        return LearnerConfig(**{"discount": 0.85 if task == "mpe/spread" else 0.95} | settings)

    @property
    def collections(self) -> int:
        """How often episodes are collected after the warm-up."""
        return (self.episodes - self.warmup) // self.parallel

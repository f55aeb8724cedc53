"""What every algorithm is to the trainer, the evaluator and the command line."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from core import checkpoints
from core.config import from_dict
from core.data.trajectories import Trajectories
from core.device import device_of
from core.environments import TeamSpec
from core.errors import UserError
from core.rollout import Policy
from core.runs import Run
from core.samplers import SamplerConfig
from core.samplers.config import number


@dataclass
class GuidanceConfig:
    """What a planner is asked for.

    Attributes:
        scale: of classifier-free guidance; 0 ignores the condition, 1 is the conditional model.
        returns: wanted return as a rank among the data, 0 the worst and 1 the best.
    """

    scale: float = 1.2
    returns: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.returns <= 1:
            raise ValueError(f"guidance.returns is a rank in [0, 1], got {self.returns}")
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"guidance.scale must be at least 0, got {self.scale}")

    @staticmethod
    def of_episodes(guidance: Sequence["GuidanceConfig"], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Scales and wanted returns, each [B], of a batch of episodes.

        Raises:
            ValueError: there are not as many as there are episodes.
        """
        if len(guidance) != len(seeds):
            raise ValueError(f"the policy was asked for {len(guidance)} episodes, and {len(seeds)} begin")
        return torch.tensor([one.scale for one in guidance]), torch.tensor([one.returns for one in guidance])


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
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")


class Batches(Protocol):
    """Training items gathered by index, all at once, on the device."""

    def __len__(self) -> int: ...

    def gather(self, index: Tensor) -> Any:
        """Items of an index tensor [B]."""


@dataclass(frozen=True)
class Phase:
    """One optimiser's share of a training step.

    Attributes:
        parameters: what it optimises.
        loss: (batch, generator) -> named scalars; "loss" is minimised, the others are logged.
        every: it takes part in one training step of this many.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    loss: Callable[[Any, torch.Generator], dict[str, Tensor]]
    every: int = 1


class Algorithm(nn.Module, ABC):
    """A trainable method. All it learned, its data's statistics included, is in its state dict.

    Attributes:
        config_class: the dataclass it is configured by; its `name` is the algorithm's in configurations.
        stackable: whether several seeds may train as a `core.stacking.Stack`.
        steps: of the training that its weights come from.
    """

    config_class: ClassVar[type]
    stackable: ClassVar[bool] = False

    def __init__(self, config: Any, spec: TeamSpec):
        super().__init__()
        self.config = config
        self.spec = spec
        self.steps = 0

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Self:
        """The trained algorithm of a run folder, with its averaged weights.

        Raises:
            UserError: no run there, one of another algorithm, or a corrupt checkpoint.
        """
        run = Run.open(Path(folder))
        config = dict(run.config["algo"])
        known = from_dict(cls.config_class, {}, "").name
        if config.get("name") != known:
            raise UserError(f"{folder} is a run of {config.get('name')!r}, not of {known!r}")
        try:
            algorithm = cls(
                from_dict(cls.config_class, config, f"{folder}/config.yaml"), TeamSpec(**run.config["spec"])
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"{folder}/config.yaml does not describe a {known}: {error}") from error
        algorithm.steps = int(checkpoints.load_trained(algorithm, run.checkpoint)["step"])
        return algorithm.to(device_of(device))

    def for_team(self, spec: TeamSpec) -> "Algorithm":
        """The algorithm for another team, itself for its own.

        Raises:
            UserError: it cannot act for that team.
        """
        if spec != self.spec:
            raise UserError(
                f"this run acts for {self.spec}, and cannot for {spec}; planners trained with task.entities=true can "
                "for teams of other sizes"
            )
        return self

    @staticmethod
    def completed(config: Any) -> Any:
        """The configuration with what it takes from elsewhere, such as another run; asked once, when training begins.

        Raises:
            UserError: it is not there.
        """
        return config

    @staticmethod
    @abstractmethod
    def uses(config: Any) -> frozenset[str]:
        """Which of "sampler", "planning", "selection", "scale" and "returns" change what the policy of a configuration
        does; it ignores the others, and tables leave them empty."""

    @abstractmethod
    def prepare(self, trajectories: Trajectories) -> Batches:
        """Take the statistics of the data and lay it out for training, on the algorithm's device."""

    @abstractmethod
    def phases(self) -> Sequence[Phase]:
        """The optimisers' shares of a training step, in their order."""

    def after_step(self) -> None:
        """What follows a training step: target networks, dual variables."""
        return

    @abstractmethod
    def policy(self, acting: Acting, guidance: Sequence[GuidanceConfig] = ()) -> Policy:
        """The trained policy under the given sampling side.

        Args:
            guidance: what each episode of one batch is asked for, in place of `acting`'s: many cells of a grid are
                then rolled out at once.
        """

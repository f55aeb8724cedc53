"""What every algorithm is to the trainer, the evaluator and the command line."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from core import checkpoints
from core.acting import Acting, GuidanceConfig
from core.config import from_dict
from core.data.trajectories import Trajectories
from core.device import device_of
from core.environments import TeamSpec
from core.errors import UserError
from core.rollout import Policy
from core.runs import Run


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
        """Which of "sampler", "planning", "selection", "move", "scale", "returns" and "budget" change what the policy
        of a configuration does; it ignores the others, and tables leave them empty."""

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

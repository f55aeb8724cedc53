"""Edits: objects that change the iterate at fixed places of a sampling step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from core.samplers import Step


class Edit:
    """Base of all edits; each hook changes nothing unless a subclass says so. Edits are applied in their order."""

    def before(self, x: Tensor, step: "Step") -> Tensor:
        """The iterate about to enter the network."""
        return x

    def estimate(self, x0: Tensor, x: Tensor, step: "Step") -> Tensor:
        """The estimate of the clean sample made from x."""
        return x0

    def after(self, x_new: Tensor, x_old: Tensor, step: "Step") -> Tensor:
        """The iterate after the step from x_old."""
        return x_new

    def finish(self, x: Tensor) -> Tensor:
        """What `sample` returns."""
        return x


@dataclass(frozen=True)
class Clamp(Edit):
    """Holds known entries at their values: inpainting in sampling, and the mask of the loss in training.

    The iterate carries the clean value at a clamped entry (Diffuser's and MADiff's convention), and so does the
    clean estimate: what a network says there is never used, which matters because its noise prediction is
    meaningless at entries that carry no noise.

    mask: bool, True where the value is known; values: same dtype as the samples. Both broadcast to [B, ...].
    """

    mask: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool:
            raise ValueError(f"Clamp needs a boolean mask, got {self.mask.dtype}")

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, self.values, x)

    @property
    def free(self) -> Tensor:
        """True at entries that are generated, the ones a training loss counts."""
        return ~self.mask

    def before(self, x: Tensor, step: "Step") -> Tensor:
        return self(x)

    def estimate(self, x0: Tensor, x: Tensor, step: "Step") -> Tensor:
        return self(x0)

    def finish(self, x: Tensor) -> Tensor:
        return self(x)

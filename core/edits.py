"""Edits: objects that change the iterate at fixed places of a sampling step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from core.guidance import gradient
from core.samplers.grid import Step
from core.schedules import per_sample


class Edit:
    """Base of all edits; each hook changes nothing unless a subclass says so. Edits are applied in their order.

    A step that calls its denoiser twice (Heun, DPM-Solver++ 2S) has `before` and `estimate` called at both places; the
    second one's `step.inner_of` is not None.
    """

    def before(self, x: Tensor, step: Step) -> Tensor:
        """The iterate about to enter the network."""
        return x

    def estimate(self, x0: Tensor, x: Tensor, step: Step) -> Tensor:
        """The estimate of the clean sample made from x."""
        return x0

    def after(self, x_new: Tensor, x_old: Tensor, step: Step) -> Tensor:
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
    meaningless at entries that carry no noise. Under `core.VE`, whose samples grow with the noise, the iterate carries
    the value times `Level.scale`, so that a network that scales its input back (`"edm"`) still sees it.

    mask: bool, True where the value is known; values are taken in the samples' precision. Both broadcast to [B, ...].
    """

    mask: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool:
            raise ValueError(f"Clamp needs a boolean mask, got {self.mask.dtype}")

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, self.values.to(x.dtype), x)

    @property
    def free(self) -> Tensor:
        """True at entries that are generated, the ones a training loss counts."""
        return ~self.mask

    def noisy(self, x: Tensor, scale: Tensor | float) -> Tensor:
        """A noisy sample with its known entries, at a level of the given scale (a float, or a tensor [B])."""
        values = self.values.to(x.dtype)
        if isinstance(scale, Tensor):
            return torch.where(self.mask, values * per_sample(scale, x), x)
        return torch.where(self.mask, values if scale == 1.0 else values * scale, x)

    def before(self, x: Tensor, step: Step) -> Tensor:
        return self.noisy(x, step.start.scale)

    def estimate(self, x0: Tensor, x: Tensor, step: Step) -> Tensor:
        return self(x0)

    def finish(self, x: Tensor) -> Tensor:
        return self(x)


@dataclass(frozen=True)
class Box(Edit):
    """Bounds the clean estimate and the result, entry by entry; low and high broadcast against a sample [B, ...].

    Edits see the estimate after all guidance, which can overshoot the data, so a box is outermost by its nature.
    """

    low: Tensor | float = -1.0
    high: Tensor | float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.low, float | int) and isinstance(self.high, float | int) and not self.low <= self.high:
            raise ValueError(f"a box needs low <= high, got {self.low} and {self.high}")

    def __call__(self, x: Tensor) -> Tensor:
        low, high = (bound.to(x) if isinstance(bound, Tensor) else bound for bound in (self.low, self.high))
        if isinstance(low, Tensor) == isinstance(high, Tensor):
            return torch.clamp(x, cast(Tensor, low), cast(Tensor, high))
        return torch.clamp(torch.clamp(x, min=low), max=high)

    def estimate(self, x0: Tensor, x: Tensor, step: Step) -> Tensor:
        return self(x0)

    def finish(self, x: Tensor) -> Tensor:
        return self(x)


@dataclass(frozen=True)
class GradientMove(Edit):
    """Follows the gradient of a value: x += scale * variance * grad value(x, t).

    Attributes:
        value: (x, t) -> [B], to be maximised; t is a 0-d float64 tensor.
        scale: factor on the gradient.
        on: what moves. "iterate": the iterate before the network call, as in the code of Diffuser (Janner et al. 2022)
            and TREBI, under any sampler; TREBI's budget gate is a value of return - n [cost > budget] cost. "mean": the
            mean of the transition, by the gradient at its start (Dhariwal and Nichol 2021, algorithm 1).
        steps: moves before each network call.
        by: what else multiplies the gradient: "variance" of the ancestral step, as published, its "deviation" or "one".
            Steps to the data have no variance, and `Consistency` has no others: it needs "one".
        stop: no move at times up to this one: t_stopgrad / T in the papers' code.
        clip: largest norm of a sample's gradient, before the factors.
        mask: bool, True at the entries that may move; broadcasts against a sample. To clamp after every move, as the
            published code does, is edits=[clamp, GradientMove(..., mask=clamp.free)].
    """

    value: Callable[[Tensor, Tensor], Tensor]
    scale: float
    on: str = "iterate"
    steps: int = 1
    by: str = "variance"
    stop: float = 0.0
    clip: float = math.inf
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        for name, choices in (("on", ("iterate", "mean")), ("by", ("variance", "deviation", "one"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        if not math.isfinite(self.scale) or not self.clip > 0 or not 0 <= self.stop < 1:
            raise ValueError(
                f"a gradient move needs a finite scale, clip > 0 and 0 <= stop < 1, "
                f"got {self.scale}, {self.clip} and {self.stop}"
            )
        if self.steps < 1 or (self.on == "mean" and self.steps > 1):
            raise ValueError(f'a gradient move takes steps >= 1, and one where it moves the "mean", got {self.steps}')

    def before(self, x: Tensor, step: Step) -> Tensor:
        factor = self._factor(step) if self.on == "iterate" and step.inner_of is None else 0.0
        for _ in range(self.steps if factor else 0):
            x = torch.add(x, self._slope(x, step), alpha=factor)
        return x

    def after(self, x_new: Tensor, x_old: Tensor, step: Step) -> Tensor:
        factor = self._factor(step) if self.on == "mean" else 0.0
        return torch.add(x_new, self._slope(x_old, step), alpha=factor) if factor else x_new

    def _factor(self, step: Step) -> float:
        """0 where there is nothing to move."""
        if step.start.t <= self.stop + 1e-9:
            return 0.0
        return self.scale * {"variance": step.variance, "deviation": math.sqrt(step.variance), "one": 1.0}[self.by]

    def _slope(self, x: Tensor, step: Step) -> Tensor:
        t = x.new_full((), step.start.t, dtype=torch.float64)
        slope = gradient(lambda leaf: self.value(leaf, t), x)
        if self.mask is not None:
            slope = torch.where(self.mask, slope, 0.0)
        if self.clip < math.inf:
            norm = per_sample(slope.reshape(len(slope), -1).norm(dim=1), slope)
            slope = slope * (self.clip / norm.clamp(min=self.clip))
        return slope

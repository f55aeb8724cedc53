"""What a safety filter asks of a step: how far a barrier may fall, or has to rise."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from core.samplers import Step


class Rule(ABC):
    """Base of rules, functions of b, which is a barrier less the margin, and of the step."""

    @abstractmethod
    def floor(self, b: Tensor, step: Step) -> Tensor:
        """The least that b may be after the step, to first order: grad b . u >= floor - b for the step's move u."""

    def slack(self, step: Step) -> float:
        """What a unit of slack is worth to each row, w of grad b . u + w r >= floor - b with a cost of r^2; 0 is a
        hard row."""
        return 0.0


@dataclass(frozen=True)
class Robust(Rule):
    """SafeDiffuser's RoS: grad b . u + gain b >= 0 in every step, so that b >= 0 after one step with gain 1."""

    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_gain(self.gain)

    def floor(self, b: Tensor, step: Step) -> Tensor:
        return (1 - self.gain) * b


@dataclass(frozen=True)
class Relaxed(Rule):
    """SafeDiffuser's ReS: Robust with a slack whose weight falls with the time at which a step ends.

    Attributes:
        weight: of the slack at t = 1, where a row moves a plan by about 1 / (1 + weight^2) of what it asks for.
        hard: the weight is 0 at times up to this one; at t = 0 it always is.
    """

    weight: float = 10.0
    hard: float = 0.0
    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_gain(self.gain)
        _check_fall("weight", self.weight, self.hard)

    def floor(self, b: Tensor, step: Step) -> Tensor:
        return (1 - self.gain) * b

    def slack(self, step: Step) -> float:
        return self.weight * _left(step.end.t, self.hard)


@dataclass(frozen=True)
class TimeVarying(Rule):
    """SafeDiffuser's TVS: b >= gamma(t) with a level that rises from -depth at t = 1 to exactly 0:
    grad b . u - gamma_dot + gain (b - gamma) >= 0, where gamma_dot is gamma after the step less gamma before it.

    (The published code subtracts the other way round, and its level ends below 0: so do its plans.)

    Attributes:
        depth: in the barrier's units. A plan that lies deeper at first is brought to the level by the first step.
        hard: the level is 0 at times up to this one.
    """

    depth: float = 1.0
    hard: float = 0.0
    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_gain(self.gain)
        _check_fall("depth", self.depth, self.hard)

    def level(self, t: float) -> float:
        """gamma(t)."""
        return -self.depth * _left(t, self.hard)

    def floor(self, b: Tensor, step: Step) -> Tensor:
        return self.level(step.end.t) + (1 - self.gain) * (b - self.level(step.start.t))


@dataclass(frozen=True)
class FiniteTime(Rule):
    """SafeFlowMatcher's db/dtau + rate sgn(b) |b|^power >= 0, by which b reaches 0 from below within the diffusion time
    |b|^(1 - power) / (rate (1 - power)). It is integrated exactly over a step, so that no step is too long for it.
    It also limits how fast b may fall, so that the noise of a stochastic sampler drives plans away: use another.

    Attributes:
        rate: in the barrier's units^(1 - power) a unit of time; the whole walk from t = 1 takes one.
    """

    rate: float = 8.0
    power: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf or not 0 <= self.power < 1:
            raise ValueError(f"a finite time needs a rate > 0 and 0 <= power < 1, got {self.rate} and {self.power}")

    def floor(self, b: Tensor, step: Step) -> Tensor:
        rest = 1 - self.power
        size = b.abs().clamp(min=1e-12).pow(rest) - self.rate * rest * step.dtau  # at 0 itself it has no gradient
        return b.sign() * size.clamp(min=0).pow(1 / rest)


#: By name; each has defaults.
RULES: dict[str, type[Rule]] = {
    "robust": Robust,
    "relaxed": Relaxed,
    "time_varying": TimeVarying,
    "finite_time": FiniteTime,
}


def rule_of(mode: str | Rule) -> Rule:
    """A rule by its name, or itself.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(mode, str) and mode not in RULES:
        raise ValueError(f"unknown mode {mode!r} of a safety filter: choose one of {', '.join(RULES)}")
    return RULES[mode]() if isinstance(mode, str) else mode


def _left(t: float, hard: float) -> float:
    """1 at t = 1, falling linearly to 0 at t = hard and below."""
    return max(0.0, t - hard) / (1 - hard)


def _check_gain(gain: float) -> None:
    if not 0 < gain <= 1:
        raise ValueError(f"the share of a barrier that a step may use up is a gain in (0, 1], got {gain}")


def _check_fall(name: str, value: float, hard: float) -> None:
    if not 0 <= value < math.inf or not 0 <= hard < 1:
        raise ValueError(f"a rule needs {name} >= 0 and a time 0 <= hard < 1, got {value} and {hard}")

"""What a network can be asked to predict. Every prediction is linear in clean sample and noise, and converts exactly.

With x = alpha x0 + sigma eps, a prediction is the pair of linear maps

    x0     = p x + q output      (`estimate`)
    output = c x0 + d eps        (`target`)

whose coefficients depend on alpha and sigma alone: plain floats in a sampling loop, tensors of per-sample values in a
loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from core.schedules import Level

Number = Any  # float or Tensor: alpha, sigma and the coefficients made of them
Pair = tuple[Number, Number]


@dataclass(frozen=True)
class Prediction:
    """estimate: (alpha, sigma, data_std) -> (p, q); target: likewise -> (c, d). See the module's docstring."""

    estimate: Callable[[Number, Number, float], Pair]
    target: Callable[[Number, Number, float], Pair]


def _edm_estimate(alpha: Number, sigma: Number, std: float) -> Pair:
    """c_skip / alpha and c_out of Karras et al. 2022, table 1, for x / alpha at noise sigma / alpha."""
    variance = sigma**2 + (std * alpha) ** 2
    return std**2 * alpha / variance, sigma * std / variance**0.5


def _edm_target(alpha: Number, sigma: Number, std: float) -> Pair:
    variance = sigma**2 + (std * alpha) ** 2
    return sigma / (std * variance**0.5), -std * alpha / variance**0.5


#: noise: eps. x0. v = alpha eps - sigma x0 (Salimans and Ho 2022), for any alpha and sigma. score = -eps / sigma.
#: flow: the velocity eps - x0. edm: the preconditioned network F of Karras et al. 2022, whose input is scaled too.
PREDICTIONS = {
    "noise": Prediction(lambda a, s, _: (1 / a, -s / a), lambda a, s, _: (0 * a, 0 * a + 1)),
    "x0": Prediction(lambda a, s, _: (0 * a, 0 * a + 1), lambda a, s, _: (0 * a + 1, 0 * a)),
    "v": Prediction(lambda a, s, _: (a / (a**2 + s**2), -s / (a**2 + s**2)), lambda a, s, _: (-s, a)),
    "score": Prediction(lambda a, s, _: (1 / a, s**2 / a), lambda a, s, _: (0 * a, -1 / s)),
    "flow": Prediction(lambda a, s, _: (1 / (a + s), -s / (a + s)), lambda a, s, _: (0 * a - 1, 0 * a + 1)),
    "edm": Prediction(_edm_estimate, _edm_target),
}


def prediction_of(name: str) -> Prediction:
    """Raises ValueError: there is none of that name."""
    if name not in PREDICTIONS:
        raise ValueError(f"unknown prediction {name!r}: choose one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[name]


def convert(output: Tensor, x: Tensor, level: Level, source: str, target: str, data_std: float = 1.0) -> Tensor:
    """What a network that predicts `target` would have said where one that predicts `source` said `output`.

    Args:
        output, x: the prediction and the noisy sample it was made from, of one shape.
        level: the noise level of x, of `schedule.levels(t)`; strictly between data and pure noise.
        data_std: of EDM's preconditioning.

    Raises:
        ValueError: unknown predictions, or a level at which they do not determine each other.
    """
    if level.alpha == 0 or level.sigma == 0:
        raise ValueError(f"predictions convert where there are signal and noise, not at alpha, sigma = {level}")
    p, q = prediction_of(source).estimate(level.alpha, level.sigma, data_std)
    c, d = prediction_of(target).target(level.alpha, level.sigma, data_std)
    x0 = p * x + q * output
    return c * x0 + d * (x - level.alpha * x0) / level.sigma

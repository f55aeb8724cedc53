"""Sampling first, safety second: SafeFlowMatcher's prediction and correction, as two walks of the one loop."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from core.denoiser import AnyDenoiser, Condition, Denoiser
from core.edits import Edit
from core.noise import keys_of, normal
from core.samplers import Sampler
from core.sampling import Sample, WarmStart, sample
from safe.safety_filter import SafetyFilter

#: Stream of the correction's noise: samplers draw from those at 0 and above.
CORRECTION = -2


@dataclass(frozen=True)
class TwoPhase:
    """Predicted without the constraints, and then corrected."""

    predicted: Sample
    corrected: Sample


def two_phase(
    denoiser: Denoiser | AnyDenoiser,
    noise: Tensor,
    sampler: Sampler,
    safety: SafetyFilter,
    *,
    level: float = 0.3,
    temperature: float = 0.0,
    cond: Condition | None = None,
    edits: Sequence[Edit] = (),
) -> TwoPhase:
    """Sample freely, then noise the result to time `level` and sample again under the filter.

    A plan that is filtered from pure noise on is caught where its waypoints happen to lie: neighbours on either side of
    an obstacle never meet again. One that is filtered late is whole by then, and lies in few obstacles.

    Args:
        noise: [B, T, A, O]; that of the correction is a hash of it.
        safety: in "finite_time" as published, with a rate that brings plans to safety within `level`.
        level: where the correction starts from, in (0, 1].
        temperature: factor on the correction's noise. 0 begins at the predicted plan itself, as published; with noise
            its waypoints scatter again.
        cond, edits: of both walks.
    """
    predicted = sample(denoiser, noise, sampler, cond=cond, edits=edits)
    again = normal(keys_of(noise), noise.shape[1:], CORRECTION, noise.dtype)
    start = WarmStart(predicted.x, level)
    corrected = sample(
        denoiser, again, sampler, cond=cond, edits=[*edits, safety], start=start, temperature=temperature
    )
    return TwoPhase(predicted, corrected)

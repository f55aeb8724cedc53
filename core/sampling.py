"""The one sampling loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from core.denoiser import Denoiser
from core.edits import Edit
from core.noise import keys_of, normal
from core.samplers import Memory, Sampler, Step


@dataclass(frozen=True)
class WarmStart:
    """Start from a known sample x0 [B, ...], noised to time `level`, instead of from pure noise at t = 1."""

    x0: Tensor
    level: float


@dataclass(frozen=True)
class Sample:
    """x [B, ...]; trace: each iterate as it entered the network, and the result; faults [B]: x is not finite."""

    x: Tensor
    trace: tuple[Tensor, ...]
    faults: Tensor


def sample(
    denoiser: Denoiser,
    noise: Tensor,
    sampler: Sampler,
    *,
    cond: Tensor | None = None,
    edits: Sequence[Edit] = (),
    start: WarmStart | None = None,
    temperature: float = 1.0,
    grad: bool = False,
    trace: bool = False,
) -> Sample:
    """Draw one sample for each row of `noise`.

    Args:
        denoiser: (x, t, cond) -> x0, already wrapped in whatever guidance.
        noise: standard normal [B, ...]. It is the only randomness: stochastic samplers draw what they need later from
            a hash of each sample's first noise, so a sample does not depend on the rest of its batch.
        sampler: the grid and the step.
        cond: condition [B, ...] handed to the denoiser.
        edits: applied in order at each of their hooks.
        start: warm start.
        temperature: factor on the initial noise; 0.5 is Decision Diffuser's and MADiff's "low temperature".
        grad: keep the graph, for losses on the result.
        trace: keep every iterate.

    Nothing in the loop waits for the device: faults are flags to be read afterwards.
    """
    schedule = denoiser.schedule
    grid = sampler.grid(schedule, start.level if start else 1.0)
    with torch.set_grad_enabled(grad):
        first = grid[0].start
        x = first.sigma * temperature * noise
        if start:
            x = x + first.alpha * start.x0
        draws = _LaterNoise(noise)
        memory: Memory = None
        iterates = []
        for step in grid:
            for edit in edits:
                x = edit.before(x, step)
            if trace:
                iterates.append(x)
            denoise = partial(_estimate, denoiser, cond, edits, step)
            x_new, memory = sampler.step(x, denoise, step, memory, partial(draws, step.index))
            for edit in edits:
                x_new = edit.after(x_new, x, step)
            x = x_new
        for edit in edits:
            x = edit.finish(x)
    faults = ~torch.isfinite(x.detach()).reshape(len(x), -1).all(dim=1)
    return Sample(x, (*iterates, x) if trace else (), faults)


def _estimate(denoiser: Denoiser, cond: Tensor | None, edits: Sequence[Edit], step: Step, x: Tensor) -> Tensor:
    """The clean estimate at the step's start, edits applied."""
    x0 = denoiser(x, torch.full((), step.start.t, dtype=torch.float64, device=x.device), cond)
    for edit in edits:
        x0 = edit.estimate(x0, x, step)
    return x0


class _LaterNoise:
    """Noise for the steps, from a hash of the first noise that is computed when a step first asks for any."""

    def __init__(self, first: Tensor):
        self.first = first
        self.keys: Tensor | None = None

    def __call__(self, stream: int) -> Tensor:
        if self.keys is None:
            self.keys = keys_of(self.first)
        return normal(self.keys, self.first.shape[1:], stream, self.first.dtype)

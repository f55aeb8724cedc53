"""The one sampling loop."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from core.denoiser import AnyDenoiser, Condition, Denoiser, Time, Walk, as_denoiser
from core.edits import Edit
from core.noise import keys_of, normals
from core.samplers import Memory, Sampler, Step
from core.schedules import Schedule


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

    def first_fault(self) -> Tensor:
        """Place [B] in the trace of each sample's first iterate that is not finite, which the step before it made;
        len(trace) where all are.

        Raises:
            ValueError: no trace was kept.
        """
        if not self.trace:
            raise ValueError("where samples cease to be finite shows in their trace: sample(..., trace=True) keeps it")
        return torch.stack([_finite(x) for x in self.trace]).cumprod(dim=0).sum(dim=0)


def sample(
    denoiser: Denoiser | AnyDenoiser,
    noise: Tensor,
    sampler: Sampler,
    *,
    cond: Condition | None = None,
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
        cond: condition [B, ...] handed to the denoiser, or several for guidance that composes them.
        edits: applied in order at each of their hooks.
        start: warm start.
        temperature: factor on the initial noise; 0.5 is MADiff's "low temperature".
        grad: keep the graph, for losses on the result.
        trace: keep every iterate.

    Nothing in the loop waits for the device: faults are flags to be read afterwards.
    """
    denoiser = as_denoiser(denoiser)
    level = start.level if start else 1.0
    grid = sampler.grid(denoiser.schedule, level)
    walk = Walk(_times(sampler, denoiser.schedule, level, noise.device))
    draw = _LaterNoise(noise, sum(sampler.draws(step) + (step.renoise is not None) for step in grid))
    with torch.set_grad_enabled(grad):
        first = grid[0].start
        if start:
            if start.x0.shape != noise.shape:
                raise ValueError(f"a warm start has the noise's shape {list(noise.shape)}, got {list(start.x0.shape)}")
            x = first.alpha * start.x0.to(noise.dtype) + first.sigma * temperature * noise
        else:
            # A walk that begins below t = 1 ("leading" grids) takes noise for a sample of that level, as the papers do.
            x = (first.sigma if first.t == 1 else math.hypot(first.alpha, first.sigma)) * temperature * noise
        memory: Memory = None
        iterates = []
        for step in grid:
            if step.renoise:
                x = (step.renoise[0] * x).add(draw(), alpha=step.renoise[1])
            for edit in edits:
                x = edit.before(x, step)
            if trace:
                iterates.append(x)
            x_new, memory = sampler.step(x, _Estimate(denoiser, cond, edits, walk, step), step, memory, draw)
            for edit in edits:
                x_new = edit.after(x_new, x, step)
            x = x_new
        for edit in edits:
            x = edit.finish(x)
    return Sample(x, (*iterates, x) if trace else (), ~_finite(x.detach()))


def _finite(x: Tensor) -> Tensor:
    """Which samples [B] of x [B, ...] are finite."""
    return torch.isfinite(x).reshape(len(x), math.prod(x.shape[1:])).all(dim=1)


@dataclass(slots=True)
class _Estimate:
    """The clean estimate of an iterate at a step's start, edits applied; of another one for a sampler's second call."""

    denoiser: Denoiser
    cond: Condition | None
    edits: Sequence[Edit]
    walk: Walk
    present: Step

    def __call__(self, x: Tensor, step: Step | None = None) -> Tensor:
        if step is None:
            step = self.present
        else:
            for edit in self.edits:
                x = edit.before(x, step)
        x0 = self.denoiser(x, Time(step.start, self.walk, step.place), self.cond)
        if x0.shape != x.shape:
            raise ValueError(f"the denoiser made {list(x0.shape)} of a sample {list(x.shape)}: their shapes must agree")
        for edit in self.edits:
            x0 = edit.estimate(x0, x, step)
        return x0


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _times(sampler: Sampler, schedule: Schedule, start: float, device: torch.device) -> Tensor:
    """Times [N] of all calls of the denoiser, on the device; made once, since copying them there waits for it.

    They are ordinary tensors even where the first walk runs under torch.inference_mode().
    """
    times = []
    for step in sampler.grid(schedule, start):
        times += [step.start.t] if step.inner is None else [step.start.t, step.inner.start.t]
    return torch.tensor(times, dtype=torch.float64, device=device)


class _LaterNoise:
    """Fresh noise at every call, from a hash of the first noise that is computed when it is first asked for.

    Draws are made several at a time, as many as the walk may still need, within `CHUNK` numbers.
    """

    CHUNK = 1 << 16

    def __init__(self, first: Tensor, draws: int):
        self.first = first
        self.left = draws
        self.drawn: list[Tensor] = []
        self.keys: Tensor | None = None
        self.stream = 0

    def __call__(self) -> Tensor:
        if self.keys is None:
            self.keys = keys_of(self.first)
        if not self.drawn:
            count = max(1, min(self.left, self.CHUNK // max(1, self.first.numel())))
            streams = range(self.stream, self.stream + count)
            self.drawn = list(normals(self.keys, self.first.shape[1:], streams, self.first.dtype).flip(0))
            self.stream += count
            self.left -= count
        return self.drawn.pop()


def best_of(candidates: Tensor, score: Tensor | Callable[[Tensor], Tensor]) -> Tensor:
    """The best of n candidates for each of B.

    Args:
        candidates: [B, n, ...].
        score: [B, n], or a function of the flattened candidates [B n, ...] -> [B n]; the highest wins. One that is not
            a number never wins over one that is.

    Returns:
        [B, ...].
    """
    if candidates.ndim < 2 or candidates.shape[1] < 1:
        raise ValueError(f"candidates must be [B, n, ...] with n >= 1, got {list(candidates.shape)}")
    scores = score if isinstance(score, Tensor) else score(candidates.flatten(0, 1))
    if not isinstance(score, Tensor) and scores.shape == (math.prod(candidates.shape[:2]),):
        scores = scores.reshape(candidates.shape[:2])
    if scores.shape != candidates.shape[:2]:
        raise ValueError(f"scores must be {list(candidates.shape[:2])}, got {list(scores.shape)}")
    scores = scores if scores.is_floating_point() else scores.double()
    best = torch.nan_to_num(scores, nan=-torch.inf, neginf=torch.finfo(scores.dtype).min).argmax(dim=1)
    return candidates[torch.arange(len(candidates), device=candidates.device), best]

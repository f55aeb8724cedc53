"""From consecutive steps, as foreign files hold them, to trajectories."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from core.data.trajectories import Trajectories
from core.errors import UserError, nearest

#: What to do where a file does not say what was observed after an episode's last step.
FINALS = ("auto", "drop", "repeat")

_ROUNDING = 1e-5
_BLOCK = 1 << 16


@dataclass(frozen=True)
class ImportOptions:
    """How foreign data is read.

    Attributes:
        length: steps after which an episode is cut off where nothing else ends it, such as 25 in the particle
            environments; 0 for no such limit.
        terminal: whether what a file calls done or terminal is a termination, false where it is only the time limit;
            unless given, false for omar, whose files mark time limits, and true for the others.
        final: where a file does not say what was observed after an episode's last step: "drop" that step, the
            observation before it becoming the final one; "repeat" that observation as the final one; "auto" repeats it
            where the episode terminated, since no value follows it and the last reward counts, and drops otherwise.
        action_scale: actions are divided by it and must then be in [-1, 1]; 0 takes their largest magnitude.
        choices: number of discrete actions, 0 for as many as the data shows.
        agents: the first so many agents alone, 0 for all of them.
    """

    length: int = 0
    terminal: bool | None = None
    final: str = "auto"
    action_scale: float = 1.0
    choices: int = 0
    agents: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "choices", "agents"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.final not in FINALS:
            raise UserError(f"unknown final {self.final!r}: {nearest(self.final, FINALS)}")
        if not 0 <= self.action_scale < math.inf:
            raise UserError(f"action_scale must be finite and at least 0, got {self.action_scale}")


@dataclass(frozen=True)
class Imported:
    """What an importer read.

    Attributes:
        trajectories: [S, A, ...]. behaviours: names of its tags, none where the data is of one source.
        format: name in `FORMATS`, set by `import_foreign`.
        layout: "discrete" and "sizes" of `core.environments.TeamSpec`, where they apply.
        action_scale: what the actions were divided by.
        notes: sentences on what the files left open, and what was made of it.
    """

    trajectories: Trajectories
    behaviours: tuple[str, ...] = ()
    layout: dict[str, Any] = field(default_factory=dict)
    action_scale: float = 1.0
    notes: tuple[str, ...] = ()
    format: str = ""


@dataclass(frozen=True)
class Steps:
    """N consecutive steps of A agents. E episodes end at the steps `last`, the final one of which is N - 1.

    Attributes:
        where: the file or folder. actions_in: where its actions stand.
        observations, actions: of each agent, [N, O] and [N, U]; agents' O and U may differ. Discrete actions are [N].
        rewards, costs: [N, A]. last: [E], increasing. terminated: [E] bool.
        finals: of each agent, [E, O], what followed the episodes; None where the file does not say.
        legal: [N, A, U] bool, or None. discrete: whether the actions are choices.
        notes: sentences for the user.
    """

    where: str
    actions_in: Sequence[str]
    observations: Sequence[np.ndarray]
    actions: Sequence[np.ndarray]
    rewards: np.ndarray
    costs: np.ndarray
    last: np.ndarray
    terminated: np.ndarray
    finals: Sequence[np.ndarray] | None = None
    legal: np.ndarray | None = None
    discrete: bool = False
    notes: tuple[str, ...] = ()


def find_breaks(
    where: str, observations: Sequence[np.ndarray], following: Sequence[np.ndarray], done: np.ndarray
) -> np.ndarray:
    """Steps [N] after which the next step's observation is not the one that followed, for any agent.

    Raises:
        UserError: this is so for most steps, though not `done` [N]: the file does not hold them in their order.
    """
    steps = len(observations[0])
    broken = np.zeros(steps, bool)
    for values, after in zip(observations, following, strict=True):
        for first in range(0, steps - 1, _BLOCK):  # blocks keep a mapped file out of memory
            end = min(first + _BLOCK, steps - 1)
            same = np.isclose(values[first + 1 : end + 1], after[first:end], rtol=_ROUNDING, atol=_ROUNDING)
            broken[first:end] |= ~same.all(axis=1)
    unexplained = int((broken & ~done).sum())
    if 2 * unexplained > steps:
        raise UserError(
            f"{where} says of {unexplained} of its {steps} steps that something else followed than the next one's "
            "observation: steps must stand in the order they were made, not shuffled"
        )
    return broken


def find_ends(where: str, done: np.ndarray, breaks: np.ndarray, length: int) -> tuple[np.ndarray, list[str]]:
    """Last steps [E] of the episodes, and notes: where `done` or `breaks` [N] say so, at every `length` steps since, if
    it is not 0, and at the last step of all."""
    steps, notes = len(done), []
    known = done | breaks
    limit = np.zeros_like(known)
    if length:
        starts = np.maximum.accumulate(np.where(np.concatenate([[True], known[:-1]]), np.arange(steps), 0))
        limit = (np.arange(steps) - starts) % length == length - 1
    flagged, ends = done | limit, known | limit
    if not ends.any():
        notes.append(f"{where} marks no end of an episode: its {steps} steps are one; length=25 splits every 25 steps")
    elif flagged.any() and not flagged[-1]:  # breaks alone cannot tell of the last step
        unfinished = steps - 1 - int(np.flatnonzero(ends[:-1])[-1])
        notes.append(f"{where} ends within an episode: its last {unfinished} steps are one that was cut off")
    ends[-1] = True
    return np.flatnonzero(ends), notes


def assemble(parts: Sequence[Steps], names: Sequence[str], options: ImportOptions) -> Imported:
    """The trajectories of several recordings, tagged by their names if there is more than one.

    Raises:
        UserError: actions outside [-1, 1] after scaling, choices out of range or in some parts alone, or no episode
            with a step whose end is known.
    """
    discrete = parts[0].discrete
    if odd := [part.where for part in parts if part.discrete != discrete]:
        raise UserError(f"either {odd[0]} or {parts[0].where} holds choices, the other continuous actions: import one")
    scale = 1.0 if discrete else _action_scale(parts, options.action_scale)
    if discrete:
        parts = _one_hot(parts, options)
    notes, trajectories = [], []
    for part in parts:
        data, dropped = _trajectories(part, options.final, scale)
        trajectories.append(data)
        notes += [*part.notes, *dropped]
    joined = trajectories[0]
    if len(parts) > 1:
        tags = torch.arange(len(parts)).repeat_interleave(torch.tensor([data.episodes for data in trajectories]))
        joined = replace(Trajectories.concatenate(trajectories), tags=tags)
    sizes = [values.shape[1] for values in parts[0].observations]
    layout = ({"discrete": True} if discrete else {}) | ({"sizes": sizes} if len(set(sizes)) > 1 else {})
    return Imported(joined, tuple(names) if len(parts) > 1 else (), layout, scale, tuple(notes))


def _action_scale(parts: Sequence[Steps], scale: float) -> float:
    """What divides the actions, whose magnitude must not pass it; their largest one where it is 0."""
    found = [
        (float(bound), where)
        for part in parts
        for values, where in zip(part.actions, part.actions_in, strict=True)
        for bound in (values.min(), values.max())
    ]
    extreme, where = max(found, key=lambda one: abs(one[0]))
    scale = scale or abs(extreme) or 1.0
    if abs(extreme) > scale * (1 + _ROUNDING):
        raise UserError(
            f"{where} holds an action of {extreme:g}, outside [-{scale:g}, {scale:g}]: action_scale={abs(extreme):g} "
            "divides the actions by so much, action_scale=0 by the largest there is"
        )
    return scale


def _one_hot(parts: Sequence[Steps], options: ImportOptions) -> list[Steps]:
    """The parts with their choices one-hot."""
    if options.action_scale != 1:
        raise UserError(f"action_scale is for continuous actions: those of {parts[0].where} are choices")
    largest, where = max(
        (int(values.max()), where)
        for part in parts
        for values, where in zip(part.actions, part.actions_in, strict=True)
    )
    masked = {part.legal.shape[-1] for part in parts if part.legal is not None}
    count = options.choices or max(masked, default=largest + 1)
    if masked - {count}:
        raise UserError(f"choices={count}, but the legal actions of {parts[0].where} are masks of {max(masked)}")
    if largest >= count:
        raise UserError(f"{where} holds the choice {largest}, but there are {count}, counted from 0: set choices=")
    eye = np.eye(count, dtype=np.float32)
    return [replace(part, actions=[eye[values] for values in part.actions]) for part in parts]


def _trajectories(part: Steps, final: str, scale: float) -> tuple[Trajectories, list[str]]:
    """One recording's trajectories, and notes on the steps whose following observation is not known."""
    first = np.concatenate([[0], part.last[:-1] + 1])
    repeated = np.zeros(len(first), bool) if final == "drop" else (part.terminated | (final == "repeat"))
    known = np.ones_like(repeated) if part.finals is not None else repeated
    steps = part.last - first + known  # kept of each episode
    kept = steps > 0
    if not kept.any():
        raise UserError(f"{part.where} holds no episode of two steps or more: final=repeat keeps shorter ones")
    offsets = np.concatenate([[0], np.cumsum(steps[kept] + 1)])
    episode = np.repeat(np.flatnonzero(kept), steps[kept] + 1)
    # The step that each row begins. A last row begins none; it repeats the step before, or is a dropped step's.
    source = np.minimum(
        first[episode] + np.arange(offsets[-1]) - np.repeat(offsets[:-1], steps[kept] + 1), part.last[episode]
    )
    ends = offsets[1:] - 1
    observations, actions = _rows(part.observations, source), _rows(part.actions, source)
    rewards, costs = (np.asarray(values[source], np.float32) for values in (part.rewards, part.costs))
    np.clip(actions / scale, -1, 1, out=actions)
    for values in (actions, rewards, costs):
        values[ends] = 0
    if part.finals is not None:
        observations[ends] = _rows(part.finals, np.flatnonzero(kept))
    data = Trajectories(
        observations=torch.from_numpy(observations),
        actions=torch.from_numpy(actions),
        rewards=torch.from_numpy(rewards),
        costs=torch.from_numpy(costs),
        offsets=torch.from_numpy(offsets),
        terminated=torch.from_numpy((part.terminated & known)[kept]),
        legal=None if part.legal is None else torch.from_numpy(part.legal[source]),
    )
    return data, _final_notes(part, known, kept)


def _rows(arrays: Sequence[np.ndarray], source: np.ndarray) -> np.ndarray:
    """Rows of each agent's array, side by side in float32 [S, A, size], shorter ones padded with zeros."""
    rows = np.zeros((len(source), len(arrays), max(values.shape[1] for values in arrays)), np.float32)
    for agent, values in enumerate(arrays):
        rows[:, agent, : values.shape[1]] = values[source]
    return rows


def _final_notes(part: Steps, known: np.ndarray, kept: np.ndarray) -> list[str]:
    if part.finals is not None:
        return []
    notes = []
    if known.any():
        notes.append(
            f"{part.where} does not say what was observed after an episode's last step: in {known.sum()} episodes "
            "the observation before it stands as the final one too"
        )
    if not known.all():
        lost = f", which leaves nothing of {(~kept).sum()}" if not kept.all() else ""
        notes.append(
            f"{part.where} does not say what was observed after an episode's last step: "
            f"that step is dropped in {(~known).sum()} episodes{lost}"
        )
    return notes

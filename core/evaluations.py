"""A run's evaluations: a file of one JSON line for each row, which only ever grows."""

import fcntl
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from core.errors import UserError
from core.files import reason


@dataclass(frozen=True)
class Row:
    """One evaluation of one trained run.

    Attributes:
        dataset, method: what it was trained on, and its algorithm's preset.
        sampler: what it planned with, "" for a method that does not sample. sampler_steps: of it, None without.
        guidance_scale, returns: what was asked of it; None where the method takes no such request.
        return_mean: over episodes, of the team's mean return. interval: its 95% confidence interval, infinite for a
            single episode.
        normalised_score: 0 is the random, 100 the scripted expert team; None without references.
        cost_mean: over episodes, of the summed costs per agent. cost_low, cost_high: its 95% confidence interval, None
            for a single episode. cost_worst, cost_tail: the highest, and the mean of the worst tenth (CVaR).
        episodes: how many; seed: of the first.
        budget, violation_rate: what an episode might cost, and the share of episodes above it; None without.
        seconds_per_decision: of the policy, for one team, with this many `teams` in one call; None where the call was
            shared with other cells.
        shift: how the environments differed from those trained for, "" where they did not.
        training_steps, training_seconds: of the run, when it was evaluated. version: of the suite, with its commit.
    """

    dataset: str
    method: str
    sampler: str
    guidance_scale: float | None
    returns: float | None
    return_mean: float
    interval: tuple[float, float]
    normalised_score: float | None
    cost_mean: float
    episodes: int
    seed: int
    seconds_per_decision: float | None
    teams: int
    training_steps: int
    training_seconds: float
    sampler_steps: int | None = None
    budget: float | None = None
    violation_rate: float | None = None
    cost_low: float | None = None
    cost_high: float | None = None
    cost_worst: float | None = None
    cost_tail: float | None = None
    version: str = ""
    shift: str = ""

    @property
    def cell(self) -> "Cell":
        """What was evaluated."""
        return Cell(**{field.name: getattr(self, field.name) for field in fields(Cell)})

    def as_json(self) -> dict[str, Any]:
        """Plain data; an infinite interval, which JSON has no number for, is null."""
        interval = list(self.interval) if math.isfinite(self.interval[0]) else None
        return {**asdict(self), "interval": interval}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Row":
        """The row of `as_json`.

        Raises:
            TypeError, ValueError: an entry is missing, unknown, or not of its type.
        """
        low, high = values["interval"] or (-math.inf, math.inf)
        row = Row(**{**values, "interval": (low, high)})
        for name, kinds in _KINDS.items():
            value = getattr(row, name)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise TypeError(f"{name} is {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}")
        if not (isinstance(low, float) and isinstance(high, float) and low <= high):
            raise ValueError(f"interval is {[low, high]}")
        return row


def _kinds(hint: Any) -> tuple[type, ...]:
    kinds = get_args(hint) or (hint,)
    return (*kinds, int) if float in kinds else kinds


_KINDS = {name: _kinds(hint) for name, hint in get_type_hints(Row).items() if name != "interval"}


@dataclass(frozen=True)
class Cell:
    """One point of a grid over the sampling side of a run: a row of the same cell is its result."""

    sampler: str
    sampler_steps: int | None
    guidance_scale: float | None
    returns: float | None
    episodes: int
    seed: int
    budget: float | None
    training_steps: int
    shift: str = ""


def read_rows(path: Path) -> list[Row]:
    """Rows of a file; none where there is no file. A last line that a kill cut short is no row.

    Raises:
        UserError: it cannot be read.
    """
    if not path.exists():
        return []
    number = 0
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        rows = []
        for number, line in enumerate(lines, start=1):  # noqa: B007
            rows.append(Row.from_json(json.loads(line)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        where = f"{path}, line {number}," if number else path
        raise UserError(f"{where} cannot be read: {error}; delete it and evaluate again") from error
    return rows


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add rows, all of them or none; several processes may do so.

    Raises:
        UserError: the disk is full or the file read-only; what it held before is still there.
    """
    lines = "".join(json.dumps(row.as_json(), allow_nan=False) + "\n" for row in rows).encode()
    try:
        with path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            whole = _end_of_last_line(file.fileno())
            file.truncate(whole)
            try:
                if file.write(lines) != len(lines):
                    raise OSError(28, "No space left on device")
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(whole)
                raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}; free the disk or choose another folder") from error


def _end_of_last_line(descriptor: int) -> int:
    """Where the last whole line ends; what follows was cut short by a kill."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 4096)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0

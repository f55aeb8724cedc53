"""The protocol checklist of "Dispelling the Mirage of Progress in Offline MARL" (Formanek et al. 2024, 2406.09068)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

EPISODES = 32
SEEDS = 10


@dataclass(frozen=True)
class Facts:
    """What is known of how one method was trained and evaluated; None where it was not stated.

    Attributes:
        method: its name in the table. datasets: fingerprints of all data it was trained on.
        seeds: of its trainings. episodes: of each evaluation.
        steps, seconds: of each training, or the least and the most of them.
        tuning_trials: configurations tried before the one in the table, 0 for none.
        selected_on_test: a checkpoint or a setting was chosen by the episodes in the table.
        cloning: it imitates the data (behavioural cloning) and serves as that baseline.
    """

    method: str
    datasets: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    episodes: int | None = None
    steps: int | tuple[int, int] | None = None
    seconds: float | tuple[float, float] | None = None
    tuning_trials: int | None = None
    selected_on_test: bool | None = None
    cloning: bool = False


@dataclass(frozen=True)
class Check:
    """One point of the protocol: its name, whether it is met, what was found and what is wanted."""

    name: str
    met: bool
    found: str
    wanted: str


def protocol(facts: Sequence[Facts]) -> list[Check]:
    """The seven points, for the methods of one table. What is not stated is not met.

    Raises:
        ValueError: no methods, or two of one name.
    """
    names = [one.method for one in facts]
    if not names:
        raise ValueError("facts is empty: give the Facts of every method in the table")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"facts has {', '.join(twice)} more than once: give one Facts for each method")
    return [
        _same("common data", facts, _data, "every method trained on the same datasets"),
        _cloning(facts),
        _same("equal tuning", facts, lambda one: _count(one.tuning_trials, "trials"), "as many tuning trials for each"),
        _budget(facts),
        _selection(facts),
        _least("episodes", facts, lambda one: one.episodes, EPISODES, "episodes"),
        _least("seeds", facts, lambda one: None if one.seeds is None else len(set(one.seeds)), SEEDS, "seeds"),
    ]


def protocol_lines(checks: Sequence[Check]) -> list[str]:
    """A line for each check: "met: NAME: FOUND", or "not met: NAME: FOUND (wanted: WANTED)"."""
    return [
        f"met: {check.name}: {check.found}"
        if check.met
        else f"not met: {check.name}: {check.found} (wanted: {check.wanted})"
        for check in checks
    ]


def _data(one: Facts) -> str | None:
    return ", ".join(sorted(set(one.datasets))) if one.datasets else None


def _count(value: float | None, unit: str) -> str | None:
    """ "1 seed", "5 seeds"; None where there is no number."""
    return None if value is None else f"{value:,} {unit.removesuffix('s') if value == 1 else unit}"


def _found(facts: Sequence[Facts], say: Callable[[Facts], str | None]) -> str:
    """What the methods say, those that say the same named together; "not stated" where one says nothing."""
    groups: dict[str, list[str]] = {}
    for one in facts:
        groups.setdefault(say(one) or "not stated", []).append(one.method)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{value} ({_listed(methods)})" for value, methods in groups.items())


def _listed(names: Sequence[str]) -> str:
    """Names with commas between them, in quotes where one has a comma of its own."""
    return ", ".join(repr(name) if "," in name else name for name in names)


def _same(name: str, facts: Sequence[Facts], say: Callable[[Facts], str | None], wanted: str) -> Check:
    """Met where all say the same, and none of them a range: trainings of a method that differ are not one budget."""
    said = [say(one) for one in facts]
    met = None not in said and len(set(said)) == 1 and " to " not in str(said[0])
    return Check(name, met, _found(facts, say), wanted)


def _least(name: str, facts: Sequence[Facts], number: Callable[[Facts], int | None], least: int, unit: str) -> Check:
    met = all((number(one) or 0) >= least for one in facts)
    return Check(name, met, _found(facts, lambda one: _count(number(one), unit)), f"{least} or more {unit}")


def _cloning(facts: Sequence[Facts]) -> Check:
    clones = [one.method for one in facts if one.cloning]
    found = _listed(clones) if clones else "none stated"
    return Check("cloning", bool(clones), found, "behavioural cloning among the baselines")


def _selection(facts: Sequence[Facts]) -> Check:
    words = {None: None, False: "none", True: "selected on test"}
    met = all(one.selected_on_test is False for one in facts)
    found = _found(facts, lambda one: words[one.selected_on_test])
    return Check("no selection on test", met, found, "nothing chosen by the episodes in the table")


def _budget(facts: Sequence[Facts]) -> Check:
    """Equal steps, or else equal seconds."""
    wanted = "the same training steps for each, or the same seconds"
    steps = _same("training budget", facts, lambda one: _range(one.steps, "steps"), wanted)
    seconds = _same("training budget", facts, lambda one: _range(one.seconds, "seconds"), wanted)
    return seconds if seconds.met and not steps.met else steps


def _range(value: float | tuple[float, float] | None, unit: str) -> str | None:
    """As `_count`, or from the least to the most."""
    if not isinstance(value, tuple):
        return _count(value, unit)
    low, high = value
    return _count(low, unit) if low == high else f"{low:,} to {high:,} {unit}"

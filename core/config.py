"""Hydra composition with one clear line for every mistake.

Groups of YAML files in `configs` choose among presets; the dataclasses beside the code hold the real defaults, the
types and the checks. Hydra alone answers a bad override with several lines and a traceback.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import cache
from itertools import product
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core.errors import UserError, nearest


def register(name: str, node: type, group: str | None = None) -> None:
    """Make a dataclass a schema that the YAML files build on."""
    ConfigStore.instance().store(name=name, node=node, group=group)


def compose_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration `name` of the package `configs`.

    Raises:
        UserError: an override is malformed, names no known key or choice, or has a value of the wrong type.
    """
    parsed = _parse(overrides)
    with initialize_config_module("configs", version_base="1.3"):
        for override in parsed:
            _check_choice(override)
        try:
            return compose(name, [_line(override) for override in parsed])
        except (HydraException, OmegaConfBaseException) as error:
            defaults = compose(name, [_line(o) for o in parsed if _presets(o.key_or_group)])
            free = _mappings(defaults)
            if any(_within(override, free) for override in parsed):
                # Hydra takes new entries of a mapping after ++ alone.
                with suppress(HydraException, OmegaConfBaseException):
                    return compose(name, [f"++{_line(o)}" if _within(o, free) else _line(o) for o in parsed])
            known = sorted({*_keys(defaults), *map(str, defaults), *free})
            for override in parsed:
                if not _within(override, free):
                    _check_key(override, known)
            reason = error.__cause__ or error
            raise UserError(
                f"{_first_line(error)}: {_first_line(reason)}" if error.__cause__ else _first_line(error)
            ) from error


def compose_all(name: str, combinations: Sequence[Sequence[str]]) -> list[DictConfig]:
    """`compose_config` of each combination of overrides. Hydra takes a tenth of a second; it is asked once for each
    combination of presets, and other values are set in its result."""
    bases: dict[tuple[str, ...], DictConfig] = {}
    composed = []
    for combination in combinations:
        parsed = _parse(combination)
        choices = tuple(_line(override) for override in parsed if override.key_or_group in _groups())
        if choices not in bases:
            bases[choices] = compose_config(name, choices)
        config = deepcopy(bases[choices])
        try:
            for override in parsed:
                if override.key_or_group not in _groups():
                    OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:
            config = compose_config(name, combination)  # whose error says what is wrong
        composed.append(config)
    return composed


@cache
def _groups() -> frozenset[str]:
    with initialize_config_module("configs", version_base="1.3"):
        return frozenset(GlobalHydra.instance().config_loader().list_groups(""))


def to_object(config: DictConfig) -> Any:
    """The dataclass that a configuration node stands for, checked by its own `__post_init__`.

    Raises:
        UserError: a value is missing, of the wrong type or out of range.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]}= is missing: it has no default")
    try:
        return OmegaConf.to_object(config)
    except ValueError as error:
        raise UserError(_first_line(error)) from error
    except OmegaConfBaseException as error:
        cause = error.__cause__
        raise UserError(_first_line(cause if isinstance(cause, ValueError) else error)) from error


def quoted(text: str) -> str:
    """A value in quotes, as an override takes any text."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def grid(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Every combination of overrides whose values are lists with commas, the last one varying fastest.

    Raises:
        UserError: an override is malformed.
    """
    choices = []
    for override in _parse(overrides):
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([_line(override)])
    return (list(combination) for combination in product(*choices))


def swept(overrides: Sequence[str]) -> list[str]:
    """Names of the options whose values are lists with commas."""
    return [override.key_or_group for override in _parse(overrides) if override.is_sweep_override()]


def from_dict(cls: type, values: dict[str, Any], where: str) -> Any:
    """Build a configuration dataclass from a saved dictionary, with the same checks as from the command line.

    Raises:
        UserError: an unknown key, a wrong type or a value out of range.
    """
    try:
        return to_object(OmegaConf.merge(OmegaConf.structured(cls), values))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        raise UserError(f"{where} does not fit {cls.__name__}: {_first_line(error)}") from error


def _parse(overrides: Sequence[str]) -> list[Override]:
    return [_parse_one(override) for override in overrides]


def _parse_one(override: str) -> Override:
    name, equals, value = override.partition("=")
    if not equals or not name or name.startswith("-"):
        raise UserError(f"{override!r} is not an option: write name=value")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        raise UserError(f"{override!r} is not an option: {name!r} is no name; write name=value, without + or ~ or @")
    parser = OverridesParser.create()
    # What Hydra's grammar cannot read, such as ~/runs, is meant as it stands unless it looks like a list.
    for attempt in (override, f"{name}='{value}'") if not set(value) & set("[]{}(),'\"\\") else (override,):
        with suppress(HydraException):
            parsed = parser.parse_override(attempt)
            if isinstance(parsed.value(), Glob):
                raise UserError(f"{override!r} is not an option: name the choices, separated by commas")
            return parsed
    raise UserError(f"{override!r} cannot be read: close its brackets and quotes, or put the value in quotes")


def presets(group: str) -> list[str]:
    """Choices of a configuration group, nested ones by their paths; empty where there is no such group."""
    with initialize_config_module("configs", version_base="1.3"):
        return _presets(group)


def _presets(group: str) -> list[str]:
    loader = GlobalHydra.instance().config_loader()

    def walk(path: str, prefix: str) -> list[str]:
        names = [prefix + name for name in loader.get_group_options(path) if not name.startswith("schema")]
        for child in loader.list_groups(path):
            names += walk(f"{path}/{child}", f"{prefix}{child}/")
        return names

    return walk(group, "") if "." not in group and group in loader.list_groups("") else []


def _line(override: Override) -> str:
    """The override as Hydra reads it."""
    assert override.input_line is not None
    return override.input_line


def _check_choice(override: Override) -> None:
    options = _presets(override.key_or_group)
    value = override.value()
    if options and value not in options:
        written = _line(override).partition("=")[2]
        raise UserError(f"unknown {override.key_or_group} {written!r}: {nearest(written, options)}")


def _check_key(override: Override, known: list[str]) -> None:
    key = override.key_or_group
    if key not in known and not _presets(key):
        raise UserError(f"unknown option {key!r}: {nearest(key, known)}")


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in config:
        name = f"{prefix}{key!s}"
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none():
            keys += _keys(node, f"{name}.")
        else:
            keys.append(name)
    return keys


def _mappings(config: DictConfig, prefix: str = "") -> list[str]:
    """Options that are mappings with entries of any name, such as task.options."""
    found = []
    for key in config:
        name, node = f"{prefix}{key!s}", config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none():
            found += [name] if OmegaConf.get_type(node) is dict else _mappings(node, f"{name}.")
    return found


def _within(override: Override, mappings: Sequence[str]) -> bool:
    """Whether an override is of a mapping or of an entry of it."""
    return any(f"{override.key_or_group}.".startswith(f"{key}.") for key in mappings)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def differences(saved: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Keys at which two configurations, as plain dictionaries, differ."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        found = []
        for key in sorted(saved.keys() | wanted.keys()):
            found += differences(saved.get(key), wanted.get(key), f"{prefix}{key}.")
        return found
    return [] if saved == wanted else [f"{prefix[:-1]} was {saved}, is {wanted}"]

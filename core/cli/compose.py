"""From a verb's arguments to its checked configuration."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from core.cli.commands import register_schemas
from core.config import compose_all, grid, presets, to_object
from core.errors import UserError
from core.progress import console

#: Options that are short for one of a group.
_SHORT = re.compile(r"^(budget)(?==)")


def configure(verb: str, arguments: Sequence[str]) -> Any | None:
    """The verb's command object; None where the arguments asked for help or for the configuration alone."""
    commands = configure_grid(verb, arguments)
    if len(commands) > 1:
        raise UserError(
            f"convoy {verb} takes one value for each option; commas make a grid in convoy evaluate and convoy sweep"
        )
    return commands[0] if commands else None


def configure_grid(verb: str, arguments: Sequence[str]) -> list[Any]:
    """One command object for each combination of the arguments' comma lists, all checked before any runs."""
    return [command for _, command in configure_each(verb, arguments)]


def configure_each(verb: str, arguments: Sequence[str]) -> list[tuple[list[str], Any]]:
    """`configure_grid` with each combination beside its command object."""
    register_schemas()
    flags = {argument for argument in arguments if argument in ("-h", "--help", "--cfg")}
    overrides = [_SHORT.sub(r"guidance.\1", argument) for argument in arguments if argument not in flags]
    combinations = list(grid(overrides))
    composed = compose_all(verb, combinations)
    if flags:
        if flags != {"--cfg"}:
            console.print(_help(verb, composed[0]), markup=False, highlight=False)
        console.print(OmegaConf.to_yaml(composed[0]), markup=False, highlight=False)
        return []
    return [(options, to_object(config)) for options, config in zip(combinations, composed, strict=True)]


def _help(verb: str, config: DictConfig) -> str:
    """What a verb does, its own options, the presets of its groups; the defaults of all options follow it."""
    command = OmegaConf.get_type(config)
    lines = [f"convoy {verb} [name=value ...]", "", inspect.getdoc(command) or "", "", "Presets:"]
    choices = {str(key): presets(str(key)) for key in config}
    lines += [f"    {group}={' | '.join(names)}" for group, names in choices.items() if names]
    return "\n".join([*(lines if any(choices.values()) else lines[:-2]), "", "Options and their defaults:", ""])

"""From a verb's arguments to its checked configuration."""

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from core.cli.commands import register_schemas
from core.config import compose_config, grid, to_object
from core.progress import console


def configure(verb: str, arguments: Sequence[str]) -> Any | None:
    """The verb's command object; None where the arguments asked for help or for the configuration alone."""
    commands = configure_grid(verb, arguments)
    return commands[0] if commands else None


def configure_grid(verb: str, arguments: Sequence[str]) -> list[Any]:
    """One command object for each combination of the arguments' comma lists, all checked before any runs."""
    register_schemas()
    flags = {argument for argument in arguments if argument in ("-h", "--help", "--cfg")}
    overrides = [argument for argument in arguments if argument not in flags]
    composed = [compose_config(verb, combination) for combination in grid(overrides)]
    if flags:
        node = OmegaConf.get_type(composed[0])
        if flags != {"--cfg"} and node is not None:
            console.print(f"convoy {verb} [name=value ...]\n\n{node.__doc__}", markup=False, highlight=False)
        console.print(OmegaConf.to_yaml(composed[0]), markup=False, highlight=False)
        return []
    return [to_object(config) for config in composed]

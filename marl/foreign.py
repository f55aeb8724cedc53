"""Environments made elsewhere: any of PettingZoo's or Gymnasium's by name or import path, and multi-agent MuJoCo."""

import importlib
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pettingzoo
from gymnasium.error import Error as GymnasiumError
from pettingzoo import AECEnv, ParallelEnv

from core.errors import UserError, nearest
from core.mujoco import hear, import_mujoco
from core.single import SingleAgentEnv

MAMUJOCO = "mamujoco/"
GYMNASIUM = "gym/"

#: What makers raise of options that they cannot take, or for want of a package.
_REFUSALS: tuple[type[Exception], ...] = (TypeError, ValueError, LookupError, AssertionError, NotImplementedError)
_REFUSALS += (OSError, ImportError, GymnasiumError)

_REGISTERED = re.compile(r"[\w.-]+/[\w.-]+[-_]v\d+")


def is_foreign(name: str) -> bool:
    """Whether a task's name is an import path, Gymnasium's, one that PettingZoo registers, or multi-agent MuJoCo's."""
    path = "/" not in name and ("." in name or ":" in name)
    return path or name.startswith((MAMUJOCO, GYMNASIUM)) or _REGISTERED.fullmatch(name) is not None


def gymnasium_id(name: str) -> str:
    """Gymnasium's id of the environment of a task's name, without the module that registers it; "" for other names."""
    return name.removeprefix(GYMNASIUM).rpartition(":")[2] if name.startswith(GYMNASIUM) else ""


def foreign_env(name: str, options: Mapping[str, Any]) -> ParallelEnv:
    """The environment of a name.

    Args:
        name: "module:attribute", the attribute being a callable that returns a ParallelEnv or a gymnasium.Env, which
            becomes a team of one; "module", of which `parallel_env` is called, as PettingZoo's modules have it; what
            PettingZoo registers it as, such as "classic/rps-v2"; "gym/ID" of what Gymnasium registers, such as
            "gym/Pendulum-v1", or "gym/MODULE:ID" where a module must be imported for that; or
            "mamujoco/SCENARIO-CONFIGURATION", such as "mamujoco/HalfCheetah-2x3" (the mamujoco extra). Modules of the
            working directory are found too.
        options: keyword arguments of the call, for Gymnasium's of gymnasium.make.

    Raises:
        UserError: there is no such module, attribute or name, the call fails, or it returns neither of the two.
    """
    if name.startswith(MAMUJOCO):
        return _mamujoco(name, options)
    make = _registered(name) if "/" in name else _imported(name)
    if mujoco := sys.modules.get("mujoco"):
        hear(mujoco)
    try:
        environment = make(**options)
    except _REFUSALS as error:
        raise UserError(_refused(name, options, error)) from error
    if isinstance(environment, gymnasium.Env):
        return SingleAgentEnv(environment)
    if isinstance(environment, ParallelEnv):
        return environment
    turns = "its agents act in turns; if they may act at once, " if isinstance(environment, AECEnv) else ""
    raise UserError(
        f"task.name={name} makes a {type(environment).__name__}, not a PettingZoo ParallelEnv or gymnasium.Env: {turns}"
        "wrap it, for example with pettingzoo.utils.conversions.aec_to_parallel"
    )


def _registered(name: str) -> Any:
    """What makes an environment that PettingZoo or Gymnasium has a name for."""
    if name.startswith(GYMNASIUM):
        return _of_gymnasium(name)
    registry = getattr(pettingzoo, "parallel_registry", None)
    if registry is None:
        raise UserError(f"task.name={name}: names need pettingzoo 1.27 or newer; install it, or give an import path")
    if name not in registry:
        raise UserError(
            f"task.name={name}: PettingZoo has no environment of that name in which agents act at once: "
            f"{nearest(name, registry)}"
        )
    return registry[name].make


def _of_gymnasium(name: str) -> Any:
    """What makes an environment that Gymnasium has a name for."""
    module, colon, _ = name.removeprefix(GYMNASIUM).partition(":")
    if colon:
        _module(name, module)
    known = gymnasium_id(name)
    if known not in gymnasium.registry:
        raise UserError(
            f"task.name={name}: Gymnasium has no environment {known!r}, unless importing a module registers it, which "
            f"gym/MODULE:ID does: {nearest(known, gymnasium.registry)}"
        )
    if re.search("mujoco|robotics", str(gymnasium.registry[known].entry_point)):
        with suppress(ImportError):  # of which gymnasium.make tells
            importlib.import_module("mujoco")  # heard of before it loads a model
    return partial(gymnasium.make, known)


def _module(name: str, module: str) -> ModuleType:
    """The module that a task's name begins with."""
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):  # the installed command looks in its own folder instead
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"task.name={name}: there is no module {error.name!r}; install its package, or run where it can be imported"
        ) from error
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"task.name={name}: {module} cannot be imported: {error}") from error


def _imported(name: str) -> Any:
    """The callable that an import path names."""
    module, _, attribute = name.partition(":")
    attribute = attribute or "parallel_env"
    imported = _module(name, module)
    try:
        make = attrgetter(attribute)(imported)
    except AttributeError as error:
        turns = "; its env is for agents in turns" if attribute == "parallel_env" and hasattr(imported, "env") else ""
        raise UserError(
            f"task.name={name}: module {module} has no {attribute!r}{turns}; "
            "write MODULE:CALLABLE, which returns a ParallelEnv or a gymnasium.Env"
        ) from error
    if not callable(make):
        raise UserError(
            f"task.name={name}: {attribute!r} is a {type(make).__name__}, which cannot be called; "
            "write MODULE:CALLABLE, which returns a ParallelEnv or a gymnasium.Env"
        )
    return make


def _refused(name: str, options: Mapping[str, Any], error: Exception) -> str:
    given = f"task.options={dict(options)}" if options else "no task.options"
    said = str(error).splitlines()
    return f"task.name={name} cannot be made with {given}: {type(error).__name__} {said[0] if said else ''}".rstrip()


def _mamujoco(name: str, options: Mapping[str, Any]) -> ParallelEnv:
    mamujoco_v1 = import_mujoco()
    scenario, _, configuration = name.removeprefix(MAMUJOCO).partition("-")
    try:
        return mamujoco_v1.parallel_env(scenario, configuration or None, **options)
    except Exception as error:
        # A configuration that it does not know is an Exception and nothing more.
        if type(error) is not Exception and not isinstance(error, _REFUSALS):
            raise
        raise UserError(f"{_refused(name, options, error)}; names are as mamujoco/HalfCheetah-2x3") from error

"""YAML read strictly into frozen dataclasses: a mistake is one line that names the key, the value and the mend."""

import math
from collections.abc import Hashable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from reprlib import repr as short
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from core.errors import UserError, nearest
from core.files import reason

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key if isinstance(key, Hashable) else None)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[Any, Any]:
    """The mapping that a YAML file holds.

    Raises:
        UserError: it cannot be read, is not YAML, gives a key twice or holds no mapping.
    """
    try:
        entries = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}; give the path of a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: {error.problem}; mend the YAML") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not YAML in UTF-8: {str(error).splitlines()[0]}") from error
    if not isinstance(entries, dict):
        raise UserError(f"{path} holds {short(entries)}: expected a mapping, lines of key: value")
    return entries


def build(cls: type[T], entries: Any, prefix: str = "") -> T:
    """A frozen dataclass from a YAML mapping: its fields' types say what is read, and its `__post_init__` checks it.

    Args:
        prefix: the way to this mapping, "budget." for one named budget; "" at the top.

    Raises:
        ValueError: an unknown or missing key, a wrong type, or what `__post_init__` refuses.
    """
    of_class: Any = cls
    known = [field.name for field in fields(of_class)]
    if not isinstance(entries, dict):
        raise ValueError(f"{prefix[:-1]} is {short(entries)}: expected a mapping with {', '.join(known)}")
    for key in entries:
        if key not in known:
            raise ValueError(f"{prefix}{key} is no key: {nearest(str(key), known)}")
    for field in fields(of_class):
        if field.name not in entries and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{prefix}{field.name} is missing: it has no default")
    kinds = get_type_hints(cls)
    values = {key: convert(value, kinds[key], f"{prefix}{key}") for key, value in entries.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def convert(value: Any, kind: Any, name: str) -> Any:
    """A YAML value as a type: text, numbers, choices, tuples, dictionaries with text keys, dataclasses, or None.

    Raises:
        ValueError: it is of another type.
    """
    if isinstance(kind, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        (kind,) = (other for other in get_args(kind) if other is not NoneType)
    if is_dataclass(kind):
        return build(kind, value, f"{name}.")  # type: ignore[arg-type]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name} is {short(value)}: {nearest(str(value), arguments)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{name} is {short(value)}: expected a list")
        return tuple(convert(item, arguments[0], f"{name}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {short(value)}: expected a mapping from labels")
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{name} has the label {key!r}: expected text, put it in quotes")
        return {key: convert(item, arguments[1], f"{name}.{key}") for key, item in value.items()}
    return _scalar(value, kind, name)


def _scalar(value: Any, kind: type, name: str) -> Any:
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number"}
    wanted = (int, float) if kind is float else (kind,)
    fits = isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))
    if not fits or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{name} is {short(value)}: expected {words[kind]}")
    return float(value) if kind is float else value

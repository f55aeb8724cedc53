"""Checkpoints: safetensors files with a digest, written whole or not at all. Nothing is unpickled."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import UserError
from core.files import reason, replacing

_DIGEST = "digest"


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(metadata.keys() - {_DIGEST}):
        digest.update(f"{name}={metadata[name]};".encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)};".encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and metadata in place of what `path` held.

    Raises:
        UserError: the disk is full or the folder read-only; what `path` held before is still there.
    """
    save_all([path], [(tensors, metadata)])


def save_all(paths: Sequence[Path], states: Sequence[tuple[dict[str, Tensor], dict[str, str]]]) -> None:
    """Write several checkpoints, each as `save`, so that `settle` finds all old ones or all new ones after a kill.

    Raises:
        UserError: the disk is full or a folder read-only; all files are what they were.
    """
    try:
        with ExitStack() as files:
            for path, (tensors, metadata) in zip(paths, states, strict=True):
                on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
                temporary = files.enter_context(replacing(path))
                save_file(on_cpu, temporary, metadata={**metadata, _DIGEST: _digest(on_cpu, metadata)})
            before = _before(paths) if len(paths) > 1 else {}
            for path, kept in before.items():
                kept.unlink(missing_ok=True)
                _copy(path, kept) if path.exists() else kept.touch()
        for kept in before.values():
            kept.unlink()
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write checkpoint {path}: {reason(error)}; the previous one is kept") from error


def _before(paths: Sequence[Path]) -> dict[Path, Path]:
    """Where each of several files keeps what it held before all of them are written; their number is in the name."""
    names = hashlib.blake2b("\n".join(path.parent.name for path in paths).encode(), digest_size=6).hexdigest()
    return {path: path.with_name(f".{path.stem}.{len(paths)}-{names}.before") for path in paths}


def _copy(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # a file system without links
        shutil.copyfile(path, to)


def settle(paths: Sequence[Path]) -> None:
    """Mend each `save_all` that was killed between two of its files, so that these are of one step again.

    What was before is kept for all files, then all are replaced, then what was before is removed. If all of them still
    have it, some may be new and some old, and all go back; otherwise none was replaced, or all were. A kill in here is
    mended by the next call: nothing that is kept is removed before all files are back.
    """
    kept: dict[str, list[tuple[Path, Path]]] = {}
    for path in paths:
        for before in sorted(path.parent.glob(f".{path.stem}.*.before")):
            kept.setdefault(before.name, []).append((path, before))
    for name, group in kept.items():
        if len(group) == int(name.split(".")[-2].split("-")[0]):
            for path, before in group:
                if before.stat().st_size:
                    with replacing(path) as temporary:
                        shutil.copyfile(before, temporary)
                else:
                    path.unlink(missing_ok=True)
        for _, before in group:
            before.unlink()


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint.

    Raises:
        UserError: no such file, or one that is cut short or changed.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: train the run first")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"checkpoint {path} is corrupt: {error}; delete it and train again") from error
    if metadata.get(_DIGEST) != _digest(tensors, metadata):
        raise UserError(
            f"checkpoint {path} is corrupt: its contents do not match their digest; delete it and train again"
        )
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a checkpoint, without its tensors.

    Raises:
        UserError: no such file, or one that is cut short.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: train the run first")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"checkpoint {path} is corrupt: {error}; delete it and train again") from error
    if not str(metadata.get("step")).isdecimal() or "seconds" not in metadata:
        raise UserError(f"checkpoint {path} is no training's: it says nothing of its step; delete it and train again")
    return dict(metadata)


def strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_state(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load a module's state dict.

    Raises:
        UserError: names or shapes differ from the module's.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {path} does not fit the run's configuration: {' '.join(str(error).split())}"
        ) from error


def optimiser_tensors(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimiser's state by parameter index and name."""
    state = optimiser.state_dict()["state"]
    return {
        f"{prefix}{index}.{name}": torch.as_tensor(value)
        for index, entry in state.items()
        for name, value in entry.items()
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load what `optimiser_tensors` gave, without its prefix, into an optimiser of the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def load_trained(module: nn.Module, path: Path) -> dict[str, str]:
    """Load a training's averaged weights into a module; returns the checkpoint's metadata.

    Raises:
        UserError: no checkpoint, a corrupt one, or one of another structure.
    """
    tensors, metadata = load(path)
    load_state(module, strip(tensors, "model.") | strip(tensors, "ema."), path)
    module.eval()
    return metadata

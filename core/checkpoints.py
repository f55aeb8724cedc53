"""Checkpoints: safetensors files with a digest, written whole or not at all. Nothing is unpickled."""

import hashlib
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
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(on_cpu, temporary, metadata={**metadata, _DIGEST: _digest(on_cpu, metadata)})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write checkpoint {path}: {reason(error)}; the previous one is kept") from error


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
            return file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"checkpoint {path} is corrupt: {error}; delete it and train again") from error


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

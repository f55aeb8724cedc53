"""Where tensors live."""

import re

import torch

from core.errors import UserError


def check_device(name: str, option: str = "device") -> None:
    """Check that `name` is "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: it is not.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"unknown {option} {name!r}: choose auto, cpu, cuda or cuda:N")


def device_of(name: str) -> torch.device:
    """The device a name stands for.

    Raises:
        UserError: CUDA is asked for where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {name} is not available here: use device=cpu")
    return torch.device(name)

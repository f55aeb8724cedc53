"""Where tensors live."""

import torch

from core.errors import UserError


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

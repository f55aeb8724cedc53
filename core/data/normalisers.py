"""Normalisers. They are affine, so that linear constraints carry over exactly."""

import torch
from torch import Tensor, nn

NORMALISERS = ("standard", "minmax")


class Affine(nn.Module):
    """normalised = (value - shift) / scale per entry, with statistics pooled over all other dimensions.

    "standard": zero mean and unit variance. "minmax": onto [-1, 1]. Entries that never change keep scale 1.
    `low` and `high` are the data's bounds in normalised units. The statistics are buffers, saved with the model.
    """

    shift: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, features: int, kind: str = "standard"):
        super().__init__()
        if kind not in NORMALISERS:
            raise ValueError(f"unknown normaliser {kind!r}: choose one of {', '.join(NORMALISERS)}")
        self.kind = kind
        for name, value in (("shift", 0.0), ("scale", 1.0), ("low", -1.0), ("high", 1.0)):
            self.register_buffer(name, torch.full((features,), value))

    def fit(self, values: Tensor) -> "Affine":
        """Take the statistics of values [..., features]."""
        flat = values.reshape(-1, values.shape[-1]).double()
        low, high = flat.amin(dim=0), flat.amax(dim=0)
        if self.kind == "standard":
            shift, scale = flat.mean(dim=0), flat.std(dim=0, correction=0)
        else:
            shift, scale = (low + high) / 2, (high - low) / 2
        scale = torch.where(scale > 1e-6, scale, 1.0)
        for name, value in (
            ("shift", shift),
            ("scale", scale),
            ("low", (low - shift) / scale),
            ("high", (high - shift) / scale),
        ):
            getattr(self, name).copy_(value)
        return self

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.shift) / self.scale

    def invert(self, normalised: Tensor) -> Tensor:
        return normalised * self.scale + self.shift

"""Counter-based noise: standard normal numbers that belong to a sample, not to its place in a batch.

A sample's key, the number of the draw and a counter are hashed to bits (the finaliser of SplitMix64, Steele et al.
2014), and bits become normal numbers by Box-Muller. The same key draws the same noise whatever the batch's size, on any
device, with no generator to carry about and no loop over samples.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio as a signed 64-bit integer
_MIX1 = -0x40A7B892E31B1A47
_MIX2 = -0x6B2FB644ECCEEE15


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _hash(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return z ^ _shift(z, 31)


def normal(
    keys: Tensor | Sequence[int], shape: Sequence[int], stream: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal noise [B, *shape] for B integer keys; another `stream` gives independent noise."""
    return normals(torch.as_tensor(keys, dtype=torch.int64), shape, range(stream, stream + 1), dtype)[0]


def normals(keys: Tensor, shape: Sequence[int], streams: range, dtype: torch.dtype = torch.float32) -> Tensor:
    """The noise of several streams at once, [len(streams), B, *shape]; keys: int64 [B]."""
    size = math.prod(shape)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    stream = torch.arange(streams.start + 1, streams.stop + 1, device=keys.device) * _GOLDEN
    state = _hash(_hash(keys * _GOLDEN + 1) + stream[:, None])[..., None]
    counter = torch.arange(1, (size + 1) // 2 + 1, device=keys.device) * _GOLDEN
    high, low = _hash(state + counter).view(torch.int32).unflatten(-1, (-1, 2)).unbind(-1)
    # 31 bits inside (0, 1] for the radius, 32 bits inside [-pi, pi] for the angle.
    radius = high.bitwise_and(0x7FFFFFFF).to(precise).add_(0.5).mul_(2.0**-31).log_().mul_(-2).sqrt_()
    angle = low.to(precise).mul_(math.pi * 2.0**-31)
    flat = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    flat = flat if size % 2 == 0 else flat[..., :size].contiguous()
    return flat.to(dtype).reshape(len(streams), len(keys), *shape)


def keys_of(noise: Tensor) -> Tensor:
    """An integer key [B] for each sample of initial noise [B, ...], from its bits: later noise hangs on the first."""
    bits = noise.detach().double().reshape(len(noise), math.prod(noise.shape[1:])).contiguous().view(torch.int64)
    counter = torch.arange(bits.shape[1], device=bits.device) * _GOLDEN
    return _hash(bits + counter).sum(dim=1)

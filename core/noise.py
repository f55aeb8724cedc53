"""Counter-based noise: standard normal numbers that belong to a sample, not to its place in a batch.

A sample's key and a counter are hashed to bits (the finaliser of SplitMix64, Steele et al. 2014), and bits become
normal numbers by Box-Muller. The same key draws the same noise whatever the batch's size, on any device, with no
generator to carry about and no loop over samples.
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


def _signed(number: int) -> int:
    """The number modulo 2^64 as a signed 64-bit integer."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _hash(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return z ^ _shift(z, 31)


def normal(
    keys: Tensor | Sequence[int], shape: Sequence[int], stream: int = 0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal noise [B, *shape] for B integer keys; another `stream` gives independent noise."""
    keys = torch.as_tensor(keys, dtype=torch.int64)
    size = math.prod(shape)
    pairs = (size + 1) // 2
    counter = torch.arange(2 * pairs, device=keys.device) * _GOLDEN
    key = _hash(_hash(keys * _GOLDEN + 1) + _signed((stream + 1) * _GOLDEN))
    bits = _shift(_hash(key[:, None] + counter), 11)  # 53 bits
    uniform = (bits.to(torch.float64) + 0.5) * 2.0**-53
    radius = torch.sqrt(-2 * torch.log(uniform[:, :pairs]))
    angle = (2 * math.pi) * uniform[:, pairs:]
    flat = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :size]
    return flat.to(dtype).reshape(-1, *shape)


def keys_of(noise: Tensor) -> Tensor:
    """An integer key [B] for each sample of initial noise [B, ...], from its bits: later noise hangs on the first."""
    bits = noise.detach().double().reshape(len(noise), -1).contiguous().view(torch.int64)
    counter = torch.arange(bits.shape[1], device=bits.device) * _GOLDEN
    return _hash(bits + counter).sum(dim=1)

"""Barriers across agents and across waypoints, and of any function."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from safe.barriers.base import COUPLINGS, Barrier, checked_entries


@dataclass(frozen=True)
class Separation(Barrier):
    """|x_i - x_j| - radius >= 0 for each pair i < j of agents, m = A (A - 1) / 2 of them, in the entries' units.

    It is convex: one projection of a waypoint's agents together, with a full step, ends apart. Agents at one point part
    along the first entry, in their order.
    """

    radius: float
    entries: tuple[int, ...] = (0, 1)
    couples = "agents"

    def __post_init__(self) -> None:
        if not 0 < self.radius < torch.inf:
            raise ValueError(f"agents need a positive distance to keep, got {self.radius}")
        object.__setattr__(self, "entries", checked_entries(self.entries))

    def at(self, block: Tensor) -> tuple[Tensor, Tensor]:
        agents = block.shape[-2]
        first, second = torch.triu_indices(agents, agents, 1, device=block.device)
        one = torch.eye(agents, dtype=block.dtype, device=block.device)
        distance, way = _way(block[..., first, :] - block[..., second, :])
        return distance - self.radius, (one[first] - one[second])[..., None] * way[..., None, :]


@dataclass(frozen=True)
class SpeedLimit(Barrier):
    """limit - |x_next - x| / interval >= 0 between consecutive waypoints, m = 1.

    It is concave: a projection may end too fast by a term of second order, and is repeated.

    Attributes:
        limit: in the entries' units per second. interval: seconds between waypoints.
    """

    limit: float
    interval: float = 1.0
    entries: tuple[int, ...] = (0, 1)
    couples = "steps"

    def __post_init__(self) -> None:
        if not 0 < self.limit < torch.inf or not 0 < self.interval < torch.inf:
            raise ValueError(f"a speed limit and its interval must be positive, got {self.limit} and {self.interval}")
        object.__setattr__(self, "entries", checked_entries(self.entries))

    def at(self, block: Tensor) -> tuple[Tensor, Tensor]:
        distance, way = _way(block[..., 1, :] - block[..., 0, :])
        slope = torch.stack([way, -way], dim=-2) / self.interval
        return (self.limit - distance / self.interval)[..., None], slope[..., None, :, :]


def _way(difference: Tensor) -> tuple[Tensor, Tensor]:
    """Length [...] and direction [..., d] of vectors; that of a vector of zeros is the first axis."""
    length = difference.norm(dim=-1)
    axis = (torch.arange(difference.shape[-1], device=difference.device) == 0).to(difference)
    nowhere = (length == 0)[..., None]
    return length, torch.where(nowhere, axis, difference / torch.where(nowhere, 1.0, length[..., None]))


@dataclass(frozen=True)
class FunctionBarrier(Barrier):
    """Any differentiable function; its gradient is taken by autograd, one pass for each of its m values, even under
    torch.no_grad() but not under torch.inference_mode().

    Attributes:
        function: blocks [..., d] -> [..., m], each by itself; [..., A, d] where it couples agents, [..., 2, d] where it
            couples steps. It is given physical units in float64.
        couples: "nothing", "agents" or "steps".
    """

    function: Callable[[Tensor], Tensor]
    entries: tuple[int, ...]
    couples: str = "nothing"

    def __post_init__(self) -> None:
        if self.couples not in COUPLINGS:
            raise ValueError(f"unknown couples={self.couples!r}: choose one of {', '.join(COUPLINGS)}")
        object.__setattr__(self, "entries", checked_entries(self.entries))

    def at(self, block: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_inference_mode_enabled():
            raise RuntimeError("gradients cannot be taken under torch.inference_mode(): use torch.no_grad()")
        own = 1 if self.couples == "nothing" else 2
        with torch.enable_grad():
            leaf = block.detach().requires_grad_()
            values = self.function(leaf)
            if values.ndim != block.ndim - own + 1 or values.shape[:-1] != block.shape[:-own]:
                raise ValueError(
                    f"a barrier's function maps blocks {list(block.shape)} to [{list(block.shape[:-own])}, m], "
                    f"got {list(values.shape)}"
                )
            if not values.requires_grad:
                raise ValueError("a barrier's function does not depend on its block, so that it has no gradient")
            slopes = [
                torch.autograd.grad(values[..., k].sum(), leaf, retain_graph=True)[0] for k in range(values.shape[-1])
            ]
        return values.detach(), torch.stack(slopes, dim=-own - 1)

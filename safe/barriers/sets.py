"""Barriers of one agent at one waypoint: half-spaces, boxes, heights, joint limits, ellipses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safe.barriers.base import Barrier, checked_entries

Numbers = Sequence[float] | Tensor | float


@dataclass(frozen=True, eq=False)
class HalfSpaces(Barrier):
    """normals @ x - offsets >= 0: m half-spaces, linear, so that one projection is exact.

    Attributes:
        normals: [m, d], or [d] for one; numbers are taken too. offsets: [m], in the units of normals times entries.
    """

    normals: Tensor
    offsets: Tensor
    entries: tuple[int, ...]

    def __post_init__(self) -> None:
        normals = torch.atleast_2d(_numbers("normals", self.normals))
        offsets = torch.atleast_1d(_numbers("offsets", self.offsets))
        if len(normals) != len(offsets) or not len(offsets) or bool((normals == 0).all(dim=1).any()):
            raise ValueError(
                f"half-spaces need normals [m, d] other than 0 and offsets [m], got {normals.tolist()} and "
                f"{offsets.tolist()}"
            )
        object.__setattr__(self, "normals", normals)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "entries", checked_entries(self.entries, normals.shape[1]))

    def at(self, block: Tensor) -> tuple[Tensor, Tensor]:
        normals = self.normals.to(block.device)
        values = block @ normals.T - self.offsets.to(block.device)
        return values, normals.expand(*values.shape, normals.shape[1])


def within(
    low: Numbers, high: Numbers, entries: Sequence[int], *, rates: Sequence[int] = (), lead: float = 0.0
) -> HalfSpaces:
    """low <= x <= high, or low <= x + lead * rate <= high: a box to stay inside, a largest height (also with the
    vertical velocity: SafeDiffuser's z + 0.1 v <= 1.4), joint limits (also with velocities: q + 0.05 v).

    Args:
        low, high: [d] or one number, in the entries' units; infinite where there is no such limit.
        rates: entries that hold the rates of change of `entries`, one each.
        lead: seconds that they are looked ahead by.

    Raises:
        ValueError: an empty range, no limit at all, or entries that do not fit.
    """
    places = checked_entries(entries)
    size = len(places)
    lows, highs = (torch.as_tensor(end, dtype=torch.float64).cpu() for end in (low, high))
    if not all(end.shape in ((), (size,)) for end in (lows, highs)) or not bool((lows <= highs).all()):
        raise ValueError(f"a range of {size} entries needs low <= high, a number or {size} each, got {low} and {high}")
    if bool(rates) != (lead != 0) or not math.isfinite(lead) or len(rates) not in (0, size):
        raise ValueError(
            f"rates need one entry for each of {places} and a lead other than 0, got {tuple(rates)}, {lead}"
        )
    axes = torch.eye(size, dtype=torch.float64)
    axes = torch.cat([axes, lead * axes], dim=1) if rates else axes
    normals, offsets = torch.cat([axes, -axes]), torch.cat([lows.expand(size), -highs.expand(size)])
    finite = offsets.abs() < torch.inf
    return HalfSpaces(normals[finite], offsets[finite], (*places, *rates))


@dataclass(frozen=True, eq=False)
class Ellipse(Barrier):
    """|z|_p - 1 >= 0 with z = (x - centre) / radii: outside an ellipse (p = 2), superellipse or box (p infinite).

    This has the zero set of SafeDiffuser's sum |z|^p >= 1, whose gradient vanishes at the centre so that moves explode
    near it; this one's has length 1 everywhere, in units of the radii and the dual norm. At the centre itself it points
    the shortest way out. The barrier is convex: one projection with a full step, grad . u + b >= 0, ends outside.

    Attributes:
        centre: [d], or that of a moving obstacle at each waypoint [..., T, d]; numbers are taken too.
        radii: [d], or one for all.
        power: p, at least 1, infinite for a box.
        inside: 1 - |z|_p >= 0 instead, to stay inside; it is concave, so that a projection may end outside by a term of
            second order, and is repeated.
    """

    centre: Tensor
    radii: Tensor
    power: float = 2.0
    inside: bool = False
    entries: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        entries = checked_entries(self.entries)
        centre, radii = _numbers("centre", self.centre), _numbers("radii", self.radii)
        if not centre.ndim or centre.shape[-1] != len(entries) or radii.shape not in ((), (len(entries),)):
            raise ValueError(
                f"an ellipse on the entries {entries} needs a centre [{len(entries)}] and as many radii, got "
                f"{list(centre.shape)} and {list(radii.shape)}"
            )
        if not bool((radii > 0).all()) or not self.power >= 1:
            raise ValueError(
                f"an ellipse needs positive radii and a power of at least 1, got {radii.tolist()} and {self.power}"
            )
        object.__setattr__(self, "centre", centre)
        object.__setattr__(self, "radii", radii.expand(len(entries)))
        object.__setattr__(self, "entries", entries)

    def at(self, block: Tensor) -> tuple[Tensor, Tensor]:
        centre, radii = self.centre.to(block.device), self.radii.to(block.device)
        if centre.ndim > 1:
            if centre.shape[-2] != block.shape[-3]:
                raise ValueError(f"an obstacle has {centre.shape[-2]} centres and the plan {block.shape[-3]} waypoints")
            centre = centre[..., None, :]
        length, slope = _norm((block - centre) / radii, self.power)
        centred = (length == 0)[..., None]
        shortest = (torch.arange(len(radii), device=radii.device) == radii.argmin()).to(slope.dtype)
        slope = torch.where(centred, shortest, slope) / radii
        sign = -1.0 if self.inside else 1.0
        return sign * (length - 1)[..., None], sign * slope[..., None, :]


def _norm(z: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """|z|_p [...] of z [..., d] and its gradient, 0 at 0; computed from z / max |z|, which no power under- or
    overflows."""
    size = z.abs()
    largest, place = size.max(dim=-1, keepdim=True)
    if power == math.inf:
        return largest.squeeze(-1), torch.zeros_like(z).scatter(-1, place, z.sign().gather(-1, place))
    shares = size / torch.where(largest > 0, largest, 1.0)
    root = shares.pow(power).sum(-1, keepdim=True).pow(1 / power)
    slope = z.sign() * (shares / torch.where(root > 0, root, 1.0)).pow(power - 1)
    return (largest * root).squeeze(-1), slope


def _numbers(name: str, values: Numbers) -> Tensor:
    found = torch.as_tensor(values, dtype=torch.float64)
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"a barrier's {name} must be finite, got {found.tolist()}")
    return found

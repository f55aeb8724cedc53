"""How particles move. Tensors have the batch last, [2, N, B]: loops over it run along memory."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from marl.particles.worlds import World

DT = 0.1
DAMPING = 0.25
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 1e-3


@dataclass(slots=True)
class Geometry:
    """Where everything is, seen from each body.

    Attributes:
        offsets: [2, N, M, B] from body to entity: goals, food and forests, then obstacles, then bodies.
        distances: [N, M, B].
    """

    offsets: Tensor
    distances: Tensor


class Physics:
    """Contact forces and integration of a world's bodies."""

    def __init__(self, world: World, device: torch.device, dtype: torch.dtype):
        self.first_velocity = world.rules == "omar"
        obstacles = world.places("obstacle")
        self.obstacles = len(obstacles)
        self.colliding = len(world.kinds) - self.obstacles  # entities from here on push each other
        self.forces = torch.tensor(world.forces, device=device, dtype=dtype)[:, None]
        self.top_speeds = torch.tensor(world.top_speeds, device=device, dtype=dtype)[:, None]
        self.limited = min(world.top_speeds) < math.inf
        sizes = torch.tensor(world.sizes, dtype=torch.float64)
        obstacle_sizes = torch.tensor([world.landmark_sizes[place] for place in obstacles], dtype=torch.float64)
        self.reach = (sizes[:, None] + torch.cat([obstacle_sizes, sizes])).to(device, dtype)[..., None]

    def geometry(self, positions: Tensor, landmarks: Tensor) -> Geometry:
        """Of bodies [2, N, B] and landmarks [2, L, B], whose obstacles come first."""
        if 0 < self.obstacles < landmarks.shape[1]:
            entities = torch.cat([landmarks[:, self.obstacles :], landmarks[:, : self.obstacles], positions], dim=1)
        else:
            entities = torch.cat([landmarks, positions], dim=1)
        offsets = entities[:, None] - positions[:, :, None]
        x, y = offsets.unbind(0)
        return Geometry(offsets, (x * x + y * y).sqrt_())

    def contact(self, geometry: Geometry) -> Tensor:
        """Force [2, N, B] on each body by all that it touches; two in the very same place push each other nowhere."""
        distances = geometry.distances[:, self.colliding :]
        penetration = F.softplus((self.reach - distances) / CONTACT_MARGIN, threshold=40.0) * CONTACT_MARGIN
        strength = penetration * -CONTACT_FORCE / distances.clamp(min=1e-9)
        return (geometry.offsets[:, :, self.colliding :] * strength).sum(dim=2)

    def move(self, positions: Tensor, velocities: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and velocities after a step; the fork moves bodies by their new velocities, mpe2 by the old."""
        after = self._limit(velocities * (1 - DAMPING) + force * DT)
        return positions + (after if self.first_velocity else velocities) * DT, after

    def _limit(self, velocities: Tensor) -> Tensor:
        if not self.limited:
            return velocities
        x, y = velocities.unbind(0)
        return velocities * (self.top_speeds / (x * x + y * y).sqrt_()).clamp_(max=1.0)

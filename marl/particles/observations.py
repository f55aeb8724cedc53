"""What bodies of the particle scenarios see, by one selection of rows, tensors with the batch last."""

import torch
from torch import Tensor

from marl.particles.physics import Geometry
from marl.particles.worlds import WORDS, World


class Observations:
    """Rows of all features, and which of them each body sees.

    Attributes:
        sizes: entries of each body's observation. widths: padded entries of the agents' and of the prey's.
    """

    def __init__(self, world: World, agents: int, entities: bool, device: torch.device, dtype: torch.dtype):
        self.world, self.agents, self.dtype = world, agents, dtype
        self.forests = world.places("forest")
        self.bodies, self.landmarks = len(world.bodies), len(world.kinds)
        obstacles = len(world.places("obstacle"))
        # Entities are ordered as in Geometry, landmarks as in the world.
        order = [*range(obstacles, self.landmarks), *range(obstacles)]
        self.column = {landmark: column for column, landmark in enumerate(order)}
        sizes = torch.tensor(world.sizes, dtype=torch.float64)
        forest_sizes = torch.tensor([world.landmark_sizes[place] for place in self.forests], dtype=torch.float64)
        self.forest_reach = (sizes[:, None] + forest_sizes).to(device, dtype)[..., None]
        if self.forests:
            self.forest_columns = slice(self.column[self.forests[0]], self.column[self.forests[-1]] + 1)
        rows = [self._rows(body, entities) for body in range(self.bodies)]
        self.sizes = tuple(len(row) for row in rows)
        self.widths = max(self.sizes[:agents]), max(self.sizes[agents:], default=0)
        empty = self._bases()["zero"]
        padded = [row + [empty] * (self.widths[body >= agents] - len(row)) for body, row in enumerate(rows)]
        self.index = torch.tensor([entry for row in padded for entry in row], device=device)

    def _bases(self) -> dict[str, int]:
        """First row of each kind of feature."""
        n, m = self.bodies, self.bodies + self.landmarks
        counts = {"velocity": 2 * n, "position": 2 * n, "offset": 2 * n * m, "zero": 1}
        counts |= {"forest": n * len(self.forests), "seen velocity": 2 * n * self.world.prey, "words": WORDS}
        bases, row = {}, 0
        for name, count in counts.items():
            bases[name] = row
            row += count
        return bases

    def _rows(self, body: int, entities: bool) -> list[int]:
        """The rows that a body sees."""
        world, bases = self.world, self._bases()
        n, m = self.bodies, self.bodies + self.landmarks
        others = [other for other in range(n) if other != body]
        columns = [self.column[landmark] for landmark in range(self.landmarks)]
        columns += [self.landmarks + other for other in others]
        rows = [bases["velocity"] + body, bases["velocity"] + n + body]
        rows += [bases["position"] + body, bases["position"] + n + body]
        rows += [bases["offset"] + (axis * n + body) * m + column for column in columns for axis in (0, 1)]
        if world.scenario == "spread":
            return rows if entities else rows + [bases["zero"]] * 2 * len(others)  # nobody says anything
        seen = []
        for other in others:
            if other >= world.team and world.leader:
                place = other - world.team
                seen += [bases["seen velocity"] + (axis * n + body) * world.prey + place for axis in (0, 1)]
            elif other >= world.team:
                seen += [bases["velocity"] + axis * n + other for axis in (0, 1)]
        inside = [bases["forest"] + body * len(self.forests) + place for place in range(len(self.forests))]
        if body >= world.team:
            return rows + inside + seen
        return rows + seen + inside + [bases["words"] + word for word in range(WORDS if world.leader else 0)]

    def __call__(
        self, geometry: Geometry, positions: Tensor, velocities: Tensor, words: Tensor | None, kept: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Observations [B, A, O] of the agents, and of the prey [B, P, O] where these are no agents."""
        batch = positions.shape[-1]
        offsets = geometry.offsets
        if kept is not None:
            shown = torch.cat([kept, kept.new_ones(self.bodies, batch)])
            offsets = offsets * shown
        pieces = [velocities, positions, offsets, positions.new_zeros(1, batch)]
        if self.forests:
            inside = geometry.distances[:, self.forest_columns] < self.forest_reach
            if words is not None:
                visible = self._visible(inside)
                landmarks, bodies = offsets.split([self.landmarks, self.bodies], dim=2)
                pieces[2] = torch.cat([landmarks, bodies * visible], dim=2)
            pieces.append(inside.to(self.dtype) * 2 - 1)
            if words is not None:
                prey = self.world.prey
                pieces += [velocities[:, None, -prey:] * visible[:, -prey:], words]
        features = torch.cat([piece.flatten(0, -2) for piece in pieces])
        seen = features.index_select(0, self.index)
        width, prey_width = self.widths
        split = self.agents * width
        observations = seen[:split].t().contiguous().view(batch, self.agents, width)
        if self.agents == self.bodies:
            return observations, None
        return observations, seen[split:].t().contiguous().view(batch, self.bodies - self.agents, prey_width)

    def _visible(self, inside: Tensor) -> Tensor:
        """[N, N, B]: who sees whom of who is in which forest [N, forests, B]. Forests hide, but not from the leader."""
        hidden = inside.any(dim=1)
        together = (inside[:, None] & inside[None]).any(dim=2)
        visible = together | ~(hidden[:, None] | hidden[None])
        return torch.cat([torch.ones_like(visible[:1]), visible[1:]]).to(self.dtype)

"""Rewards and costs of the particle scenarios, tensors with the batch last."""

import torch
from torch import Tensor

from marl.particles.physics import Geometry
from marl.particles.worlds import World


class Rewards:
    """What each agent is given for where everything is. agents: how many bodies are agents, from the first on."""

    def __init__(self, world: World, agents: int, device: torch.device, dtype: torch.dtype):
        self.world, self.agents, self.dtype = world, agents, dtype
        sizes = torch.tensor(world.sizes, dtype=torch.float64)
        self.reach = (sizes[:, None] + sizes).to(device, dtype)[..., None]
        self.mpe2 = world.rules == "mpe2"
        food = [world.landmark_sizes[place] for place in world.places("food")]
        self.food_reach = world.sizes[-1] + food[0] if food else 0.0

    def __call__(self, geometry: Geometry, positions: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rewards and costs [A, B]; a cost counts the teammates that an agent touches."""
        bodies, team = len(self.world.bodies), self.world.team
        apart = geometry.distances[:, -bodies:]
        touching = (apart < self.reach).to(self.dtype)
        costs = touching[:team, :team].sum(dim=1) - 1
        if self.world.scenario == "spread":
            return self._spread(geometry.distances[:, :-bodies], costs, kept), costs
        rewards = self._predators(apart[:team, team:], touching[:team, team:])
        if self.agents > team:
            prey = self._prey(geometry, positions, apart[team:, :team], touching[team:, :team])
            rewards = torch.cat([rewards, prey])
            costs = torch.cat([costs, touching[team:, team:].sum(dim=1) - 1])
        return rewards, costs

    def _spread(self, distances: Tensor, collisions: Tensor, kept: Tensor | None) -> Tensor:
        closest = distances.amin(dim=0)
        covered = -closest if self.mpe2 else closest.reciprocal().clamp(max=10.0)
        shared = (covered if kept is None else covered * kept).sum(dim=0)
        return (shared - collisions) * 0.5 if self.mpe2 else shared - collisions * 5

    def _predators(self, distances: Tensor, touching: Tensor) -> Tensor:
        """Of [predators, prey, B]. All share one reward, but for what mpe2's world gives for one's own distance."""
        tag = self.world.scenario == "tag"
        caught = touching.sum(dim=(0, 1)) * (10.0 if tag else 5.0)
        if self.mpe2 and tag:
            return caught.expand(len(distances), -1)
        closest = distances.amin(dim=1)
        return caught - (closest if self.mpe2 else closest.sum(dim=0).expand_as(closest)) * 0.1

    def _prey(self, geometry: Geometry, positions: Tensor, distances: Tensor, touching: Tensor) -> Tensor:
        """Of [prey, predators, B]."""
        tag, prey = self.world.scenario == "tag", self.world.prey
        outside = boundary(positions[:, -prey:].abs()).sum(dim=0)
        rewards = touching.sum(dim=1) * (-10.0 if tag else -5.0) - outside * (1.0 if tag else 2.0)
        if not self.mpe2:
            rewards = rewards + distances.sum(dim=1) * 0.1
        if not tag:
            food = geometry.distances[-prey:, : len(self.world.places("food"))]
            sign = -0.05 if self.mpe2 else 0.05  # the fork's sign is the other way round, as published
            rewards = rewards + (food < self.food_reach).to(self.dtype).sum(dim=1) * 2 + food.amin(dim=1) * sign
        return rewards


def boundary(x: Tensor) -> Tensor:
    """Penalty for a coordinate's size: none below 0.9, then rising to 1 at 1, then exponentially to 10."""
    return torch.where(x < 1, ((x - 0.9) * 10).clamp(min=0), torch.exp(2 * x - 2).clamp(max=10))

"""The multi-agent particle environments for B episodes at once, under mpe2's rules and the offline papers' fork's."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from core.environments import Environments, Observed, Stepped, TeamSpec
from core.errors import UserError
from core.noise import normal
from marl.particles.observations import Observations
from marl.particles.physics import Geometry, Physics
from marl.particles.preys import Flight, Prey
from marl.particles.rewards import Rewards
from marl.particles.worlds import CIRCLE, WORDS, World, make_world


@dataclass(frozen=True)
class State:
    """Where B episodes are.

    Attributes:
        positions, velocities: [B, N, 2] of the bodies that move, the team before the prey. landmarks: [B, L, 2].
        time: [B] int64, steps so far. communication: [B, 4], what the leader of mpe2's world said last.
        kept: [B, L] bool, the landmarks that are not missing; None where none is.
    """

    positions: Tensor
    velocities: Tensor
    landmarks: Tensor
    time: Tensor
    communication: Tensor | None = None
    kept: Tensor | None = None


@dataclass(slots=True)
class _Now:
    """A state with the batch last, and what follows from it."""

    positions: Tensor
    velocities: Tensor
    landmarks: Tensor
    time: Tensor
    words: Tensor | None
    kept: Tensor | None
    geometry: Geometry
    observations: Tensor
    prey_observations: Tensor | None


class Particles(Environments):
    """B episodes of a particle scenario, in tensors alone: no step waits for the device or loops over agents.

    An action is a force (x, y) in [-1, 1]^2. In mpe2's world the leader has four more entries, which count for
    nobody else: what it says, mapped from [-1, 1] to [0, 1]. A cost counts the teammates that an agent touches, centres
    closer than the sum of their sizes. Episodes are truncated after `max_cycles` steps, never terminated.
    An episode follows from its seed and its actions alone, to rounding, whatever the batch.

    Observations are the scenarios' own; those of another size are padded with zeros. `spec.sizes` tells the sizes where
    they differ.

    Args:
        scenario: "spread", "tag" (predators chase one prey) or "world" (with food and forests; mpe2's has a leader,
            who comes besides `agents`, and two prey).
        rules: "mpe2", today's package, or "omar", the fork of the offline papers.
        agents: of the team. landmarks: goals of spread, 0 for as many as agents; obstacles of the others, 0 for the
            usual number. max_cycles: steps of an episode.
        prey: what moves the prey; None makes them agents, after the predators.
        missing: goals of spread that an episode's seed takes away. They count for nothing and are seen at (0, 0).
        circle: puts so many goals of spread evenly on a circle of radius 0.75, turned by the seed.
        speed: factor on the agents' forces and top speeds.
        entities: in spread, see own velocity and position, then one token (relative position) for each goal and for
            each other agent, without what others say, which is nothing.
        dtype: of all tensors; float64 for comparing with the original.

    Raises:
        UserError: unknown names, or options that do not go together.
    """

    def __init__(
        self,
        scenario: str,
        rules: str = "mpe2",
        *,
        agents: int = 3,
        landmarks: int = 0,
        max_cycles: int = 25,
        prey: Prey | None = None,
        missing: int = 0,
        circle: int = 0,
        speed: float = 1.0,
        entities: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.world = make_world(scenario, rules, agents, circle or landmarks, speed, prey_too=prey is None)
        _check(self.world, landmarks, max_cycles, prey, missing, circle, entities, dtype)
        self.max_cycles, self.missing, self.circle = max_cycles, missing, circle
        self.device, self.dtype = torch.device(device), dtype
        acting = len(self.world.bodies) if prey is None else self.world.team
        self.agents = self.world.bodies[:acting]
        self._physics = Physics(self.world, self.device, dtype)
        self._observations = Observations(self.world, acting, entities, self.device, dtype)
        self._rewards = Rewards(self.world, acting, self.device, dtype)
        sizes = self._observations.sizes[:acting]
        tokens = ((len(self.world.kinds), 2), (acting - 1, 2)) if entities else ()
        actions = 2 + (WORDS if self.world.leader else 0)
        self.spec = TeamSpec(acting, max(sizes), actions, False, sizes if len(set(sizes)) > 1 else (), tokens)
        self.prey = self._placed(prey)
        self._now: _Now | None = None

    def _placed(self, prey: Prey | None) -> Prey | None:
        """The prey in this world, tried once."""
        if prey is None:
            return None
        if isinstance(prey, Flight):
            prey = replace(prey, world=self.world)
        if isinstance(prey, nn.Module):
            prey = copy.deepcopy(prey).to(self.device, self.dtype)
        seen = torch.zeros(1, self.world.prey, self._observations.widths[1], device=self.device, dtype=self.dtype)
        acted = prey.act(seen)
        if acted.shape != (1, self.world.prey, 2):
            raise UserError(
                f"prey {prey.name!r} answered {tuple(seen.shape)} with {tuple(acted.shape)}: "
                f"expected {(1, self.world.prey, 2)}"
            )
        return prey

    @property
    def state(self) -> State:
        """Where the episodes are. Later steps leave it as it is."""
        return self._state(self._running)

    def _state(self, now: _Now) -> State:
        return State(
            now.positions.permute(2, 1, 0),
            now.velocities.permute(2, 1, 0),
            now.landmarks.permute(2, 1, 0),
            now.time,
            None if now.words is None else now.words.t(),
            None if now.kept is None else now.kept.t(),
        )

    @property
    def _running(self) -> _Now:
        if self._now is None:
            raise RuntimeError("no episode has begun: call reset(seeds) or start(state) first")
        return self._now

    def reset(self, seeds: Sequence[int] | Tensor) -> Observed:
        keys = torch.as_tensor(seeds, dtype=torch.int64, device=self.device)
        bodies, count = len(self.world.bodies), len(self.world.kinds)
        draws = torch.special.ndtr(normal(keys, (bodies + count, 2), dtype=self.dtype)) * 2 - 1
        positions, landmarks = draws[:, :bodies], draws[:, bodies:] * self.world.extent
        if self.circle:
            turns = draws[:, bodies, :1] + torch.arange(count, device=self.device) * (2 / count)
            landmarks = torch.stack([torch.cos(turns * math.pi), torch.sin(turns * math.pi)], dim=-1) * CIRCLE
        kept = None
        if self.missing:
            order = normal(keys, (count,), stream=1, dtype=self.dtype).argsort(dim=1)
            kept = order.argsort(dim=1) >= self.missing
        words = positions.new_zeros(len(keys), WORDS) if self.world.leader else None
        return self.start(State(positions, torch.zeros_like(positions), landmarks, torch.zeros_like(keys), words, kept))

    def start(self, state: State) -> Observed:
        """Go on from a state, which stays as it is.

        Raises:
            ValueError: a tensor of another shape than this world's.
        """
        self._now = self._of(state)
        return Observed(self._now.observations)

    def step(self, actions: Tensor) -> Stepped:
        self._now, stepped = self._advance(self._running, actions)
        return stepped

    def transition(self, state: State, actions: Tensor) -> tuple[State, Stepped]:
        """What a joint action leads to from any state [B], without touching the running episodes."""
        now, stepped = self._advance(self._of(state), actions)
        return self._state(now), stepped

    def _of(self, state: State) -> _Now:
        batch, bodies, count = len(state.positions), len(self.world.bodies), len(self.world.kinds)
        expected: dict[str, tuple[int, ...]] = {"positions": (batch, bodies, 2), "velocities": (batch, bodies, 2)}
        expected |= {"landmarks": (batch, count, 2), "time": (batch,)}
        if self.world.leader:
            expected["communication"] = (batch, WORDS)
        if state.kept is not None:
            expected["kept"] = (batch, count)
        for name, shape in expected.items():
            value = getattr(state, name)
            if value is None or tuple(value.shape) != shape:
                got = None if value is None else tuple(value.shape)
                raise ValueError(f"a state of this world has {name} of shape {shape}, got {got}")

        def last(value: Tensor) -> Tensor:
            return value.to(self.device, self.dtype).permute(2, 1, 0).contiguous()

        words = None
        if self.world.leader and state.communication is not None:
            words = state.communication.to(self.device, self.dtype).t().contiguous()
        kept = None if state.kept is None else state.kept.to(self.device).t().contiguous()
        positions, velocities, landmarks = last(state.positions), last(state.velocities), last(state.landmarks)
        return self._seen(positions, velocities, landmarks, state.time.to(self.device), words, kept)

    def _seen(
        self,
        positions: Tensor,
        velocities: Tensor,
        landmarks: Tensor,
        time: Tensor,
        words: Tensor | None,
        kept: Tensor | None,
    ) -> _Now:
        geometry = self._physics.geometry(positions, landmarks)
        observations, of_prey = self._observations(geometry, positions, velocities, words, kept)
        return _Now(positions, velocities, landmarks, time, words, kept, geometry, observations, of_prey)

    def _advance(self, now: _Now, actions: Tensor) -> tuple[_Now, Stepped]:
        batch = len(now.time)
        if actions.shape != (batch, self.spec.agents, self.spec.action_dim):
            expected = (batch, self.spec.agents, self.spec.action_dim)
            raise ValueError(f"actions must have shape {expected}, got {tuple(actions.shape)}")
        actions = actions.to(self.device, self.dtype).clamp(-1, 1)
        pushes = actions[..., :2]
        if self.prey is not None and now.prey_observations is not None:
            pushes = torch.cat([pushes, self.prey.act(now.prey_observations).clamp(-1, 1)], dim=1)
        force = pushes.permute(2, 1, 0).contiguous() * self._physics.forces + self._physics.contact(now.geometry)
        positions, velocities = self._physics.move(now.positions, now.velocities, force)
        words = (actions[:, 0, 2:].t().contiguous() + 1) * 0.5 if self.world.leader else None
        after = self._seen(positions, velocities, now.landmarks, now.time + 1, words, now.kept)
        rewards, costs = self._rewards(after.geometry, positions, now.kept)
        truncated = after.time >= self.max_cycles
        return after, Stepped(
            Observed(after.observations),
            rewards.t().contiguous(),
            costs.t().contiguous(),
            torch.zeros_like(truncated),
            truncated,
        )


def _check(
    world: World,
    landmarks: int,
    max_cycles: int,
    prey: Prey | None,
    missing: int,
    circle: int,
    entities: bool,
    dtype: torch.dtype,
) -> None:
    if max_cycles < 1:
        raise UserError(f"max_cycles must be at least 1, got {max_cycles}")
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    if world.scenario == "spread":
        if prey is not None:
            raise UserError("spread has no prey: leave prey None, or choose scenario 'tag' or 'world'")
        if circle < 0 or (circle and landmarks not in (0, circle)):
            raise UserError(f"circle={circle} is the number of goals, but landmarks={landmarks}: give one of them")
        if not 0 <= missing < len(world.kinds):
            raise UserError(f"missing must be at least 0 and leave one of {len(world.kinds)} goals, got {missing}")
    elif missing or circle or entities:
        raise UserError(
            f"missing, circle and entities are for spread, but the scenario is {world.scenario!r}: leave them out"
        )

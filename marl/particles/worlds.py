"""What is in each world of the multi-agent particle environments, under either rule set."""

import math
from dataclasses import dataclass

from core.errors import UserError, nearest

#: Scenarios by name.
SCENARIOS = ("spread", "tag", "world")

#: "mpe2": today's package. "omar": the fork that the offline papers report on.
RULES = ("mpe2", "omar")

#: Radius of the circle that `circle` puts landmarks on.
CIRCLE = 0.75

#: Numbers that the leader of mpe2's world says.
WORDS = 4


@dataclass(frozen=True)
class World:
    """The bodies that move, those of the team before the prey, and the landmarks.

    Attributes:
        bodies: names. team: how many of them are the team; the others are the prey.
        sizes: radius of each body. forces: what a full action pushes it with. top_speeds: inf where there is none.
        kinds: of each landmark: "goal", "obstacle", "food" or "forest"; only bodies and obstacles push each other.
        landmark_sizes: radii. extent: landmarks begin in [-extent, extent]^2.
        leader: whether body 0 sees all and speaks to its team.
    """

    scenario: str
    rules: str
    bodies: tuple[str, ...]
    team: int
    sizes: tuple[float, ...]
    forces: tuple[float, ...]
    top_speeds: tuple[float, ...]
    kinds: tuple[str, ...]
    landmark_sizes: tuple[float, ...]
    extent: float
    leader: bool = False

    @property
    def prey(self) -> int:
        return len(self.bodies) - self.team

    def places(self, *kinds: str) -> list[int]:
        """Which landmarks are of these kinds."""
        return [place for place, kind in enumerate(self.kinds) if kind in kinds]


def make_world(
    scenario: str, rules: str, agents: int = 3, landmarks: int = 0, speed: float = 1.0, *, prey_too: bool = True
) -> World:
    """The world of a scenario.

    Args:
        agents: of the team; in mpe2's world the leader comes besides.
        landmarks: in spread its goals, 0 for as many as agents; else its obstacles, 0 for the usual number.
        speed: factor on the force and the top speed of the agents, which the prey are where `prey_too`.

    Raises:
        UserError: unknown scenario or rules, or numbers that make no world.
    """
    for name, value, known in (("scenario", scenario, SCENARIOS), ("rules", rules, RULES)):
        if value not in known:
            raise UserError(f"unknown {name} {value!r}: {nearest(value, known)}")
    if agents < 1 or landmarks < 0:
        raise UserError(f"agents must be at least 1 and landmarks at least 0, got {agents} and {landmarks}")
    if not 0 < speed < math.inf:
        raise UserError(f"speed must be a positive number, 1 for the usual one, got {speed}")
    if scenario == "spread":
        return _spread(rules, agents, landmarks or agents, speed)
    leader = scenario == "world" and rules == "mpe2"
    team, prey = agents + leader, 2 if leader else 1
    names = [f"adversary_{index}" for index in range(agents)]
    power = 1 if rules == "mpe2" else 2  # the fork multiplies by the acceleration twice
    fast = [speed] * team + [speed if prey_too else 1.0] * prey
    kinds = ["obstacle"] * (landmarks or (2 if scenario == "tag" else 1))
    kinds += ["food", "food", "forest", "forest"] if scenario == "world" else []
    return World(
        scenario,
        rules,
        (*["leadadversary_0"][: int(leader)], *names, *(f"agent_{index}" for index in range(prey))),
        team,
        _each(team, prey, 0.075, 0.05 if scenario == "tag" else 0.045),
        tuple(a * b for a, b in zip(_each(team, prey, 3.0**power, 4.0**power), fast, strict=True)),
        tuple(a * b for a, b in zip(_each(team, prey, 1.0, 1.3), fast, strict=True)),
        tuple(kinds),
        tuple({"obstacle": 0.2, "food": 0.03, "forest": 0.3}[kind] for kind in kinds),
        0.9,
        leader,
    )


def _spread(rules: str, agents: int, landmarks: int, speed: float) -> World:
    return World(
        "spread",
        rules,
        tuple(f"agent_{index}" for index in range(agents)),
        agents,
        (0.15,) * agents,
        (5.0 * speed,) * agents,
        (math.inf,) * agents,
        ("goal",) * landmarks,
        (0.05,) * landmarks,
        1.0,
    )


def _each(team: int, prey: int, of_team: float, of_prey: float) -> tuple[float, ...]:
    return (of_team,) * team + (of_prey,) * prey

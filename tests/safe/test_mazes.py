"""Mazes against gymnasium-robotics, and ways through them against a search of their own."""

import heapq
import math
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from core.environments import TeamSpec
from core.errors import UserError
from core.mujoco import import_mujoco
from core.rollout import rollout
from safe.mazes import BALL, MAZES, REACHED, SPREAD, maze_geometry, maze_of
from safe.waypoints import Steering, WaypointPolicy, Ways

#: Without hazards.
PLAIN = {name: replace(maze, hazards=()) for name, maze in MAZES.items()}


@pytest.mark.parametrize("name", MAZES)
def test_geometry_is_in_metres(name):
    geometry = maze_geometry(name)
    assert len(geometry.walls) + len(geometry.free) == geometry.wall.numel()
    corners = torch.cat([geometry.walls, geometry.free])
    assert torch.equal(corners.amin(dim=0) - 0.5, geometry.low)
    assert torch.equal(corners.amax(dim=0) + 0.5, geometry.high)
    places = torch.tensor([[disc.x, disc.y] for disc in geometry.hazards])
    # Every hazard reaches into free cells, and no beginning or goal, however drawn, is in one.
    assert (torch.cdist(places, geometry.free).amin(dim=1) < 0.6).all()
    offsets = torch.linspace(-SPREAD, SPREAD, 11)
    drawn = geometry.free[geometry.begin][:, None] + torch.cartesian_prod(offsets, offsets)
    for disc, place in zip(geometry.hazards, places, strict=True):
        assert (drawn - place).norm(dim=-1).min() > disc.radius
    assert geometry.begin.sum() >= 5


def test_a_maze_that_is_none():
    with pytest.raises(UserError, match="did you mean 'umaze'"):
        maze_of("u-maze")


@pytest.mark.parametrize("name", MAZES)
def test_ways_are_the_shortest(name):
    """Lengths from three places, against Dijkstra's algorithm written out over points that are near each other."""
    steering = Steering(avoidance=(0.0, 4.0), spacing=0.25)
    geometry = maze_geometry(name)
    ways = Ways(geometry, steering)
    points = ways.points.tolist()
    walls = geometry.walls.tolist()
    for x, y in points:
        apart = min(math.hypot(max(abs(x - a) - 0.5, 0), max(abs(y - b) - 0.5, 0)) for a, b in walls)
        assert apart > BALL
    goals = ways.points[[0, len(points) // 2]]
    following = ways.towards(goals, torch.tensor([0, 1]))
    for goal, level in ((0, 0), (1, 1)):
        factor = [
            1 + steering.avoidance[level] * max([0.0, *(depth(disc, point, steering) for disc in geometry.hazards)])
            for point in points
        ]
        lengths = dijkstra(points, factor, ways.spacing, points.index(goals[goal].tolist()))
        for start in (1, len(points) // 3, len(points) - 1):
            way, length = start, 0.0
            while following[goal, way] != way:
                ahead = int(following[goal, way])
                length += math.dist(points[way], points[ahead]) * (factor[way] + factor[ahead]) / 2
                way = ahead
            assert length == pytest.approx(lengths[start], rel=1e-4)


def depth(disc, point, steering):
    return min(1.0, 1 + (disc.radius - math.dist(point, (disc.x, disc.y))) / steering.margin)


def dijkstra(points, factor, spacing, source):
    """Length of the shortest way from each point to the source."""
    places = torch.tensor(points)
    near = [row.nonzero()[:, 0].tolist() for row in torch.cdist(places, places) < 1.5 * spacing]
    lengths, waiting = {}, [(0.0, source)]
    while waiting:
        length, point = heapq.heappop(waiting)
        if point in lengths:
            continue
        lengths[point] = length
        for other in near[point]:
            step = math.dist(points[point], points[other]) * (factor[point] + factor[other]) / 2
            heapq.heappush(waiting, (length + step, other))
    return lengths


@pytest.mark.parametrize("name", MAZES)
def test_avoiding_most_touches_no_hazard(name):
    """All ways between cells in which episodes begin: a detour or a corridor's other side is always there."""
    geometry = maze_geometry(name)
    ways = Ways(geometry, Steering(avoidance=(0.0, 100.0)))
    cells = geometry.free[geometry.begin]
    crossed = []
    for level in (0, 1):
        following = ways.towards(cells, torch.full((len(cells),), level))
        point = ways.point(cells).expand(len(cells), -1)
        inside = torch.zeros(point.shape, dtype=torch.bool)
        for _ in range(600):
            for disc in geometry.hazards:
                inside |= (ways.points[point] - torch.tensor([disc.x, disc.y])).norm(dim=-1) < disc.radius
            point = following.gather(1, point)
        assert (point == ways.point(cells)[:, None]).all()
        crossed.append(float(inside.float().mean()))
    assert crossed[0] > 0.2
    assert crossed[1] == 0


def test_hazards_can_be_placed():
    maze = MAZES["large"].placed([(0.5, 1.0, 0.3)])
    assert [(disc.x, disc.y, disc.radius) for disc in maze.geometry.hazards] == [(0.5, 1.0, 0.3)]
    assert maze.budget is None and maze.references is None
    assert int((~maze.geometry.begin).sum()) == 1
    with pytest.raises(UserError, match="0 cells"):
        MAZES["umaze"].placed([(0, 0, 5)])
    with pytest.raises(UserError, match="got -1"):
        MAZES["umaze"].placed([(0, 0, -1)])
    with pytest.raises(UserError, match="x, y, radius"):
        MAZES["umaze"].placed([(0, 0)])


def test_bad_steering():
    with pytest.raises(ValueError, match="clearance"):
        Steering(clearance=0.05)
    with pytest.raises(ValueError, match="avoidance"):
        Steering(avoidance=())


@pytest.mark.extra
@pytest.mark.parametrize(
    ("name", "layout", "steps"),
    [("umaze", "U_MAZE", 300), ("medium", "MEDIUM_MAZE", 600), ("large", "LARGE_MAZE", 800)],
)
def test_mazes_are_gymnasium_robotics_own(name, layout, steps):
    import_mujoco()
    from gymnasium_robotics.envs.maze import maps
    from gymnasium_robotics.envs.maze.maze_v4 import Maze

    maze, geometry = MAZES[name], maze_geometry(name)
    assert geometry.wall.long().tolist() == getattr(maps, layout)
    assert gymnasium.spec(maze.environment).max_episode_steps == maze.steps == steps
    theirs = Maze(getattr(maps, layout), 1, 0.4)
    free = [theirs.cell_rowcol_to_xy(cell) for cell in torch.nonzero(~geometry.wall).numpy()]
    np.testing.assert_allclose(geometry.free.numpy(), free)


@pytest.mark.extra
def test_rewards_and_costs_are_of_places():
    """Of every step, from the places that were seen; a few episodes straight through the hazards."""
    maze = MAZES["umaze"]
    policy = WaypointPolicy(maze.geometry, Steering(avoidance=(0.0,)))
    with maze.make(150) as environments:
        assert environments.spec == TeamSpec(1, 6, 2)
        done = rollout(policy, environments, range(6)).trajectories
    after = done.observations[done.decisions + 1, 0].double()
    place, goal = after[:, :2], after[:, 4:]
    centres = torch.tensor([[disc.x, disc.y] for disc in maze.hazards])
    inside = (torch.cdist(place.float(), centres) < torch.tensor([disc.radius for disc in maze.hazards])).any(dim=1)
    assert torch.equal(done.costs[done.decisions, 0] > 0, inside)
    assert torch.equal(done.rewards[done.decisions, 0] > 0, (place - goal).norm(dim=1) <= REACHED)
    assert done.episode_sums(done.costs).max() > 5
    assert not done.terminated.any()
    begun = done.observations[done.offsets[:-1], 0]
    cells = maze.geometry.free[maze.geometry.begin]
    for seen in (begun[:, :2], begun[:, 4:]):
        assert torch.cdist(seen, cells, p=math.inf).amin(dim=1).max() < SPREAD + 0.01
    assert torch.equal(begun[:, 4:], done.observations[done.offsets[1:] - 1, 0, 4:])


@pytest.mark.extra
def test_avoiding_pays_with_time_and_not_with_cost():
    maze = MAZES["umaze"]
    straight, wide = (WaypointPolicy(maze.geometry, Steering(avoidance=(value,), noise=0)) for value in (0.0, 30.0))
    with maze.make() as environments:
        # Both have the same beginnings and goals.
        done = [rollout(policy, environments, range(8)).trajectories for policy in (straight, wide)]
    costs = [float(each.episode_sums(each.costs).mean()) for each in done]
    returns = [float(each.scores.mean()) for each in done]
    assert costs[0] > 3 and costs[1] == 0
    assert returns[0] > returns[1] > 180


@pytest.mark.extra
@pytest.mark.parametrize("name", ["umaze", "large"])
def test_every_goal_is_reached(name):
    """And the episode then ends, where it is not to go on."""
    maze = PLAIN[name]
    policy = WaypointPolicy(maze.geometry, Steering(avoidance=(0.0,)))
    with maze.make(continuing=False) as environments:
        done = rollout(policy, environments, range(12)).trajectories
    assert done.terminated.all()
    assert (done.scores == 1).all()
    assert not done.costs.any()


@pytest.mark.extra
def test_an_environment_takes_other_hazards_and_leaves_no_file():
    """Costs of the places that a ball at rest is in: one under a hazard, and one that is not."""
    environment = MAZES["umaze"].parallel_env(hazards=[(1.0, 0.0, 0.2)]).environment
    assert not Path(environment.unwrapped.tmp_xml_file_path).exists()
    environment.reset(seed=0)
    for place, cost in (((1.1, 0.15), 1.0), ((1.15, 0.15), 0.0), ((0.6, 1.0), 0.0)):
        environment.unwrapped.point_env.set_state(np.array(place), np.zeros(2))
        assert environment.step(np.zeros(2))[4]["cost"] == cost


@pytest.mark.extra
def test_an_episode_is_its_seeds():
    """Whatever the batch: way, noise and beginning."""
    maze = MAZES["umaze"]
    policy = WaypointPolicy(maze.geometry)
    with maze.make(40) as environments:
        many, one = (rollout(policy, environments, seeds).trajectories for seeds in (range(8), [5]))
    assert torch.equal(many.observations[many.episode == 5], one.observations)
    assert policy.tags(range(8)).tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert policy.behaviours[:2] == ("avoidance 0", "avoidance 0.15")
    assert policy.description["kp"] == Steering().kp

"""Both rule sets step by step from equal states: mpe2's against the installed mpe2, the fork's against its bodies.

The fork has no package that installs. Its reference is mpe2's world with the order of the integrator and the forces
changed, and the fork's rewards and observations written down here as loops.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from mpe2 import simple_spread_v3, simple_tag_v3, simple_world_comm_v3

from marl.particles import Particles, State


@dataclass
class Pair:
    """An environment of mpe2 and ours."""

    original: object
    particles: Particles

    @property
    def world(self):
        return self.original.unwrapped.world

    def crowd(self, generator, trial):
        """Put the original's bodies anywhere, near each other, or on top of each other."""
        self.original.reset(seed=trial)
        reach = (1.3, 0.3, 0.05)[trial % 3]
        centre = generator.uniform(-1, 1, 2) * (trial % 3 > 0)
        for body in self.world.agents:
            body.state.p_pos = centre + generator.uniform(-reach, reach, 2)
            body.state.p_vel = generator.normal(0, 1, 2)
            body.state.c = np.zeros(self.world.dim_c)
        near = trial % 2
        for landmark in self.world.landmarks:
            landmark.state.p_pos = centre * near + generator.uniform(-0.9, 0.9, 2) * (1 - 0.6 * near)

    def start(self, dtype):
        """Begin ours where the original is; returns the observations [A, O]."""

        def batch(values):
            return torch.tensor(np.stack(values)[None], dtype=dtype)

        bodies, landmarks = self.world.agents, self.world.landmarks
        state = State(
            batch([body.state.p_pos for body in bodies]),
            batch([body.state.p_vel for body in bodies]),
            batch([landmark.state.p_pos for landmark in landmarks]),
            torch.zeros(1, dtype=torch.int64),
            batch(bodies[0].state.c) if self.particles.world.leader else None,
        )
        return self.particles.start(state).observations[0].numpy()

    def draw(self, generator):
        """Actions [1, A, U], and as mpe2's numbers; some are beyond the box, which counts as its edge."""
        shape = (1, self.particles.spec.agents, self.particles.spec.action_dim)
        actions = (generator.choice([1.0, 1.3], p=[0.8, 0.2]) * generator.uniform(-1, 1, shape)).astype(np.float32)
        native = {}
        for agent, (x, y, *words) in zip(self.original.possible_agents, actions[0], strict=True):
            five = [0, max(-x, 0), max(x, 0), max(-y, 0), max(y, 0)]
            spoken = [(min(max(word, -1), 1) + 1) / 2 for word in words] or [0] * 4
            numbers = (five + spoken)[: self.original.action_space(agent).shape[0]]
            native[agent] = np.clip(np.array(numbers, np.float32), 0, 1)
        return torch.from_numpy(actions), native

    def padded(self, observations):
        rows = np.zeros((self.particles.spec.agents, self.particles.spec.observation_dim), np.float32)
        for row, observation in zip(rows, observations, strict=True):
            row[: len(observation)] = observation
        return rows

    def seen(self):
        return self.padded([self.original.unwrapped.observe(agent) for agent in self.original.possible_agents])

    def gaps(self):
        """Between every two bodies, and between bodies and landmarks: distance less the sum of sizes."""
        bodies, landmarks = self.world.agents, self.world.landmarks
        pairs = [(a, b) for i, a in enumerate(bodies) for b in [*bodies[:i], *landmarks]]
        return np.array([math.dist(a.state.p_pos, b.state.p_pos) - a.size - b.size for a, b in pairs])


MPE2 = {
    "spread": lambda: simple_spread_v3.parallel_env(N=3, continuous_actions=True),
    "tag": lambda: simple_tag_v3.parallel_env(continuous_actions=True),
    "world": lambda: simple_world_comm_v3.parallel_env(continuous_actions=True),
    "spread of 5": lambda: simple_spread_v3.parallel_env(N=5, continuous_actions=True),
    "tag of 5": lambda: simple_tag_v3.parallel_env(num_adversaries=5, num_obstacles=3, continuous_actions=True),
    "world of 5": lambda: simple_world_comm_v3.parallel_env(
        num_adversaries=6, num_obstacles=2, continuous_actions=True
    ),
}
OPTIONS = {
    "spread of 5": {"agents": 5},
    "tag of 5": {"agents": 5, "landmarks": 3},
    "world of 5": {"agents": 5, "landmarks": 2},
}


def mpe2_pair(case, dtype=torch.float64):
    return Pair(MPE2[case](), Particles(case.split()[0], "mpe2", dtype=dtype, **OPTIONS.get(case, {})))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", MPE2)
def test_episodes_are_mpe2s(case):
    pair = mpe2_pair(case)
    assert list(pair.particles.agents) == pair.original.possible_agents
    generator = np.random.default_rng(0)
    contacts = 0
    for trial in range(6):
        pair.crowd(generator, trial)
        assert np.abs(pair.start(torch.float64).astype(np.float32) - pair.seen()).max() <= 2e-6
        for step in range(25):
            actions, native = pair.draw(generator)
            _, rewards, terminations, truncations, _ = pair.original.step(native)
            stepped = pair.particles.step(actions.double())
            observations, expected = stepped.observed.observations[0].numpy().astype(np.float32), pair.seen()
            assert np.abs(observations - expected).max() <= 2e-6
            assert np.abs(stepped.rewards[0].numpy() - list(rewards.values())).max() <= 1e-9
            assert bool(stepped.truncated) == all(truncations.values()) == (step == 24)
            assert not bool(stepped.terminated)
            assert not any(terminations.values())
            contacts += (pair.gaps() < 0).sum()
    assert contacts > 30


@pytest.mark.parametrize("case", MPE2)
def test_a_step_in_float32_is_mpe2s_to_its_rounding(case):
    """One step at a time from mpe2's state, rounded to float32 for both."""
    pair = mpe2_pair(case, torch.float32)
    generator = np.random.default_rng(1)
    compared = 0
    for trial in range(60):
        pair.crowd(generator, trial)
        for entity in pair.world.entities:
            entity.state.p_pos = entity.state.p_pos.astype(np.float32).astype(np.float64)
            entity.state.p_vel = entity.state.p_vel.astype(np.float32).astype(np.float64)
        pair.start(torch.float32)
        actions, native = pair.draw(generator)
        _, rewards, *_ = pair.original.step(native)
        stepped = pair.particles.step(actions)
        if np.abs(pair.gaps()).min() < 1e-6:
            continue  # whether these two touch is within rounding
        compared += 1
        # A contact divides the rounding of a distance by a margin of 1e-3, and an offset's by a small distance.
        assert np.abs(stepped.observed.observations[0].numpy() - pair.seen()).max() <= 1e-4
        assert np.abs(stepped.rewards[0].numpy() - list(rewards.values())).max() <= 1e-5
    assert compared > 50


def integrate(world, forces):
    """The fork: velocity first, then position by the new velocity."""
    for body, force in zip(world.agents, forces, strict=False):
        velocity = body.state.p_vel * (1 - world.damping) + force * world.dt
        speed = math.hypot(*velocity)
        if body.max_speed is not None and speed > body.max_speed:
            velocity = velocity / speed * body.max_speed
        body.state.p_vel = velocity
        body.state.p_pos = body.state.p_pos + velocity * world.dt


def fork_pair(scenario):
    makers = {
        "spread": MPE2["spread"],
        "tag": MPE2["tag"],
        "world": lambda: simple_world_comm_v3.parallel_env(num_good=1, num_adversaries=3, continuous_actions=True),
    }
    pair = Pair(makers[scenario](), Particles(scenario, "omar", dtype=torch.float64))
    pair.world.integrate_state = lambda forces: integrate(pair.world, forces)
    for body in pair.world.agents:
        body.accel = None if body.accel is None else body.accel**2
    return pair


def distance(a, b):
    return math.dist(a.state.p_pos, b.state.p_pos)


def touches(a, b):
    return distance(a, b) < a.size + b.size


def boundary(x):
    return 0 if x < 0.9 else 10 * (x - 0.9) if x < 1 else min(math.exp(2 * x - 2), 10)


def fork_rewards(scenario, world):
    bodies = world.agents
    if scenario == "spread":
        covered = sum(min(1 / min(distance(body, goal) for body in bodies), 10) for goal in world.landmarks)
        return [covered - 5 * sum(touches(a, b) for b in bodies if b is not a) for a in bodies]
    predators, prey = bodies[:3], bodies[3]
    catch = 10 if scenario == "tag" else 5
    caught = sum(catch * touches(predator, prey) for predator in predators)
    far = 0.1 * sum(distance(predator, prey) for predator in predators)
    of_prey = far - caught
    outside = sum(boundary(abs(x)) for x in prey.state.p_pos)
    if scenario == "tag":
        of_prey -= outside
    else:
        food = world.landmarks[1:3]
        of_prey += 2 * sum(touches(prey, meal) for meal in food) - 2 * outside
        of_prey += 0.05 * min(distance(prey, meal) for meal in food)
    return [caught - far] * 3 + [of_prey]


def fork_observation(scenario, world, body):
    own = [*body.state.p_vel, *body.state.p_pos]
    others = [other for other in world.agents if other is not body]
    relative = [x for other in [*world.landmarks, *others] for x in other.state.p_pos - body.state.p_pos]
    if scenario == "spread":
        return own + relative + [0.0] * 4
    prey = world.agents[3]
    seen = [] if body is prey else [*prey.state.p_vel]
    forests = world.landmarks[3:] if scenario == "world" else []
    return own + relative + seen + [1.0 if touches(body, forest) else -1.0 for forest in forests]


@pytest.mark.parametrize("scenario", ["spread", "tag", "world"])
def test_episodes_are_the_forks(scenario):
    pair = fork_pair(scenario)
    generator = np.random.default_rng(2)
    contacts = 0
    for trial in range(6):
        pair.crowd(generator, trial)
        pair.start(torch.float64)
        for _ in range(25):
            actions, native = pair.draw(generator)
            pair.original.step(native)
            stepped = pair.particles.step(actions.double())
            expected = pair.padded([fork_observation(scenario, pair.world, body) for body in pair.world.agents])
            assert np.abs(stepped.observed.observations[0].numpy().astype(np.float32) - expected).max() <= 2e-6
            assert np.abs(stepped.rewards[0].numpy() - fork_rewards(scenario, pair.world)).max() <= 1e-9
            contacts += (pair.gaps() < 0).sum()
    assert contacts > 30


@pytest.mark.parametrize("case", MPE2)
def test_costs_count_touching_teammates(case):
    pair = mpe2_pair(case)
    generator = np.random.default_rng(3)
    total = 0
    for trial in range(30):
        pair.crowd(generator, trial)
        pair.start(torch.float64)
        actions, native = pair.draw(generator)
        pair.original.step(native)
        costs = pair.particles.step(actions.double()).costs[0].tolist()
        bodies, team = pair.world.agents, pair.particles.world.team
        for index, body in enumerate(bodies):
            mates = bodies[:team] if index < team else bodies[team:]
            assert costs[index] == sum(touches(body, mate) for mate in mates if mate is not body)
        total += sum(costs)
    assert total > 30

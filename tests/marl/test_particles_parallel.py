"""One episode as a PettingZoo environment, and its frames."""

import math

import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test

from core.errors import UserError
from marl.particles import RULES, SCENARIOS, Flight, ParticleParallelEnv, Particles, State, frame
from marl.particles.rendering import COLOURS, VIEW

EVERY = [(scenario, rules) for scenario in SCENARIOS for rules in RULES]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("scenario", "rules"), EVERY)
def test_it_is_a_parallel_environment(scenario, rules, capsys):
    parallel_api_test(ParticleParallelEnv(Particles(scenario, rules)), num_cycles=60)
    parallel_seed_test(lambda: ParticleParallelEnv(Particles(scenario, rules)), num_cycles=10)
    if scenario != "spread":
        parallel_api_test(ParticleParallelEnv(Particles(scenario, rules, prey=Flight())), num_cycles=30)


@pytest.mark.parametrize(("scenario", "rules"), EVERY)
def test_it_plays_the_batchs_episodes(scenario, rules):
    particles = Particles(scenario, rules, max_cycles=6)
    env = ParticleParallelEnv(Particles(scenario, rules, max_cycles=6))
    sizes = particles.spec.sizes or (particles.spec.observation_dim,) * particles.spec.agents
    generator = np.random.default_rng(0)
    batch = particles.reset([7, 8]).observations
    observations, infos = env.reset(seed=8)
    assert infos == {agent: {} for agent in env.agents}
    for step in range(6):
        actions = {agent: env.action_space(agent).sample() * 0 for agent in env.agents}
        joint = torch.zeros(2, particles.spec.agents, particles.spec.action_dim)
        for index, agent in enumerate(env.possible_agents):
            assert np.allclose(observations[agent], batch[1, index, : sizes[index]], atol=1e-5)
            assert env.observation_space(agent).contains(observations[agent])
            actions[agent][:] = generator.uniform(-1, 1, len(actions[agent]))
            joint[1, index, : len(actions[agent])] = torch.from_numpy(actions[agent])
        stepped = particles.step(joint)
        observations, rewards, terminations, truncations, infos = env.step(actions)
        batch = stepped.observed.observations
        assert np.allclose(list(rewards.values()), stepped.rewards[1], atol=1e-4)
        assert [info["cost"] for info in infos.values()] == stepped.costs[1].tolist()
        assert set(truncations.values()) == {step == 5}
        assert set(terminations.values()) == {False}
    assert env.agents == []
    assert env.step({}) == ({}, {}, {}, {}, {})


def test_spaces_and_states():
    env = ParticleParallelEnv(Particles("world"))
    assert [env.action_space(agent).shape[0] for agent in env.possible_agents] == [6, 2, 2, 2, 2, 2]
    assert [env.observation_space(agent).shape[0] for agent in env.possible_agents] == [34] * 4 + [28] * 2
    env.reset(seed=0)
    state = env.particles.state
    assert env.state_space.contains(env.state())
    assert np.array_equal(env.state()[:12], state.positions.flatten())
    shifted = ParticleParallelEnv(Particles("spread", circle=6, missing=2))
    shifted.reset(seed=0)
    assert shifted.state_space.contains(shifted.state())
    # Actions padded to the team's longest are taken too, and what is beyond an agent's own size counts for nothing.
    padded = {agent: np.ones(6, np.float32) for agent in env.possible_agents}
    own = {agent: np.ones(env.action_space(agent).shape, np.float32) for agent in env.possible_agents}
    first, *_ = env.step(padded)
    env.reset(seed=0)
    second, *_ = env.step(own)
    assert all(np.array_equal(first[agent], second[agent]) for agent in env.possible_agents)


def test_seeds():
    env = ParticleParallelEnv(Particles("spread"))
    starts = [env.reset(seed=seed)[0]["agent_0"] for seed in (3, None, None, 3, None, 4)]
    assert np.array_equal(starts[0], starts[3])
    assert np.array_equal(starts[1], starts[4])  # what follows a seed follows from it
    for other in (starts[1], starts[2], starts[5]):
        assert not np.array_equal(starts[0], other)
    assert not np.array_equal(starts[1], starts[2])


def test_misuse():
    with pytest.raises(UserError, match="unknown render_mode 'human': choose 'rgb_array'"):
        ParticleParallelEnv(Particles("spread"), render_mode="human")
    env = ParticleParallelEnv(Particles("spread"))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="no action for agent_1"):
        env.step({"agent_0": np.zeros(2)})
    with pytest.raises(ValueError, match=r"the action of agent_0 must have shape \(2,\), got \(5,\)"):
        env.step({agent: np.zeros(5) for agent in env.agents})


def pixel(image, point, view=VIEW):
    """The pixel at a place of the plane, x to the right and y upwards."""
    height, width, _ = image.shape
    return image[int((view - point[1]) / (2 * view) * height), int((point[0] + view) / (2 * view) * width)]


def test_frames_show_everything_in_its_place_and_colour():
    particles = Particles("world", "mpe2")
    particles.reset([0])
    positions = [[-0.8, 0.8], [-0.4, 0.8], [0.0, 0.8], [0.4, 0.8], [0.8, 0.8], [-0.5, -0.5]]
    landmarks = [[0.0, 0.0], [-0.8, 0.1], [0.8, 0.3], [-0.5, -0.5], [0.6, -0.6]]
    moving = torch.zeros(1, 6, 2)
    moving[0, 1] = torch.tensor([0.0, -1.0])
    state = State(
        torch.tensor([positions]), moving, torch.tensor([landmarks]), torch.zeros(1).long(), torch.zeros(1, 4)
    )
    image = frame(state, particles.world)
    assert image.shape == (480, 480, 3)
    assert image.dtype == np.uint8
    kinds = ["leader", "predator", "predator", "predator", "prey"]
    for kind, point in zip(kinds, positions, strict=False):
        assert tuple(pixel(image, point)) == COLOURS[kind]
    for kind, point in zip(["obstacle", "food", "food"], landmarks, strict=False):
        assert tuple(pixel(image, point)) == COLOURS[kind]
    assert tuple(pixel(image, (0.0, -1.1))) == COLOURS["background"]
    assert tuple(pixel(image, (0.0, 1.0))) == COLOURS["wall"]
    assert tuple(pixel(image, (-0.4, 0.7))) == COLOURS["velocity"]
    # A forest lets through what is in it: between its colour and what lies below.
    for below, point in (("background", landmarks[4]), ("prey", positions[5])):
        through = pixel(image, point).astype(float)
        expected = (110 * np.array(COLOURS["forest"]) + 145 * np.array(COLOURS[below])) / 255
        assert np.abs(through - expected).max() <= 3


def test_the_view_grows_and_missing_goals_are_not_drawn():
    particles = Particles("spread", missing=1)
    particles.reset([0, 1])
    kept = torch.tensor([[True, True, True], [True, False, True]])
    landmarks = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [0.0, -0.5]]).expand(2, -1, -1)
    positions = torch.tensor([[-2.0, 0.0], [0.0, 0.8], [0.0, 0.0]]).expand(2, -1, -1)
    state = State(positions, torch.zeros(2, 3, 2), landmarks, torch.zeros(2).long(), kept=kept)
    view = 2.0 + 0.15 + 0.05
    ring = (0.5 + 0.035, 0.5)
    for index in (0, 1):
        image = frame(state, particles.world, size=600, index=index)
        assert image.shape == (600, 600, 3)
        for point in positions[index].tolist():
            assert tuple(pixel(image, point, view)) == COLOURS["agent"]
        assert tuple(pixel(image, ring, view)) == COLOURS["goal"]
        drawn = tuple(pixel(image, (-ring[0], 0.5), view)) == COLOURS["goal"]
        assert drawn == (index == 0)


def test_frames_are_smooth():
    """The share of a disc's pixels, partial ones counted in part, is its area."""
    particles = Particles("spread", agents=1, landmarks=1)
    state = State(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.full((1, 1, 2), 0.9), torch.zeros(1).long())
    image = frame(state, particles.world)
    centre = image[160:320, 160:320].astype(float)
    share = (np.array(COLOURS["background"]) - centre)[..., 0] / (COLOURS["background"][0] - COLOURS["agent"][0])
    area = math.pi * (0.15 * 480 / (2 * VIEW)) ** 2
    assert share.sum() == pytest.approx(area, rel=0.02)
    assert ((share > 0.01) & (share < 0.99)).sum() > 50


def test_render():
    env = ParticleParallelEnv(Particles("tag", prey=Flight()), render_mode="rgb_array")
    env.reset(seed=0)
    assert np.array_equal(env.render(), frame(env.particles.state, env.particles.world))
    silent = ParticleParallelEnv(Particles("tag"))
    silent.reset(seed=0)
    assert silent.render() is None

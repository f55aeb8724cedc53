"""Particle environments: seeds, shifts, layouts, scores; for their rules, see test_particles_parity."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from core.environments import TeamSpec
from core.errors import UserError
from marl.particles import RULES, SCENARIOS, Flight, Particles, PublishedPrey, State

PREY = Path(__file__).resolve().parents[3] / "shared/data/mpe_prey"


def published(scenario):
    path = PREY / f"mpe_prey_simple_{scenario}.npz"
    if not path.is_file():
        pytest.skip(f"not run: the published prey's file {path} is not there")
    return PublishedPrey(path)


def uniform(particles, batch, steps, seed=0):
    shape = (steps, batch, particles.spec.agents, particles.spec.action_dim)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def play(particles, seeds, actions):
    """Observations [B, T + 1, A, O] and rewards [B, T, A] of episodes."""
    observations, rewards = [particles.reset(seeds).observations], []
    for action in actions:
        stepped = particles.step(action)
        observations.append(stepped.observed.observations)
        rewards.append(stepped.rewards)
    return torch.stack(observations, 1), torch.stack(rewards, 1)


def body(positions, landmarks, velocities=None, words=None, kept=None):
    """A state of one episode."""
    positions = torch.tensor([positions], dtype=torch.float64)
    velocities = torch.zeros_like(positions) if velocities is None else torch.tensor([velocities], dtype=torch.float64)
    landmarks = torch.tensor([landmarks], dtype=torch.float64)
    return State(positions, velocities, landmarks, torch.zeros(1, dtype=torch.int64), words, kept)


EVERY = [(scenario, rules, prey) for scenario in SCENARIOS for rules in RULES for prey in (None, Flight())]
EVERY = [case for case in EVERY if case[0] != "spread" or case[2] is None]


@pytest.mark.parametrize(("scenario", "rules", "prey"), EVERY)
def test_an_episode_is_its_seeds_whatever_the_batch(scenario, rules, prey):
    particles = Particles(scenario, rules, prey=prey)
    actions = uniform(particles, 70, 25)
    observations, rewards = play(particles, range(70), actions)
    for some in ([5], [69, 3], list(range(10, 50))):
        again, rewarded = play(particles, some, actions[:, some])
        assert torch.allclose(again, observations[some], atol=1e-5)
        assert torch.allclose(rewarded, rewards[some], atol=1e-5)
    assert not torch.allclose(observations[5], observations[3], atol=1e-2)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("rules", RULES)
def test_starts_are_uniform(scenario, rules):
    particles = Particles(scenario, rules, dtype=torch.float64)
    particles.reset(range(5000))
    state, extent = particles.state, 1.0 if scenario == "spread" else 0.9
    for values, size in ((state.positions, 1.0), (state.landmarks, extent)):
        for column in values.flatten(1).T:
            assert stats.kstest(column.numpy(), stats.uniform(-size, 2 * size).cdf).pvalue > 1e-4
    entries = torch.cat([state.positions.flatten(1), state.landmarks.flatten(1)], dim=1).T
    assert (torch.corrcoef(entries) - torch.eye(len(entries))).abs().max() < 0.07
    assert not state.velocities.any()
    assert not state.time.any()
    if state.communication is not None:
        assert not state.communication.any()


def test_bodies_move_by_the_rules():
    """One free body: position by the old velocity or the new, velocity by 5u, 3u and 4u, or 5u, 9u and 16u."""
    for scenario, forces in (("spread", {"mpe2": [5.0], "omar": [5.0]}), ("tag", {"mpe2": [3, 4], "omar": [9, 16]})):
        for rules, expected in forces.items():
            particles = Particles(scenario, rules, agents=1, landmarks=1, dtype=torch.float64)
            count = particles.spec.agents
            state = body([[-4.0 + 2 * k, 3.0] for k in range(count)], [[9.0, 9.0]], [[0.04, -0.03]] * count)
            push = torch.tensor([[[0.2, -0.1]] * count], dtype=torch.float64)
            after, _ = particles.transition(state, push)
            for k, force in enumerate(expected):
                old = np.array([0.04, -0.03])
                new = 0.75 * old + 0.1 * force * np.array([0.2, -0.1])
                moved = 0.1 * (old if rules == "mpe2" else new)
                assert np.allclose(after.velocities[0, k], new, atol=1e-12)
                assert np.allclose(after.positions[0, k], [-4.0 + 2 * k + moved[0], 3.0 + moved[1]], atol=1e-12)


def test_speeds_are_limited():
    particles = Particles("tag", "omar", dtype=torch.float64)
    particles.reset(range(50))
    for actions in uniform(particles, 50, 25).double():
        particles.step(actions * 4)
    speeds = particles.state.velocities.norm(dim=-1)
    assert speeds[:, :3].max() <= 1 + 1e-12
    assert speeds[:, 3].max() <= 1.3 + 1e-12
    assert speeds[:, 3].max() > 1.29


def test_a_contact_pushes_by_its_softplus():
    particles = Particles("spread", "omar", agents=2, landmarks=1, dtype=torch.float64)
    for apart in (0.2999, 0.3, 0.3005, 0.31, 0.05, 2.0):
        state = body([[0.0, 0.0], [0.6 * apart, 0.8 * apart]], [[9.0, 9.0]])
        after, _ = particles.transition(state, torch.zeros(1, 2, 2))
        force = 100 * 1e-3 * np.logaddexp(0, -(apart - 0.3) / 1e-3)
        assert np.allclose(after.velocities[0, 1], 0.1 * force * np.array([0.6, 0.8]), atol=1e-12)
        assert np.allclose(after.velocities[0, 0], -0.1 * force * np.array([0.6, 0.8]), atol=1e-12)


def test_bodies_in_one_place_stay_finite():
    for scenario in SCENARIOS:
        particles = Particles(scenario, "mpe2")
        particles.reset([0])
        state = particles.state
        here = State(state.positions * 0, state.velocities, state.landmarks * 0, state.time, state.communication)
        _, stepped = particles.transition(here, uniform(particles, 1, 1)[0])
        assert stepped.observed.observations.isfinite().all()
        assert stepped.rewards.isfinite().all()


def test_only_time_ends_an_episode():
    particles = Particles("spread", max_cycles=4)
    particles.reset(range(3))
    ends = [particles.step(torch.zeros(3, 3, 2)) for _ in range(4)]
    assert [step.truncated.tolist() for step in ends] == [[False] * 3] * 3 + [[True] * 3]
    assert not any(step.terminated.any() for step in ends)


@pytest.mark.parametrize(
    ("scenario", "mean"), [("spread", 159.6), ("tag", -4.1), ("world", -6.8)], ids=["spread", "tag", "world"]
)
def test_random_teams_score_as_published(scenario, mean):
    """Both means rest on samples: the published one on 40,000 episodes."""
    particles = Particles(scenario, "omar", prey=None if scenario == "spread" else published(scenario))
    episodes = 20_000
    _, rewards = play(particles, range(episodes), uniform(particles, episodes, 25))
    scores = rewards.double().sum(1).mean(1)
    error = float(scores.std()) * math.sqrt(1 / episodes + 1 / 40_000)
    assert abs(float(scores.mean()) - mean) < 3 * error
    if scenario == "spread":
        assert abs(float(scores.std()) - 60.4) < 2


def test_random_teams_score_in_mpe2_as_measured():
    particles = Particles("spread")
    _, rewards = play(particles, range(5000), uniform(particles, 5000, 25))
    scores = rewards.sum(1).mean(1)
    assert abs(float(scores.mean()) + 26.3) < 3 * math.hypot(float(scores.std()) / math.sqrt(5000), 0.1)


SPECS = {
    ("spread", "mpe2"): TeamSpec(3, 18, 2),
    ("spread", "omar"): TeamSpec(3, 18, 2),
    ("tag", "mpe2"): TeamSpec(4, 16, 2, sizes=(16, 16, 16, 14)),
    ("tag", "omar"): TeamSpec(4, 16, 2, sizes=(16, 16, 16, 14)),
    ("world", "mpe2"): TeamSpec(6, 34, 6, sizes=(34, 34, 34, 34, 28, 28)),
    ("world", "omar"): TeamSpec(4, 24, 2, sizes=(24, 24, 24, 22)),
}


@pytest.mark.parametrize(("scenario", "rules"), SPECS)
def test_specs_and_padding(scenario, rules):
    particles = Particles(scenario, rules)
    assert particles.spec == SPECS[scenario, rules]
    observations, _ = play(particles, range(60), uniform(particles, 60, 5))
    assert observations.dtype == torch.float32
    assert observations.shape[2:] == (particles.spec.agents, particles.spec.observation_dim)
    for index, size in enumerate(particles.spec.sizes):
        assert not observations[:, :, index, size:].any()
        assert observations[:, :, index, :size].any(dim=0).any(dim=0).all()
    if scenario != "spread":
        team = Particles(scenario, rules, prey=Flight())
        assert (team.spec.agents, team.spec.sizes) == (particles.world.team, ())
        assert team.agents == particles.agents[: particles.world.team]
        assert torch.equal(team.reset(range(60)).observations, observations[:, 0, : particles.world.team])


@pytest.mark.parametrize("landmarks", [2, 3, 6])
def test_entities(landmarks):
    """Own velocity and position, then a token for each goal and for each other agent."""
    particles = Particles("spread", agents=4, landmarks=landmarks, entities=True)
    assert particles.spec == TeamSpec(4, 4 + 2 * (landmarks + 3), 2, entities=((landmarks, 2), (3, 2)))
    particles.reset(range(3))
    observations = particles.step(uniform(particles, 3, 1)[0]).observed.observations
    state = particles.state
    assert torch.equal(observations[..., :2], state.velocities)
    assert torch.equal(observations[..., 2:4], state.positions)
    tokens = observations[..., 4:].unflatten(-1, (-1, 2)) + state.positions[:, :, None]
    assert torch.allclose(tokens[:, :, :landmarks], state.landmarks[:, None].expand(-1, 4, -1, -1), atol=1e-6)
    for agent in range(4):
        others = [other for other in range(4) if other != agent]
        assert torch.allclose(tokens[:, agent, landmarks:], state.positions[:, others], atol=1e-6)


def test_goals_on_a_circle():
    particles = Particles("spread", circle=6)
    particles.reset(range(2000))
    landmarks = particles.state.landmarks
    assert landmarks.shape == (2000, 6, 2)
    assert torch.allclose(landmarks.norm(dim=-1), torch.tensor(0.75), atol=1e-6)
    assert torch.allclose((landmarks - landmarks.roll(1, 1)).norm(dim=-1), torch.tensor(0.75), atol=1e-5)  # a hexagon
    angles = torch.atan2(landmarks[:, 0, 1], landmarks[:, 0, 0])
    assert stats.kstest(angles.numpy(), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3


@pytest.mark.parametrize("rules", RULES)
def test_missing_goals_are_neither_seen_nor_rewarded(rules):
    particles = Particles("spread", rules, circle=6, missing=2, dtype=torch.float64)
    assert particles.spec == TeamSpec(3, 4 + 12 + 4 + 4, 2)
    observations = particles.reset(range(600)).observations
    kept = particles.state.kept
    assert (kept.sum(dim=1) == 4).all()
    assert stats.chisquare((~kept).sum(dim=0).numpy()).pvalue > 1e-3
    seen = observations[..., 4:16].unflatten(-1, (6, 2)).abs().sum(-1) > 0
    assert torch.equal(seen, kept[:, None].expand(-1, 3, -1))
    stepped = particles.step(uniform(particles, 600, 1)[0])
    state = particles.state
    # The same with the missing goals taken out by hand.
    landmarks = torch.stack([goals[there] for goals, there in zip(state.landmarks, kept, strict=True)])
    closest = torch.cdist(state.positions, landmarks, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    collisions = stepped.costs
    if rules == "mpe2":
        expected = 0.5 * (-closest.sum(1, keepdim=True) - collisions)
    else:
        expected = (1 / closest).clamp(max=10).sum(1, keepdim=True) - 5 * collisions
    assert torch.allclose(stepped.rewards, expected, atol=1e-9)
    assert torch.equal(stepped.observed.observations[..., 4:16].unflatten(-1, (6, 2)).abs().sum(-1) > 0, seen)


@pytest.mark.parametrize("rules", RULES)
def test_speed_scales_forces_and_top_speeds_of_agents_alone(rules):
    usual, fast = (Particles("tag", rules, prey=Flight(), speed=speed).world for speed in (1.0, 1.5))
    for name in ("forces", "top_speeds"):
        before, after = getattr(usual, name), getattr(fast, name)
        assert np.allclose(after[:3], 1.5 * np.array(before[:3]))
        assert after[3] == before[3]
    both = Particles("tag", rules, speed=1.5).world
    assert both.top_speeds == pytest.approx((1.5, 1.5, 1.5, 1.95))
    slow = Particles("spread", rules, agents=1, speed=0.5)
    _, stepped = slow.transition(body([[0.0, 0.0]], [[9.0, 9.0]]), torch.tensor([[[1.0, 0.0]]]))
    assert stepped.observed.observations[0, 0, 0] == pytest.approx(0.25)


def test_the_leader_speaks_and_sees_through_forests():
    """Words from [-1, 1] to [0, 1]; who is in a forest is hidden from all outside of it but the leader."""
    particles = Particles("world", dtype=torch.float64)
    assert particles.agents[0] == "leadadversary_0"
    words = torch.zeros(1, 4, dtype=torch.float64)
    landmarks = [[5.0, 5.0], [6, 6], [7, 7], [0.8, 0.8], [-3, -3]]  # the first forest's centre is (0.8, 0.8)
    positions = [[-0.9, 0.0], [-0.9, -0.5], [0.7, 0.8], [0.0, -0.9], [0.9, 0.8], [0.3, -0.3]]
    actions = torch.zeros(1, 6, 6, dtype=torch.float64)
    actions[0, 0, 2:] = torch.tensor([-1.0, 0.0, 0.5, 3.0])
    actions[0, 1:, 2:] = 0.3  # counts for nobody
    after, stepped = particles.transition(body(positions, landmarks, words=words), actions)
    said = [0.0, 0.5, 0.75, 1.0]
    assert after.communication[0].tolist() == said
    observations = stepped.observed.observations[0]
    for adversary in range(4):
        assert observations[adversary, 30:34].tolist() == said
    relative = observations[:, 14:24].unflatten(-1, (5, 2))
    hidden = torch.zeros(2, dtype=torch.float64)
    assert torch.allclose(
        relative[0, 3], torch.tensor([1.8, 0.8], dtype=torch.float64), atol=1e-9
    )  # leader, hidden prey
    assert torch.equal(relative[1, 3], hidden)  # outside, prey inside
    assert torch.allclose(relative[2, 3], torch.tensor([0.2, 0.0], dtype=torch.float64), atol=1e-9)  # both inside
    assert torch.equal(relative[2, 4], hidden)  # inside, prey outside
    assert relative[1, 4].any()  # both outside


def test_states_go_on_as_they_were():
    """From a state in the midst of an episode, `start` and `transition` give what the episode gave."""
    for scenario, rules, prey in EVERY:
        particles = Particles(scenario, rules, prey=prey)
        actions = uniform(particles, 5, 8)
        observations, _ = play(particles, range(5), actions[:4])
        state = particles.state
        steps = [particles.step(action) for action in actions[4:]]
        other = Particles(scenario, rules, prey=prey)
        assert torch.equal(other.start(state).observations, observations[:, -1])
        later, stepped = particles.transition(state, actions[4])
        assert torch.equal(stepped.observed.observations, steps[0].observed.observations)
        assert torch.equal(later.time, torch.full((5,), 5))
        for action, expected in zip(actions[4:], steps, strict=True):
            again = other.step(action)
            assert torch.equal(again.observed.observations, expected.observed.observations)
            assert torch.equal(again.rewards, expected.rewards)
        # Some of the episodes alone, given as plain tensors.
        some = State(*(None if x is None else x[[3, 1]].contiguous() for x in vars(state).values()))
        assert torch.allclose(
            particles.transition(some, actions[4][[3, 1]])[1].rewards, steps[0].rewards[[3, 1]], atol=1e-5
        )


class NoWaiting(TorchDispatchMode):
    """An error wherever the host would read a tensor's values, as operations of data-dependent shapes do too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags), function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("scenario", "rules", "prey"), EVERY)
def test_no_step_reads_a_tensors_values(scenario, rules, prey):
    particles = Particles(scenario, rules, prey=prey)
    particles.reset(range(3))
    actions = uniform(particles, 3, 1)[0]
    with NoWaiting():
        particles.step(actions)
        with pytest.raises(AssertionError):
            bool(actions.any())


@pytest.mark.slow
def test_a_step_is_one_graph():
    """Any break in the graph is an error here."""
    particles = Particles("world", prey=Flight())
    particles.reset(range(3))
    state, actions = particles.state, uniform(particles, 3, 1)[0]
    after, stepped = torch.compile(particles.transition, fullgraph=True, backend="eager")(state, actions)
    expected, expected_step = particles.transition(state, actions)
    assert torch.equal(after.positions, expected.positions)
    assert torch.equal(stepped.rewards, expected_step.rewards)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("scenario", "rules", "prey"), EVERY)
def test_a_cuda_device_plays_the_same_episodes(scenario, rules, prey):
    """Eager, and as a captured graph, which a step that waits for the host would break."""
    ours, there = (Particles(scenario, rules, prey=prey, device=device) for device in ("cpu", "cuda"))
    actions = uniform(ours, 64, 5)
    observations, rewards = play(ours, range(64), actions)
    on_device, rewarded = play(there, range(64), actions.cuda())
    assert torch.allclose(on_device.cpu(), observations, atol=1e-3)
    assert torch.allclose(rewarded.cpu(), rewards, atol=1e-2)
    state, action = there.state, actions[0].cuda()
    expected, _ = there.transition(state, action)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        there.transition(state, action)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        after, _ = there.transition(state, action)
    graph.replay()
    assert torch.equal(after.positions, expected.positions)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("spred",), {}, "unknown scenario 'spred': did you mean 'spread'"),
        (("spread", "omer"), {}, "unknown rules 'omer': did you mean 'omar'"),
        (("spread",), {"agents": 0}, "agents must be at least 1 and landmarks at least 0, got 0 and 0"),
        (("spread",), {"max_cycles": 0}, "max_cycles must be at least 1, got 0"),
        (("spread",), {"speed": -1.0}, "speed must be a positive number, 1 for the usual one, got -1.0"),
        (("spread",), {"prey": Flight()}, "spread has no prey"),
        (("spread",), {"missing": 3}, "missing must be at least 0 and leave one of 3 goals, got 3"),
        (("spread",), {"circle": 6, "landmarks": 3}, "circle=6 is the number of goals, but landmarks=3"),
        (("tag",), {"circle": 6}, "missing, circle and entities are for spread, but the scenario is 'tag'"),
        (("world",), {"entities": True}, "missing, circle and entities are for spread"),
        (("spread",), {"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64, got torch.float16"),
    ],
)
def test_what_makes_no_environment(arguments, options, message):
    with pytest.raises(UserError, match=message):
        Particles(*arguments, **options)


def test_misuse():
    particles = Particles("spread")
    with pytest.raises(RuntimeError, match=r"no episode has begun: call reset\(seeds\)"):
        particles.step(torch.zeros(1, 3, 2))
    particles.reset([0, 1])
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 3, 2\), got \(2, 3, 5\)"):
        particles.step(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"has landmarks of shape \(1, 3, 2\), got \(1, 2, 2\)"):
        particles.start(body([[0.0, 0.0]] * 3, [[0.0, 0.0]] * 2))
    with pytest.raises(ValueError, match=r"has communication of shape \(1, 4\), got None"):
        Particles("world").start(body([[0.0, 0.0]] * 6, [[0.0, 0.0]] * 5))

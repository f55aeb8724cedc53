"""What moves the prey by itself, and its files."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import UserError
from marl.particles import (
    RULES,
    Flight,
    NetworkPrey,
    Particles,
    PublishedPrey,
    learned_path,
    load_prey,
    make_world,
    save_prey,
)

PREY = Path(__file__).resolve().parents[3] / "shared/data/mpe_prey"


def arrays(observation_dim=14, hidden=(64, 64), seed=0):
    """A network's tensors, as published ones are named."""
    generator = np.random.default_rng(seed)
    widths = [observation_dim, *hidden, 2]
    tensors = {f"in_fn.{name}": generator.normal(size=observation_dim) for name in ("weight", "bias", "running_mean")}
    tensors["in_fn.running_var"] = generator.uniform(0.1, 2, observation_dim)
    for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
        tensors[f"fc{number}.weight"] = generator.normal(0, inputs**-0.5, (outputs, inputs))
        tensors[f"fc{number}.bias"] = generator.normal(size=outputs)
    return {key: value.astype(np.float32) for key, value in tensors.items()} | {
        "in_fn.num_batches_tracked": np.int64(3)
    }


def write(path, tensors):
    np.savez(path, **tensors)
    return path


def forward(tensors, x, layers=3):
    """The network in NumPy."""
    x = (x - tensors["in_fn.running_mean"]) / np.sqrt(tensors["in_fn.running_var"] + 1e-5)
    x = x * tensors["in_fn.weight"] + tensors["in_fn.bias"]
    for number in range(1, layers + 1):
        x = x @ tensors[f"fc{number}.weight"].T + tensors[f"fc{number}.bias"]
        x = np.maximum(x, 0) if number < layers else np.tanh(x)
    return x


@pytest.mark.parametrize("hidden", [(64, 64), (32,), (16, 24, 8)])
def test_a_network_is_the_published_one(tmp_path, hidden):
    tensors = arrays(hidden=hidden)
    if len(hidden) == 1:
        tensors |= {"name": np.array("short"), "description": np.array("one layer")}
    prey = load_prey(write(tmp_path / "prey.npz", tensors), "tag")
    seen = torch.randn(5, 1, 14, generator=torch.Generator().manual_seed(0))
    assert np.allclose(prey.act(seen).numpy(), forward(tensors, seen.numpy(), len(hidden) + 1), atol=1e-5)
    assert prey.hidden == hidden
    assert prey.name == ("short" if len(hidden) == 1 else "published")
    assert "prey.npz" in prey.description or prey.description == "one layer"
    assert not any(parameter.requires_grad for parameter in prey.parameters())


@pytest.mark.parametrize("scenario", ["tag", "world"])
def test_the_published_file(scenario):
    path = PREY / f"mpe_prey_simple_{scenario}.npz"
    if not path.is_file():
        pytest.skip(f"not run: the published prey's file {path} is not there")
    with np.load(path) as file:
        tensors = dict(file)
    particles = Particles(scenario, "omar", prey=PublishedPrey(path))
    controlled = Particles(scenario, "omar")
    particles.reset(range(20))
    seen = controlled.reset(range(20)).observations
    for step in range(10):
        actions = torch.rand(20, 3, 2, generator=torch.Generator().manual_seed(step)) * 2 - 1
        flight = forward(tensors, seen[:, 3:, : controlled.spec.sizes[3]].numpy())
        stepped = particles.step(actions)
        expected = controlled.step(torch.cat([actions, torch.from_numpy(flight)], dim=1))
        assert torch.allclose(stepped.observed.observations, expected.observed.observations[:, :3], atol=1e-4)
        assert torch.allclose(stepped.rewards, expected.rewards[:, :3], atol=1e-4)
        controlled.start(particles.state)
        seen = torch.cat(
            [expected.observed.observations[:, :3], controlled.start(particles.state).observations[:, 3:]], 1
        )


def test_a_learned_prey_comes_back(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = NetworkPrey(22, (32, 32), description="trained for 10 minutes")
    network(torch.randn(64, 3, 22))  # in training mode: the normalisation's statistics move
    network.eval()
    path = tmp_path / "weights" / "world-omar.npz"
    save_prey(network, path)
    monkeypatch.setattr("marl.particles.preys.WEIGHTS", path.parent)
    assert learned_path("world", "omar") == path
    seen = torch.randn(7, 1, 22)
    for prey in (load_prey("learned", "world"), load_prey(str(path), "world")):
        assert torch.equal(prey.act(seen), network.act(seen))
        assert (prey.name, prey.description) == ("learned", "trained for 10 minutes")
    with pytest.raises(UserError, match=r"no learned prey of tag under 'mpe2' is installed \(there is world-omar\)"):
        load_prey("learned", "tag", "mpe2")


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("scenario", ["tag", "world"])
@pytest.mark.parametrize("agents", [1, 3, 5])
def test_flight_flees_and_stays_inside(scenario, rules, agents):
    particles = Particles(scenario, rules, agents=agents, prey=load_prey("flight", scenario))
    team = particles.world.team
    particles.reset(range(200))
    state = particles.state
    before = torch.cdist(state.positions[:, team:], state.positions[:, :team]).amin(2)
    outside = 0.0
    for _ in range(25):
        particles.step(torch.zeros(200, particles.spec.agents, particles.spec.action_dim))
        outside += (particles.state.positions[:, team:].abs() > 1).float().mean() / 25
    state = particles.state
    after = torch.cdist(state.positions[:, team:], state.positions[:, :team]).amin(2)
    assert after.mean() > before.mean()
    assert (after > 0.2).float().mean() > 0.95
    assert outside < 0.1
    assert state.velocities[:, team:].norm(dim=-1).max() < 1.31


def test_flight_heads_away_at_its_pace():
    """From one predator, at rest in the open, under the fork's forces: one push to speed 0.9 straight away."""
    world = make_world("tag", "omar", agents=1)
    seen = torch.zeros(1, 1, 4 + 4 + 2 + 0)
    seen[..., 4:8] = 3.0  # obstacles far away
    seen[..., 8:10] = torch.tensor([0.3, -0.4])
    action = Flight(world).act(seen)[0, 0]
    expected = 0.9 * np.array([-0.6, 0.8]) / (16 * 0.1)
    assert np.allclose(action, expected, atol=1e-5)
    assert np.allclose(Flight(world, pace=5.0).act(seen)[0, 0], [-0.6, 0.8], atol=1e-5)
    assert float(Flight(world).act(seen).norm()) == pytest.approx(0.9 / 1.6)


def test_chasing_pays_and_cornering_is_needed():
    """A team that runs after the prey scores far above a random one, and far below a contact in every step."""
    scores = {}
    for name in ("chase", "random"):
        particles, total = Particles("tag", "omar", prey=Flight()), 0.0
        particles.reset(range(400))
        generator = torch.Generator().manual_seed(0)
        for _ in range(25):
            state = particles.state
            ahead = state.positions[:, 3:] + 0.2 * state.velocities[:, 3:] - state.positions[:, :3]
            drawn = torch.rand(400, 3, 2, generator=generator) * 2 - 1
            actions = ahead / ahead.norm(dim=-1, keepdim=True) if name == "chase" else drawn
            total = total + particles.step(actions).rewards[:, 0]
        scores[name] = float(total.mean())
    assert scores["random"] < 0
    assert 50 < scores["chase"] < 250


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc2.weight": None}, "no field 'fc2.weight'"),
        ({"in_fn.weight": None}, "no field 'in_fn.weight'"),
        ({"fc1.bias": None}, "no field 'fc1.bias'"),
        (
            {"fc3.weight": np.zeros((3, 64), np.float32)},
            r"field 'fc3.weight' of .* has shape \(3, 64\), expected \(2, 64\)",
        ),
        ({"in_fn.running_var": np.zeros(15, np.float32)}, r"field 'in_fn.running_var' .* \(15,\), expected \(14,\)"),
        ({"fc1.bias": np.full(64, np.nan, np.float32)}, "field 'fc1.bias' of .* no finite numbers"),
        ({"in_fn.weight": np.float32(1.0)}, "field 'in_fn.weight' of .* single number"),
    ],
)
def test_malformed_files(tmp_path, change, message):
    tensors = {key: value for key, value in (arrays() | change).items() if value is not None}
    path = write(tmp_path / "prey.npz", tensors)
    for load in (PublishedPrey, lambda path: load_prey(path, "tag")):
        with pytest.raises(UserError, match=message):
            load(path)


def test_other_errors(tmp_path):
    with pytest.raises(UserError, match=r"no prey at .*nothing\.npz"):
        PublishedPrey(tmp_path / "nothing.npz")
    with pytest.raises(UserError, match="no prey 'fligt': did you mean 'flight'"):
        load_prey("fligt", "tag")
    with pytest.raises(UserError, match=r"no prey '.*nothing\.npz': mend the path"):
        load_prey(tmp_path / "nothing.npz", "tag")
    with pytest.raises(UserError, match="'spread' has no prey"):
        load_prey("flight", "spread")
    with pytest.raises(UserError, match="unknown rules 'omer'"):
        load_prey("flight", "tag", "omer")
    torn = tmp_path / "torn.npz"
    torn.write_bytes(write(tmp_path / "prey.npz", arrays()).read_bytes()[:500])
    with pytest.raises(UserError, match=r"torn\.npz is no npz of a prey's network"):
        load_prey(torn, "tag")
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, **{"in_fn.weight": np.array([{}], dtype=object)})
    with pytest.raises(UserError, match=r"pickled\.npz is no npz of a prey's network"):
        load_prey(pickled, "tag")
    with pytest.raises(
        UserError, match="sees 14 numbers, but this environment shows it 22: it is for another scenario"
    ):
        Particles("world", "omar", prey=PublishedPrey(tmp_path / "prey.npz"))
    with pytest.raises(UserError, match="this Flight knows no world"):
        Flight().act(torch.zeros(1, 1, 14))


class Still:
    """A prey of a user's own."""

    name, description = "still", "never moves"

    def __init__(self, size=2):
        self.size = size

    def act(self, observations):
        return observations.new_zeros(*observations.shape[:-1], self.size)


def test_a_prey_of_ones_own():
    particles = Particles("tag", prey=Still())
    particles.reset([0])
    before = particles.state.positions[0, 3].clone()
    particles.step(torch.zeros(1, 3, 2))
    assert math.dist(before, particles.state.positions[0, 3]) < 1e-6
    with pytest.raises(UserError, match=r"prey 'still' answered \(1, 1, 14\) with \(1, 1, 5\): expected \(1, 1, 2\)"):
        Particles("tag", prey=Still(5))

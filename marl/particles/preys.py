"""Prey that move by themselves in the particle scenarios: scripted, learned, and the one of the published results."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import UserError, nearest
from core.files import replacing
from marl.particles.physics import DAMPING, DT
from marl.particles.worlds import RULES, World

#: Names of the prey that `load_prey` knows besides paths.
PREYS = ("flight", "learned")

#: Where the learned prey's weights are, one file for each scenario and rule set.
WEIGHTS = Path(__file__).parent / "weights"


class Prey(Protocol):
    """What moves the prey. Tensors have the environment's device and dtype. name, description: for metadata."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    def act(self, observations: Tensor) -> Tensor:
        """What P prey see [B, P, O] -> how they push [B, P, 2], each entry in [-1, 1]."""


@dataclass(frozen=True)
class Flight:
    """Scripted flight, a little slower than predators can be: one that runs after it gains on it, a team corners it.

    It heads for the sum of pushes: from a predator at distance d, 1 / (d^2 + 0.05); from a wall, by the square of the
    way past 0.6, so that it stays inside; from an obstacle nearer than 0.45, outwards and to the side that it already
    heads for, so that it slips by; in `world` a little to the nearest food. It pushes so as to have, one step later,
    the speed `pace` that way. The same sight gives the same action.

    Attributes:
        world: what its observations hold; None for the one that `Particles` puts it in.
        pace: speed that it flees at; predators reach 1.
    """

    world: World | None = None
    pace: float = 0.9
    name: ClassVar[str] = "flight"
    description: ClassVar[str] = "scripted flight from predators, walls and obstacles, a little slower than predators"

    def act(self, observations: Tensor) -> Tensor:
        if self.world is None:
            raise UserError("this Flight knows no world: give it to Particles as its prey, or make Flight(world)")
        world, landmarks = self.world, len(self.world.kinds)
        # Entries first and the batch last, so that what follows runs along memory.
        rows = observations.permute(2, 1, 0).contiguous()
        velocity, position = rows[:2], rows[2:4]
        relative = rows[4 : 4 + 2 * (landmarks + world.team)].unflatten(0, (-1, 2))
        predators = relative[landmarks:]
        squared = predators.square().sum(1, keepdim=True)
        # A predator that a forest hides is seen at exactly zero, and pushes by nothing.
        away = -(predators / ((squared.sqrt() + 1e-6) * (squared + 0.05))).sum(0)
        push = away - position.sign() * ((position.abs() - 0.6).clamp(min=0) / 0.3).square() * 20
        obstacles = relative[: len(world.places("obstacle"))]
        distance = (obstacles.square().sum(1, keepdim=True) + 1e-6).sqrt()
        outward = -obstacles / distance
        side = torch.stack([-outward[:, 1], outward[:, 0]], dim=1)
        heading = (side * (velocity + 0.1 * away)).sum(1, keepdim=True)
        near = ((0.45 - distance) / 0.2).clamp(min=0)
        push = push + (near * 6 * (outward + side * heading.sign())).sum(0)
        if food := world.places("food"):
            meals = relative[food[0] : food[-1] + 1]
            closest = meals.square().sum(1, keepdim=True).argmin(0, keepdim=True).expand(1, 2, -1, -1)
            push = push + meals.gather(0, closest)[0] * 0.5
        wanted = push * (self.pace / push.square().sum(0).sqrt().clamp(min=0.3))
        force = (wanted - (1 - DAMPING) * velocity) / (world.forces[-1] * DT)
        return (force / force.square().sum(0).sqrt().clamp(min=1)).permute(2, 1, 0).contiguous()


class NetworkPrey(nn.Module):
    """A fixed network: batch normalisation by running statistics, ReLU layers, two outputs through tanh.

    Args:
        observation_dim: O. hidden: widths of the hidden layers, (64, 64) as published. description: how it was made.
    """

    def __init__(
        self, observation_dim: int, hidden: tuple[int, ...] = (64, 64), *, name: str = "learned", description: str = ""
    ):
        super().__init__()
        self.name, self.description = name, description
        self.observation_dim, self.hidden = observation_dim, tuple(hidden)
        self.in_fn = nn.BatchNorm1d(observation_dim)
        widths = [observation_dim, *hidden, 2]
        self.layers = len(widths) - 1
        for number in range(1, self.layers + 1):
            self.add_module(f"fc{number}", nn.Linear(widths[number - 1], widths[number]))

    def forward(self, observations: Tensor) -> Tensor:
        """[..., O] -> [..., 2] in [-1, 1]; in training mode, the normalisation's statistics follow the batch."""
        x = self.in_fn(observations.flatten(0, -2)).unflatten(0, observations.shape[:-1])
        for number in range(1, self.layers):
            x = torch.relu(self.get_submodule(f"fc{number}")(x))
        return torch.tanh(self.get_submodule(f"fc{self.layers}")(x))

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        if observations.shape[-1] != self.observation_dim:
            raise UserError(
                f"prey {self.name!r} sees {self.observation_dim} numbers, but this environment shows it "
                f"{observations.shape[-1]}: it is for another scenario, rule set or team size"
            )
        return self.forward(observations)


class PublishedPrey(NetworkPrey):
    """The fixed prey of the published results, from an npz of its state dict.

    Raises:
        UserError: no such file, or one that lacks a field or holds one of another shape.
    """

    def __init__(self, path: str | Path):
        tensors = _read(Path(path))
        super().__init__(
            *_sizes(tensors, Path(path)),
            name="published",
            description=f"pretrained network of the published results, {Path(path).name}",
        )
        _fill(self, tensors, Path(path))


def load_prey(name: str | Path, scenario: str, rules: str = "omar") -> Prey:
    """A prey by name or by the path of its npz.

    Args:
        name: "flight", "learned" (shipped with the package where it has been trained for this scenario and rule set),
            or the path of an npz: a state dict as published, or what `save_prey` wrote.

    Raises:
        UserError: unknown name, a file that is missing or malformed, or a scenario that has no prey.
    """
    if scenario not in ("tag", "world"):
        raise UserError(f"scenario {scenario!r} has no prey: choose 'tag' or 'world', or give no prey")
    if rules not in RULES:
        raise UserError(f"unknown rules {rules!r}: {nearest(rules, RULES)}")
    if name == "flight":
        return Flight()
    if name == "learned":
        path = learned_path(scenario, rules)
        if not path.is_file():
            there = sorted(file.stem for file in WEIGHTS.glob("*.npz"))
            raise UserError(
                f"no learned prey of {scenario} under {rules!r} is installed (there is {', '.join(there) or 'none'}): "
                "choose prey 'flight', or give the path of an npz"
            )
    else:
        path = Path(name)
        if not path.is_file():
            hint = (
                f"{nearest(str(name), PREYS)}, or give the path of an npz" if path.suffix != ".npz" else "mend the path"
            )
            raise UserError(f"no prey {str(name)!r}: {hint}")
    tensors = _read(path)
    if "name" not in tensors:
        prey: NetworkPrey = PublishedPrey(path)
    else:
        name, description = str(tensors["name"]), str(tensors.get("description", ""))
        prey = NetworkPrey(*_sizes(tensors, path), name=name, description=description)
        _fill(prey, tensors, path)
    return prey


def save_prey(prey: NetworkPrey, path: str | Path) -> None:
    """Write a network as an npz that `load_prey` reads. The shipped ones are at `learned_path(scenario, rules)`."""
    arrays = {key: value.detach().cpu().numpy() for key, value in prey.state_dict().items()}
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        np.savez(file, name=np.array(prey.name), description=np.array(prey.description), **arrays)


def learned_path(scenario: str, rules: str) -> Path:
    """Where the package keeps the learned prey of a scenario."""
    return WEIGHTS / f"{scenario}-{rules}.npz"


def _read(path: Path) -> Mapping[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"no prey at {path}: mend the path, or choose one of {', '.join(PREYS)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # numpy raises a dozen kinds, by where the file is torn
        raise UserError(f"{path} is no npz of a prey's network: {error}") from error


def _sizes(tensors: Mapping[str, np.ndarray], path: Path) -> tuple[int, tuple[int, ...]]:
    """Observation size and hidden widths, as the first dimensions of its tensors tell them."""
    layers = 0
    while f"fc{layers + 1}.weight" in tensors:
        layers += 1
    for key in ("in_fn.weight", "fc1.weight", "fc2.weight"):
        if key not in tensors:
            raise UserError(
                f"{path} has no field {key!r} (it has {', '.join(sorted(tensors))}): it is no prey's network"
            )
        if tensors[key].ndim < 1:
            raise UserError(f"field {key!r} of {path} is a single number, not a tensor of weights")
    return len(tensors["in_fn.weight"]), tuple(len(tensors[f"fc{number}.weight"]) for number in range(1, layers))


def _fill(prey: NetworkPrey, tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Set a network's weights, and end its training."""
    for key, target in prey.state_dict().items():
        if key == "in_fn.num_batches_tracked":
            continue
        if key not in tensors:
            raise UserError(f"{path} has no field {key!r}: it is no prey's network, or not a whole one")
        if tensors[key].shape != tuple(target.shape):
            raise UserError(f"field {key!r} of {path} has shape {tensors[key].shape}, expected {tuple(target.shape)}")
        if tensors[key].dtype.kind != "f" or not np.isfinite(tensors[key]).all():
            raise UserError(f"field {key!r} of {path} holds what are no finite numbers")
        target.copy_(torch.from_numpy(tensors[key]))
    prey.eval().requires_grad_(False)

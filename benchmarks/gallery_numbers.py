"""What the gallery shows, as numbers: walks, errors, guided samples and a distilled model, on data of closed form."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gallery_exact import TILTS, Mixture, Tilt, consistency_function, exact_flow
from torch import Tensor

import core
from core.networks import ResidualMLP

#: (steps) -> sampler
Maker = Callable[..., core.Sampler]

MODES = Mixture(
    torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], dtype=torch.float64),
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    deviation=0.3,
)
#: Three classes that overlap.
CLASSES = Mixture(
    torch.tensor([[1.0, 0.0], [-0.5, 0.87], [-0.5, -0.87]], dtype=torch.float64),
    torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64) / 3,
    deviation=0.5,
)
#: Where the deterministic samplers are compared: the last step to the data is of first order for all of them.
STOP = 0.01


@dataclass(frozen=True)
class Size:
    """How much is computed.

    evaluations: of the network, for the error curves. points: starts whose errors are taken. samples: of a law.
    reference: steps of the exact flow. moves: of the long DDPM walks. updates: of the teacher, and of the student.
    """

    evaluations: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    points: int = 512
    samples: int = 40_000
    reference: int = 2000
    moves: int = 500
    updates: int = 3000


QUICK = Size(evaluations=(8, 32), points=64, samples=2000, reference=400, moves=40, updates=20)


@dataclass(frozen=True)
class Walk:
    """A walk: its iterates, each [B, 2]."""

    name: str
    evaluations: int
    trace: tuple[Tensor, ...]


@dataclass(frozen=True)
class Curve:
    """A sampler's errors against its network evaluations, in one panel."""

    panel: str
    name: str
    evaluations: tuple[int, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Tilted:
    """Samples [B] of a Gaussian tilted by an energy."""

    energy: str
    guidance: str
    sampler: str
    mean: float
    variance: float
    samples: Tensor


@dataclass(frozen=True)
class Guided:
    """Samples [B, 2] of classifier-free guidance to class 0, and p_u (p_c / p_u)^scale for comparison.

    mean, deviation: of the samples along the first axis, on which the class lies. share: of them in that class.
    """

    scale: float
    mean: float
    deviation: float
    share: float
    power_mean: float
    power_deviation: float
    samples: Tensor


@dataclass(frozen=True)
class Few:
    """Samples [B, 2] in few steps, with what is wrong with them."""

    name: str
    evaluations: int
    shares: tuple[float, ...]
    spread: float
    distance: float
    samples: Tensor


def walks(points: int = 24, evaluations: int = 16) -> list[Walk]:
    """Every sampler from the same noise, with about as many network evaluations; consistency with two."""
    vp, flow = core.VPLinear(), core.Flow()
    once, twice = evaluations, evaluations // 2
    runs: list[tuple[str, core.Schedule, core.Sampler]] = [
        ("DDIM", vp, core.DDIM(once)),
        ("DDPM, small variance", vp, core.DDPM(once)),
        ("DDPM, large variance", vp, core.DDPM(once, large=True)),
        ("2M", vp, core.DPMSolver(once)),
        ("3M", vp, core.DPMSolver(once, order=3)),
        ("2S", vp, core.DPMSolver(twice, singlestep=True)),
        ("SDE 2M", vp, core.DPMSolver(once, sde=True)),
        ("Heun", vp, core.Heun(twice)),
        ("Heun with churn", vp, core.Heun(twice, churn=2.0)),
        ("Euler on a flow", flow, core.Euler(once)),
        ("Heun on a flow", flow, core.Heun(twice, spacing="time")),
        ("consistency, exact f", vp, core.Consistency(2)),
    ]
    noise = core.normal(range(points), (2,), dtype=torch.float64)
    rows = []
    for name, schedule, sampler in runs:
        denoiser = MODES.denoiser(schedule)
        if isinstance(sampler, core.Consistency):
            denoiser = consistency_function(denoiser)
        trace = core.sample(denoiser, noise, sampler, trace=True).trace
        rows.append(Walk(name, sampler.evaluations(schedule), trace))
    return rows


def _curve(
    panel: str,
    name: str,
    make: Maker,
    size: Size,
    schedule: core.Schedule,
    error: Callable[[core.Sampler], float],
) -> Curve:
    """make(steps) at as many steps as give about the evaluations of `size`."""
    calls = 2 if make(4).evaluations(schedule) > 4 else 1
    samplers = [make(count // calls) for count in size.evaluations]
    counts = tuple(sampler.evaluations(schedule) for sampler in samplers)
    return Curve(panel, name, counts, tuple(map(error, samplers)))


def flow_errors(size: Size) -> tuple[list[Curve], dict[str, float]]:
    """Deterministic samplers, spacings and schedules against the exact probability flow from the same starts.

    The error is the median distance. The mean square is that of the few starts at a border between modes, which a
    coarse walk takes to another mode.

    Returns:
        The curves; and of each reference, by how much 2S at as many steps differs from it, in the same median.
    """
    noise = core.normal(range(size.points), (2,), dtype=torch.float64)
    gaps = {}

    def compare(panel: str, schedule: core.Schedule, makers: dict[str, Maker], stop: float) -> list[Curve]:
        denoiser = MODES.denoiser(schedule)
        exact = exact_flow(denoiser, noise, size.reference, stop)

        def error(sampler: core.Sampler) -> float:
            return (core.sample(denoiser, noise, sampler).x - exact).norm(dim=1).median().item()

        gaps[f"{type(schedule).__name__} to {stop:g}"] = error(
            core.DPMSolver(size.reference, "lambda", singlestep=True, stop=stop)
        )
        return [_curve(panel, name, make, size, schedule, error) for name, make in makers.items()]

    to_stop: dict[str, Any] = {"spacing": "lambda", "stop": STOP}
    samplers: dict[str, Maker] = {
        "DDIM": partial(core.DDIM, **to_stop),
        "2M": partial(core.DPMSolver, **to_stop),
        "3M": partial(core.DPMSolver, order=3, **to_stop),
        "2S": partial(core.DPMSolver, singlestep=True, **to_stop),
        "Heun": partial(core.Heun, **to_stop),
        'Heun, "edm" frame': partial(core.Heun, frame="edm", **to_stop),
    }
    spacings = ("time", "lambda", "karras", "quadratic")
    curves = compare("samplers", core.VPLinear(), samplers, STOP)
    curves += compare(
        "spacings", core.VPLinear(), {name: partial(core.DPMSolver, spacing=name) for name in spacings}, 1e-6
    )
    for schedule in (core.VPLinear(), core.VPCosine(), core.VPSigmoid(), core.VE(), core.Flow()):
        makers: dict[str, Maker] = {type(schedule).__name__: partial(core.DPMSolver, spacing="lambda")}
        if isinstance(schedule, core.Flow):
            makers["Flow, time grid"] = partial(core.DPMSolver, spacing="time")
        curves += compare("schedules", schedule, makers, 1e-6)
    return curves, gaps


def law_errors(size: Size, generator: torch.Generator) -> tuple[list[Curve], list[float]]:
    """Energy distances of whole sample sets from the data, on a grid uniform in time; and those of ten exact sets."""
    schedule = core.VPLinear()
    denoiser = MODES.denoiser(schedule)
    noise = core.normal(range(size.samples), (2,))
    makers: dict[str, Maker] = {
        "DDPM, small": core.DDPM,
        "DDPM, large": partial(core.DDPM, large=True),
        "SDE 2M": partial(core.DPMSolver, sde=True, spacing="time"),
        "SDE 2S": partial(core.DPMSolver, sde=True, singlestep=True, spacing="time"),
        "Heun, churn": partial(core.Heun, churn=2.0, spacing="time"),
        "DDIM (no noise)": core.DDIM,
        "2M (no noise)": partial(core.DPMSolver, spacing="time"),
    }

    def error(sampler: core.Sampler) -> float:
        return MODES.energy_distance(core.sample(denoiser, noise, sampler).x)

    curves = [_curve("laws", name, make, size, schedule, error) for name, make in makers.items()]
    return curves, [MODES.energy_distance(MODES.draw(size.samples, generator)) for _ in range(10)]


def tilted(size: Size) -> list[Tilted]:
    """A standard normal tilted by each energy, by every kind of guidance."""
    return [row for tilt in TILTS for row in _tilted_by(tilt, size)]


def _tilted_by(tilt: Tilt, size: Size) -> list[Tilted]:
    schedule = core.VPCosine()  # whose walk starts from almost pure noise: alpha = 0.001
    plain = core.wrap(lambda x, t: schedule.alpha(t) * x, schedule)
    noisy = partial(tilt.noisy, schedule)

    def expected(x: Tensor, t: Tensor) -> Tensor:
        """E[energy | x_t] up to a constant, which a value function learns: for these two, the energy of E[x0 | x_t]."""
        return tilt.energy(schedule.alpha(t) * x)

    energies = {
        "exact noisy energy": core.Energy(plain, noisy, on="noisy"),
        "clean estimate": core.Energy(plain, tilt.energy),
        "frozen": core.Energy(plain, tilt.energy, on="frozen"),
    }
    moves = {
        "move of the iterate": core.GradientMove(noisy, -1.0),
        "move of the mean": core.GradientMove(noisy, -1.0, on="mean"),
        "move of the mean, expected": core.GradientMove(expected, -1.0, on="mean"),
    }
    solver, walks = ("2M-100", core.DPMSolver(100, "lambda")), [(f"DDPM-{k}", core.DDPM(k)) for k in (20, size.moves)]
    runs: list[Any] = [(name, energy, (), walk) for name, energy in energies.items() for walk in (solver, *walks)]
    runs += [(name, plain, (move,), walk) for name, move in moves.items() for walk in walks]
    # The normal's quantiles: a deterministic walk has no sampling error.
    chance = (torch.arange(size.samples, dtype=torch.float64) + 0.5) / size.samples
    noise = torch.special.ndtri(chance)[:, None]
    rows = []
    for name, denoiser, edits, (label, sampler) in runs:
        x = core.sample(denoiser, noise, sampler, edits=edits).x[:, 0]
        rows.append(Tilted(tilt.name, name, label, x.mean().item(), x.var().item(), x))
    return rows


def guided(size: Size, scales: Sequence[float] = (-1.0, 0.0, 1.0, 2.0, 4.0)) -> list[Guided]:
    """Classifier-free guidance to class 0 of three, 2M with 100 steps."""
    denoiser = CLASSES.denoiser(core.VPLinear())
    noise = core.normal(range(size.samples), (2,), dtype=torch.float64)
    cond = noise.new_zeros(size.samples, 1)
    rows = []
    for scale in scales:
        x = core.sample(core.ClassifierFree(denoiser, scale), noise, core.DPMSolver(100, "lambda"), cond=cond).x
        centre, width = CLASSES.power_moments(0, scale)
        share = (CLASSES.log_densities(x).argmax(dim=1) == 0).double().mean().item()
        rows.append(Guided(scale, x[:, 0].mean().item(), x[:, 0].std().item(), share, centre, width, x))
    return rows


def distilled(size: Size, generator: torch.Generator) -> list[Few]:
    """A teacher trained on samples of the mixture, and the consistency model distilled from it, in few steps."""
    teacher, student = _trained(size, generator)
    noise = core.normal(range(size.samples), (2,))
    runs: list[tuple[str, core.Denoiser, core.Sampler]] = [("student", student, core.Consistency(k)) for k in (1, 2, 4)]
    runs += [("teacher, DDIM", teacher, core.DDIM(k)) for k in (1, 2, 4, 20)]
    runs += [("teacher, 2M", teacher, core.DPMSolver(k, spacing="time")) for k in (1, 2, 4, 20)]
    sets = [(name, sampler.steps, core.sample(model, noise, sampler).x) for name, model, sampler in runs]
    sets.append(("data", 0, MODES.draw(size.samples, generator)))
    return [
        Few(name, count, tuple(MODES.shares(x).tolist()), MODES.spread(x), MODES.energy_distance(x), x)
        for name, count, x in sets
    ]


def _trained(size: Size, generator: torch.Generator) -> tuple[core.NetworkDenoiser, core.ConsistencyModel]:
    def batch() -> Tensor:
        return MODES.draw(256, generator).float()

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        teacher = core.NetworkDenoiser(ResidualMLP(2, width=64, blocks=2, expansion=2), core.Flow(), "flow")
    _minimise(teacher, lambda: core.diffusion_loss(teacher, batch(), generator=generator)[0], size.updates, 2e-3)
    student = core.ConsistencyModel(copy.deepcopy(teacher))
    target, average = copy.deepcopy(student), core.EMA(student, 0.99)

    def loss() -> Tensor:
        average.update()
        average.copy_to(target)
        return core.consistency_loss(student, target, teacher, batch(), generator=generator)

    _minimise(student, loss, size.updates, 5e-4)
    return teacher, target


def _minimise(module: torch.nn.Module, loss: Callable[[], Tensor], updates: int, rate: float) -> None:
    """Adam, its rate falling to 0 along a cosine."""
    optimiser = torch.optim.Adam(module.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        schedule.step()

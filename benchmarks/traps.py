"""How often the forms of the safety filter trap plans: gaps where waypoints went around an obstacle on either side.

    python benchmarks/traps.py

256 plans of 32 waypoints are drawn from an exact Gaussian prior over smooth paths from (-1, 0) to (1, 0), nine of ten
of which lead through a disc in their middle, by the same 20 steps of DDIM from the same noise. A plan is trapped where
neighbours lie further apart than 0.2; no free plan does. Prints a table and writes benchmarks/traps.json.
"""

import json
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

import core
from core.denoiser import alpha_sigma
from core.files import write_text
from core.progress import console
from safe import Ellipse, FiniteTime, SafetyFilter, summarise_constraints, two_phase

PLANS, STEPS = 256, 32
PUBLISHED = ("robust", "relaxed", "time_varying")


def paths(schedule: core.Schedule, steps: int = STEPS) -> core.Denoiser:
    """The exact denoiser of the prior: m + alpha S (alpha^2 S + sigma^2)^-1 (x - alpha m), S its covariance."""
    s = torch.linspace(0, 1, steps, dtype=torch.float64)
    mean = torch.stack([2 * s - 1, torch.zeros_like(s)], dim=-1)
    smooth = torch.exp(-((s[:, None] - s) ** 2) / 0.18) + 1e-3 * torch.eye(steps)
    variances, bases = torch.linalg.eigh(torch.stack([0.0025 * smooth, 0.09 * smooth]))

    def estimate(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(schedule, x, t)
        alpha, sigma = (torch.as_tensor(value).reshape(-1, 1, 1) for value in (alpha, sigma))
        apart = torch.einsum("dts,btd->bds", bases, x[:, :, 0] - alpha * mean)
        apart = apart * (alpha * variances / (alpha**2 * variances + sigma**2))
        return (mean + torch.einsum("dts,bds->btd", bases, apart))[:, :, None]

    return core.wrap(estimate, schedule)


def rates() -> dict[str, float]:
    """Share of trapped plans, by form of the filter, and of free plans that lead through the disc."""
    disc, denoiser, sampler = Ellipse([0.0, 0.0], 0.4), paths(core.VPCosine()), core.DDIM(20)
    noise = core.normal(range(PLANS), (STEPS, 1, 2), dtype=torch.float64)
    free = core.sample(denoiser, noise, sampler).x

    def trapped(x: Tensor) -> float:
        found = summarise_constraints([disc], x, unconstrained=free)
        assert x is free or found.plan_minimum >= 0.01 - 1e-6
        return found.trap_rate

    found = {"through the disc": float((disc(free).amin(dim=(1, 2)) < 0).double().mean()), "free": trapped(free)}
    for on in ("iterate", "estimate"):
        for mode in PUBLISHED:
            safety = SafetyFilter([disc], None, mode, on)
            found[f"{mode}, {on}"] = trapped(core.sample(denoiser, noise, sampler, edits=[safety]).x)
    finite, robust = SafetyFilter([disc], None, FiniteTime(4 / 0.3)), SafetyFilter([disc], None, on="estimate")
    found["two phases"] = trapped(two_phase(denoiser, noise, sampler, finite).corrected.x)
    found["two phases, noised"] = trapped(two_phase(denoiser, noise, sampler, finite, temperature=1.0).corrected.x)
    found["two phases, estimate"] = trapped(two_phase(denoiser, noise, sampler, robust).corrected.x)
    found["final only"] = trapped(SafetyFilter([disc]).finish(free))
    return found


def main() -> None:
    """Print the table and write it."""
    found = rates()
    table = Table("form", "share of plans")
    for name, share in found.items():
        table.add_row(name, f"{share:.2f}")
    console.print(table)
    path = Path(__file__).with_suffix(".json")
    write_text(path, json.dumps({"plans": PLANS, "waypoints": STEPS, "shares": found}, indent=2) + "\n")
    console.print(f"wrote {path}", highlight=False)


if __name__ == "__main__":
    main()

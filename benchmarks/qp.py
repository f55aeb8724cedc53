"""Batched projections against general solvers: python benchmarks/qp.py [--device cpu|cuda] [--rounds 5]

One step of a safety filter for B plans of 384 waypoints in the plane, each kept out of 1, 2 or 4 discs (a small problem
for each waypoint), and for B plans of 32 steps of 3 agents that are kept apart (6 variables and 3 rows for each step).
"active" is the share of problems in which the wanted move violates a row. Contenders, in turns, each in its fastest
round:

- `safe.qp.project`, with and without screening;
- cvxpy with Clarabel at 1e-9, built once and given new parameters: one problem for each plan, timed on 8 plans at most
  and scaled, and one for each waypoint or step, timed on one plan and scaled;
- Moreau (Apache 2.0), all problems in one batch, where it is installed (`pip install moreau`).

All must find the same answer to 1e-5. Prints a table and writes benchmarks/qp_cpu.json or qp_cuda.json. On CUDA only
the projection is timed.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.device import device_of
from core.files import write_text
from core.runs import versions
from safe.barriers import Barrier, Ellipse, Separation, joined
from safe.qp import project, project_convex


@dataclass(frozen=True)
class Case:
    """Projections of B plans: u_ref [B, T, n], rows [B, T, m, n] and b [B, T, m]."""

    name: str
    u_ref: Tensor
    rows: Tensor
    b: Tensor

    @property
    def activity(self) -> float:
        """Share of the problems that a row is violated in."""
        return float((torch.einsum("btmn,btn->btm", self.rows, self.u_ref) < self.b).any(-1).double().mean())

    def part(self, plans: int) -> "Case":
        return Case(self.name, self.u_ref[:plans], self.rows[:plans], self.b[:plans])


def case_of(batch: int, barriers: list[Barrier], steps: int, agents: int, name: str, device: torch.device) -> Case:
    """Plans spread evenly over a square, which want to move a little anywhere."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(batch, steps, agents, 2, generator=generator, dtype=torch.float64) - 1
    u_ref = 0.02 * torch.randn(batch, steps, agents, 2, generator=generator, dtype=torch.float64)
    found = joined(barriers, x)
    size = 2 * agents
    parts = (u_ref, found.gradients, -found.values)
    shapes = ((steps, size), (steps, -1, size), (steps, -1))
    return Case(name, *(part.reshape(batch, *shape).to(device) for part, shape in zip(parts, shapes, strict=True)))


def cases(batch: int, device: torch.device) -> list[Case]:
    found = []
    for rows, radius in ((1, 0.31), (2, 0.22), (4, 0.15)):
        centres = [(0.5, 0.5), (-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5)][:rows]
        discs: list[Barrier] = [Ellipse(torch.tensor(centre), torch.tensor(radius)) for centre in centres]
        found.append(case_of(batch, discs, 384, 1, f"384 waypoints, {rows} rows", device))
    return [*found, case_of(batch, [Separation(0.18)], 32, 3, "32 steps of 3 agents, 3 rows", device)]


# The contenders: each returns u [B, T, n]


def together(case: Case) -> Tensor:
    """One problem for each plan."""
    import cvxpy

    batch, steps, count, size = case.rows.shape

    def constraints(u: "cvxpy.Variable", b: "cvxpy.Parameter", *rows: "cvxpy.Parameter") -> list["cvxpy.Constraint"]:
        moves = cvxpy.reshape(u, (steps, size), order="C")
        return [cvxpy.sum(cvxpy.multiply(row, moves), axis=1) >= b[:, k] for k, row in enumerate(rows)]

    kept = _KEPT.setdefault((case.name, "plan"), constraints)
    rows = [case.rows[:, :, k] for k in range(count)]
    return project_convex(case.u_ref.flatten(1), kept, case.b, *rows).u.reshape(batch, steps, size)


def one_by_one(case: Case) -> Tensor:
    """One problem for each waypoint or step."""
    kept = _KEPT.setdefault((case.name, "step"), lambda u, rows, b: [rows @ u >= b])
    return project_convex(case.u_ref, kept, case.rows, case.b).u


#: The constraints' functions, by which `project_convex` knows its compiled problems again.
_KEPT: dict[tuple[str, str], Callable[..., list]] = {}


def moreau(case: Case) -> Callable[[], Tensor]:
    """All problems in one batch: -A u + s = -b, s >= 0."""
    import moreau

    rows, u_ref, b = (part.flatten(0, 1).numpy() for part in (case.rows, case.u_ref, case.b))
    problems, count, size = rows.shape
    solver = moreau.CompiledSolver(
        n=size,
        m=count,
        P_row_offsets=np.arange(size + 1),
        P_col_indices=np.arange(size),
        A_row_offsets=size * np.arange(count + 1),
        A_col_indices=np.tile(np.arange(size), count),
        cones=moreau.Cones(num_nonneg_cones=count),
        settings=moreau.Settings(device="cpu", batch_size=problems),
    )

    def run() -> Tensor:
        solver.setup(P_values=np.ones((problems, size)), A_values=-rows.reshape(problems, -1))
        return torch.as_tensor(solver.solve(qs=-u_ref, bs=-b).x).reshape(case.u_ref.shape)

    return run


def timed(run: Callable[[], Tensor], device: torch.device, calls: int = 1) -> float:
    """Milliseconds of a call."""
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin) / calls


def compare(case: Case, rounds: int, device: torch.device) -> dict[str, object]:
    """A row of the table."""
    batch = len(case.u_ref)
    few, fewer = min(batch, 8), min(batch, 1)
    contenders: dict[str, tuple[Callable[[], Tensor], int]] = {
        "project": (lambda: project(case.u_ref, case.rows, case.b, screen=True).u, batch),
        "project, no screening": (lambda: project(case.u_ref, case.rows, case.b, screen=False).u, batch),
    }
    if device.type == "cpu":
        contenders["cvxpy, a plan"] = (lambda: together(case.part(few)), few)
        contenders["cvxpy, a waypoint"] = (lambda: one_by_one(case.part(fewer)), fewer)
        if importlib.util.find_spec("moreau"):
            contenders["moreau"] = (moreau(case), batch)
    exact = project(case.u_ref, case.rows, case.b)
    if not exact.feasible.all():
        raise SystemExit(f"{case.name}: not every problem has a solution")
    times: dict[str, list[float]] = {}
    calls: dict[str, int] = {}
    for name, (run, plans) in contenders.items():
        if not float((run() - exact.u[:plans]).abs().max()) < 1e-5:
            raise SystemExit(f"{case.name}: {name} found another answer")
        once = timed(run, device)
        times[name], calls[name] = [once * batch / plans], int(min(20, max(once < 1000, 50 / once)))
    for _ in range(rounds):
        for name, (run, plans) in contenders.items():
            if calls[name]:  # what takes seconds is timed once
                times[name].append(timed(run, device, calls[name]) * batch / plans)
    best = {name: min(values) for name, values in times.items()}
    row: dict[str, object] = {"case": case.name, "plans": batch, "active": round(case.activity, 3)}
    row |= {f"{name}, ms": float(f"{value:.3g}") for name, value in best.items()}
    row |= {f"{name} / project": float(f"{best[name] / best['project']:.3g}") for name in best if name != "project"}
    return row | {"timed": {name: plans for name, (_, plans) in contenders.items() if plans < batch}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", default="1,64,1024")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = device_of(options.device)
    if device.type == "cpu" and not importlib.util.find_spec("moreau"):
        print("Moreau is not installed (pip install moreau): its column is left out")
    rows = []
    for batch in map(int, options.batches.split(",")):
        for case in cases(batch, device):
            rows.append(compare(case, options.rounds, device))
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    record = {"device": str(device), "threads": options.threads, "rounds": options.rounds, "versions": versions()}
    path = Path(__file__).with_name(f"qp_{device.type}.json")
    write_text(path, json.dumps({**record, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

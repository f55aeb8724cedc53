"""The engine against diffusers and a bare loop: the same network, the same work, interleaved in one run.

    python benchmarks/engine.py [--device cuda] [--rounds 15]

Prints tables and writes benchmarks/engine_cpu.json or engine_cuda.json. On a CPU every figure is a ratio: the time of
a whole sampling loop over the time of its network evaluations alone, measured beside it, each in its fastest round.
"Bare loop" calls the network directly, with coefficients that are Python floats. It embeds the time in every call, as
the forwards alone do; the engine embeds all times of a walk at once, so its ratios may fall below 1. On CUDA it also
gives milliseconds, samples a second, and the share of the time that the bare network evaluations take when they are
replayed from a CUDA graph.

Run it on an idle machine. Without diffusers (`pip install diffusers`) its rows are left out.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import core
from core.networks import ResidualMLP, TemporalUNet

Run = Callable[[], object]
TABLE = core.VPTable.linear(1000)


@dataclass(frozen=True)
class Case:
    """A network and the shape of its samples. names: what the tables call it."""

    name: str
    network: nn.Module
    shape: tuple[int, ...]
    steps: int
    cond: Tensor | None = None

    def denoiser(self) -> core.NetworkDenoiser:
        return core.NetworkDenoiser(self.network, TABLE)

    def noise(self, device: torch.device) -> Tensor:
        return core.normal(range(self.shape[0]), self.shape[1:]).to(device)


def policy(batch: int, device: torch.device, steps: int = 5) -> Case:
    """A policy of 0.28 M parameters: actions of 6 entries, observations of 20."""
    torch.manual_seed(0)
    network = ResidualMLP(6, width=256, blocks=2, expansion=1, condition_dim=20, time_width=16).to(device).eval()
    return Case(f"MLP policy, batch {batch}", network, (batch, 6), steps, torch.randn(batch, 20, device=device))


def planner(batch: int, device: torch.device, steps: int = 20, width: int = 64, horizon: int = 32) -> Case:
    """A temporal U-Net of 1.0 M parameters (at width 64)."""
    torch.manual_seed(0)
    network = TemporalUNet(14, horizon, width=width, multipliers=(1, 2), condition_dim=1).to(device).eval()
    cond = torch.zeros(batch, 1, 1, device=device)
    return Case(f"temporal U-Net, batch {batch}", network, (batch, horizon, 1, 14), steps, cond)


def elapsed(run: Run, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(
    runs: dict[str, Run], device: torch.device, rounds: int, seconds: float = 0.05
) -> dict[str, list[float]]:
    """Seconds a call of each, in each round; short calls are repeated until a measurement takes `seconds`."""
    repeats = {}
    for name, run in runs.items():
        run()
        repeats[name] = max(1, int(seconds / max(1e-6, min(elapsed(run, device) for _ in range(3)))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            count = repeats[name]
            times[name].append(elapsed(lambda run=run, count=count: [run() for _ in range(count)], device) / count)
    return times


def ratio(over: list[float], under: list[float]) -> float:
    """Of the fastest rounds: whatever else the machine does only adds time."""
    return round(min(over) / min(under), 3)


# The contenders


def engine_loop(case: Case, sampler: core.Sampler, noise: Tensor) -> Run:
    denoiser = case.denoiser()
    return lambda: core.sample(denoiser, noise, sampler, cond=case.cond).x


def bare_ddim(case: Case, noise: Tensor) -> Run:
    """DDIM in a plain loop on the same grid; returns what `core.DDIM` does."""
    steps = core.DDIM(case.steps).grid(TABLE)
    rows = [(s.start.t, s.start.alpha, s.start.sigma, s.end.alpha, s.end.sigma) for s in steps]
    times = [torch.full((len(noise),), row[0], device=noise.device) for row in rows]

    @torch.no_grad()
    def loop() -> Tensor:
        x = rows[0][2] * noise
        for t, (_, alpha, sigma, alpha_next, sigma_next) in zip(times, rows, strict=True):
            eps = case.network(x, t, case.cond)
            x0 = (x - sigma * eps) / alpha
            x = alpha_next * x0 + sigma_next * eps
        return x

    return loop


def diffusers_loop(case: Case, name: str, noise: Tensor) -> Run:
    """Their scheduler with the same betas and as many steps."""
    import diffusers

    options = {"beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "trailing"}
    if name == "dpm":
        scheduler = diffusers.DPMSolverMultistepScheduler(**options, use_karras_sigmas=False)
    else:
        make = diffusers.DDIMScheduler if name == "ddim" else diffusers.DDPMScheduler
        scheduler = make(**options, clip_sample=False)

    @torch.no_grad()
    def loop() -> Tensor:
        scheduler.set_timesteps(case.steps, device=noise.device)
        x = noise
        for t in scheduler.timesteps:
            eps = case.network(x, ((t + 1) / 1000).expand(len(x)), case.cond)
            x = scheduler.step(eps, t, x).prev_sample
        return x

    return loop


def forwards(case: Case, noise: Tensor, count: int | None = None, rows: int = 1) -> Run:
    """The network evaluations alone, each of `rows` times the batch."""
    x = torch.cat([noise] * rows)
    cond = None if case.cond is None else torch.cat([case.cond] * rows)
    t = torch.full((len(x),), 0.5, device=x.device)

    @torch.no_grad()
    def loop() -> None:
        for _ in range(count or case.steps):
            case.network(x, t, cond)

    return loop


# The tables


def loops(device: torch.device, rounds: int) -> list[dict[str, object]]:
    """Loop time / (steps x forward) for every sampler and contender."""
    rows = []
    has_diffusers = importlib.util.find_spec("diffusers") is not None
    for case in (planner(64, device), policy(256, device), policy(1, device)):
        noise = case.noise(device)
        steps = case.steps
        samplers = {"ddim": core.DDIM(steps), "ddpm": core.DDPM(steps), "dpm": core.DPMSolver(steps, "time")}
        runs: dict[str, Run] = {"forwards": forwards(case, noise), "bare ddim": bare_ddim(case, noise)}
        for name, sampler in samplers.items():
            runs[f"convoy {name}"] = engine_loop(case, sampler, noise)
            if has_diffusers:
                runs[f"diffusers {name}"] = diffusers_loop(case, name, noise)
        check_equal(runs)
        times = interleaved(runs, device, rounds)
        row: dict[str, object] = {"case": case.name, "steps": steps}
        row |= {name: ratio(times[name], times["forwards"]) for name in runs if name != "forwards"}
        row["convoy ddim - bare ddim"] = round(ratio(times["convoy ddim"], times["forwards"]) - row["bare ddim"], 3)  # type: ignore[operator]
        rows.append(row)
    return rows


def check_equal(runs: dict[str, Run]) -> None:
    """All DDIM contenders do the same work: they return the same samples."""
    reference = runs["convoy ddim"]()
    for name in ("bare ddim", "diffusers ddim"):
        if name in runs:
            error = float((runs[name]() - reference).abs().max() / reference.abs().max())  # type: ignore[operator]
            if not error < 1e-3:
                raise SystemExit(f"{name} returns other samples than convoy ddim: relative difference {error:.2e}")


def compiled(device: torch.device, rounds: int) -> list[dict[str, object]]:
    """The whole loop compiled, for a policy at batch 1."""
    case = policy(1, device)
    noise = case.noise(device)
    eager = engine_loop(case, core.DDIM(case.steps), noise)
    denoiser = case.denoiser()
    fast = core.compiled(lambda z: core.sample(denoiser, z, core.DDIM(case.steps), cond=case.cond).x)
    runs: dict[str, Run] = {"eager": eager, "compiled": lambda: fast(noise), "bare ddim": bare_ddim(case, noise)}
    if importlib.util.find_spec("diffusers"):
        runs["diffusers ddim"] = diffusers_loop(case, "ddim", noise)
    difference = float((fast(noise) - eager()).abs().max() / eager().abs().max())  # type: ignore[operator, attr-defined]
    times = interleaved(runs, device, rounds)
    row: dict[str, object] = {"case": case.name, "steps": case.steps, "relative difference from eager": difference}
    row |= {f"{name} / compiled": ratio(times[name], times["compiled"]) for name in runs if name != "compiled"}
    return [row]


def guidance(device: torch.device, rounds: int) -> list[dict[str, object]]:
    """A step of classifier-free guidance in forwards of the unguided batch."""
    rows = []
    for case in (planner(64, device), policy(256, device)):
        noise = case.noise(device)
        guided = core.ClassifierFree(case.denoiser(), 1.4)
        runs: dict[str, Run] = {
            "guided": lambda case=case, guided=guided, noise=noise: core.sample(
                guided, noise, core.DDIM(case.steps), cond=case.cond
            ),
            "forwards": forwards(case, noise),
            "forwards of twice the batch": forwards(case, noise, rows=2),
        }
        times = interleaved(runs, device, rounds)
        row: dict[str, object] = {"case": case.name}
        row |= {f"guided / {name}": ratio(times["guided"], times[name]) for name in runs if name != "guided"}
        rows.append(row)
    return rows


def averaging(device: torch.device, rounds: int) -> list[dict[str, object]]:
    """An update of the moving average against Python loops over the parameters: as published code writes it, making new
    tensors, and in place."""
    network = planner(1, device).network
    ema = core.EMA(network, 0.999)
    copy = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}

    @torch.no_grad()
    def plain() -> None:
        for name, parameter in network.named_parameters():
            copy[name] = copy[name] * 0.999 + (1 - 0.999) * parameter

    @torch.no_grad()
    def in_place() -> None:
        for name, parameter in network.named_parameters():
            copy[name].mul_(0.999).add_(parameter, alpha=0.001)

    times = interleaved({"plain": plain, "in place": in_place, "fused": ema.update}, device, rounds)
    row: dict[str, object] = {"tensors": len(copy)}
    return [row | {f"{name} / fused": ratio(times[name], times["fused"]) for name in ("plain", "in place")}]


def throughput(device: torch.device, rounds: int) -> list[dict[str, object]]:
    """On CUDA: samples a second, with graphs and bf16 on and off, against the bare forwards replayed from a graph."""
    rows = []
    for make, batches in ((planner, (1, 64, 512, 4096)), (policy, (1, 64, 512, 4096))):
        for batch in batches:
            for bf16 in (False, True):
                case = make(batch, device)
                noise = case.noise(device)
                dtype = torch.bfloat16 if bf16 else None
                denoiser = core.NetworkDenoiser(case.network, TABLE, autocast=dtype)

                def whole(z: Tensor, case: Case = case, denoiser: core.NetworkDenoiser = denoiser) -> Tensor:
                    return core.sample(denoiser, z, core.DDIM(case.steps), cond=case.cond).x

                def bare(z: Tensor, case: Case = case, dtype: torch.dtype | None = dtype) -> Tensor:
                    t = torch.full((len(z),), 0.5, device=z.device)
                    with torch.autocast("cuda", dtype or torch.float32, enabled=dtype is not None):
                        for _ in range(case.steps):
                            output = case.network(z, t, case.cond)
                    return output

                graphs = {
                    "graph": core.compiled(whole, inductor=False, cuda_graph=True),
                    "inductor": core.compiled(whole),
                    "inductor + graph": core.compiled(whole, cuda_graph=True),
                    "bare forwards, graph": core.compiled(bare, inductor=False, cuda_graph=True),
                }
                runs: dict[str, Run] = {"eager": lambda z=noise, run=whole: run(z)}
                runs |= {name: (lambda z=noise, run=run: run(z)) for name, run in graphs.items()}
                times = interleaved(runs, device, rounds)
                medians = {name: statistics.median(values) for name, values in times.items()}
                rows.append(
                    {"case": case.name, "bf16": bf16}
                    | {f"{name}, ms": round(1000 * value, 3) for name, value in medians.items()}
                    | {"samples / s, graph": round(batch / medians["graph"])}
                    | {"bare / graph": ratio(times["bare forwards, graph"], times["graph"])}
                )
                print(rows[-1], flush=True)
    return rows


def show(title: str, rows: list[dict[str, object]]) -> None:
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    tables = {
        "loop time / (steps x forward)": loops,
        "compiled whole loop": compiled,
        "classifier-free guidance": guidance,
        "moving average": averaging,
    }
    if device.type == "cuda":
        tables["throughput"] = throughput
    result: dict[str, object] = {"torch": torch.__version__, "threads": options.threads, "rounds": options.rounds}
    if device.type == "cuda":
        result["device"] = torch.cuda.get_device_name()
    for title, table in tables.items():
        result[title] = table(device, options.rounds)
        show(title, result[title])  # type: ignore[arg-type]
    path = Path(__file__).with_name(f"engine_{device.type}.json")
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

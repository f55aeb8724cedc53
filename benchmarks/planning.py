"""What a plan costs: python benchmarks/planning.py [--device cpu|cuda]

Two measurements, each a ratio or a time of one run:

- Latency of one joint plan at the published width (64.3 M parameters, 3 agents, 24 steps, DDIM-15 with classifier-free
  guidance), against 30 separate calls of the same network on one plan: guidance in two calls a step. The same weights
  and inputs, in turns; the median over rounds.
- Episodes of spread that the small preset plans and steps through, all at once (8 steps, DDIM-5 with guidance, a new
  plan at every step), with untrained weights, which cost the same.

Prints both and writes benchmarks/planning_DEVICE.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import core
import marl
from core.acting import Acting
from core.cli.commands import register_schemas
from core.config import compose_config, to_object
from core.device import device_of
from core.environments import TeamSpec
from core.files import write_text
from core.noise import normal
from core.rollout import rollout
from core.runs import versions

AGENTS, STEPS, EPISODES = 3, 15, 1000


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time of one call, with the device's work done."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


@torch.no_grad()
def latency(device: torch.device, rounds: int) -> dict[str, object]:
    """A guided plan at the published width against as many separate network calls."""
    register_schemas()
    config = to_object(compose_config("train", ["algo=madiff_published"])).algo
    planner = marl.MADiff(config, TeamSpec(AGENTS, 18, 2)).to(device).eval()
    observations = torch.zeros(1, AGENTS, 18, device=device)
    x = normal([0], planner.plan_shape()).to(device)
    t, cond = torch.full((1,), 0.5, device=device), torch.full((1, AGENTS, 1), 0.9, device=device)

    def plan() -> None:
        planner.plan(observations, sampler=core.DDIM(steps=STEPS), guidance_scale=1.2)

    def separate() -> None:
        for _ in range(2 * STEPS):
            planner.denoiser.network(x, t, cond)

    plan(), separate()
    times = [(seconds(plan, device), seconds(separate, device)) for _ in range(rounds)]
    return {
        "parameters": sum(parameter.numel() for parameter in planner.denoiser.parameters()),
        "plan / separate calls": round(statistics.median(a / b for a, b in times), 3),
        "plan_seconds": round(statistics.median(a for a, _ in times), 3),
        "separate_seconds": round(statistics.median(b for _, b in times), 3),
    }


def evaluation(device: torch.device) -> dict[str, object]:
    """Episodes of the small preset, by the evaluator's own loop."""
    task = marl.TaskConfig()
    with task.make(str(device)) as environments:
        planner = marl.MADiff(marl.MADiffConfig(), environments.spec).to(device).eval()
        policy = planner.policy(Acting())
        rollout(policy, environments, range(8))
        took = seconds(lambda: rollout(policy, environments, range(EPISODES), parallel=EPISODES), device)
    return {"episodes": EPISODES, "seconds": round(took, 1), "ms a decision": round(1e3 * took / EPISODES / 25, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = device_of(options.device)
    found = {"latency": latency(device, options.rounds), "evaluation": evaluation(device)}
    for name, numbers in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in numbers.items()), flush=True)
    found |= {"device": str(device), "threads": options.threads, "versions": versions()}
    path = Path(__file__).with_name(f"planning_{device.type}.json")
    write_text(path, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

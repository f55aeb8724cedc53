"""Speed of the batched particle environments: python benchmarks/environments.py [--threads N] [--rounds N]

Environment steps a second in whole episodes (a reset and 25 steps with given actions): the installed mpe2 in its
parallel API against `Particles` under the same rules with all agents controlled, at several batch sizes. Their ratio is
measured in turns in one run; all figures are medians over rounds. On a CUDA device, where there is one, also eager
steps and steps captured as a CUDA graph, against the same mpe2 on the host. Prints a table and writes
benchmarks/environments.json, in about half a minute.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mpe2 import simple_spread_v3, simple_tag_v3, simple_world_comm_v3
from rich.console import Console
from rich.table import Table

from core.files import write_text
from core.runs import versions
from marl.particles import Particles

STEPS = 25
ORIGINALS = {"spread": simple_spread_v3, "tag": simple_tag_v3, "world": simple_world_comm_v3}
BATCHES = (1, 100, 1_000, 10_000)
CUDA_BATCHES = (1_000, 10_000, 100_000)

#: Seconds that a measurement takes at least.
LEAST = 0.2


def mpe2_episode(scenario: str) -> Callable[[], None]:
    """One episode of mpe2."""
    environment = ORIGINALS[scenario].parallel_env(max_cycles=STEPS, continuous_actions=True)
    environment.reset(seed=0)
    generator = np.random.default_rng(0)
    actions = [
        {
            agent: generator.uniform(0, 1, environment.action_space(agent).shape).astype(np.float32)
            for agent in environment.agents
        }
        for _ in range(STEPS)
    ]

    def play() -> None:
        environment.reset()
        for action in actions:
            environment.step(action)

    return play


def our_episodes(scenario: str, batch: int, device: str = "cpu") -> Callable[[], None]:
    """An episode each of `batch`."""
    particles = Particles(scenario, device=device)
    seeds = torch.arange(batch, device=device)
    actions = drawn(particles, batch)

    def play() -> None:
        particles.reset(seeds)
        for action in actions:
            particles.step(action)
        if device == "cuda":
            torch.cuda.synchronize()

    return play


def graphed_episodes(scenario: str, batch: int) -> Callable[[], None]:
    """The same with a step captured once: it reads its action and leaves its state where the next one finds it."""
    particles = Particles(scenario, device="cuda")
    seeds = torch.arange(batch, device="cuda")
    actions = drawn(particles, batch)
    particles.reset(seeds)
    state, action = particles.state, actions[0].clone()
    fields = [name for name, value in vars(state).items() if value is not None and name not in ("landmarks", "kept")]

    def step() -> None:
        after, _ = particles.transition(state, action)
        for name in fields:
            getattr(state, name).copy_(getattr(after, name))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def play() -> None:
        particles.reset(seeds)
        for name, value in vars(particles.state).items():
            if value is not None:
                getattr(state, name).copy_(value)
        for given in actions:
            action.copy_(given)
            graph.replay()
        torch.cuda.synchronize()

    return play


def drawn(particles: Particles, batch: int) -> torch.Tensor:
    """Actions of an episode [T, B, A, U]."""
    generator = torch.Generator().manual_seed(0)
    shape = (STEPS, batch, particles.spec.agents, particles.spec.action_dim)
    return (torch.rand(shape, generator=generator) * 2 - 1).to(particles.device)


def speed(play: Callable[[], None], batch: int) -> float:
    """Environment steps a second."""
    begin, episodes = time.perf_counter(), 0
    while time.perf_counter() - begin < LEAST:
        play()
        episodes += batch
    return STEPS * episodes / (time.perf_counter() - begin)


def measure(scenario: str, rounds: int) -> list[dict[str, object]]:
    """A row for each path and batch size of a scenario."""
    original = mpe2_episode(scenario)
    paths = [("cpu", batch, our_episodes(scenario, batch)) for batch in BATCHES]
    if torch.cuda.is_available():
        paths += [("cuda, eager", batch, our_episodes(scenario, batch, "cuda")) for batch in CUDA_BATCHES]
        paths += [("cuda, graph", batch, graphed_episodes(scenario, batch)) for batch in CUDA_BATCHES]
    rows: list[dict[str, object]] = []
    for path, batch, play in paths:
        play()
        pairs = [(speed(original, 1), speed(play, batch)) for _ in range(rounds)]
        rows.append(
            {
                "scenario": scenario,
                "path": path,
                "episodes": batch,
                "mpe2, steps/s": round(statistics.median(theirs for theirs, _ in pairs)),
                "ours, steps/s": round(statistics.median(ours for _, ours in pairs)),
                "ours / mpe2": round(statistics.median(ours / theirs for theirs, ours in pairs), 1),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "not run: no CUDA device"
    rows = [row for scenario in ORIGINALS for row in measure(scenario, options.rounds)]
    table = Table(*rows[0], title=f"mpe2's rules, {options.threads} thread(s); CUDA: {device}")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int | float) else str(value) for value in row.values()))
    Console().print(table)
    result = {
        "threads": options.threads,
        "rounds": options.rounds,
        "cuda": device,
        "versions": versions(),
        "rows": rows,
    }
    write_text(Path(__file__).with_suffix(".json"), json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

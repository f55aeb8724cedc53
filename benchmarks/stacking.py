"""What training several seeds as one stack buys: python benchmarks/stacking.py [--threads N] [--rounds N]

Steps of the real trainer (gather, loss, backward, Adam, average) on the same data and the same seeds: S trainings one
after the other in one process, against the same S as a stack. Every figure is the ratio of their times for the same
number of steps, measured in turns in one run; the median over rounds. Above 1 the stack is faster. Prints a table and
writes benchmarks/stacking.json, in about three minutes.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import marl
from core.algorithm import Algorithm
from core.cli.sweep import SEEDS, WORK, work_of
from core.cloning import Cloning, CloningConfig
from core.data import Trajectories
from core.environments import TeamSpec
from core.files import write_text
from core.rollout import rollout
from core.runs import versions
from core.stacking import Stack
from core.training import Trainer, TrainerConfig

SPEC = TeamSpec(3, 18, 2)


@dataclass(frozen=True)
class Case:
    """A network with its batch size. make: one training's algorithm."""

    name: str
    make: Callable[[], Algorithm]
    batch: int
    seeds: int
    steps: int


def cloning(hidden: int, batch: int, seeds: int) -> Case:
    """Behaviour cloning."""
    config = CloningConfig(hidden=hidden)
    return Case(f"cloning, hidden {hidden}", lambda: Cloning(config, SPEC), batch, seeds, 40)


def madiff(width: int, batch: int, seeds: int) -> Case:
    """The planner with its inverse dynamics."""
    config = marl.MADiffConfig(width=width, inverse=marl.InverseConfig(hidden=4 * width))
    return Case(f"madiff, width {width}", lambda: marl.MADiff(config, SPEC), batch, seeds, 6)


CASES = [
    cloning(64, 64, 2), cloning(64, 64, 4), cloning(64, 64, 8), cloning(64, 256, 4), cloning(128, 64, 4),
    cloning(256, 256, 4), madiff(16, 8, 4), madiff(16, 32, 4), madiff(32, 16, 4), madiff(32, 64, 4), madiff(64, 64, 4),
]  # fmt: skip


def measure(case: Case, data: Trajectories, rounds: int) -> dict[str, object]:
    """Ratios of one case."""
    config = TrainerConfig(steps=10**6, batch_size=case.batch, checkpoint_every=10**6, log_every=10**6)
    with tempfile.TemporaryDirectory() as folder:
        singles = []
        for seed in range(case.seeds):
            algorithm = made(case, seed)
            singles.append(Trainer(algorithm, algorithm.prepare(data), config, Path(folder) / str(seed)))
        members = [made(case, seed) for seed in range(case.seeds)]
        batches, *_ = [member.prepare(data) for member in members]
        stack = Stack(members)
        seeds = range(case.seeds)
        runs = [Path(folder) / f"stacked-{seed}" for seed in seeds]
        together = Trainer(members[0], batches, config, *runs, stack=stack, seeds=seeds)
        for trainer in (*singles, together):
            seconds(trainer, 2)
        alone, stacked = [], []
        for _ in range(rounds):
            alone.append(sum(seconds(trainer, case.steps) for trainer in singles))
            stacked.append(seconds(together, case.steps))
    network = made(case, 0)
    work = work_of(network) * case.batch
    ratio = statistics.median(a / b for a, b in zip(alone, stacked, strict=True))
    return {
        "network": case.name,
        "batch": case.batch,
        "seeds": case.seeds,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "work of a tensor": round(work),
        "stacked by itself": case.seeds >= SEEDS and work <= WORK,
        "alone / stacked": round(ratio, 2),
    }


def made(case: Case, seed: int) -> Algorithm:
    """A case's algorithm with a seed's weights."""
    torch.manual_seed(seed)
    return case.make()


def seconds(trainer: Trainer, steps: int) -> float:
    """Time of a trainer's next steps."""
    begin = time.perf_counter()
    for _ in range(steps):
        trainer._train_step()
        trainer.step += 1
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = rollout(marl.scripted_team("mpe/spread", "expert"), marl.TaskConfig().make(), range(64)).trajectories
    rows = []
    for case in CASES:
        rows.append(measure(case, data, options.rounds))
        if case is CASES[0]:
            print("  ".join(rows[0]))
        print("  ".join(str(value) for value in rows[-1].values()), flush=True)
    result = {"threads": options.threads, "rounds": options.rounds, "versions": versions(), "rows": rows}
    write_text(Path(__file__).with_suffix(".json"), json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

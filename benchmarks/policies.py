"""What policies of agents of their own cost: python benchmarks/policies.py [--rounds N] [--threads N]

Ratios of times in one run, in turns, on the same data; the median over rounds of steps of the real trainer:

- A training step of three agents, each with networks of its own, at batch 256, against one agent's at batch 768: as
  many rows and as much arithmetic, in three times as many layers.
- The actor's phase of EDP (the value of a clean estimate) against Diffusion-QL's through a chain of 10 steps.
- Three seeds as one stack against the three one after the other.

And the time of one decision of the published DOM2 network for 1,000 environments at once, alone and best of 10. Prints
a table and writes benchmarks/policies.json in about two minutes.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from core.acting import Acting, SelectionConfig
from core.critics import CriticConfig
from core.data import Transitions
from core.environments import TeamSpec
from core.files import write_text
from core.rollout import Context
from core.runs import versions
from core.samplers import SamplerConfig
from core.stacking import Stack
from core.training import Trainer, TrainerConfig
from marl import DiffusionPolicy, DiffusionPolicyConfig

SEEN, ACTED, ROWS = 18, 2, 4096


def transitions(agents: int) -> Transitions:
    """Random steps, normalised already."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(ROWS, agents, *shape, generator=generator)

    acted = draw(ACTED).clamp(-1, 1)
    return Transitions(draw(SEEN), acted, draw(), draw(), draw(SEEN), torch.full((ROWS, agents), 0.9))


def policy(agents: int, steps: int = 5, seed: int = 0, **settings: object) -> DiffusionPolicy:
    """A policy of agents of their own, of DOM2's small preset but for the settings."""
    torch.manual_seed(seed)
    critic = CriticConfig(shared=False, conservative=1.0)
    usual = {"shared": False, "critic": critic, "sampler": SamplerConfig("ddim", steps)}
    return DiffusionPolicy(DiffusionPolicyConfig(**(usual | settings)), TeamSpec(agents, SEEN, ACTED))  # type: ignore[arg-type]


def trainer(members: list[DiffusionPolicy], batch: int, folder: Path, phases: tuple[str, ...] = ()) -> Trainer:
    """A trainer of one policy or of a stack, of all phases or of those named."""
    config = TrainerConfig(steps=10**6, batch_size=batch, ema=0.0, device="cpu")
    folders = [folder / str(index) for index in range(len(members))]
    stack = Stack(members) if len(members) > 1 else None
    made = Trainer(
        members[0],
        transitions(members[0].spec.agents),
        config,
        *folders,
        stack=stack,
        seeds=list(range(len(members))),
    )
    if phases:
        kept = [index for index, phase in enumerate(made.phases) if phase.name in phases]
        made.phases = [made.phases[index] for index in kept]
        made.optimisers = [made.optimisers[index] for index in kept]
    return made


def steps_of(made: Trainer, count: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(count):
            made._train_step()

    return work


def ratio(first: Callable[[], None], second: Callable[[], None], rounds: int) -> dict[str, float]:
    """Median of the ratios of two works' times, in turns after a warm-up, with the quartiles."""
    first(), second()
    found = []
    for _ in range(rounds):
        times = []
        for work in (first, second):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        found.append(times[0] / times[1])
    low, middle, high = statistics.quantiles(found, n=4)
    return {"ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def decisions(rounds: int) -> dict[str, float]:
    """Milliseconds of one decision of 1,000 teams with the published DOM2 network."""
    dom2 = policy(3, network="unet", hidden=256, prediction="noise")
    seen, context = torch.randn(1000, 3, SEEN), Context(0, torch.ones(1000, dtype=torch.bool))
    found = {}
    for candidates in (1, 10):
        acting = dom2.eval().policy(Acting(SamplerConfig("ddim", 5), selection=SelectionConfig(candidates)))
        acting.reset(range(1000))
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            acting.act(seen, context)
            times.append(time.perf_counter() - begin)
        found[f"best of {candidates}"] = round(1e3 * statistics.median(times), 1)
    return found


def main(rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results: dict[str, object] = {
            "three agents at batch 256, against one at 768": ratio(
                steps_of(trainer([policy(3)], 256, folder), 10), steps_of(trainer([policy(1)], 768, folder), 10), rounds
            ),
            "actor's phase through a chain of 10 steps, against EDP's": ratio(
                steps_of(trainer([policy(3, 10)], 256, folder, ("policy",)), 10),
                steps_of(trainer([policy(3, 10, improvement="estimate")], 256, folder, ("policy",)), 10),
                rounds,
            ),
            "three seeds in turn, against a stack": ratio(
                steps_of(trainer([policy(3)], 256, folder), 15),
                steps_of(trainer([policy(3, seed=seed) for seed in range(3)], 256, folder), 5),
                rounds,
            ),
        }
    for what, found in results.items():
        print(f"{what}: {found}")
    results["milliseconds of a decision for 1,000 teams, published DOM2"] = milliseconds = decisions(rounds)
    print("a decision for 1,000 teams, published DOM2:", milliseconds, "ms")
    record = {"threads": threads, "rounds": rounds, "versions": versions(), **results}
    write_text(Path(__file__).with_suffix(".json"), json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    main(**vars(parser.parse_args()))

"""Whether long work survives `kill -9`: a training, a stack of three seeds and a grid of evaluations.

    python benchmarks/kills.py [--quick]

Each is done once undisturbed. Then it is killed, with all its processes, at moments drawn from a seed: right at the
start, some time after the first step, while a checkpoint is written, while those of a stack take the place of the ones
before, while that is mended, while a grid rolls out. The same command goes on each time. Checkpoints must load after
every kill, and what comes out must be what the undisturbed work gave. Prints a table and writes benchmarks/kills.json
as results come, in about fifteen minutes on two cores; exits with 1 if a promise was broken. `--quick` kills a few
times and writes nothing.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kills_work import PROGRAM, ROOT, Death, Moment, Result, Work, left_over

from core import checkpoints
from core.evaluations import Row, read_rows
from core.training import read_metrics

#: Seconds to load all rows as a new process does it, imports included, and the best of five after that.
LOAD = """\
import sys, time, timeit
begin = time.perf_counter()
from core import results
def load(): assert len(results(sys.argv[1])) == int(sys.argv[2])
load()
print(time.perf_counter() - begin, min(timeit.repeat(load, number=1, repeat=5)))
"""

PLANNER = ["algo=madiff", "algo.width=16", "algo.horizon=4", "algo.inverse.hidden=16"]
TRAINING = [
    *PLANNER, "data=data", "trainer.batch_size=8", "trainer.device=cpu", "trainer.steps=400", "trainer.warmup=10",
    "trainer.checkpoint_every=5", "trainer.log_every=5",
]  # fmt: skip
SHORT = ["task.max_cycles=5", "data=data", "dataset=mixed", "trainer.device=cpu", "trainer.steps=30"]
EPISODES = 4
RETURNS = ",".join(f"{rank / 40:g}" for rank in range(1, 41))
GRID = [
    "sampler=ddim,dpm", "sampler.steps=2,4", "guidance.scale=0,1.4", f"guidance.returns={RETURNS}",
    f"episodes={EPISODES}", "parallel=40", "device=cpu",
]  # fmt: skip
CELLS = {"madiff-0": 320, "madiff-1": 320, "madiff-2": 320, "bc_returns": 40}  # the clone uses no sampler or scale


def differences(folder: Path, wanted: Path) -> list[str]:
    """What is not bit for bit the same in two runs: weights, averages, optimisers, generator, counts and metrics."""
    files = [run / "checkpoint.safetensors" for run in (folder, wanted)]
    (found, metadata), (expected, other) = map(checkpoints.load, files)
    names = list(found.keys() ^ expected.keys())
    names += [name for name in found.keys() & expected.keys() if not torch.equal(found[name], expected[name])]
    names += [name for name in ("step", "ema_updates") if metadata[name] != other[name]]
    tables = [read_metrics(run / "metrics.csv") for run in (folder, wanted)]
    rows, others = ([{**row, "seconds": 0.0} for row in table] for table in tables)
    return [f"{folder}: {name} differs" for name in names + ["metrics.csv"] * (rows != others)]


def torment(name: str, made: Callable[[int], Work], wanted: Sequence[Path], moments: Sequence[Moment]) -> Result:
    """Kill a training at all moments, over as many runs as that takes, each of which must come to what is wanted."""
    deaths: list[Death] = []
    broken: list[str] = []
    different: list[str] = []
    left: list[Path] = []
    waiting, runs = list(moments), 0
    while waiting:
        work = made(runs)
        runs += 1
        # Only a new run is killed at its start; a moment that the run's end came before goes to the next one.
        while waiting and (waiting[0].kind != "start" or not work.steps()):
            death = work.kill_training(waiting[0])
            if death is None:
                break
            waiting.pop(0)
            deaths.append(death)
            print(f"  {name}, kill {len(deaths)}: {death}", flush=True)
        work.finish()
        broken += work.broken
        for folder, expected in zip(work.runs, wanted, strict=True):
            different += differences(folder, expected)
        left += left_over(work.runs)
    kinds = dict(Counter(death.kind for death in deaths))
    return Result.of(name, deaths, different, broken, left, runs=runs, kinds=kinds)


def moments_of(draw: random.Random, kinds: str, start: float) -> list[Moment]:
    """Moments by letters, in order: start, random after the first step, writing, placing, mending."""
    made = {
        "s": lambda: Moment("start", delay=draw.uniform(0, 0.8 * start)),
        "r": lambda: Moment("step", delay=draw.uniform(0, 2)),
        "w": lambda: Moment("writing", draw.randrange(4), draw.choice([0, draw.uniform(0, 0.03)])),
        "p": lambda: Moment("replacing", delay=draw.choice([0, draw.uniform(0, 0.005)])),
        "m": lambda: Moment("mending"),
    }
    return [made[kind]() for kind in kinds]


def trainings(place: Path, quick: bool) -> Result:
    """A run of one seed."""

    def made(run: str) -> Work:
        return Work(place, ["train", *TRAINING, f"run={run}"], [place / run])

    begin = time.monotonic()
    made("straight").finish()
    start = time.monotonic() - begin - read_metrics(place / "straight" / "metrics.csv")[-1]["seconds"]
    kinds = ["srw"] if quick else ["ssrwrwrwrw", "sswwrrwrwr", "sswrwrrwwr"]
    moments = moments_of(random.Random(0), "".join(kinds), start)
    return torment("training", lambda index: made(f"killed-{index}"), [place / "straight"], moments)


def stacks(place: Path, quick: bool) -> Result:
    """Three seeds in one stack."""

    def made(output: str) -> Work:
        command = ["sweep", *TRAINING, f"output={output}", "stack=3", "trainer.seed=0,1,2", "workers=1"]
        runs = [place / output / f"mpe-spread-expert-madiff-s{seed}" for seed in range(3)]
        return Work(place, command, runs)

    straight = made("stack")
    straight.finish()
    moments = moments_of(random.Random(1), "rwpm" if quick else "srwrwpmpm" + "swpmrppmr", 5.0)
    return torment("stack", lambda index: made(f"stack-{index}"), straight.runs, moments)


def grids(place: Path, quick: bool, workers: int) -> Result:
    """1,000 cells over four runs, killed while they are rolled out and evaluated again."""
    wanted = place / "runs"
    folder = place / f"runs-{workers}"
    if not wanted.exists():
        learn(place)
    shutil.copytree(wanted, folder, ignore=shutil.ignore_patterns("evaluations.jsonl"))
    if not (wanted / "bc_returns" / "evaluations.jsonl").exists():
        Work(place, ["evaluate", "run=runs", *GRID]).finish()
    work = Work(place, ["evaluate", f"run={folder.name}", *GRID, f"workers={workers}"])
    draw, deaths = random.Random(workers), []
    begun_first = work.begun()
    for number in range(1 if quick else 3):
        begun, rows = work.begun(), len(rows_in(folder))
        # Each kill comes when so many more cells were begun, and a random moment later.
        cells = draw.randrange(20, 300)
        sign = lambda begun=begun, cells=cells: work.begun() - begun >= EPISODES * cells  # noqa: E731
        if not work.kill(sign, draw.uniform(0, 0.5)):
            break
        kept = len(rows_in(folder))
        deaths.append(Death("evaluating", kept, (work.begun() - begun) // EPISODES - (kept - rows)))
        print(f"  grid, {workers} workers, kill {number + 1}: {deaths[-1]}", flush=True)
    work.finish()
    found = rows_in(folder)
    different = wrong_rows(found, rows_in(wanted))
    early = "the grid came to its end before it was killed often enough"
    broken = [early] if len(deaths) < (1 if quick else 3) else []
    cold, loaded = load_seconds(place, folder)
    if loaded >= 2:
        broken.append(f"loading the rows takes {loaded} s")
    name = f"grid, {workers} worker{'s' * (workers > 1)}"
    left = [path for run in folder.iterdir() for path in left_over([run])]
    return Result.of(
        name, deaths, different, broken, left, rows=len(found), cells=len(dict(found)),
        rows_after_kills=[death.kept for death in deaths],
        rolled_out_twice=(work.begun() - begun_first) // EPISODES - sum(CELLS.values()),
        seconds_to_load=loaded, seconds_to_import_and_load=cold,
    )  # fmt: skip


def learn(place: Path) -> None:
    """The runs of the grid, hardly trained, on episodes of five steps."""
    (place / "runs").mkdir()
    Work(place, ["collect", "quality=mixed", "episodes=8", "data=data", "task.max_cycles=5"]).finish()
    for number, name in enumerate(CELLS):
        chosen = PLANNER if name.startswith("madiff") else ["algo=bc_returns", "algo.hidden=16"]
        Work(place, ["train", *chosen, *SHORT, f"run=runs/{name}", f"trainer.seed={number}"]).finish()


def rows_in(folder: Path) -> list[tuple[tuple[str, Any], Row]]:
    """All rows under some runs, each with its run's name and its cell."""
    return [((name, row.cell), row) for name in CELLS for row in read_rows(folder / name / "evaluations.jsonl")]


def wrong_rows(found: Sequence[tuple[Any, Row]], wanted: Sequence[tuple[Any, Row]]) -> list[str]:
    """What is not as it should be: each cell of the undisturbed grid once, with the same return."""
    counts = Counter(key for key, _ in found)
    rows, expected = dict(found), dict(wanted)
    broken = [f"{key} has {counts[key]} rows" for key in expected if counts[key] != 1]
    broken += [f"{key} was not asked for" for key in rows.keys() - expected.keys()]
    if Counter(name for name, _ in expected) != CELLS:
        broken.append("the undisturbed grid has not the cells that it should have")
    return broken + [
        f"{key}: {rows[key].return_mean} is not {expected[key].return_mean}"
        for key in rows.keys() & expected.keys()
        if not abs(rows[key].return_mean - expected[key].return_mean) <= 1e-5
    ]


def load_seconds(place: Path, folder: Path) -> tuple[float, float]:
    """Of one table of all rows: in a new process, and the best of five with everything imported."""
    command = [sys.executable, "-c", LOAD, str(folder), str(sum(CELLS.values()))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    output = subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True, text=True).stdout
    cold, loaded = (round(float(word), 3) for word in output.split())
    return cold, loaded


def show(results: Sequence[Result]) -> None:
    names = ("kills", "writing", "first", "lost", "identical", "left files", "left kB")
    print(f"{'':20}" + "".join(f"{name:>12}" for name in names))
    for one in results:
        same = "yes" if one.identical else "NO"
        values = (one.kills, one.while_writing, one.before_the_first_checkpoint, f"{one.lost:.1f}", same)
        print(f"{one.work:20}" + "".join(f"{value:>12}" for value in (*values, one.left_files, one.left_kilobytes)))
    for one in results:
        print(f"{one.work}: " + ", ".join(f"{name} {value}" for name, value in one.more.items()))
        print("".join(f"  broken: {promise}\n" for promise in one.broken), end="")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few kills, no kills.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        place = Path(temporary)
        (place / "convoy.py").write_text(PROGRAM)
        Work(place, ["collect", "quality=expert", "episodes=6", "data=data"]).finish()
        parts: list[Callable[..., Result]] = [trainings, stacks, partial(grids, workers=1), partial(grids, workers=2)]
        for part in parts:
            results.append(part(place, options.quick))
            if not options.quick:
                table = json.dumps([asdict(one) for one in results], indent=1)
                Path(__file__).with_suffix(".json").write_text(table + "\n")
    show(results)
    return 1 if any(one.broken for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())

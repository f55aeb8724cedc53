"""`convoy sweep`: what it trains against the same trainings alone; stopped, shared out, refused and failing.

Most sweeps run their jobs in this process, so that steps can be counted and clocks turned; some start real workers.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from core import checkpoints
from core.cli import main, sweep
from core.cli.compose import configure_each
from core.cli.sweep import named, share_out
from core.cli.trainings import steps_done
from core.cloning import Cloning
from core.config import swept
from core.files import locked
from core.runs import Run
from core.stacking import Stack
from core.training import Trainer, read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]
FAST = [
    "algo.hidden=16", "task.max_cycles=4", "data=data", "trainer.steps=8", "trainer.batch_size=8",
    "trainer.log_every=2", "trainer.device=cpu",
]  # fmt: skip
BC = ["sweep", "algo=bc", *FAST]
ALL = ["sweep", "algo=bc,bc_returns", "dataset=expert,mixed", "trainer.seed=0,1,2", *FAST]
EACH = list(product(("bc", "bc_returns"), ("expert", "mixed"), (0, 1, 2)))
NAMES = [f"mpe-spread-{data}-{algo}-s{seed}" for algo, data, seed in EACH]
FILES = {".training", "checkpoint.safetensors", "config.yaml", "metrics.csv", "versions.json"}


def name(seed):
    return f"mpe-spread-expert-bc-s{seed}"


def run_jobs(jobs, workers, keep_going):
    """One after the other, in this process."""
    return [job.function(*job.arguments, lambda done, note: None) for job in jobs]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two datasets, a sweep of stacks, and the same trainings alone."""
    folder = tmp_path_factory.mktemp("made")
    with chdir(folder):
        for quality in ("expert", "mixed"):
            assert main(["collect", f"quality={quality}", "episodes=8", "data=data", "task.max_cycles=4"]) == 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep, "run_jobs", run_jobs)
            assert main([*ALL, "stack=3", "output=swept"]) == 0
        for run, (algo, data, seed) in zip(NAMES, EACH, strict=True):
            options = [f"algo={algo}", f"dataset={data}", f"trainer.seed={seed}", *FAST]
            assert main(["train", *options, f"run=alone/{run}"]) == 0
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """The datasets, as the working directory; the runs of `made` are read where they are."""
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "data").symlink_to(made / "data")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def here(place, monkeypatch):
    """Jobs run in this process, one after the other; what each step trained, by the names of its folders."""
    steps = []
    train_step = Trainer._train_step

    def counting(self):
        steps.append(" ".join(folder.name for folder in self.folders))
        return train_step(self)

    monkeypatch.setattr(Trainer, "_train_step", counting)
    monkeypatch.setattr(sweep, "run_jobs", run_jobs)
    return steps


def tensors_of(run):
    return checkpoints.load(Path(run) / "checkpoint.safetensors")[0]


def equal(run, other):
    found, wanted = tensors_of(run), tensors_of(other)
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def close(run, other):
    """To what a stack's other order of sums makes of a float."""
    found, wanted = tensors_of(run), tensors_of(other)
    gaps = [(found[key].double() - wanted[key].double()).abs().max() / (1 + wanted[key].abs().max()) for key in wanted]
    return found.keys() == wanted.keys() and max(gaps) < 1e-4


def files_below(folder):
    """Contents and times of all files, but for locks, which are emptied and written by whoever takes them."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".training"]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def stopped(*options):
    """A sweep that is out of time after one step of every job."""
    assert main([*BC, "minutes=1e-9", *options]) == 0


def shares(*options):
    """Seeds of each job, in order."""
    each = configure_each("sweep", [*BC[1:], *options])
    names = [option for option in swept(options) if option != "trainer.seed"]
    return [job.seeds for _, job in share_out([(options, named(config, options, names)) for options, config in each])]


# What is trained


def test_a_folder_for_each_combination(made):
    assert sorted(path.name for path in (made / "swept").iterdir()) == sorted(NAMES)
    for run in NAMES:
        swept, alone = made / "swept" / run, made / "alone" / run
        assert {path.name for path in swept.iterdir()} == FILES
        assert (swept / "config.yaml").read_bytes() == (alone / "config.yaml").read_bytes()
        assert close(swept, alone)
        rows, expected = (read_metrics(each / "metrics.csv") for each in (swept, alone))
        assert [row["step"] for row in rows] == [row["step"] for row in expected] == [2, 4, 6, 8]
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-4)
    assert not close(made / "swept" / name(0), made / "swept" / name(1))


def test_what_is_trained_acts_as_if_it_was_trained_alone(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for which in ("swept", "alone"):
        shutil.copytree(made / which, which)
        assert Cloning.load(f"{which}/{name(2)}").steps == 8
        assert main(["evaluate", f"run={which}", "episodes=2", "device=cpu"]) == 0
    for run in NAMES:
        (found,), (expected,) = (Run.open(Path(which, run)).rows() for which in ("swept", "alone"))
        assert found.return_mean == pytest.approx(expected.return_mean, abs=1e-4)
        assert (found.cell, found.method, found.dataset) == (expected.cell, expected.method, expected.dataset)


@pytest.mark.parametrize("seeds", ["0,1", "1,0,0,1", "range(2)"])
def test_one_by_one_to_the_same_bits(seeds, made, here):
    assert main([*BC, f"trainer.seed={seeds}", "stack=1"]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == [name(0), name(1)]
    assert len(here) == 16
    assert all(equal(f"runs/{name(seed)}", made / "alone" / name(seed)) for seed in (0, 1))


def test_swept_options_name_runs_and_methods(here):
    swept = ["algo.hidden=16,32", "trainer.decay=cosine,none", "trainer.learning_rate=0.1,1e-05"]
    assert main(["sweep", "algo=bc", *FAST[1:], "method='my/own: [è]'", *swept]) == 0
    assert len(list(Path("runs").iterdir())) == 8
    for hidden, decay, rate in product((16, 32), ("cosine", "none"), ("0.1", "1e-05")):
        words = [f"algo.hidden={hidden}", f"trainer.decay={decay}", f"trainer.learning_rate={rate}"]
        run = Run.open(Path("runs", "-".join(["mpe-spread-expert-my-own", *words, "s0"])))
        assert run.method == " ".join(["my/own: [è]", *words])
        trainer = run.config["trainer"]
        assert (run.config["algo"]["hidden"], trainer["decay"], trainer["learning_rate"]) == (
            hidden,
            decay,
            float(rate),
        )
        assert tensors_of(run.folder)["model.net.0.weight"].shape == (hidden, 18)


def test_again_trains_nothing(made, here):
    shutil.copytree(made / "swept", "runs")
    before = files_below("runs")
    for stack in (0, 2):
        assert main([*ALL, f"stack={stack}"]) == 0
    assert (here, files_below("runs")) == ([], before)


@pytest.mark.parametrize("option", ["trainer.steps=9", "trainer.learning_rate=0.1", "algo.layers=3", "algo.best=0.5"])
@pytest.mark.parametrize("state", ["complete", "stopped", "stopped stack"])
def test_another_option_into_the_same_output_is_refused(state, option, made, here, capsys):
    if state == "complete":
        shutil.copytree(made / "swept", "runs")
    else:
        stopped("trainer.seed=0,1,2", "stack=3" if state == "stopped stack" else "stack=1")
    before, trained = files_below("runs"), len(here)
    capsys.readouterr()
    assert main([*BC, "trainer.seed=0,1,2", "stack=3", option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"holds another run ({option.split('=')[0]} was" in line
    assert (len(here), files_below("runs")) == (trained, before)


def test_small_networks_are_stacked_to_keep_all_workers_busy(place, monkeypatch):
    five = "trainer.seed=0,1,2,3,4"
    assert shares(five, "workers=2") == [[0, 1, 2], [3, 4]]
    assert shares(five, "workers=1") == [[0, 1, 2, 3, 4]]
    assert shares(five, "workers=9") == [[0], [1], [2], [3], [4]]
    assert shares(five, "workers=1", "stack=2") == [[0, 1], [2, 3], [4]]
    assert shares("trainer.seed=4,1,2", "workers=1", "algo.layers=1,2") == [[4, 1, 2]] * 2
    monkeypatch.setattr(sweep, "cores", lambda: 8)
    assert shares(five, "cpus=4") == [[0, 1, 2], [3, 4]]
    assert shares(five, "cpus=16") == [[0, 1, 2, 3, 4]]


def test_large_networks_and_what_cannot_be_stacked_train_alone(place, monkeypatch):
    three = ["trainer.seed=0,1,2", "workers=1"]
    large = [*three, "algo.hidden=2048", "trainer.batch_size=64"]
    assert shares(*large) == [[0], [1], [2]]
    assert shares(*large, "stack=3") == shares(*three) == [[0, 1, 2]]
    assert shares("trainer.seed=0,1,2", "workers=2") == [[0], [1], [2]]  # two stacks would be too small to gain
    monkeypatch.setattr(Cloning, "stackable", False)
    assert shares(*three) == shares(*three, "stack=3") == [[0], [1], [2]]


# What was stopped goes on


def test_a_stack_out_of_time_goes_on_to_the_same_weights(made, here):
    stopped("trainer.seed=0,1,2", "stack=3")
    assert len(here) == 1
    stopped("trainer.seed=0,1,2", "stack=3")
    assert len(here) == 1
    assert [steps_done(Path("runs", name(seed))) for seed in (0, 1, 2)] == [1, 1, 1]
    assert main([*BC, "trainer.seed=0,1,2", "stack=3", "minutes=1"]) == 0
    assert len(here) == 8
    assert sorted(path.name for path in Path("runs").iterdir()) == [name(0), name(1), name(2)]
    for seed in (0, 1, 2):
        assert {path.name for path in Path("runs", name(seed)).iterdir()} == FILES
        assert equal(f"runs/{name(seed)}", made / "swept" / name(seed))


def test_a_run_out_of_time_says_its_step_and_goes_on(made, here, capsys):
    stopped("trainer.seed=0,1", "stack=1")
    printed = capsys.readouterr().out
    assert "trained 0 of 2 runs" in printed
    for seed in (0, 1):
        assert f"{name(seed)} used up its 1e-09 minutes at step 1\n" in printed
    assert main([*BC, "trainer.seed=0,1", "stack=1"]) == 0
    assert (len(here), capsys.readouterr().out) == (16, "trained 2 of 2 runs in runs\n")
    assert all(equal(f"runs/{name(seed)}", made / "alone" / name(seed)) for seed in (0, 1))


def test_a_stack_may_take_the_minutes_of_all_its_seeds(here, monkeypatch):
    ticks = count()
    monkeypatch.setattr("core.training.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert main([*BC, "trainer.seed=0", f"minutes={1.9 / 60}", "trainer.steps=20"]) == 0
    assert here == [name(0)] * 2
    assert main([*BC, "trainer.seed=1,2,3", "stack=3", f"minutes={1.9 / 60}", "trainer.steps=20"]) == 0
    assert len(here) == 2 + 6
    assert main([*BC, "trainer.seed=1,2,3", "stack=3", "trainer.steps=20"]) == 0
    assert len(here) == 2 + 20
    seconds = [checkpoints.read_metadata(Path("runs", name(s), "checkpoint.safetensors"))["seconds"] for s in (1, 3)]
    assert [float(each) for each in seconds] == pytest.approx([20 / 3] * 2)


def test_what_was_begun_alone_goes_on_alone(made, here):
    shutil.copytree(made / "alone" / name(0), f"runs/{name(0)}")
    before = files_below("runs")
    stopped("trainer.seed=1")
    assert main([*BC, "trainer.seed=0,1,2,3", "stack=4"]) == 0
    assert {path: content for path, content in files_below("runs").items() if path in before} == before
    assert [here.count(name(seed)) for seed in (0, 1, 2, 3)] == [0, 8, 0, 0]
    assert here.count(f"{name(2)} {name(3)}") == len(here) - 8 == 8
    assert equal(f"runs/{name(1)}", made / "alone" / name(1))
    assert close(f"runs/{name(2)}", made / "alone" / name(2))


def test_seeds_added_to_a_stopped_stack_train_beside_it(made, here):
    assert main([*BC, "trainer.seed=0,1", "stack=2", "output=straight"]) == 0
    stopped("trainer.seed=0,1", "stack=2")
    assert main([*BC, "trainer.seed=0,1,2,3", "stack=4"]) == 0
    assert len(here) == 8 + 8 + 8
    assert sorted(path.name for path in Path("runs").iterdir()) == [name(seed) for seed in range(4)]
    assert all(equal(f"runs/{name(seed)}", f"straight/{name(seed)}") for seed in (0, 1))
    assert close(f"runs/{name(2)}", made / "alone" / name(2))


def test_a_deleted_run_of_a_stopped_stack_alone_begins_anew(made, here):
    stopped("trainer.seed=0,1,2", "stack=3")
    shutil.rmtree(f"runs/{name(1)}")
    assert main([*BC, "trainer.seed=0,1,2", "stack=3"]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == [name(0), name(1), name(2)]
    assert (here.count(f"{name(0)} {name(2)}"), here.count(name(1)), len(here)) == (7, 8, 16)
    assert equal(f"runs/{name(1)}", made / "alone" / name(1))
    assert all(close(f"runs/{name(seed)}", made / "swept" / name(seed)) for seed in (0, 2))


@pytest.mark.parametrize("between", [["trainer.seed=0,1", "stack=1"], ["trainer.seed=1", "stack=1"]])
def test_what_is_completed_otherwise_stays(made, here, between):
    """Some seeds of a stopped stack are completed by another sweep: they are not touched again."""
    stopped("trainer.seed=0,1,2", "stack=3")
    assert main([*BC, *between]) == 0
    before = {path: content for path, content in files_below("runs").items() if f"{name(1)}/" in str(path)}
    assert main([*BC, "trainer.seed=0,1,2", "stack=3"]) == 0
    assert {path: content for path, content in files_below("runs").items() if path in before} == before
    assert here.count(name(1)) == 7
    assert all(close(f"runs/{name(seed)}", made / "alone" / name(seed)) for seed in (0, 1, 2))


def test_a_stack_killed_while_its_checkpoints_were_written(made, here, monkeypatch):
    """The second time, when two of three files were replaced: all go back to the first time."""
    replace, calls = Path.replace, []

    def killed(self, target):
        if target.name == "checkpoint.safetensors":
            calls.append(target)
            if len(calls) == 5:
                raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    assert main([*BC, "trainer.seed=0,1,2", "stack=3", "trainer.checkpoint_every=4"]) == 130
    monkeypatch.setattr(Path, "replace", replace)
    assert sorted(steps_done(Path("runs", name(seed))) for seed in (0, 1, 2)) == [4, 4, 8]
    assert main([*BC, "trainer.seed=0,1,2", "stack=3"]) == 0
    assert len(here) == 8 + 4
    assert {path.name for path in Path("runs", name(0)).iterdir()} == FILES
    assert sorted(path.name for path in Path("runs").iterdir()) == [name(0), name(1), name(2)]
    assert all(equal(f"runs/{name(seed)}", made / "swept" / name(seed)) for seed in (0, 1, 2))


def test_a_run_in_use_is_refused(here, capsys):
    stopped("trainer.seed=0,1,2", "stack=3")
    before, trained = files_below("runs"), len(here)
    with locked(Path("runs", name(1), ".training"), "training"):
        assert main([*BC, "trainer.seed=0,1,2", "stack=3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name(1)} is in use: process {os.getpid()}, training" in line
    assert (len(here), files_below("runs")) == (trained, before)


@pytest.mark.slow
def test_a_terminated_sweep_goes_on_to_the_same_weights(here, capsys):
    """And another one beside it is refused."""
    command = [*BC, "trainer.seed=0,1,2", "stack=3", "trainer.steps=3000", "trainer.checkpoint_every=50"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    call = [sys.executable, "-c", "import sys; from core.cli import main; sys.exit(main())", *command]
    process = subprocess.Popen(call, env=environment, stderr=subprocess.PIPE, text=True)
    while not Path("runs", name(2), "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.02)
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"is in use: process \d+, training holds .training; wait", line)
    process.send_signal(signal.SIGTERM)
    assert (process.communicate()[1], process.returncode) == (
        "convoy: stopped; the same command goes on from here\n",
        143,
    )
    assert main(command) == 0
    assert 0 < len(here) < 3000
    assert main([*command, "output=straight"]) == 0
    assert all(equal(f"runs/{name(seed)}", f"straight/{name(seed)}") for seed in (0, 1, 2))


def test_other_data_in_the_same_output_are_refused(made, here, capsys):
    shutil.copytree(made / "swept", "runs")
    assert main(["collect", "quality=expert", "episodes=8", "seed=99", "data=other", "task.max_cycles=4"]) == 0
    before = files_below("runs")
    capsys.readouterr()
    assert main([*BC, "data=other", "trainer.seed=0,1"]) == 2
    assert "holds another run (dataset.fingerprint was" in capsys.readouterr().err
    assert (here, files_below("runs")) == ([], before)


def test_one_diverging_seed_does_not_lose_its_stack(made, here, capsys, monkeypatch):
    losses = Stack.losses

    def diverging(self, *arguments):
        found = losses(self, *arguments)
        return {key: value * torch.tensor([1.0, torch.nan, 1.0]) for key, value in found.items()}

    monkeypatch.setattr(Stack, "losses", diverging)
    assert main([*BC, "trainer.seed=0,1,2", "stack=3"]) == 0
    assert [here.count(name(seed)) for seed in (0, 1, 2)] == [8, 8, 8]
    assert all(equal(f"runs/{name(seed)}", made / "alone" / name(seed)) for seed in (0, 1, 2))


# Failures and mistakes


def test_a_failing_job_does_not_lose_the_others(made, place, capsys):
    """In real workers, by one that diverges."""
    good, bad = "0.003", "1e18"
    options = [f"trainer.learning_rate={bad},{good}", "trainer.warmup=0", "trainer.seed=1", "workers=2"]
    assert main([*BC, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"training of mpe-spread-expert-bc-trainer.learning_rate=1e.18-s1 diverged before step", line)
    (run,) = Path("runs").glob("*/checkpoint.safetensors")
    assert main(["train", "algo=bc", *FAST, "trainer.warmup=0", f"trainer.learning_rate={good}", "trainer.seed=1",
                 "run=alone"]) == 0  # fmt: skip
    assert equal(run.parent, "alone")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run=here"], "output=, the folder of all its runs"),
        (["launcher=joblob"], "did you mean 'joblib'"),
        (["minutes=-1"], "minutes must be at least 0"),
        (["stack=-2"], "stack must be at least 0"),
        (["trainer.seed=0,1,-1"], "trainer.seed must be at least 0"),
        (["algo=bc,bcc"], "did you mean 'bc'"),
        (["dataset=random"], "did you mean 'mpe/spread/mpe2/mixed-3x4-v0'"),
        (["algo.hidden=16,0"], "algo.hidden"),
        (["output=data/mpe/spread/mpe2/mixed-3x4-v0/data/metadata.json"], "cannot write to"),
    ],
)
def test_mistakes(options, message, here, capsys):
    assert main([*BC, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert (here, [path.name for path in Path().iterdir()]) == ([], ["data"])


@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit", marks=pytest.mark.slow)])
def test_launchers_train_the_same_stacks(launcher, made, place, monkeypatch):
    plugin = f"hydra_plugins.hydra_{launcher}_launcher"
    pytest.importorskip(plugin, reason="needs the extra: pip install 'convoy-rl[launchers]'")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    output = Path("it's a sweep", 'of "seeds"')
    command = [*BC, "trainer.seed=0,1,2", "stack=2", f"launcher={launcher}", "workers=2", "minutes=5"]
    command.append("output='it\\'s a sweep/of \"seeds\"'")
    assert main(command) == 0
    assert sorted(path.name for path in output.iterdir()) == [".launcher", name(0), name(1), name(2)]
    for seed in (0, 1, 2):
        assert (output / name(seed) / "config.yaml").read_bytes() == (
            made / "alone" / name(seed) / "config.yaml"
        ).read_bytes()
        assert close(output / name(seed), made / "alone" / name(seed))
    assert equal(output / name(2), made / "alone" / name(2))
    before = files_below(output)
    assert main(command) == 0
    assert files_below(output) == before

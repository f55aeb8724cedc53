"""Jobs in fresh processes, through each of Hydra's launcher plugins; Slurm's commands are played by shell scripts."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from core import checkpoints
from core.cli import launchers, main
from core.cli.launchers import MARGIN, YEAR, launch
from core.cli.train import train
from core.config import compose_config, to_object
from core.errors import UserError

pytestmark = pytest.mark.extra

REPOSITORY = Path(__file__).resolve().parents[2]


def needs(launcher):
    """Skip where the launcher's plugin is not installed."""
    plugin = f"hydra_{'joblib' if launcher == 'joblib' else 'submitit'}_launcher"
    pytest.importorskip(f"hydra_plugins.{plugin}", reason="needs the extra: pip install 'convoy-rl[launchers]'")
    return launcher


@pytest.fixture(params=["joblib", pytest.param("submitit", marks=pytest.mark.slow)])
def launcher(request):
    return needs(request.param)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory, from which fresh processes can import this module."""
    folder = tmp_path / "it's here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return folder


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A queue of one machine: its commands start the jobs of an array at once; what is cancelled is written down."""
    needs("slurm")
    commands = {
        "sbatch": """
            last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
            for n in $(seq 0 "${last:-0}"); do
                export SLURM_JOB_ID=$((77 + n))
                if [ -n "$last" ]; then export SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$n; fi
                bash "$1" >/dev/null 2>&1 &
            done
            echo Submitted batch job 77""",
        "srun": """
            while [ "${1#--}" != "$1" ]; do [ "$1" = --unbuffered ] || shift; shift; done
            exec "$@" """,
        "sacct": "echo 'JobID|State|NodeList'",
        "scancel": f"echo $1 >> '{tmp_path}/cancelled'",
    }
    (tmp_path / "bin").mkdir()
    for name, script in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def launched(launcher, jobs, function, **changed):
    given = {"folder": Path("runs/.launch"), "workers": 2, "cpus": 1, "minutes": 0} | changed
    return launch(launcher, "train", jobs, function, **given)


def observed(config):
    """What a job sees; configurations must compose in its process as well."""
    begin = time.monotonic()
    time.sleep(0.3)
    assert to_object(compose_config("train", ["algo=bc"])).algo.name == to_object(config).algo.name == "cloning"
    return config.trainer.seed, os.getpid(), torch.get_num_threads(), Path.cwd(), begin, time.monotonic()


def hurt(config):
    """Fails by its seed, or leaves a file."""
    if config.trainer.seed == 1:
        raise UserError("the dataset is not there")
    if config.trainer.seed == 2:
        raise ZeroDivisionError("by nothing")
    if config.trainer.seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.trainer.seed == 4:
        raise KeyboardInterrupt
    time.sleep(0.3)
    Path(config.run).touch()


def interrupting(config):
    """Interrupts the process whose number is the seed and goes on for long."""
    for beat in range(600):
        if beat == 10:
            os.kill(config.trainer.seed, signal.SIGINT)
        with Path(config.run).open("a") as file:
            file.write("alive\n")
        time.sleep(0.1)


def trained(config):
    command = to_object(config)
    return str(train(command, Path(command.run)).folder)


def jobs_of(*seeds):
    return [["algo=bc", f"trainer.seed={seed}", f"run=run-{seed}", "data=~/it"] for seed in seeds]


def at_once(results):
    """The largest number of jobs that ran at one time."""
    return max(sum(begin <= other[4] < end for other in results) for *_, begin, end in results)


def test_jobs_run_in_other_processes_with_their_own_configurations(launcher, place):
    results = launched(launcher, jobs_of(5, 3, 4), observed, cpus=2)
    assert [seed for seed, *_ in results] == [5, 3, 4]
    assert os.getpid() not in {process for _, process, *_ in results}
    assert {threads for _, _, threads, *_ in results} == {2}
    assert {cwd for _, _, _, cwd, *_ in results} == {place}
    assert at_once(results) <= 2
    assert not GlobalHydra.instance().is_initialized()
    assert torch.get_num_threads() == 1
    assert {path.name for path in place.iterdir()} == {"runs"}
    assert {path.name for path in Path("runs").iterdir()} == {".launch"}
    assert not list(place.rglob(".hydra"))
    assert compose_config("train", ["algo=bc"]).algo.name == "cloning"


def test_one_worker_is_another_process_too(launcher, place):
    results = launched(launcher, jobs_of(0, 1), observed, workers=1)
    assert os.getpid() not in {process for _, process, *_ in results}
    assert at_once(results) == 1


def test_no_jobs(launcher, place):
    assert launched(launcher, [], observed) == []


def test_a_mistake_is_told_when_the_other_jobs_are_done(launcher, place):
    with pytest.raises(UserError, match=r"^job 1 of 3 \(algo=bc trainer.seed=1 .*\): the dataset is not there$"):
        launched(launcher, jobs_of(1, 10, 11), hurt)
    assert Path("run-10").exists()
    assert Path("run-11").exists()
    with pytest.raises(UserError, match=r"not there \(and 1 more\)$"):
        launched(launcher, jobs_of(1, 1), hurt)


def test_a_failure_shows_its_traceback_when_the_other_jobs_are_done(launcher, place):
    with pytest.raises(RuntimeError, match=r"(?s)^job 2 of 4 \(.*seed=2 .*\) failed:.*in hurt.*Error: by nothing\n$"):
        launched(launcher, jobs_of(1, 2, 10, 11), hurt)
    assert Path("run-10").exists()
    assert Path("run-11").exists()


def test_a_job_that_is_killed(launcher, place):
    expected = "unexpectedly terminated.*fewer workers" if launcher == "joblib" else "^job 1 of 3 .* ended.* again$"
    with pytest.raises(UserError, match=expected):
        launched(launcher, jobs_of(3, 10, 11), hurt)
    assert launcher == "joblib" or Path("run-11").exists()


def test_a_job_that_was_asked_to_stop(launcher, place):
    with pytest.raises(KeyboardInterrupt):
        launched(launcher, jobs_of(4, 10), hurt)
    assert Path("run-10").exists()


@pytest.mark.slow
def test_stopping_stops_the_jobs(launcher, place):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            launched(launcher, [["algo=bc", f"trainer.seed={os.getpid()}", "run=beats"]], interrupting)
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(3)
    size = Path("beats").stat().st_size
    time.sleep(0.5)
    assert Path("beats").stat().st_size == size
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["joblib", "submitit", "slurm"])
def test_runs_are_trained(name, place, slurm):
    """To the weights that `convoy train` makes."""
    needs(name)
    assert main(["collect", "task=mpe/spread", "quality=expert", "episodes=6", "data=data"]) == 0
    trainer = ["trainer.steps=8", "trainer.batch_size=8", "trainer.log_every=4", "trainer.device=cpu"]
    common = ["algo=bc", "algo.hidden=16", "method=bc", "data=data", *trainer]
    folders = launched(name, [[*common, f"trainer.seed={seed}", f"run=runs/{seed}"] for seed in (1, 0)], trained)
    assert folders == ["runs/1", "runs/0"]
    assert main(["train", *common, "trainer.seed=1", "run=alone"]) == 0
    files = {".training", "checkpoint.safetensors", "config.yaml", "metrics.csv", "versions.json"}
    for folder in ("runs/1", "runs/0", "alone"):
        assert {path.name for path in Path(folder).iterdir()} == files
        assert len((Path(folder) / "metrics.csv").read_text().splitlines()) == 3
    assert Path("runs/1/config.yaml").read_bytes() == Path("alone/config.yaml").read_bytes()
    weights = [checkpoints.load(Path(folder) / "checkpoint.safetensors")[0] for folder in ("runs/1", "alone", "runs/0")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    assert not all(torch.equal(weights[2][name], value) for name, value in weights[0].items())
    assert main(["evaluate", "run=runs/1", "episodes=2"]) == 0
    assert {path.name for path in place.iterdir()} == {"alone", "data", "runs"}


@pytest.mark.slow
def test_a_queue_gets_what_was_asked_for(place, slurm):
    options = ["hydra.launcher.partition='gpu,cpu'", "hydra.launcher.additional_parameters={mail-type: END}"]
    results = launched("slurm", jobs_of(5, 3, 4), observed, cpus=2, minutes=30.5, options=options)
    assert [seed for seed, *_ in results] == [5, 3, 4]
    (script,) = (path for path in Path("runs/.launch").rglob("*.sh") if path.is_file() and not path.is_symlink())
    flags = dict(re.findall(r"#SBATCH --([a-z-]+)=(.*)", script.read_text()))
    asked = {"array": "0-2%2", "cpus-per-task": "2", "time": str(31 + MARGIN), "partition": "gpu,cpu"}
    assert asked | {"job-name": "convoy", "mail-type": "END"} == {
        key: flags[key] for key in [*asked, "job-name", "mail-type"]
    }
    assert {path.name for path in place.iterdir()} == {"runs"}


def test_stopping_cancels_what_is_queued(place, slurm, monkeypatch):
    def stopped(seconds):
        raise KeyboardInterrupt(signal.SIGTERM)

    (slurm / "bin" / "sbatch").write_text("#!/bin/bash\necho Submitted batch job 77\n")
    monkeypatch.setattr("submitit.core.core._time.sleep", stopped)
    with pytest.raises(KeyboardInterrupt, match="15"):
        launched("slurm", jobs_of(0, 1), observed)
    assert (slurm / "cancelled").read_text() == "77_0\n77_1\n"


def test_a_queue_that_refuses(place, slurm):
    (slurm / "bin" / "sbatch").write_text("#!/bin/bash\necho invalid partition specified: gpx >&2\nexit 1\n")
    with pytest.raises(UserError, match="refused: invalid partition specified: gpx; change"):
        launched("slurm", jobs_of(0, 1), observed, options=["hydra.launcher.partition=gpx"])


@pytest.mark.parametrize(("minutes", "timeout"), [(0, YEAR), (0.5, 1 + MARGIN), (90, 90 + MARGIN)])
@pytest.mark.parametrize("name", ["submitit", "slurm"])
def test_the_plugin_that_submits(name, minutes, timeout, place, slurm, monkeypatch):
    """Made and not used, because there are no jobs."""
    plugin, seen = launchers._plugin, []
    monkeypatch.setattr(launchers, "_plugin", lambda *given: seen.append(plugin(*given)) or seen[0])
    launched(name, [], observed, cpus=3, minutes=minutes, options=["hydra.launcher.mem_gb=4"])
    (made,) = seen
    assert (made.params["cpus_per_task"], made.params["timeout_min"], made.params["mem_gb"]) == (3, timeout, 4)
    assert made.params["max_num_timeout"] == 0
    assert name != "slurm" or made.params["array_parallelism"] == 2
    assert Path(made.params["submitit_folder"]).is_relative_to(place / "runs" / ".launch")


def test_mistakes(place, monkeypatch):
    needs("slurm")
    with pytest.raises(UserError, match="unknown launcher 'jobli': did you mean 'joblib'"):
        launched("jobli", [], observed)
    with pytest.raises(UserError, match=r"unknown option 'trainer\.sed': did you mean 'trainer.seed'"):
        launched("submitit", [["trainer.seed=1"], ["trainer.sed=1"]], observed)
    for option, expected in {
        "hydra.launcher.partitoin=gpu": "unknown option .* did you mean 'hydra.launcher.partition'",
        "partition=gpu": "unknown option 'partition'",
        "hydra.sweep.dir=here": "unknown option",
        "hydra.launcher.submitit_folder=here": "unknown option",
        "hydra.launcher.mem_gb=much": "hydra.launcher.mem_gb=much does not fit launcher 'slurm': Value 'much'",
        "hydra.launcher.partition=gpu,cpu": "several values.*quotes",
        "hydra.launcher.partition": "write name=value",
    }.items():
        with pytest.raises(UserError, match=expected):
            launched("slurm", [], observed, options=[option])
    monkeypatch.setattr(shutil, "which", lambda command: None)
    with pytest.raises(UserError, match=r"no Slurm here.*choose"):
        launched("slurm", [], observed)
    Path("file").touch()
    with pytest.raises(UserError, match="file"):
        launched("submitit", jobs_of(0), observed, folder=Path("file/below"))
    assert not GlobalHydra.instance().is_initialized()
    assert {path.name for path in place.iterdir()} == {"file"}


@pytest.mark.parametrize("name", launchers.LAUNCHERS)
def test_a_plugin_that_is_not_installed(name, place, monkeypatch):
    known = ConfigStore.instance().repo["hydra"]["launcher"]
    monkeypatch.delitem(known, f"{launchers.LAUNCHERS[name]}.yaml", raising=False)
    with pytest.raises(UserError, match=re.escape("pip install 'convoy-rl[launchers]'")):
        launched(name, jobs_of(0), observed)

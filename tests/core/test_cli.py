import json
import os
import shutil
import subprocess
import sys
import tomllib
from contextlib import chdir
from pathlib import Path

import pytest
import torch
import yaml

from core import checkpoints
from core.cli import main
from core.cli.evaluate import evaluate
from core.data import read_dataset
from core.rollout import rollout
from core.runs import Run
from core.statistics import mean_interval
from core.training import Trainer, read_metrics
from marl import MADiff, TaskConfig

REPOSITORY = Path(__file__).resolve().parents[2]
ID = "mpe/spread/mpe2/expert-v0"
TRAINER = ["data=data", "trainer.steps=8", "trainer.batch_size=8", "trainer.log_every=4", "trainer.device=cpu"]
MADIFF = ["algo=madiff", "algo.width=16", "algo.horizon=4", "algo.inverse.hidden=16", *TRAINER]
ALL_MADIFF = " ".join(MADIFF)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset and three trained runs, by the command line."""
    folder = tmp_path_factory.mktemp("made")
    with chdir(folder):
        assert main(["collect", "task=mpe/spread", "quality=expert", "episodes=12", "data=data"]) == 0
        assert main(["train", *MADIFF, "run=madiff"]) == 0
        for preset in ("bc", "bc_returns"):
            assert main(["train", f"algo={preset}", "algo.hidden=16", *TRAINER, f"run={preset}"]) == 0
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy to work in and to break, as the working directory."""
    folder = shutil.copytree(made, tmp_path / "place")
    monkeypatch.chdir(folder)
    return folder


def files_below(folder):
    """All files and their contents, but for locks, which stay behind and say nothing."""
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in files.items() if path.name not in (".training", ".evaluating")}


def table_of(run):
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def test_one_unreadable_dataset_does_not_hide_the_others(place, capsys):
    shutil.copytree(place / "data" / ID, place / "data" / "mpe" / "spread" / "mpe2" / "spoilt-v0")
    (place / "data" / "mpe" / "spread" / "mpe2" / "spoilt-v0" / "data" / "main_data.hdf5").write_bytes(b"nothing")
    assert main(["data", "list", "data=data"]) == 2
    printed = capsys.readouterr()
    assert ID in printed.out
    assert "unreadable" in printed.out
    assert printed.err.count("\n") == 1
    assert "spoilt-v0" in printed.err


def test_outputs(made):
    dataset = read_dataset(ID, made / "data")
    assert dataset.trajectories.episodes == 12
    assert (dataset.provenance.task, dataset.provenance.rules, dataset.provenance.episodes) == (
        "mpe/spread",
        "mpe2",
        12,
    )
    names = {".training", "checkpoint.safetensors", "config.yaml", "metrics.csv", "versions.json"}
    for run in ("madiff", "bc", "bc_returns"):
        assert {path.name for path in (made / run).iterdir()} == names
        assert len((made / run / "metrics.csv").read_text().splitlines()) == 3
        config = yaml.safe_load((made / run / "config.yaml").read_text())
        assert config["method"] == run
        assert config["dataset"] == {"id": ID, "quality": "expert", "fingerprint": dataset.trajectories.fingerprint()}
        sizes = {"agents": 3, "observation_dim": 18, "action_dim": 2, "discrete": False, "sizes": [], "entities": []}
        assert config["spec"] == sizes
    assert not list(made.rglob(".writing-*"))
    assert not (made / "outputs").exists()


def test_the_default_run_folder_names_what_is_trained(place):
    assert main(["train", "algo=bc", "algo.hidden=16", *TRAINER, "trainer.seed=4"]) == 0
    assert (place / "runs" / "mpe-spread-expert-bc-s4" / "checkpoint.safetensors").exists()


def test_a_grid_of_evaluations(place, capsys):
    grid = ["sampler=ddim,dpm", "sampler.steps=1,2", "guidance.scale=0,1.2"]
    assert main(["evaluate", "run=madiff", "episodes=3", *grid]) == 0
    printed = capsys.readouterr().out
    rows = table_of(place / "madiff")
    assert [(row["sampler"], row["guidance_scale"]) for row in rows] == [
        ("ddim-1", 0.0), ("ddim-1", 1.2), ("ddim-2", 0.0), ("ddim-2", 1.2),
        ("dpm-1", 0.0), ("dpm-1", 1.2), ("dpm-2", 0.0), ("dpm-2", 1.2),
    ]  # fmt: skip
    assert all((row["returns"], row["episodes"], row["seed"]) == (0.9, 3, 1_000_000) for row in rows)
    assert all((row["dataset"], row["method"]) == ("expert", "madiff") for row in rows)
    assert all(f"{row['return_mean']:.2f}" in printed for row in rows)


def test_the_numbers_of_a_row(place):
    assert (
        main(["evaluate", "run=madiff", "episodes=3", "seed=50", "sampler.steps=2", "temperature=0.5", "device=cpu"])
        == 0
    )
    (row,) = table_of(place / "madiff")
    assert row["sampler"] == "ddim-2, temperature 0.5"
    from core.cli.compose import configure

    acting = configure("evaluate", ["run=madiff", "sampler.steps=2", "temperature=0.5"])
    data = rollout(MADiff.load("madiff").policy(acting), TaskConfig().make(), range(50, 53)).trajectories
    mean, interval = mean_interval(data.scores)
    assert row["return_mean"] == pytest.approx(mean)
    assert row["interval"] == pytest.approx(list(interval))
    assert row["normalised_score"] == pytest.approx(100 * (mean + 26.1) / 20.2)
    assert row["cost_mean"] == pytest.approx(data.costs.sum().item() / 9)
    assert row["seconds_per_decision"] > 0
    assert row["training_seconds"] == float(checkpoints.load(place / "madiff" / "checkpoint.safetensors")[1]["seconds"])
    assert data.episodes == 3


def test_a_table_reads_back_as_it_was_returned(place):
    from core.cli.compose import configure

    run = Run.open(Path("bc"))
    returned = evaluate(run, [configure("evaluate", ["run=bc", "episodes=2"])])
    assert run.rows() == returned


def test_evaluating_again_does_not_roll_out_again(place, monkeypatch, capsys):
    command = ["evaluate", "run=madiff", "episodes=2", "sampler.steps=1", "guidance.scale=0,1"]
    assert main(command) == 0
    rows, printed = table_of(place / "madiff"), capsys.readouterr().out
    monkeypatch.setattr("core.cli.evaluate.rollout", None)
    assert main(command) == 0
    assert table_of(place / "madiff") == rows
    assert capsys.readouterr().out == printed
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert main([*command[:-1], "guidance.scale=1,2"]) == 0
    assert [row["guidance_scale"] for row in table_of(place / "madiff")] == [0.0, 1.0, 2.0]
    assert main([*command, "seed=7"]) == 0
    assert len(table_of(place / "madiff")) == 5


def test_a_run_trained_further_is_evaluated_anew(place, monkeypatch):
    """Stopped, evaluated, resumed: the row of the unfinished run is not the finished one's."""
    command = ["train", "algo=bc", "algo.hidden=16", *TRAINER, "run=stopped"]
    train_step = Trainer._train_step

    def interrupted(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return train_step(self)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    assert main([*command, "trainer.checkpoint_every=1"]) == 130
    assert main(["evaluate", "run=stopped", "episodes=2"]) == 0
    monkeypatch.setattr(Trainer, "_train_step", train_step)
    assert main(command) == 0
    assert main(["evaluate", "run=stopped", "episodes=2"]) == 0
    finished = main(["evaluate", "run=bc", "episodes=2"])
    assert finished == 0
    (expected,) = table_of(place / "bc")
    assert table_of(place / "stopped")[-1]["return_mean"] == expected["return_mean"]


def test_a_grid_covers_only_what_the_algorithm_uses(place):
    arguments = ["episodes=2", "sampler.steps=1,2", "guidance.scale=0,1", "guidance.returns=0.1,0.9"]
    assert main(["evaluate", "run=bc,bc_returns", *arguments]) == 0
    assert [(row["sampler"], row["guidance_scale"], row["returns"]) for row in table_of(place / "bc")] == [
        ("", None, None)
    ]
    assert [(row["sampler"], row["guidance_scale"], row["returns"]) for row in table_of(place / "bc_returns")] == [
        ("", None, 0.1),
        ("", None, 0.9),
    ]


def test_one_episode_has_no_interval_but_valid_json(place):
    assert main(["evaluate", "run=bc", "episodes=1"]) == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads((place / "bc" / "evaluations.jsonl").read_text(), parse_constant=refuse)


def test_training_again_changes_nothing(place):
    before = files_below(place)
    assert main(["train", *MADIFF, "run=madiff"]) == 0
    assert files_below(place) == before


def test_a_training_removes_what_a_kill_left_half_written(place):
    left = [".checkpoint.safetensors.ab_d3f6h", ".metrics.csv.01234567", ".tmpaB3dEf", ".probe-123"]
    kept = [".checkpoint.safetensors", ".notes", "notes.tmp", ".gitignore"]
    for name in (*left, *kept):
        (place / "bc" / name).write_text("x")
    assert main(["train", "algo=bc", "algo.hidden=16", *TRAINER, "run=bc"]) == 0
    names = {path.name for path in (place / "bc").iterdir()}
    assert not names & set(left)
    assert set(kept) <= names


def test_data_list_and_info(place, capsys):
    assert main(["collect", "quality=mixed", "episodes=4", "data=data"]) == 0
    capsys.readouterr()
    assert main(["data", "list", "data=data"]) == 0
    printed = capsys.readouterr().out
    assert ID in printed
    assert "mpe/spread/mpe2/mixed-v0" in printed
    assert main(["data", "info", "mpe/spread/mpe2/mixed-v0", "data=data"]) == 0
    printed = capsys.readouterr().out
    data = read_dataset("mpe/spread/mpe2/mixed-v0", place / "data").trajectories
    for expected in (
        "4 of 25 to 25 steps, 100 in all", "agent_0, agent_1, agent_2", "18, 2 an agent", "CC0-1.0",
        f"mean return {data.scores[data.tags == 1].mean():.3f}", f"{data.scores.mean():.3f}, 95% interval",
        "0 terminated, 4 cut off by time",
    ):  # fmt: skip
        assert expected in printed


def test_overwriting_a_dataset(place, capsys):
    assert main(["collect", "quality=expert", "episodes=2", "data=data", "overwrite=true"]) == 0
    assert read_dataset(ID, place / "data").trajectories.episodes == 2


def test_collecting_is_independent_of_the_batch(place):
    for quality in ("medium", "random"):
        for parallel in (1, 5):
            options = [f"quality={quality}", "episodes=5", "seed=3", f"parallel={parallel}", f"data=p{parallel}"]
            assert main(["collect", *options]) == 0
        one, five = (read_dataset(f"mpe/spread/mpe2/{quality}-v0", place / name) for name in ("p1", "p5"))
        assert one.trajectories.fingerprint() == five.trajectories.fingerprint()


def test_help_and_no_arguments(capsys):
    for arguments in ([], ["--help"], ["help"]):
        assert main(arguments) == 0
        assert "convoy evaluate run=FOLDER" in capsys.readouterr().out


# Bad input


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def metadata(place):
    return place / "data" / ID / "data" / "metadata.json"


def spoil_dataset(place):
    truncate(place / "data" / ID / "data" / "main_data.hdf5")


def spoil_checkpoint(place):
    truncate(place / "madiff" / "checkpoint.safetensors")


def another_task(place):
    edit_json(metadata(place), lambda content: content["convoy"].update(task="mpe/tag"))


def foreign_dataset(place):
    edit_json(metadata(place), lambda content: content.pop("convoy"))


def metadata_of_another_shape(place):
    metadata(place).write_text("[]")


def another_algorithm(place):
    path = place / "madiff" / "config.yaml"
    path.write_text(path.read_text().replace("name: madiff", "name: dom2"))


def wider_network(place):
    path = place / "madiff" / "config.yaml"
    path.write_text(path.read_text().replace("width: 16", "width: 32"))


def odd_configuration(place):
    path = place / "madiff" / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"algo": 3}))


def without_quality(place):
    path = place / "madiff" / "config.yaml"
    path.write_text(path.read_text().replace("quality: expert", "colour: red"))


def broken_table(place):
    (place / "madiff" / "evaluations.jsonl").write_text('{"method": "madiff"}\n')


def stepless(place):
    checkpoints.save(place / "madiff" / "checkpoint.safetensors", {"x": torch.zeros(1)}, {})


def odd_row(place):
    row = dict.fromkeys(("return_mean", "cost_mean", "training_seconds"), 1.0)
    row |= dict.fromkeys(("dataset", "method", "sampler"), "a") | dict.fromkeys(("episodes", "teams"), 1)
    row |= {"seed": 1, "training_steps": 1, "interval": ["ab", "c"], "guidance_scale": "high"}
    row |= dict.fromkeys(("returns", "normalised_score", "seconds_per_decision"))
    (place / "madiff" / "evaluations.jsonl").write_text(json.dumps(row) + "\n")


def a_file(place):
    (place / "file").write_text("")


NEW = f"train {ALL_MADIFF} run=new"
BAD = [
    ("eveluate run=madiff", "did you mean 'evaluate'", None),
    ("fly", "unknown verb 'fly': choose one of", None),
    ("data lst data=data", "did you mean 'list'", None),
    ("data info data=data", "takes one dataset", None),
    ("data info mpe/spread/mpe2/exprt-v0 data=data", f"did you mean '{ID}'", None),
    ("data list data=nowhere", "no datasets in", None),
    ("data list data=data", "cannot be read", spoil_dataset),
    ("data info " + ID + " data=data", "metadata", metadata_of_another_shape),
    ("collect task=mpe/spred data=new", "did you mean 'mpe/spread'", None),
    ("collect quality=exprt data=new", "did you mean 'expert'", None),
    ("collect quality=expert data=data", "already exists", None),
    ("collect episodes=2 data=file", "cannot write to", a_file),
    ("collect episodes=2 data=file/below", "cannot write to", a_file),
    ("train algo=madif data=data run=new", "did you mean 'madiff'", None),
    (f"{NEW} algo.widht=8", "did you mean 'algo.width'", None),
    (f"{NEW} data=nowhere", "collect one first", None),
    (f"{NEW} dataset=exprt", f"did you mean '{ID}'", None),
    (f"{NEW} task.agents=2", "no dataset", None),
    (f"{NEW} dataset={ID} task.agents=2", "agents", None),
    (f"{NEW} dataset={ID}", "is of task mpe/tag under rules mpe2, not of mpe/spread", another_task),
    (NEW, "is of no known task", foreign_dataset),
    (NEW, "cannot be read", spoil_dataset),
    (NEW, "metadata", metadata_of_another_shape),
    (f"{NEW} algo.horizon=5", "horizon 5 does not fit", None),
    (f"{NEW} algo.width=12", "width 12 must be a multiple", None),
    (f"{NEW} algo.heads=0", "heads", None),
    (f"{NEW} algo.heads=-1", "heads", None),
    (f"{NEW} algo.kernel=-1", "kernel", None),
    (f"{NEW} algo.normaliser=pdf", "unknown normaliser 'pdf'", None),
    (f"{NEW} trainer.device=cuda:99", "not available", None),
    (f"{NEW} trainer.seed=99999999999999999999", "seed", None),
    (f"train {ALL_MADIFF} run=file", "cannot write to file", a_file),
    (f"train {ALL_MADIFF} run=file/below", "cannot write to", a_file),
    (f"train {ALL_MADIFF} run=madiff algo.discount=0.5", "algo.discount was 1.0, is 0.5", None),
    (f"train {ALL_MADIFF} run=madiff", "is corrupt", spoil_checkpoint),
    ("evaluate run=nowhere", "nowhere is no folder", None),
    ("evaluate run=data", "data holds no runs", None),
    ("evaluate", "run", None),
    ("evaluate run=madiff sampler.stpes=1", "did you mean 'sampler.steps'", None),
    ("evaluate run=madiff episodes=2 seed=-1", "seed", None),
    ("evaluate run=madiff episodes=2 device=gpu", "device", None),
    ("evaluate run=madiff", "is corrupt", spoil_checkpoint),
    ("evaluate run=madiff", "unknown algorithm 'dom2'", another_algorithm),
    ("evaluate run=madiff", "does not fit the run's configuration", wider_network),
    ("evaluate run=madiff", "config.yaml", odd_configuration),
    ("evaluate run=madiff episodes=2", "config.yaml", without_quality),
    ("evaluate run=madiff episodes=2", "cannot be read", broken_table),
    ("evaluate run=madiff workers=-1", "workers", None),
    ("evaluate run=madiff episodes=2 sampler.spacing=leading", "does not fit the planner's", None),
    ("evaluate run=madiff episodes=2 budget=nan", "guidance.budget", None),
    ("evaluate run=madiff episodes=2 budget=inf", "guidance.budget", None),
    ("evaluate run=madiff parallel=1,2", "parallel takes one value", None),
    ("evaluate run=", "run= is empty", None),
    ("evaluate run=madiff", "says nothing of its step", stepless),
    ("results madiff", "cannot be read", odd_row),
    (f"{NEW} loggers=[tensorbord]", "did you mean 'tensorboard'", None),
    ("results nowhere", "nowhere is no folder", None),
    ("results madiff", "no evaluations yet", None),
    ("results madiff out=table.xlsx", "name it .parquet or .csv", None),
    ("results madiff --all", "'--all' is no folder", None),
    ("sweep algo=bc,bd data=data", "did you mean 'bc'", None),
    ("sweep run=here data=data", "convoy sweep takes output=", None),
    ("sweep algo=bc launcher=slrum data=data", "did you mean 'slurm'", None),
    ("sweep algo=bc minutes=-1 data=data", "minutes must be at least 0", None),
    ("sweep algo=bc dataset=exprt data=data", f"did you mean '{ID}'", None),
    ("train algo=bc trainer.seed=0,1 data=data", "convoy sweep", None),
]


@pytest.mark.parametrize(
    ("command", "message", "damage"),
    BAD,
    ids=[
        command.replace(ALL_MADIFF, "...") + (f" ({damage.__name__})" if damage else "") for command, _, damage in BAD
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, message, damage, place, capfd):
    if damage:
        damage(place)
    before = files_below(place)
    capfd.readouterr()
    assert main(command.split()) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("convoy: ")
    assert message in line
    assert files_below(place) == before


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root writes to read-only folders")
@pytest.mark.parametrize("command", ["collect episodes=2 data=locked", f"train {ALL_MADIFF} run=locked/run"])
def test_read_only_folder(command, place, capsys):
    (place / "locked").mkdir(mode=0o500)
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write to" in line


def test_a_full_disk_while_training(place, monkeypatch, capsys):
    """The run keeps what it had before, and goes on when there is room again."""

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.files.os.fsync", full)
    assert main(NEW.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert main(NEW.split()) == 0
    tensors, expected = (checkpoints.load(place / run / "checkpoint.safetensors")[0] for run in ("new", "madiff"))
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_the_installed_command_works_from_anywhere(place):
    """What pip writes for `convoy`: the entry point of pyproject.toml."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["convoy"].split(":")
    script = place / "convoy.py"
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()

    command = [sys.executable, str(script), "evaluate", f"run={place / 'bc'}", "episodes=2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(table_of(place / "bc")) == 1
    assert not list(elsewhere.iterdir())


@pytest.mark.extra
def test_a_training_tells_its_loggers_what_its_table_holds(place, capsys):
    """TensorBoard is fed beside the table, the weights are those of the same training without it."""
    pytest.importorskip("tensorboard", reason="needs the extra 'loggers'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["train", *MADIFF, "run=logged", "method=madiff", "loggers=[tensorboard]"]) == 0
    tensors, expected = (checkpoints.load(place / run / "checkpoint.safetensors")[0] for run in ("logged", "madiff"))
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    events = EventAccumulator(str(place / "logged" / "tensorboard")).Reload()
    rows = read_metrics(place / "logged" / "metrics.csv")
    assert {"loss", "diffusion", "inverse"} <= rows[0].keys()
    for name in ("loss", "diffusion", "inverse"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]


def test_a_table_names_what_of_the_protocol_it_meets(place, capsys):
    assert main(["evaluate", "run=madiff,bc", "episodes=40"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "met: cloning: bc",
        "not met: equal tuning: not stated (wanted",
        "met: training budget: 8 steps",
        "met: episodes: 40 episodes",
        "not met: seeds: 1 seed (wanted: 10 or more seeds)",
    ):
        assert f"  {line}" in printed
    assert main(["results", "."]) == 0
    assert "  met: episodes: 40 episodes" in capsys.readouterr().out
    assert main(["results", "bc_returns"]) == 2
    assert "no evaluations yet: convoy evaluate run=bc_returns" in capsys.readouterr().err


def test_results_go_out_as_a_file(place, capsys):
    import pandas as pd

    assert main(["evaluate", "run=.", "episodes=2", "guidance.scale=0,1"]) == 0
    assert main(["results", "madiff", "bc", "out=table.csv", "out=table.parquet"]) == 0
    for frame in (pd.read_csv(place / "table.csv"), pd.read_parquet(place / "table.parquet")):
        assert frame["method"].tolist() == ["madiff", "madiff", "bc"]
        assert frame["guidance_scale"].tolist()[:2] == [0, 1]
        assert frame["return_mean"].tolist() == [
            row["return_mean"] for run in ("madiff", "bc") for row in table_of(place / run)
        ]

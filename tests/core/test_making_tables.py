"""Benchmark tables from YAML to files: their numbers against the runs', and that nothing is made twice."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pytest
import yaml

from core.cli import evaluate, sweep, tables
from core.cli.tables import make
from core.errors import UserError
from core.tables import read_spec, write
from marl import TaskConfig

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "tables.py"
WORK = Path("all our tables", "tiny")
COLUMNS = {
    quality: {"train": [f"dataset={quality}"], "collect": [f"quality={quality}", "episodes=8", "task.max_cycles=4"]}
    for quality in ("expert", "mixed", "random")
}
RANDOM = COLUMNS.pop("random")
TINY = {
    "title": "Tiny",
    "columns": COLUMNS,
    "rows": {
        "low": {"train": ["algo=bc_returns"], "evaluate": ["guidance.returns=0.1"]},
        "high": {"train": ["algo=bc_returns"], "evaluate": ["guidance.returns=0.9"]},
    },
    "seeds": [0, 1],
    "train": [
        "task.max_cycles=4", "algo.hidden=16", "trainer.steps=10", "trainer.batch_size=8", "trainer.device=cpu",
        "trainer.warmup=0", "trainer.ema=0", "trainer.learning_rate=0.02",
    ],
    "evaluate": ["episodes=3", "seed=77", "device=cpu"],
    "budget": {"cpus": 1, "minutes": 5},
    "score": "return_mean",
    "reference": "low",
}  # fmt: skip


def spec_of(**changed):
    """The tiny table with other entries, written and read again."""
    path = Path("tiny.yaml")
    path.write_text(yaml.safe_dump(TINY | changed, sort_keys=False))
    return read_spec(path)


def run_jobs(jobs, workers=0, keep_going=False):
    """One after the other, in this process."""
    return [job.function(*job.arguments, lambda done, note: None) for job in jobs]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The tiny table, its runs and its files."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sweep, "run_jobs", run_jobs)
        write(make(spec_of(), WORK, workers=1), Path("docs"))
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy to go on with, as the working directory."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "place"))
    return Path()


@pytest.fixture
def rolled_out(place, monkeypatch):
    """How many episodes each rollout has; jobs run in this process."""
    episodes = []
    rollout = evaluate.rollout

    def counting(policy, environments, seeds, **options):
        episodes.append(len(seeds))
        return rollout(policy, environments, seeds, **options)

    monkeypatch.setattr(sweep, "run_jobs", run_jobs)
    monkeypatch.setattr(evaluate, "rollout", counting)
    return episodes


def files_below(folder):
    """Contents and times of all files, but for locks."""
    locks = (".training", ".evaluating")
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name not in locks]
    return {path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def rows_of(run):
    return [json.loads(line) for line in (Path(run) / "evaluations.jsonl").read_text().splitlines()]


def test_the_numbers_are_those_of_the_runs(made):
    table = json.loads((made / "docs" / "tiny.json").read_text())
    runs = sorted((made / WORK / "runs").iterdir())
    assert len(runs) == 4
    found = {}
    for run in runs:
        config, rows = yaml.safe_load((run / "config.yaml").read_text()), rows_of(run)
        assert [(row["returns"], row["episodes"], row["seed"], row["training_steps"]) for row in rows] == [
            (0.1, 3, 77, 10), (0.9, 3, 77, 10),
        ]  # fmt: skip
        for label, row in zip(("low", "high"), rows, strict=True):
            found[label, config["dataset"]["quality"], config["trainer"]["seed"]] = row
    for cell in table["cells"]:
        scores = [found[cell["row"], cell["column"], seed]["return_mean"] for seed in (0, 1)]
        assert (cell["seeds"], cell["missing"], cell["scores"]) == ([0, 1], [], pytest.approx(scores, rel=1e-12))
        assert cell["estimate"]["value"] == pytest.approx(mean(scores))
    assert len({round(row["return_mean"], 6) for row in found.values()}) == 8
    assert len(table["evaluations"]) == 8
    for one in table["evaluations"]:
        row = found[one["row"], one["column"], one["training_seed"]]
        assert all(one[key] == row[key] for key in ("returns", "cost_mean", "training_seconds", "seconds_per_decision"))
        assert one["score"] == row["return_mean"]
    for contrast in table["comparisons"]:
        pairs = [(found[row, contrast["column"], seed]["return_mean"]) for row in ("high", "low") for seed in (0, 1)]
        assert contrast["row"] == "high"
        assert contrast["comparison"]["difference"]["value"] == pytest.approx(mean(pairs[:2]) - mean(pairs[2:]))
    assert [(effort["runs"], effort["steps"]) for effort in table["efforts"]] == [(4, [10, 10])] * 2


def test_again_makes_nothing_and_writes_the_same(place):
    """By the script, with processes of its own to share what there is to evaluate."""
    before = files_below(WORK)
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    call = [sys.executable, str(SCRIPT), "tiny.yaml", f"work={WORK.parent}", "docs=again", "workers=2"]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| high |" in done.stdout
    assert "wrote again/tiny.md\nwrote again/tiny.tex\nwrote again/tiny.json\nwrote again/tiny.png\n" in done.stdout
    assert files_below(WORK) == before
    for kind in ("md", "tex", "png"):
        assert Path(f"again/tiny.{kind}").read_bytes() == Path(f"docs/tiny.{kind}").read_bytes()
    found, wanted = (json.loads(Path(folder, "tiny.json").read_text()) for folder in ("again", "docs"))
    assert {"torch", "commit"} <= found.pop("versions").keys()
    assert (wanted.pop("versions"), found) == ({}, wanted)


BEST = {"train": ["algo=bc_best"]}
ADDED = {
    "nothing": ({}, [], []),
    "nothing, in another order": ({"columns": dict(reversed(COLUMNS.items())), "seeds": [1, 0]}, [], []),
    "a row of the same trainings": (
        {"rows": TINY["rows"] | {"middle": {"train": ["algo=bc_returns"], "evaluate": ["guidance.returns=0.5"]}}},
        [],
        [3] * 4,
    ),
    "a row of the same evaluations": ({"rows": TINY["rows"] | {"0.9": {"train": ["algo=bc_returns"]}}}, [], []),
    "a row": (
        {"rows": {"best": {"train": ["algo=bc_best"]}, **TINY["rows"]}},
        [f"mpe-spread-{data}-bc_best-s{seed}" for data in ("expert", "mixed") for seed in (0, 1)],
        [3] * 4,
    ),
    "a column of the same trainings": (
        {"columns": COLUMNS | {"long": COLUMNS["mixed"] | {"evaluate": ["episodes=5"]}}},
        [],
        [10, 10],
    ),
    "a column": (
        {"columns": {"random": RANDOM} | COLUMNS},
        [f"mpe-spread-random-bc_returns-s{seed}" for seed in (0, 1)],
        [6, 6],
    ),
    "a column of one seed": (
        {"columns": {"random": RANDOM | {"seeds": [1]}} | COLUMNS},
        ["mpe-spread-random-bc_returns-s1"],
        [6],
    ),
    "fewer seeds of a column": ({"columns": COLUMNS | {"mixed": COLUMNS["mixed"] | {"seeds": [1]}}}, [], []),
    "a row in one column": (
        {"rows": {"best": {"train": ["algo=bc_best"], "columns": ["mixed"]}, **TINY["rows"]}},
        [f"mpe-spread-mixed-bc_best-s{seed}" for seed in (0, 1)],
        [3] * 2,
    ),
    "a row that is alone in a column": (
        {
            "columns": {"random": RANDOM} | COLUMNS,
            "rows": {
                **{label: row | {"columns": list(COLUMNS)} for label, row in TINY["rows"].items()},
                "high anywhere": {"train": ["algo=bc_returns"], "evaluate": ["guidance.returns=0.9", "episodes=2"]},
            },
        },
        [f"mpe-spread-random-bc_returns-s{seed}" for seed in (0, 1)],
        [2] * 6,
    ),
    "a seed": (
        {"seeds": [0, 2, 1]},
        [f"mpe-spread-{data}-bc_returns-s2" for data in ("expert", "mixed")],
        [6, 6],
    ),
}


@pytest.mark.parametrize("what", ADDED)
def test_only_what_is_missing_is_made(what, rolled_out):
    changed, runs, episodes = ADDED[what]
    before = files_below(WORK)
    table = make(spec_of(**changed), WORK, workers=1)
    after = files_below(WORK)
    new = {path.parts[1] for path in after.keys() - before.keys() if path.parts[0] == "runs"}
    assert (new, rolled_out) == (set(runs), episodes)
    for path, (content, written) in before.items():
        assert after[path][0].startswith(content)
        assert after[path][1] == written or (path.name == "evaluations.jsonl" and after[path][0] != content)
    for cell in table.cells:
        assert not cell.missing
        assert cell.asked == (cell.column in (table.spec.rows[cell.row].columns or table.spec.columns))
        assert cell.seeds == (table.spec.seeds_of(cell.column) if cell.asked else ())


def test_one_seed_shows_its_interval_over_episodes(made, rolled_out):
    table = make(spec_of(columns=COLUMNS | {"mixed": COLUMNS["mixed"] | {"seeds": [1]}}), WORK, workers=1)
    (row,) = [row for row in rows_of(WORK / "runs" / "mpe-spread-mixed-bc_returns-s1") if row["returns"] == 0.9]
    assert table.cell("high", "mixed").over_episodes == tuple(row["interval"])
    assert table.cell("high", "mixed").scores == (row["return_mean"],)
    assert table.cell("high", "expert").over_episodes is None


def test_ends_of_a_normalised_score():
    """By the references of spread under mpe2, -26.1 and -5.9."""
    run = SimpleNamespace(config={"task": asdict(TaskConfig())}, folder="run")
    ends = tables._normalised_ends(run, {"return_low": -16.0, "return_high": -3.88})
    assert ends == pytest.approx({"normalised_low": 50.0, "normalised_high": 110.0})
    assert tables._normalised_ends(run, {"return_low": None, "return_high": None}) == {}
    assert tables._normalised_ends(run, {"return_low": -16.0, "return_high": -3.88, "shift": "agents 5"}) == {}
    run.config["task"]["max_cycles"] = 4
    assert tables._normalised_ends(run, {"return_low": -16.15, "return_high": -3.97}) == {}


def test_what_ran_out_of_its_budget_goes_on_with_more(made, rolled_out):
    """To what it would have been with more to begin with; its cells are evaluated anew."""
    short = make(spec_of(budget={"cpus": 1, "minutes": 1e-9}), Path("short"), workers=1)
    assert {one.training_steps for one in short.evaluations} == {1}
    assert "within the budget" in [check.name for check in short.checks if not check.met]
    table = make(spec_of(), Path("short"), workers=1)
    full = json.loads((made / "docs" / "tiny.json").read_text())
    for cell, wanted in zip(table.cells, full["cells"], strict=True):
        assert cell.scores == pytest.approx(wanted["scores"], abs=1e-4)
    for run in Path("short", "runs").iterdir():
        assert [row["training_steps"] for row in rows_of(run)] == [1, 1, 10, 10]


HIGH = TINY["rows"]["high"]
MISTAKES = [
    ({"columns": {"random": {"train": ["dataset=random"]}}},
     "tiny: column 'random' needs dataset mpe/spread/mpe2/random-3x4-v0, and has no collect:"),
    ({"columns": {"random": RANDOM | {"collect": ["quality=medium", "episodes=2"]}}},
     "column 'random' trains on mpe/spread/mpe2/random-3x4-v0, and its collect: makes mpe/spread/mpe2/medium-v0"),
    ({"columns": {"random": RANDOM | {"collect": ["qualty=random"]}}}, "did you mean 'quality'"),
    ({"rows": {"high": HIGH | {"train": ["algo=bc_returns", "algo.hiden=3"]}}}, "did you mean 'algo.hidden'"),
    ({"rows": {"high": HIGH | {"train": ["algo=bc_retruns"]}}}, "did you mean 'bc_returns'"),
    ({"rows": {"high": HIGH | {"train": ["algo=bc,bc_returns"]}}}, "unknown algo 'bc,bc_returns'"),
    ({"rows": {"high": HIGH | {"train": ["algo=bc", "algo.layers=0"]}}}, "algo.layers must be at least 1"),
    ({"rows": {"high": HIGH | {"train": ["algo=bc", "run=mine"]}}}, "give work= on the command line"),
    ({"train": [*TINY["train"], "trainer.seed=3"]}, "write them as seeds:"),
    ({"evaluate": ["run=mine"]}, "a table evaluates its own trainings"),
    ({"rows": {"high": HIGH | {"evaluate": ["guidance.retruns=1"]}}}, "did you mean 'guidance.returns'"),
    ({"score": "normalised_score"}, "normalised_score of row 'low', column 'expert', seed 0 is None"),
    ({"score": "return_man"}, "did you mean 'return_mean'"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_mistakes_in_a_table(changed, message, rolled_out):
    before = files_below(WORK / "runs")
    with pytest.raises(UserError) as error:
        make(spec_of(**{"reference": None, **changed}), WORK, workers=1)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert (rolled_out, files_below(WORK / "runs")) == ([], before)


def test_mistakes_on_the_command_line(place, capsys):
    script = runpy.run_path(str(SCRIPT))["main"]
    Path("odd.yaml").write_text("titel: Tiny\n")
    before = files_below(place)
    tables = ", ".join(sorted(path.stem for path in (SCRIPT.parent / "tables").glob("*.yaml")))
    for argument, message in {
        "guidnce": "there is no table 'guidnce': did you mean 'guidance'?",
        "none.yaml": f"there is no table 'none.yaml': choose one of: {tables}",
        "odd.yaml": "odd.yaml: titel is no key: did you mean 'title'?",
        "wrok=here": "unknown option 'wrok': did you mean 'work'?",
        "workers=two": "workers is 'two': give a number, 0 for as many as there are cores for",
    }.items():
        assert script([argument]) == 2
        assert capsys.readouterr() == ("", f"tables: {message}\n")
    assert files_below(place) == before


@pytest.mark.slow
def test_a_failed_training_does_not_lose_the_others(place):
    """In workers of its own."""
    rows = {"bad": {"train": ["algo=bc", "trainer.learning_rate=1e18"]}, "high": HIGH}
    asked = {"reference": None, "columns": {"expert": COLUMNS["expert"]}}
    with pytest.raises(UserError, match=r"^training of mpe-spread-expert-bc-.* diverged before step .*1 more failed"):
        make(spec_of(rows=rows, **asked), Path("new"), workers=2)
    before = files_below("new")
    assert len([path for path in before if path.name == "checkpoint.safetensors"]) == 2
    table = make(spec_of(rows={"high": HIGH}, **asked), Path("new"), workers=1)
    wanted = json.loads(Path("docs", "tiny.json").read_text())["cells"][2]
    assert (wanted["row"], wanted["column"]) == ("high", "expert")
    assert table.cells[0].scores == pytest.approx(wanted["scores"], abs=1e-4)
    after = files_below("new")
    assert all(after[path] == content for path, content in before.items())

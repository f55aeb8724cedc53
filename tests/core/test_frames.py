"""Runs as one table: every row of every run once, with what it was trained by, in types that pandas computes with."""

import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

import core
from core.errors import UserError
from core.evaluations import Row, append_rows, read_rows
from core.frames import save_frame

ROW = Row(
    dataset="mixed", method="madiff", sampler="ddim-5", guidance_scale=1.2, returns=0.9, return_mean=-12.5,
    interval=(-13.0, -12.0), normalised_score=64.25, cost_mean=0.5, episodes=8, seed=3, seconds_per_decision=1e-3,
    teams=8, training_steps=100, training_seconds=7.5, sampler_steps=5,
)  # fmt: skip
BARE = Row(
    dataset="mixed", method="bc", sampler="", guidance_scale=None, returns=None, return_mean=-20.0,
    interval=(-math.inf, math.inf), normalised_score=None, cost_mean=0.0, episodes=1, seed=3, seconds_per_decision=1e-5,
    teams=1, training_steps=100, training_seconds=2.0, budget=2.0, violation_rate=0.0,
)  # fmt: skip


def write_run(folder, rows, **algo):
    folder.mkdir(parents=True)
    config = {
        "method": rows[0].method if rows else "bc",
        "task": {"name": "mpe/spread", "rules": "mpe2"},
        "algo": {"name": "cloning", **algo},
        "trainer": {"seed": 4, "steps": 100},
        "dataset": {"id": "mpe/spread/mpe2/mixed-v0", "quality": "mixed", "fingerprint": "9f3a"},
        "spec": {"agents": 3},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "versions.json").write_text("{}")
    append_rows(folder / "evaluations.jsonl", rows)


def test_a_table_of_runs(tmp_path):
    write_run(tmp_path / "runs" / "b", [BARE], hidden=64)
    write_run(tmp_path / "runs" / "deep" / "a", [ROW, ROW], hidden=16)
    write_run(tmp_path / "runs" / "c", [])
    frame = core.results(tmp_path / "runs", options=["algo.hidden", "spec.agents"])
    assert frame["run"].tolist() == [str(tmp_path / "runs" / name) for name in ("b", "deep/a", "deep/a")]
    assert frame["return_mean"].tolist() == [-20.0, -12.5, -12.5]
    assert frame["algo.hidden"].tolist() == [64, 16, 16]
    assert frame["spec.agents"].tolist() == [3, 3, 3]
    assert set(frame["training_seed"]) == {4}
    assert set(frame["fingerprint"]) == {"9f3a"}
    assert frame[["return_low", "return_high", "guidance_scale", "sampler_steps"]].iloc[1].tolist() == [
        -13,
        -12,
        1.2,
        5,
    ]
    assert np.isnan(frame["return_low"].iloc[0])
    assert np.isnan(frame["normalised_score"].iloc[0])
    assert frame["violation_rate"].iloc[0] == 0
    words = ["run", "task", "rules", "dataset", "fingerprint", "method", "algo", "sampler", "shift", "version"]
    numeric = frame.drop(columns=words)
    assert all(pd.api.types.is_numeric_dtype(numeric[name]) for name in numeric)


def test_a_run_counts_once_however_it_is_named(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "a", [ROW])
    monkeypatch.chdir(tmp_path)
    assert len(core.results("runs", "runs/a", tmp_path / "runs")) == 1


def test_runs_without_evaluations_are_an_empty_table(tmp_path):
    write_run(tmp_path / "a", [])
    frame = core.results(tmp_path)
    assert len(frame) == 0
    assert "normalised_score" in frame


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_is_written_and_read_back(tmp_path, suffix):
    write_run(tmp_path / "a", [ROW, BARE])
    frame = core.results(tmp_path)
    save_frame(frame, tmp_path / f"out{suffix}")
    read = pd.read_parquet if suffix == ".parquet" else pd.read_csv
    again = read(tmp_path / f"out{suffix}")
    assert again["return_mean"].tolist() == frame["return_mean"].tolist()
    assert again["guidance_scale"].isna().tolist() == [False, True]
    assert again["normalised_score"].iloc[0] == 64.25
    assert list(again) == list(frame)


def test_bad_requests(tmp_path):
    write_run(tmp_path / "a", [ROW], hidden=3)
    with pytest.raises(UserError, match=r"nowhere is no folder"):
        core.results(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"did you mean .algo\.hidden."):
        core.results(tmp_path, options=["algo.hiden"])
    with pytest.raises(UserError, match=r"name it \.parquet or \.csv"):
        save_frame(core.results(tmp_path), tmp_path / "out.xlsx")
    (tmp_path / "a" / "evaluations.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"line 1, cannot be read"):
        core.results(tmp_path)


def test_importing_core_imports_no_pandas():
    code = "import sys, core; sys.exit('pandas' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The file of rows


def test_rows_come_back_as_they_went(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    append_rows(path, [ROW])
    append_rows(path, [BARE, ROW])
    assert read_rows(path) == [ROW, BARE, ROW]
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_every_place_at_which_a_write_can_be_cut_short(tmp_path):
    """Whole rows are kept, a part of one is none, and the next one takes its place."""
    path = tmp_path / "rows.jsonl"
    append_rows(path, [ROW, BARE])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        kept = [ROW, BARE][: (end >= first) + (end == len(whole))]
        assert read_rows(path) == kept
        append_rows(path, [BARE])
        assert read_rows(path) == [*kept, BARE]


def test_a_full_disk_leaves_the_rows_as_they_were(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [ROW])
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.evaluations.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        append_rows(path, [BARE])
    assert path.read_bytes() == before


def _append_many(path, count):
    for _ in range(count):
        append_rows(path, [ROW, BARE])


def test_several_processes_append_at_once(tmp_path):
    from multiprocessing import get_context

    path = tmp_path / "rows.jsonl"
    processes = [get_context("spawn").Process(target=_append_many, args=(path, 40)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert read_rows(path) == [ROW, BARE] * 120

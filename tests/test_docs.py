"""The Python in the README and in docs/ runs as it stands."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from core.cli import main
from core.config import presets

README = Path(__file__).parents[1] / "README.md"
ENGINE = Path(__file__).parents[1] / "docs" / "engine.md"
EXPERIMENTS = Path(__file__).parents[1] / "docs" / "experiments.md"
ENVIRONMENTS = Path(__file__).parents[1] / "docs" / "environments.md"
POLICIES = Path(__file__).parents[1] / "docs" / "policies.md"
SAFETY = Path(__file__).parents[1] / "docs" / "safety.md"

#: What makes a command short.
SHORT = {
    "collect": ["episodes=4"],
    "train": ["trainer.steps=2", "trainer.batch_size=4", "trainer.device=cpu"],
    "evaluate": ["episodes=2", "sampler.steps=1", "device=cpu"],
}


def test_readme_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["collect", "quality=mixed", "episodes=6", "data=data"]) == 0
    assert main(["train", "dataset=mixed", "data=data", "run=runs/mixed", "trainer.steps=2", "algo.width=16"]) == 0
    planner, engine = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict = {}
    exec(planner, names)
    plan, team = names["plan"], names["team"]
    assert plan.observations.shape == (1, 8, *team.shape)
    assert plan.actions.shape == (1, 7, len(team), 2)
    assert (plan.observations[0, 0] - team).abs().max() < 1e-5
    exec(engine, names)
    samples = names["samples"]
    assert (samples[:, 0] == 1).all()
    assert abs(samples[:, 1].mean() - 3) < 4 * 0.5 / 1000**0.5
    assert abs(samples[:, 1].std() - 0.5) < 0.05


def test_engine_code_runs():
    names: dict = {}
    guidance, edits, fast = re.findall(r"```python\n(.*?)```", ENGINE.read_text(), re.DOTALL)
    exec(guidance, names)
    # The condition is a Gaussian's mean 1 beside N(0, 1): a scale of 1.5 goes past it, and the energy pulls back.
    guided, composed, lower = (names[name].mean(dim=0) for name in ("guided", "composed", "lower"))
    assert (guided > 1.1).all()
    assert (composed > guided + 0.2).all()
    assert lower[0] < lower[1] - 0.15
    assert abs(lower[1] - guided[1]) < 0.05
    exec(edits, names)
    assert (names["plan"][:, 0] == 1).all()
    assert (names["above"][:, 1] >= 0).all()
    assert (names["best"][:, 1] <= names["above"].reshape(500, 4, 2)[:, :, 1].amin(dim=1)).all()
    exec(fast, names)
    assert callable(names["fast"])


def test_experiments_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["collect", "quality=mixed", "episodes=6", "data=data"]) == 0
    tiny = ["data=data", "trainer.steps=2", "trainer.batch_size=8", "output=runs"]
    assert main(["sweep", "algo=bc_returns", "dataset=mixed", "trainer.seed=0,1", *tiny, "stack=2"]) == 0
    assert main(["train", "dataset=mixed", "algo.width=16", *tiny[:3], "run=runs/planner"]) == 0
    assert main(["evaluate", "run=runs", "episodes=2", "guidance.scale=0,1"]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", EXPERIMENTS.read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    frame, guided = names["frame"], names["guided"]
    assert sorted(frame["algo.name"]) == ["cloning", "cloning", "madiff", "madiff"]
    assert set(frame["trainer.steps"]) == {2}
    assert guided["guidance_scale"].tolist() == [1]


def environments_commands(extra):
    """The commands of the page, in order; those that need an extra, or the others."""
    lines = re.findall(r"^convoy +(.*)$", ENVIRONMENTS.read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines if ("mamujoco" in line or "cheetah" in line) == extra]


def run_short(commands):
    for verb, *options in commands:
        assert main([verb, *options, *SHORT.get(verb, [])]) == 0


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder to work in, whose modules are found and forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.delitem(sys.modules, "lane", raising=False)
    yield tmp_path
    sys.modules.pop("lane", None)


def test_environments_code_runs(elsewhere):
    """The page's own environment, saved as it says, and its commands on a few episodes."""
    lane, rendering = re.findall(r"```python\n(.*?)```", ENVIRONMENTS.read_text(), re.DOTALL)
    (elsewhere / "lane.py").write_text(lane)
    commands = environments_commands(extra=False)
    assert [verb for verb, *_ in commands].count("evaluate") == 4
    run_short(commands)
    names: dict = {}
    exec(rendering, names)
    assert names["frame"].shape == (480, 480, 3)
    assert names["frame"].std() > 0


def test_policies_commands_run(elsewhere):
    run_short([shlex.split(line) for line in re.findall(r"^convoy +(.*)$", POLICIES.read_text(), re.MULTILINE)])


def test_policies_names_every_preset_of_a_policy():
    """The first column of its table, and no other name."""
    table = POLICIES.read_text().split("| preset | what |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([a-z0-9_]+)`", " ".join(line.split("|")[1] for line in table.splitlines() if line)))
    planners = {"madiff", "madiff_published", "madiff_distilled", "decision_diffuser"}
    safe = {"trebi", "trebi_published", "bc_safe", "bc_cost", "cdt", "bcq_lagrangian"}
    assert named == set(presets("algo")) - planners - safe
    assert safe <= set(re.findall(r"[a-z_]+", SAFETY.read_text()))


def test_safety_commands_and_code_run(elsewhere):
    run_short([shlex.split(line) for line in re.findall(r"^convoy +(.*)$", SAFETY.read_text(), re.MULTILINE)])
    planning, constraints, filtering = re.findall(r"```python\n(.*?)```", SAFETY.read_text(), re.DOTALL)
    names: dict = {}
    exec(planning, names)
    assert names["plan"].observations.shape == (4, 32, 1, 3)
    exec(constraints, names)
    apart = names["moved"][..., 0, :] - names["moved"][..., 1, :]
    assert (apart.norm(dim=-1) - 0.3).abs().max() < 1e-6
    exec(filtering, names)
    assert names["report"].safe.all()
    assert (names["result"].x.norm(dim=-1) > 0.5 - 1e-6).all()
    assert (names["both"].corrected.x.norm(dim=-1) > 0.5 - 1e-6).all()


@pytest.mark.extra
def test_environments_mujoco_runs(elsewhere):
    pytest.importorskip("gymnasium_robotics", reason="needs the extra 'mamujoco'")
    run_short(environments_commands(extra=True))
    assert not list(elsewhere.glob("MUJOCO_LOG.TXT"))

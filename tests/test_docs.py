"""The Python in the README runs as it stands."""

import re
from pathlib import Path

from core.cli import main

README = Path(__file__).parents[1] / "README.md"


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

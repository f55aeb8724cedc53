"""What is said and drawn of evaluations under budgets."""

import math
from dataclasses import replace

import pytest
import torch
import yaml

from core import front_figures
from core.cli import main
from core.data import Provenance, Trajectories, write_dataset
from core.errors import UserError
from core.evaluations import Row, append_rows
from core.front_figures import Front, costs_and_returns, draw_episodes, draw_fronts

ROW = Row(
    dataset="front", method="trebi", sampler="ddim-5", guidance_scale=0.0, returns=0.9, return_mean=150.0,
    interval=(148.0, 152.0), normalised_score=62.5, cost_mean=12.0, episodes=8, seed=3, seconds_per_decision=None,
    teams=8, training_steps=100, training_seconds=7.5, sampler_steps=5, budget=15.0, violation_rate=0.25,
    cost_low=11.0, cost_high=13.0, cost_worst=21.5, cost_tail=19.25,
)  # fmt: skip
ROWS = [ROW, replace(ROW, budget=60.0, cost_mean=45.0, return_mean=170.0, violation_rate=0.0)]
SPENT = ("cost 95%", "of budget", "above", "worst tenth", "worst")


def trajectories():
    """Two episodes of two agents: costs 3 and 50, returns 4 and 9, in the agents' mean."""
    rewards = torch.tensor([[1.0, 3.0], [2.0, 2.0], [0, 0], [8.0, 10.0], [0, 0]])
    costs = torch.tensor([[1.0, 1.0], [4.0, 0.0], [0, 0], [40.0, 60.0], [0, 0]])
    seen, acted = torch.zeros(5, 2, 1), torch.zeros(5, 2, 1)
    ends, tags = torch.zeros(2, dtype=torch.bool), torch.tensor([0, 1])
    return Trajectories(seen, acted, rewards, costs, torch.tensor([0, 3, 5]), ends, tags)


def write_run(folder, rows, *, seed=0, task="safe/pendulum", algo="trebi", fingerprint="9f3a"):
    folder.mkdir(parents=True)
    config = {
        "method": rows[0].method,
        "task": {"name": task},
        "algo": {"name": algo},
        "trainer": {"seed": seed},
        "dataset": {"id": "safe/pendulum/front-v0", "quality": "front", "fingerprint": fingerprint},
        "spec": {"agents": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "versions.json").write_text("{}")
    append_rows(folder / "evaluations.jsonl", rows)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, in place of their files."""
    drawn = []
    monkeypatch.setattr(front_figures, "_save", lambda figure, path: drawn.append(figure))
    return drawn


def table_of(capsys):
    """What was printed above the notes."""
    return capsys.readouterr().out.partition("95% interval:")[0]


def lines_of(printed, heading):
    """The entries of each line below a heading and its rule."""
    lines = printed.splitlines()
    first = next(number for number, line in enumerate(lines) if heading in line)
    return [line.split() for line in lines[first + 2 :] if line.strip()]


def test_a_front_is_a_table(tmp_path, capsys):
    write_run(tmp_path / "a", [*ROWS, replace(ROW, budget=0.0, violation_rate=1.0)])
    assert main(["results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    first, second, none = lines_of(printed, "worst tenth")[:3]
    assert " ".join(first) == "15 0.25 150.00 148.00 to 152.00 62.5 12.00 11.00 to 13.00 0.80 25% 19.25 21.50"
    assert second[:2] == ["60", "1"]
    assert "0.75" in second
    assert " ".join(none) == "0 0 150.00 148.00 to 152.00 62.5 12.00 11.00 to 13.00 100% 19.25 21.50"
    assert "method trebi" in printed
    assert "ratio: of the budget to the task's own" in printed


def test_columns_of_budgets_are_left_out_where_there_are_none(tmp_path, capsys):
    write_run(tmp_path / "a", [replace(ROW, budget=None, violation_rate=None)])
    assert main(["results", str(tmp_path)]) == 0
    printed = table_of(capsys)
    assert not any(heading in printed for heading in (*SPENT, "budget", "ratio"))


def test_a_task_without_a_scale_has_no_ratio(tmp_path, capsys):
    write_run(tmp_path / "a", ROWS, task="mpe/spread", algo="cloning")
    assert main(["results", str(tmp_path)]) == 0
    printed = table_of(capsys)
    assert all(heading in printed for heading in (*SPENT, "budget"))
    assert "ratio" not in printed


def test_what_a_changed_budget_is_held_against_is_not_the_first(tmp_path, capsys):
    write_run(tmp_path / "a", [replace(ROW, shift="budget x0.5 within the episode")])
    assert main(["results", str(tmp_path)]) == 0
    printed = " ".join(table_of(capsys).split())
    assert "shift budget x0.5 within the episode" in printed
    assert "of budget" not in printed
    assert "25%" in printed


def test_budgets_are_told_apart_over_seeds(tmp_path, capsys):
    for seed in (0, 1):
        moved = [replace(row, cost_mean=row.cost_mean + 2 * seed) for row in ROWS]
        write_run(tmp_path / f"s{seed}", moved, seed=seed)
    assert main(["results", str(tmp_path)]) == 0
    means = lines_of(capsys.readouterr().out, "cost over seeds")[:2]
    # Columns: dataset, method, sampler, scale, rank asked, budget, seeds, score, its interval, cost, its interval.
    assert [(one[5], one[6], one[11]) for one in means] == [("15", "2", "13.00"), ("60", "2", "46.00")]


def test_curves_and_cloud(figures, tmp_path):
    twin = [replace(row, cost_mean=row.cost_mean + 4, return_mean=row.return_mean - 10) for row in ROWS]
    bare = replace(ROW, method="bc_safe", interval=(-math.inf, math.inf), cost_low=None, cost_high=None)
    front = Front("safe/pendulum/front-v0", [*ROWS, *twin, bare], costs_and_returns(trajectories()))
    other = Front("elsewhere", [replace(ROW, budget=30.0)])
    draw_fronts([front, other], tmp_path / "front.png")
    (figure,) = figures
    above, beside, below, _ = figure.axes
    assert above.lines[0].get_xydata().tolist() == [[15, 145], [60, 165]]
    assert below.lines[0].get_xydata().tolist() == [[15, 14], [60, 47]]
    (limit,) = (line for line in below.lines if line.get_linestyle() == "--" and len(line.get_xdata()) == 2)
    assert (limit.get_xdata() == limit.get_ydata()).all()
    assert above.collections[0].get_offsets().tolist() == [[3, 4], [50, 9]]
    assert beside.get_title(loc="left") == "elsewhere"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["trebi", "bc_safe", "cost = budget", "episodes of the data, at their cost"]


def test_episodes_beyond_all_budgets_are_not_drawn(figures, tmp_path):
    draw_fronts([Front("t", [ROW], costs_and_returns(trajectories()))], tmp_path / "front.png")
    assert figures[0].axes[0].collections[0].get_offsets().tolist() == [[3, 4]]


def test_the_data_is_drawn_where_it_is_the_runs(figures, tmp_path):
    data = trajectories()
    write_dataset("safe/pendulum/front-v0", data, Provenance(agents=["a", "b"], episodes=2), tmp_path / "data")
    write_run(tmp_path / "mine", ROWS, fingerprint=data.fingerprint())
    write_run(tmp_path / "other", ROWS, fingerprint="another")
    for run, clouds in (("mine", 1), ("other", 0)):
        root = f"data={tmp_path / 'data'}"
        assert main(["results", str(tmp_path / run), f"figure={tmp_path / 'f.png'}", root]) == 0
        assert len([one for one in figures[-1].axes[0].collections if len(one.get_offsets()) == 2]) == clouds


def test_a_point_for_each_behaviour(figures, tmp_path):
    draw_episodes("set", trajectories(), tmp_path / "data.png", behaviours=["guided", "uniform"], budget=60.0)
    axes = figures[0].axes[0]
    assert [one.get_offsets().tolist() for one in axes.collections] == [[[3, 4]], [[50, 9]]]
    assert axes.lines[0].get_xdata()[0] == 60
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["guided", "uniform", "budget of ratio 1"]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_figures_are_the_same_bytes_for_the_same_numbers(tmp_path, kind):
    fronts = [Front("t", ROWS, costs_and_returns(trajectories()))]
    for name in "ab":
        draw_fronts(fronts, tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_bad_requests(tmp_path, capsys):
    with pytest.raises(UserError, match=r"nothing was evaluated under a budget: convoy evaluate"):
        draw_fronts([], tmp_path / "f.png")
    write_run(tmp_path / "a", [replace(ROW, budget=None, violation_rate=None)])
    for options, message in (
        (["figure=f.jpg"], "name it .png or .svg"),
        ([f"figure={tmp_path}/f.png"], "nothing was evaluated under a budget"),
        (["figur=f.png"], "'figur=f.png' is no folder"),
    ):
        assert main(["results", str(tmp_path / "a"), *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line

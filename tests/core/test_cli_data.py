"""`convoy data import` from end to end."""

import json
from dataclasses import asdict

import minari
import numpy as np
import pytest

from core.cli import main
from core.data import list_datasets, read_dataset
from core.data.importers import read_foreign
from marl.environments import REFERENCES
from tests.core.test_importers import episodes, joined, point, write_hdf5, write_omar, write_vault

ID = "mpe/spread/omar/expert-v0"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """OMAR's seeds, a DSRL file and a vault, as the working directory."""
    for seed in (0, 1):
        write_omar(tmp_path / "spread" / f"seed_{seed}_data", episodes([25, 25], agents=3, seed=seed))
    write_hdf5(tmp_path / "car.hdf5", episodes([4, 3], agents=1))
    write_vault(tmp_path / "3m.npz", episodes([4, 3], agents=3, choices=5))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convoy(line):
    return main(line.split())


def test_omar(place, capsys):
    command = f"data import spread id={ID} length=25 licence=MIT data=data"
    assert convoy(command) == 0
    data = read_foreign("omar", "spread", length=25)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"wrote {ID} to {place / 'data'}: 4 episodes, 100 steps, A = 3, mean return {data.scores.mean():.2f}" in (
        printed.out
    )
    dataset = read_dataset(ID, place / "data")
    assert dataset.trajectories.fingerprint() == data.fingerprint()
    provenance = dataset.provenance
    assert (provenance.task, provenance.rules, provenance.quality) == ("mpe/spread", "omar", "expert")
    assert provenance.behaviour == {"source": str(place / "spread"), "format": "omar", "length": 25}
    assert provenance.behaviours == ["seed_0_data", "seed_1_data"]
    assert provenance.agents == ["agent_0", "agent_1", "agent_2"]
    assert provenance.references == asdict(REFERENCES["mpe/spread", "omar", ""])
    assert (provenance.licence, provenance.episodes) == ("MIT", 4)
    assert convoy(f"data info {ID} data=data") == 0
    printed = capsys.readouterr().out
    for expected in ("mpe/spread, rules omar", "format omar", "seed_1_data", "0 terminated, 4 cut off by time", "MIT"):
        assert expected in printed
    assert convoy(command) == 2
    assert "already exists" in capsys.readouterr().err
    assert convoy(f"{command} overwrite=true terminal=true") == 0
    assert read_dataset(ID, place / "data").trajectories.terminated.all()


def test_a_single_agents_file_with_costs(place, capsys):
    command = "data import car.hdf5 id=dsrl/car/circle-v0 task=car quality=mixed action_scale=2 data=data"
    assert convoy(command) == 0
    dataset = read_dataset("dsrl/car/circle-v0", place / "data")
    made = episodes([4, 3], agents=1)
    data = dataset.trajectories
    assert np.array_equal(data.costs[data.decisions], joined(made, "costs"))
    assert np.array_equal(data.actions[data.decisions], joined(made, "actions") / 2)
    assert (dataset.provenance.task, dataset.provenance.quality) == ("car", "mixed")
    assert dataset.provenance.behaviour["action_scale"] == 2
    assert dataset.provenance.agents == ["agent_0"]
    capsys.readouterr()
    assert convoy("data info dsrl/car/circle-v0 data=data figure=costs.png") == 0
    printed = capsys.readouterr().out
    costs = [float(one.costs.sum()) for one in made]
    levels = ", ".join(f"{level:.2f}" for level in np.quantile(costs, [0, 0.1, 0.5, 0.9, 1]))
    assert f"{np.mean(costs):.3f} an episode and agent; least, 10%, median, 90%, most: {levels}" in printed
    assert "rules" not in printed
    assert (place / "costs.png").read_bytes()[:4] == b"\x89PNG"


def test_a_vault(place, capsys):
    assert convoy("data import 3m.npz id=smac/3m/good-v0 final=repeat data=data") == 0
    assert "what was observed after an episode's last step" in capsys.readouterr().out
    dataset = read_dataset("smac/3m/good-v0", place / "data")
    assert dataset.spec.discrete
    assert dataset.trajectories.legal.shape == (9, 3, 5)
    assert (dataset.provenance.task, dataset.provenance.quality) == ("", "good")


def test_the_id_may_follow_from_task_rules_and_quality(place):
    assert convoy("data import spread/seed_0_data task=mpe/spread rules=omar quality=poor data=data") == 0
    assert list_datasets(place / "data") == ["mpe/spread/omar/poor-v0"]


def test_the_published_preys_scores_normalise_the_predators(place):
    write_omar(place / "tag", episodes([25], agents=4))
    for agents, expected in ((3, asdict(REFERENCES["mpe/tag", "omar", "published"])), (4, {})):
        command = f"data import tag id=mpe/tag/omar/of{agents}-v0 agents={agents} data=data"
        assert convoy(command) == 0
        dataset = read_dataset(f"mpe/tag/omar/of{agents}-v0", place / "data")
        assert dataset.provenance.references == expected
        assert dataset.trajectories.agents == agents


def test_minaris_own(place, monkeypatch, capsys):
    monkeypatch.setattr(minari, "download_dataset", point)
    assert convoy("data import minari:D4RL/point/human-v2 data=data") == 0
    assert f"wrote D4RL/point/human-v2 to {place / 'data'}: 1 episodes, 3 steps, A = 1, mean return 6.00" in (
        capsys.readouterr().out
    )
    assert convoy("data info D4RL/point/human-v2 data=data") == 0

    def offline(name):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(minari, "download_dataset", offline)
    assert convoy("data import minari:D4RL/pen/human-v2 data=data") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("convoy: cannot download D4RL/pen/human-v2: Name or service not known; mend the network")
    assert list_datasets(place / "data") == ["D4RL/point/human-v2"]


def test_help(capsys):
    for command in ("data import", "data import --help"):
        assert convoy(command) == 0
        printed = capsys.readouterr().out
        assert "import PATH id=DATASET" in printed
        assert all(f"{name}:" in printed for name in ("overwrite", "length", "terminal", "action_scale"))


BAD = [
    ("import spread data=data", "id= is missing: name the dataset"),
    ("import id=foreign/set-v0 data=data", "needs a path"),
    ("import data id=foreign/set-v0 data=data", "there is no data"),
    ("import nowhere id=foreign/set-v0 data=data", "there is no nowhere"),
    ("import spread id=foreign/set data=data", "malformed dataset id 'foreign/set'"),
    ("import spread id=../set-v0 data=data", "malformed dataset id"),
    (f"import spread id={ID} frmat=omar data=data", "did you mean 'format'"),
    (f"import spread id={ID} format=omra data=data", "did you mean 'omar'"),
    (f"import spread id={ID} length=long data=data", "'length=long' cannot be read: length is a whole number"),
    (f"import spread id={ID} terminal=perhaps data=data", "terminal is true or false"),
    (f"import spread id={ID} action_scale=x data=data", "action_scale is a number"),
    (f"import spread id={ID} final=drop data=data", "final= means nothing for format omar"),
    (f"import spread id={ID} loud data=data", "'loud' is not an option"),
    (f"import spread id={ID} rules=fork data=data", "unknown task.rules 'fork'"),
    ("import spread id=mpe/spread/expert-v0 data=data", "rules"),
    ("import car.hdf5 id=dsrl/car/broken-v0 format=vault data=data", "car.hdf5 is no .npz file"),
    ("import minari:D4RL/pen/human-v2 id=pen/human-v2 data=data", "id= means nothing for one of Minari's"),
    ("import minari:pen data=data", "malformed dataset id 'pen'"),
    (f"import spread id={ID} data=car.hdf5", "cannot write to"),
    ("imprt spread", "did you mean 'import'"),
    ("info any/set-v0 figure=costs.gif data=data", "cannot tell the kind of figure of 'costs.gif'"),
    ("list figure=costs.png data=data", "convoy data list takes no 'figure=costs.png'"),
]


@pytest.mark.parametrize(("command", "message"), BAD, ids=[command for command, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(command, message, place, capsys):
    before = sorted(path for path in place.rglob("*") if path.is_file())
    assert convoy(f"data {command}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("convoy: ")
    assert message in line
    assert sorted(path for path in place.rglob("*") if path.is_file()) == before


def test_malformed_data_leaves_what_was_there(place, capsys):
    assert convoy(f"data import spread id={ID} data=data") == 0
    before = {path: path.read_bytes() for path in (place / "data").rglob("*") if path.is_file()}
    assert json.loads((place / "data" / ID / "data" / "metadata.json").read_text())["convoy"]["task"] == "mpe/spread"
    path = place / "spread" / "seed_1_data" / "acs_2.npy"
    np.save(path, 3 * np.load(path))
    assert convoy(f"data import spread id={ID} data=data overwrite=true") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "spread/seed_1_data/acs_2.npy holds an action of " in line
    assert {path: path.read_bytes() for path in (place / "data").rglob("*") if path.is_file()} == before

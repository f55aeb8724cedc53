import json
import os
import shutil
from dataclasses import asdict, replace

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer

from core.data import Provenance, Trajectories, list_datasets, read_dataset, read_provenance, storage, write_dataset
from core.environments import TeamSpec
from core.errors import UserError

ID = "mpe/spread/mpe2/expert-v0"
LENGTHS = [3, 1, 5, 2]
PROVENANCE = Provenance(
    task="mpe/spread",
    rules="mpe2",
    quality="expert",
    behaviour={"kp": 8.0, "assignment": "optimal"},
    behaviours=["guided", "misled"],
    agents=["agent_0", "agent_1"],
    seed=7,
    episodes=4,
    references={"random": -26.3, "expert": -6.0, "source": "measured"},
    generator="convoy-rl 0",
    licence="CC0-1.0",
)


def team(seed=0):
    """Four uneven episodes of two agents, the second and fourth cut off by time."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(torch.tensor(LENGTHS) + 1, 0)])
    rows = int(offsets[-1])
    observations, actions = (torch.randn(rows, 2, size, generator=generator) for size in (3, 2))
    rewards, costs = torch.randn(2, rows, 2, generator=generator)
    for values in (actions, rewards, costs):
        values[offsets[1:] - 1] = 0
    return Trajectories(
        observations,
        actions.clamp(-1, 1),
        rewards,
        costs.abs(),
        offsets,
        torch.tensor([True, False, True, False]),
        torch.tensor([0, 1, 1, 0]),
    )


def files_below(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(a, b):
    for name in ("observations", "actions", "rewards", "costs", "offsets", "terminated", "tags"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    write_dataset(ID, team(), PROVENANCE, root)
    return root


@pytest.fixture
def root(written, tmp_path):
    """A copy to be broken."""
    return shutil.copytree(written, tmp_path / "datasets")


def test_round_trip(written):
    dataset = read_dataset(ID, written)
    assert_same(dataset.trajectories, team())
    assert dataset.id == ID
    assert dataset.provenance == read_provenance(ID, written)
    assert dataset.provenance == replace(PROVENANCE, fingerprint=team().fingerprint())
    assert dataset.bytes == sum(len(content) for content in files_below(written / ID).values())
    assert list_datasets(written) == [ID]


def test_round_trip_without_tags(tmp_path):
    write_dataset(ID, replace(team(), tags=torch.empty(0)), PROVENANCE, tmp_path)
    assert_same(read_dataset(ID, tmp_path).trajectories, replace(team(), tags=torch.full((4,), -1)))


def test_fingerprint_tells_data_apart():
    data = team()
    assert data.fingerprint() == team().fingerprint()
    offsets = data.offsets.clone()
    offsets[1] -= 1
    for name, changed in (
        ("observations", data.observations + 1e-6),
        ("actions", -data.actions),
        ("rewards", data.rewards * 2),
        ("costs", data.costs * 2),
        ("terminated", ~data.terminated),
        ("tags", 1 - data.tags),
        ("offsets", offsets),
    ):
        assert replace(data, **{name: changed}).fingerprint() != data.fingerprint(), name


def test_layout_on_disk(written):
    data = team()
    with h5py.File(written / ID / "data" / "main_data.hdf5") as file:
        assert len(file) == 4
        for episode, steps in enumerate(LENGTHS):
            group = file[f"episode_{episode}"]
            first = int(data.offsets[episode])
            rows = slice(first, first + steps)
            assert group["observations"].shape == (steps + 1, 2, 3)
            assert np.array_equal(group["observations"][:], data.observations[first : first + steps + 1])
            assert np.array_equal(group["actions"][:], data.actions[rows])
            # The scalar reward is the team's mean.
            assert group["rewards"].shape == (steps,)
            assert np.allclose(group["rewards"][:], data.rewards[rows].mean(dim=1))
            # infos have T + 1 rows; row k + 1 belongs to step k.
            for name, values in (("rewards", data.rewards), ("costs", data.costs)):
                assert group["infos"][name].shape == (steps + 1, 2)
                assert (group["infos"][name][0] == 0).all()
                assert np.array_equal(group["infos"][name][1:], values[rows])
            ends = [False] * (steps - 1) + [True]
            terminated = bool(data.terminated[episode])
            assert group["terminations"][:].tolist() == [end and terminated for end in ends]
            assert group["truncations"][:].tolist() == [end and not terminated for end in ends]
            assert (group.attrs["seed"], group.attrs["behaviour"]) == (7 + episode, data.tags[episode])
    metadata = json.loads((written / ID / "data" / "metadata.json").read_text())
    assert metadata["convoy"] == asdict(replace(PROVENANCE, fingerprint=data.fingerprint()))


def test_minari_reads_it(written, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(written))
    dataset = minari.load_dataset(ID)
    assert (dataset.total_episodes, dataset.total_steps) == (4, sum(LENGTHS))
    assert dataset.observation_space.shape == (2, 3)
    assert dataset.action_space == gymnasium.spaces.Box(-1, 1, (2, 2), np.float32)
    episode = next(dataset.iterate_episodes([2]))
    assert len(episode.observations) == 6
    assert episode.infos["costs"].shape == (6, 2)
    assert ID in minari.list_local_datasets()


@pytest.mark.parametrize("cost", [None, "steps", "steps and reset"])
def test_a_single_agents_minari_dataset(cost, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    generator = np.random.default_rng(0)
    buffers = []
    for episode, steps in enumerate(LENGTHS):
        costs = generator.random(steps + (cost == "steps and reset"))
        buffers.append(
            EpisodeBuffer(
                id=episode,
                observations=list(generator.random((steps + 1, 3), dtype=np.float32)),
                actions=list(generator.random((steps, 2), dtype=np.float32)),
                rewards=generator.random(steps).tolist(),
                terminations=[False] * (steps - 1) + [episode == 0],
                truncations=[False] * (steps - 1) + [episode != 0],
                infos={"cost": costs} if cost else None,
            )
        )
    box = gymnasium.spaces.Box
    minari.create_dataset_from_buffers(
        "point/reach-v0", buffers, observation_space=box(0, 1, (3,)), action_space=box(0, 1, (2,)), data_format="hdf5"
    )
    dataset = read_dataset("point/reach-v0", tmp_path)
    data = dataset.trajectories
    assert dataset.provenance == Provenance()
    assert (data.episodes, data.agents, data.observations.shape[-1], data.actions.shape[-1]) == (4, 1, 3, 2)
    assert data.terminated.tolist() == [True, False, False, False]
    assert data.tags.tolist() == [-1] * 4
    for buffer, first, end in zip(buffers, data.offsets[:-1].tolist(), data.offsets[1:].tolist(), strict=True):
        assert np.array_equal(data.observations[first:end, 0], np.stack(buffer.observations))
        # Between 0 and 1 there, between -1 and 1 here.
        assert np.allclose(data.actions[first : end - 1, 0], 2 * np.stack(buffer.actions) - 1, atol=1e-6)
        assert np.allclose(data.rewards[first : end - 1, 0], buffer.rewards)
        costs = buffer.infos["cost"][-(end - 1 - first) :] if cost else 0
        assert np.allclose(data.costs[first : end - 1, 0], costs)
        assert not data.actions[end - 1].any()
        assert not data.rewards[end - 1].any()


def test_spaces_of_foreign_datasets(tmp_path, monkeypatch):
    """Observations and actions must be Box or Discrete, which become one-hot."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    spaces = {
        "grid": gymnasium.spaces.Discrete(4),
        "torques": gymnasium.spaces.Box(-1, 1, (2,)),
        "levers": gymnasium.spaces.MultiDiscrete([2, 3]),
    }
    observations = gymnasium.spaces.Dict({"position": gymnasium.spaces.Box(-1, 1, (2,))})
    position = np.zeros(2, np.float32)
    buffer = EpisodeBuffer(
        observations={"position": [position] * 3}, rewards=[0.0] * 2, terminations=[False] * 2, truncations=[False] * 2
    )
    minari.create_dataset_from_buffers(
        "foreign/dict-v0",
        [replace(buffer, actions=[position] * 2)],
        observation_space=observations,
        action_space=spaces["torques"],
        data_format="hdf5",
    )
    minari.create_dataset_from_buffers(
        "foreign/discrete-v0",
        [replace(buffer, observations=[position] * 3, actions=[1, 2])],
        observation_space=observations["position"],
        action_space=spaces["grid"],
        data_format="hdf5",
    )
    minari.create_dataset_from_buffers(
        "foreign/levers-v0",
        [replace(buffer, observations=[position] * 3, actions=[np.array([1, 2])] * 2)],
        observation_space=observations["position"],
        action_space=spaces["levers"],
        data_format="hdf5",
    )
    for name in ("foreign/dict-v0", "foreign/levers-v0"):
        with pytest.raises(UserError, match=f"{name} .* cannot be read: .*Box"):
            read_dataset(name, tmp_path)
    dataset = read_dataset("foreign/discrete-v0", tmp_path)
    assert dataset.spec == TeamSpec(1, 2, 4, discrete=True)
    assert dataset.trajectories.actions[:, 0].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_choices_and_absences_come_back(tmp_path):
    """A discrete team some of whose agents leave early: masks, one-hot actions and the layout."""
    data = team(3)
    rows, agents = data.rewards.shape
    legal = torch.rand(rows, agents, data.actions.shape[-1], generator=torch.Generator().manual_seed(0)) < 0.5
    present = data.time[:, None] <= torch.arange(agents)
    data = replace(data, legal=legal, present=present)
    layout = {"discrete": True, "sizes": [1] * agents}
    write_dataset(ID, data, replace(PROVENANCE, layout=layout), tmp_path)
    dataset = read_dataset(ID, tmp_path)
    assert_same(dataset.trajectories, data)
    assert torch.equal(dataset.trajectories.legal, legal)
    assert torch.equal(dataset.trajectories.present, present)
    assert dataset.spec.discrete
    assert dataset.spec.sizes == (1,) * agents
    assert data.fingerprint() != replace(data, legal=~legal).fingerprint() != replace(data, legal=None).fingerprint()


def test_an_existing_dataset_is_kept_unless_overwritten(root):
    before = files_below(root)
    with pytest.raises(UserError, match=f"dataset {ID} already exists .*overwrite=true"):
        write_dataset(ID, team(1), PROVENANCE, root)
    assert files_below(root) == before
    write_dataset(ID, team(1), PROVENANCE, root, overwrite=True)
    assert_same(read_dataset(ID, root).trajectories, team(1))
    assert set(files_below(root)) == set(before)


@pytest.mark.parametrize("name", ["expert", "../expert-v0", "/expert-v0", "mpe/spread expert-v0", "mpe/expert", ""])
def test_malformed_ids(name, tmp_path):
    with pytest.raises(UserError, match=r"malformed dataset id .*namespace/name-v0"):
        write_dataset(name, team(), PROVENANCE, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_id_names_the_nearest(written, tmp_path):
    with pytest.raises(UserError, match=f"no dataset 'mpe/spread/mpe2/exprt-v0' in .*did you mean '{ID}'"):
        read_dataset("mpe/spread/mpe2/exprt-v0", written)
    with pytest.raises(UserError, match=r"no dataset .*: collect one first: convoy collect"):
        read_dataset(ID, tmp_path)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_file(root, share):
    path = root / ID / "data" / "main_data.hdf5"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=f"dataset {ID} in .* cannot be read: ."):
        read_dataset(ID, root)


def test_a_corrupt_file_is_an_error(root):
    """Wherever 16 bytes are lost, what reads all the same is what was written: those spots hold nothing."""
    path = root / ID / "data" / "main_data.hdf5"
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 401):
        path.write_bytes(content[:place] + bytes(16) + content[place + 16 :])
        try:
            assert_same(read_dataset(ID, root).trajectories, team())
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 5


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"convoy": null}', b'{"convoy": {"colour": 1}}']
)
def test_broken_metadata(root, content):
    (root / ID / "data" / "metadata.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"dataset {ID} in .* (has no readable metadata|cannot be read): \S") as caught:
        read_dataset(ID, root)
    assert "\n" not in str(caught.value)


def test_missing_files(root):
    (root / ID / "data" / "main_data.hdf5").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_dataset(ID, root)
    (root / ID / "data" / "metadata.json").unlink()
    with pytest.raises(UserError, match="no readable metadata"):
        read_dataset(ID, root)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a bug"), KeyboardInterrupt()])
def test_nothing_is_left_after_a_failure_in_the_middle(root, monkeypatch, error, overwrite):
    name = ID if overwrite else "mpe/spread/mpe2/medium-v0"
    monkeypatch.setenv("MINARI_DATASETS_PATH", "/somewhere")
    before = files_below(root)
    buffers = storage._buffers

    def failing(*arguments):
        for episode, buffer in enumerate(buffers(*arguments)):
            if episode == 2:
                raise error
            yield buffer

    monkeypatch.setattr(storage, "_buffers", failing)
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        write_dataset(name, team(1), PROVENANCE, root, overwrite=overwrite)
    assert files_below(root) == before
    assert not list(root.glob(".*"))
    assert list_datasets(root) == [ID]
    assert os.environ["MINARI_DATASETS_PATH"] == "/somewhere"


def test_the_old_dataset_survives_a_failure_at_the_very_end(root, monkeypatch):
    before = files_below(root)
    replace_path, failures = storage.Path.replace, []

    def failing(path, target):
        if target == root / ID and not failures:
            failures.append(target)
            raise OSError(5, "Input/output error")
        return replace_path(path, target)

    monkeypatch.setattr(storage.Path, "replace", failing)
    with pytest.raises(UserError, match="Input/output error"):
        write_dataset(ID, team(1), PROVENANCE, root, overwrite=True)
    assert failures
    assert files_below(root) == before


@pytest.mark.parametrize("value", [None, "/somewhere"])
def test_the_environment_is_restored(tmp_path, monkeypatch, value):
    if value is None:
        monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    else:
        monkeypatch.setenv("MINARI_DATASETS_PATH", value)
    write_dataset(ID, team(), PROVENANCE, tmp_path)
    read_dataset(ID, tmp_path)
    assert os.environ.get("MINARI_DATASETS_PATH") == value


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*choose another folder"):
        write_dataset(ID, team(), PROVENANCE, tmp_path / "file")
    with pytest.raises(UserError, match="no dataset"):
        read_dataset(ID, tmp_path / "file")
    assert list_datasets(tmp_path / "file") == []


def test_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(ID, team(), PROVENANCE, storage.Path("datasets"))
    assert_same(read_dataset(ID, storage.Path("datasets")).trajectories, team())

"""Files are built here from known episodes, in the exact shapes of the formats, and every number must come back."""

import os
from dataclasses import dataclass, replace

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer

from core.data import Provenance, list_datasets, read_dataset, write_dataset
from core.data.importers import (
    FORMATS,
    ImportOptions,
    download_minari,
    guess_format,
    import_hdf5,
    import_omar,
    import_vault,
    read_foreign,
)
from core.errors import UserError

KINDS = ("obs", "acs", "rews", "next_obs", "dones")


@dataclass
class Episode:
    """T steps: observations [T + 1, A, O], the others [T, A, ...]; legal [T, A, U]."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    costs: np.ndarray
    terminated: bool
    legal: np.ndarray | None = None


def episodes(lengths, agents=2, seed=0, choices=0):
    """Random episodes, every other one terminated."""
    draw = np.random.default_rng(seed)
    made = []
    for index, steps in enumerate(lengths):
        actions, legal = draw.uniform(-1, 1, (steps, agents, 2)).astype(np.float32), None
        if choices:
            legal = draw.random((steps, agents, choices)) < 0.5
            actions = draw.integers(choices, size=(steps, agents))
            np.put_along_axis(legal, actions[..., None], True, axis=2)
        made.append(
            Episode(
                draw.normal(size=(steps + 1, agents, 3)).astype(np.float32),
                actions,
                draw.normal(size=(steps, agents)).astype(np.float32),
                draw.random((steps, agents)).astype(np.float32),
                index % 2 == 0,
                legal,
            )
        )
    return made


def rows(values):
    """A quantity [T, ...] of an episode's steps as rows, the last one zeros."""
    return np.concatenate([values, np.zeros_like(values[:1])])


def assert_same(data, expected, *, terminated=None, costs=True):
    """The trajectories hold the episodes, number by number."""
    assert data.offsets.tolist() == np.cumsum([0, *(len(e.observations) for e in expected)]).tolist()
    assert data.offsets.dtype == torch.int64
    assert data.terminated.tolist() == (terminated or [e.terminated for e in expected])
    for name in ("observations", "actions", "rewards", "costs"):
        wanted = [getattr(e, name) if name == "observations" else rows(getattr(e, name)) for e in expected]
        wanted = np.concatenate(wanted) if name != "costs" or costs else np.zeros(data.costs.shape, np.float32)
        assert getattr(data, name).dtype == torch.float32
        assert np.array_equal(getattr(data, name), wanted), name


def joined(made, name):
    """A quantity of all steps, one after another; "next" are the observations that followed."""
    slices = {"observations": slice(0, -1), "next": slice(1, None)}
    of = "observations" if name == "next" else name
    return np.concatenate([getattr(e, of)[slices.get(name, slice(None))] for e in made])


def ends(made, *, terminated=None):
    """Last steps of the episodes [N], of those that terminated or not, if asked."""
    flags = [np.arange(len(e.rewards)) == len(e.rewards) - 1 for e in made]
    return np.concatenate([f & (terminated in (None, e.terminated)) for f, e in zip(flags, made, strict=True)])


def write_omar(folder, made, *, dones=True, column=False, dtype=np.float32, sizes=()):
    """OMAR's files; with `column`, rewards and dones are [N, 1]; `sizes` cut the agents' observations."""
    folder.mkdir(parents=True, exist_ok=True)
    agents = made[0].rewards.shape[1]
    for agent in range(agents):
        size = sizes[agent] if sizes else None
        done = ends(made) if dones else np.zeros(len(ends(made)), bool)
        values = {
            "obs": joined(made, "observations")[:, agent, :size],
            "acs": joined(made, "actions")[:, agent],
            "rews": joined(made, "rewards")[:, agent],
            "next_obs": joined(made, "next")[:, agent, :size],
            "dones": done,
        }
        for name, array in values.items():
            array = array[:, None] if column and array.ndim == 1 else array
            np.save(folder / f"{name}_{agent}.npy", array.astype(dtype) if array.dtype.kind != "i" else array)
    return folder


def write_hdf5(path, made, *, without=(), **extra):
    """D4RL's and DSRL's datasets, of one agent, with what else their files hold."""
    arrays = {
        "observations": joined(made, "observations")[:, 0],
        "actions": joined(made, "actions")[:, 0],
        "rewards": joined(made, "rewards")[:, 0],
        "costs": joined(made, "costs")[:, 0],
        "terminals": ends(made, terminated=True),
        "timeouts": ends(made, terminated=False),
        "next_observations": joined(made, "next")[:, 0],
        "infos/qpos": np.zeros((3, 2)),
        "metadata/algorithm": "SAC",
    }
    with h5py.File(path, "w") as file:
        for name, values in (arrays | extra).items():
            if name not in without:
                file[name] = values
    return path


def write_vault(path, made, *, leading=False, dot=False, without=(), **extra):
    """A vault's arrays, with the leading axis that vaults have if asked."""
    agents = made[0].rewards.shape[1]
    arrays = {
        "observations": joined(made, "observations"),
        "actions": joined(made, "actions"),
        "rewards": joined(made, "rewards"),
        "terminals": np.repeat(ends(made, terminated=True)[:, None], agents, axis=1),
        "truncations": np.repeat(ends(made, terminated=False)[:, None], agents, axis=1),
        "infos/state": np.zeros((len(ends(made)), 7)),
    }
    if made[0].legal is not None:
        arrays["infos/legals"] = joined(made, "legal").astype(np.float32)
    arrays = {name: values for name, values in (arrays | extra).items() if name not in without}
    arrays = {name.replace("/", ".") if dot else name: v[None] if leading else v for name, v in arrays.items()}
    np.savez(path, **arrays)
    return path


def shortened(made, keep):
    """What is left where files do not say what followed: the last step dropped, or its observation repeated."""
    left = []
    for episode in made:
        if keep(episode):
            observations = np.concatenate([episode.observations[:-1], episode.observations[-2:-1]])
            left.append(replace(episode, observations=observations))
        elif len(episode.rewards) > 1:
            cut = {name: getattr(episode, name)[:-1] for name in ("observations", "actions", "rewards", "costs")}
            left.append(replace(episode, **cut, terminated=False))
    return left


# OMAR


@pytest.mark.parametrize("dones", [True, False])
@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.dtype(">f8")])
def test_omar(tmp_path, dones, column, dtype):
    """Where dones never say so, an episode ends where another observation follows."""
    made = episodes([4, 1, 25, 2])
    imported = import_omar(write_omar(tmp_path, made, dones=dones, column=column, dtype=dtype))
    assert_same(imported.trajectories, made, terminated=[False] * 4, costs=False)
    assert imported.trajectories.tags.tolist() == [-1] * 4
    assert (imported.behaviours, imported.layout, imported.notes) == ((), {}, ())


def test_omar_terminations_are_asked_for(tmp_path):
    made = episodes([4, 3])
    write_omar(tmp_path, made)
    assert read_foreign("omar", tmp_path, terminal=True).terminated.tolist() == [True, True]
    write_omar(tmp_path, made, dones=False)
    assert read_foreign("omar", tmp_path, terminal=True).terminated.tolist() == [False, False]


def test_omar_one_agents_done_is_no_end(tmp_path):
    made = episodes([6])
    write_omar(tmp_path, made)
    np.save(tmp_path / "dones_1.npy", np.arange(6) >= 2)
    assert_same(import_omar(tmp_path).trajectories, made, terminated=[False], costs=False)


def test_omar_agents_of_different_sizes_are_padded(tmp_path):
    made = episodes([4, 5], agents=3)
    imported = import_omar(write_omar(tmp_path, made, sizes=(3, 2, 1)))
    for episode in made:
        episode.observations[:, 1, 2:] = 0
        episode.observations[:, 2, 1:] = 0
    assert_same(imported.trajectories, made, terminated=[False] * 2, costs=False)
    assert imported.layout == {"sizes": [3, 2, 1]}
    first = import_omar(tmp_path, ImportOptions(agents=2))
    for episode in made:
        for name in ("observations", "actions", "rewards"):
            setattr(episode, name, getattr(episode, name)[:, :2])
    assert_same(first.trajectories, made, terminated=[False] * 2, costs=False)


def test_omar_seeds(tmp_path):
    lengths = {0: [3, 2], 2: [4], 10: [1, 5, 2]}
    made = {seed: episodes(steps, seed=seed) for seed, steps in lengths.items()}
    for seed, of_seed in made.items():
        write_omar(tmp_path / f"seed_{seed}_data", of_seed)
    write_omar(tmp_path / "seed_0_data_old", episodes([9]))
    imported = import_omar(tmp_path)
    assert_same(imported.trajectories, made[0] + made[2] + made[10], terminated=[False] * 6, costs=False)
    assert imported.behaviours == ("seed_0_data", "seed_2_data", "seed_10_data")
    assert imported.trajectories.tags.tolist() == [0, 0, 1, 2, 2, 2]
    assert_same(import_omar(tmp_path / "seed_2_data").trajectories, made[2], terminated=[False], costs=False)


def split_by_hand(done, length):
    """Lengths of episodes, step by step."""
    found, steps = [], 0
    for ended in done:
        steps += 1
        if ended or steps == length:
            found.append(steps)
            steps = 0
    return [*found, steps] if steps else found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length", [0, 1, 3, 7, 25])
def test_length_splits_where_nothing_else_does(tmp_path, seed, length):
    """A task whose observation never changes: only dones and the length tell episodes apart."""
    done = np.random.default_rng(seed).random(60) < 0.1
    for name, values in (("obs", np.ones((60, 2))), ("acs", np.zeros((60, 1))), ("rews", np.arange(60.0))):
        np.save(tmp_path / f"{name}_0.npy", values)
    np.save(tmp_path / "next_obs_0.npy", np.ones((60, 2)))
    np.save(tmp_path / "dones_0.npy", done)
    data = read_foreign("omar", tmp_path, length=length)
    assert (data.offsets.diff() - 1).tolist() == split_by_hand(done, length)
    assert data.rewards[data.decisions, 0].tolist() == list(range(60))


@pytest.mark.parametrize("block", [1, 3, 4, 1000])
def test_ends_are_found_wherever_they_are(tmp_path, monkeypatch, block):
    """Without any done, in a file read block by block, one step before its end, and in pieces of the given length."""
    monkeypatch.setattr("core.data.importers.steps._BLOCK", block)
    made = episodes([4, 7, 3, 1])
    write_omar(tmp_path, made, dones=False)
    assert_same(import_omar(tmp_path).trajectories, made, terminated=[False] * 4, costs=False)
    lengths = read_foreign("omar", tmp_path, length=3).offsets.diff() - 1
    assert lengths.tolist() == [3, 1, 3, 3, 1, 3, 1]


def test_omar_discrete_actions(tmp_path):
    made = episodes([4, 5], choices=5)
    imported = import_omar(write_omar(tmp_path, made, column=True))
    chosen = np.concatenate([rows(np.eye(5, dtype=np.float32)[e.actions]) for e in made])
    assert np.array_equal(imported.trajectories.actions, chosen[..., : joined(made, "actions").max() + 1])
    assert imported.layout == {"discrete": True}
    assert np.array_equal(read_foreign("omar", tmp_path, choices=7).actions[..., :5], chosen)


def test_shuffled_steps_are_refused(tmp_path):
    write_omar(tmp_path, episodes([25, 25]), dones=False)
    order = np.random.default_rng(0).permutation(50)
    for path in tmp_path.iterdir():
        np.save(path, np.load(path)[order])
    with pytest.raises(UserError, match=r"says of \d+ of its 50 steps .*not shuffled"):
        import_omar(tmp_path)
    made = episodes([1] * 9)  # a bandit's are no steps out of order
    assert_same(import_omar(write_omar(tmp_path, made)).trajectories, made, terminated=[False] * 9, costs=False)


def test_a_recording_that_ends_within_an_episode(tmp_path):
    made = episodes([4, 3])
    write_omar(tmp_path, made)
    for agent in range(2):
        np.save(tmp_path / f"dones_{agent}.npy", ends(made) & (np.arange(7) < 4))
    imported = import_omar(tmp_path, ImportOptions(terminal=True))
    assert_same(imported.trajectories, made, terminated=[True, False], costs=False)
    assert imported.notes == (f"{tmp_path} ends within an episode: its last 3 steps are one that was cut off",)


def test_a_recording_without_ends(tmp_path):
    made = episodes([6])
    imported = import_omar(write_omar(tmp_path, made, dones=False))
    assert_same(imported.trajectories, made, terminated=[False], costs=False)
    assert imported.notes == (
        f"{tmp_path} marks no end of an episode: its 6 steps are one; length=25 splits every 25 steps",
    )


# D4RL and DSRL


@pytest.mark.parametrize("wide", [True, False])
def test_hdf5(tmp_path, wide):
    made = episodes([4, 1, 9, 2], agents=1)
    extra = {"observations": joined(made, "observations")[:, 0].astype(np.float64)} if wide else {}
    imported = import_hdf5(write_hdf5(tmp_path / "data.hdf5", made, **extra))
    assert_same(imported.trajectories, made)
    assert imported.notes == ()
    assert_same(
        import_hdf5(tmp_path / "data.hdf5", ImportOptions(terminal=False)).trajectories, made, terminated=[False] * 4
    )


def test_hdf5_without_costs_and_with_columns(tmp_path):
    made = episodes([4, 3], agents=1)
    columns = {
        name: (ends(made, terminated=terminated)[:, None]).astype(np.int8)
        for name, terminated in (("terminals", True), ("timeouts", False))
    }
    path = write_hdf5(
        tmp_path / "data.hdf5", made, without=["costs"], rewards=joined(made, "rewards").astype(np.float64), **columns
    )
    assert_same(import_hdf5(path).trajectories, made, costs=False)


@pytest.mark.parametrize(
    ("final", "keep"),
    [("auto", lambda e: e.terminated), ("drop", lambda e: False), ("repeat", lambda e: True)],
)
def test_hdf5_that_does_not_say_how_episodes_end(tmp_path, final, keep):
    made = episodes([4, 5, 1, 1, 3], agents=1)
    path = write_hdf5(tmp_path / "data.hdf5", made, without=["next_observations"])
    imported = import_hdf5(path, ImportOptions(final=final))
    expected = shortened(made, keep)
    assert len(expected) == {"auto": 4, "drop": 3, "repeat": 5}[final]
    assert_same(imported.trajectories, expected)
    counts = {"auto": ("in 3 episodes", "dropped in 2 episodes, which leaves nothing of 1")}
    counts |= {"drop": ("dropped in 5 episodes, which leaves nothing of 2",), "repeat": ("in 5 episodes",)}
    assert len(imported.notes) == len(counts[final])
    assert all(count in note for count, note in zip(counts[final], imported.notes, strict=True))


def test_hdf5_that_ends_within_an_episode(tmp_path):
    made = episodes([4, 3], agents=1)
    none = np.zeros(7, bool)
    path = write_hdf5(tmp_path / "data.hdf5", made, timeouts=none)
    assert_same(import_hdf5(path).trajectories, made)
    path = write_hdf5(tmp_path / "data.hdf5", made, timeouts=none, without=["next_observations"])
    imported = import_hdf5(path)
    assert_same(imported.trajectories, shortened(made, lambda e: e.terminated))
    assert "its last 3 steps are one that was cut off" in imported.notes[0]


def test_old_hdf5_without_timeouts(tmp_path):
    made = episodes([5, 5, 2], agents=1)
    made[1].terminated, made[2].terminated = False, True
    path = write_hdf5(tmp_path / "data.hdf5", made, without=["timeouts", "next_observations"])
    with pytest.raises(UserError, match=r"data.hdf5 has no timeouts: say with length="):
        import_hdf5(path)
    imported = import_hdf5(path, ImportOptions(length=5))
    assert_same(imported.trajectories, shortened(made, lambda e: e.terminated))


def test_hdf5_pieces_that_were_joined_are_told_apart(tmp_path):
    """Two recordings in a row, the first without its end: no flag says so, what followed does."""
    made = episodes([4, 3], agents=1)
    path = write_hdf5(tmp_path / "data.hdf5", made, terminals=np.zeros(7), timeouts=np.arange(7) == 6)
    assert_same(import_hdf5(path).trajectories, made, terminated=[False, False])


def test_hdf5_discrete_actions(tmp_path):
    made = episodes([4, 3], agents=1, choices=4)
    imported = import_hdf5(write_hdf5(tmp_path / "data.hdf5", made), ImportOptions(choices=4))
    expected = [replace(e, actions=np.eye(4, dtype=np.float32)[e.actions]) for e in made]
    assert_same(imported.trajectories, expected)
    assert imported.layout == {"discrete": True}


# Vaults


@pytest.mark.parametrize("leading", [True, False])
@pytest.mark.parametrize("dot", [True, False])
def test_vault_of_choices(tmp_path, leading, dot):
    made = episodes([4, 5, 3], choices=6)
    imported = import_vault(write_vault(tmp_path / "vault.npz", made, leading=leading, dot=dot))
    expected = [replace(e, actions=np.eye(6, dtype=np.float32)[e.actions]) for e in made]
    assert_same(imported.trajectories, shortened(expected, lambda e: e.terminated), costs=False)
    # A row's mask is that of its observation: the repeated one has the mask of its first.
    legal = [np.concatenate([e.legal, e.legal[-1:]]) if e.terminated else e.legal for e in made]
    assert np.array_equal(imported.trajectories.legal, np.concatenate(legal))
    assert imported.layout == {"discrete": True}
    assert len(imported.notes) == 2


def test_vault_of_continuous_actions(tmp_path):
    made = episodes([4, 5], agents=3)
    imported = import_vault(write_vault(tmp_path / "vault.npz", made), ImportOptions(final="repeat"))
    assert_same(imported.trajectories, shortened(made, lambda e: True), costs=False)
    assert imported.trajectories.legal is None
    few = read_foreign("vault", tmp_path / "vault.npz", final="repeat", agents=2)
    assert torch.equal(few.observations, imported.trajectories.observations[:, :2])
    assert torch.equal(few.rewards, imported.trajectories.rewards[:, :2])


def test_vault_ends_where_every_agent_does(tmp_path):
    """One agent dies early and stays dead; the episode terminates with the other, or its time runs out."""
    made = episodes([6, 6])
    terminals = np.array([[step >= 2, step == 5] for step in range(6)] + [[step >= 2, False] for step in range(6)])
    truncations = np.array([[False, step == 11] for step in range(12)])
    path = write_vault(tmp_path / "vault.npz", made, terminals=terminals, truncations=truncations)
    data = read_foreign("vault", path, final="repeat")
    assert data.offsets.tolist() == [0, 7, 14]
    assert data.terminated.tolist() == [True, False]


def test_vault_without_truncations_or_masks(tmp_path):
    made = episodes([4, 5], choices=4)
    for episode in made:
        episode.terminated = True
    path = write_vault(tmp_path / "vault.npz", made, without=["truncations", "infos/legals"])
    data = read_foreign("vault", path, choices=4)
    assert data.legal is None
    assert data.terminated.tolist() == [True, True]
    assert data.actions[data.decisions].argmax(dim=-1).tolist() == joined(made, "actions").tolist()


def test_actions_that_a_vault_calls_illegal_are_counted(tmp_path):
    made = episodes([4, 4], choices=4)
    masks = joined(made, "legal").copy()
    np.put_along_axis(masks[:2], joined(made, "actions")[:2, :, None], False, axis=2)
    imported = import_vault(write_vault(tmp_path / "vault.npz", made, **{"infos/legals": masks}))
    assert any(note.startswith("25.0% of the actions") for note in imported.notes)


# Scales of actions


def test_actions_outside_their_range(tmp_path):
    made = episodes([4, 3])
    made[1].actions[1, 1, 0] = -2.5
    write_omar(tmp_path, made)
    with pytest.raises(UserError, match=r"acs_1.npy holds an action of -2.5, outside \[-1, 1\]: action_scale=2.5"):
        import_omar(tmp_path)
    with pytest.raises(UserError, match=r"holds an action of -2.5, outside \[-2, 2\]"):
        read_foreign("omar", tmp_path, action_scale=2)
    for scale, expected in ((0, 2.5), (4, 4.0)):
        imported = import_omar(tmp_path, ImportOptions(action_scale=scale))
        assert imported.action_scale == expected
        assert torch.allclose(
            imported.trajectories.actions[imported.trajectories.decisions],
            torch.from_numpy(joined(made, "actions")) / expected,
        )


def test_rounding_is_cut_off(tmp_path):
    made = episodes([4, 3])
    made[0].actions[2] = 1.000001
    data = read_foreign("omar", write_omar(tmp_path, made))
    assert data.actions.max() == 1
    with pytest.raises(UserError, match="outside"):
        made[0].actions[2] = 1.001
        import_omar(write_omar(tmp_path, made))


def test_a_scale_of_choices_is_refused(tmp_path):
    path = write_vault(tmp_path / "vault.npz", episodes([4], choices=3))
    with pytest.raises(UserError, match="action_scale is for continuous actions"):
        read_foreign("vault", path, action_scale=2)


# Malformed data


def spoil(folder, name, change):
    np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))


def with_nan(values):
    values = values.astype(np.float64)
    values.flat[len(values.flat) // 2] = np.nan
    return values


BAD_ARRAYS = {
    "shape .*is expected": lambda values: values[..., None, None],
    "shape": lambda values: values.reshape(-1)[0],
    "empty": lambda values: values[:0],
    "entries along": lambda values: values[:-1],
    "holds nan": with_nan,
    "holds inf": lambda values: np.full(values.shape, np.inf),
    "holds 1e\\+300": lambda values: np.full(values.shape, 1e300),
    "holds -1e\\+300": lambda values: -1e300 * (np.arange(values.size) == 1).reshape(values.shape),
    "holds <U|holds object|holds \\|S": lambda values: np.full(values.shape, b"a"),
    "holds complex": lambda values: values.astype(complex),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("problem", BAD_ARRAYS)
def test_malformed_omar_arrays(tmp_path, name, problem):
    write_omar(tmp_path, episodes([4, 3]))
    spoil(tmp_path, f"{name}_1", BAD_ARRAYS[problem])
    with pytest.raises(UserError, match=rf"{name}_1.npy .*({problem})") as caught:
        import_omar(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminals", "timeouts", "next_observations"])
@pytest.mark.parametrize("problem", [*BAD_ARRAYS, "missing"])
def test_malformed_hdf5_arrays(tmp_path, name, problem):
    made = episodes([4, 3], agents=1)
    path = write_hdf5(tmp_path / "data.hdf5", made)
    with h5py.File(path, "a") as file:
        values = file.pop(name)[()] if problem == "missing" else BAD_ARRAYS[problem](file.pop(name)[()])
        if problem != "missing":
            file[name] = values
    if problem == "missing":
        if name == "next_observations":
            return
        message = f"data.hdf5 has no {name}"
    else:
        # HDF5 brings what float32 cannot hold as an infinity.
        message = rf"data.hdf5, {name} .*({problem.replace('1e', '(inf|1e') + ')' * ('1e' in problem)})"
        if (name, problem) == ("observations", "entries along"):  # the first array is what others are held against
            message = "data.hdf5, actions has 7 entries along N, but .*data.hdf5, observations has 6"
    with pytest.raises(UserError, match=message) as caught:
        import_hdf5(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminals", "truncations", "infos/legals"])
@pytest.mark.parametrize("problem", [*BAD_ARRAYS, "missing"])
def test_malformed_vault_arrays(tmp_path, name, problem):
    path = write_vault(tmp_path / "vault.npz", episodes([4, 3], choices=4))
    with np.load(path) as archive:
        arrays = dict(archive)
    values = arrays.pop(name)
    if problem == "missing":
        if name in ("truncations", "infos/legals"):
            return
        message = f"vault.npz has no {name}"
    else:
        arrays[name] = BAD_ARRAYS[problem](values)
        message = rf"vault.npz, {name} .*({problem})"
        if (name, problem) == ("observations", "entries along"):
            message = "vault.npz, actions has 7 entries along T, but .*vault.npz, observations has 6"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=message) as caught:
        import_vault(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_a_missing_omar_file_is_named(tmp_path, name):
    write_omar(tmp_path, episodes([4, 3]))
    (tmp_path / f"{name}_0.npy").unlink()
    with pytest.raises(UserError, match=f"{name}_0.npy is missing"):
        import_omar(tmp_path)


def test_seeds_that_disagree(tmp_path):
    write_omar(tmp_path / "seed_0_data", episodes([4]))
    for other, message in (
        ({"made": episodes([4], agents=3)}, r"seed_1_data has 3 entries along agents, but .*seed_0_data has 2"),
        ({"made": episodes([4]), "sizes": (3, 2)}, r"seed_1_data/obs_1.npy has 2 entries along O, but .*obs_1.npy has"),
        ({"made": episodes([4], choices=3)}, r"either .*seed_1_data or .*seed_0_data holds choices"),
    ):
        for path in (tmp_path / "seed_1_data").glob("*"):
            path.unlink()
        write_omar(tmp_path / "seed_1_data", **other)
        with pytest.raises(UserError, match=message):
            import_omar(tmp_path)


def test_python_objects_are_not_unpickled(tmp_path):
    write_omar(tmp_path / "omar", episodes([4]))
    objects = np.array([{}, 1], dtype=object)
    np.save(tmp_path / "omar" / "acs_0.npy", objects, allow_pickle=True)
    with pytest.raises(UserError, match=r"acs_0.npy cannot be read as .npy: .*objects"):
        import_omar(tmp_path / "omar")
    path = write_vault(tmp_path / "vault.npz", episodes([4]), rewards=objects)
    with pytest.raises(UserError, match=r"vault.npz, rewards cannot be read: Object arrays"):
        import_vault(path)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("name", ["omar/obs_0.npy", "data.hdf5", "vault.npz"])
def test_truncated_files(tmp_path, name, share):
    write_omar(tmp_path / "omar", episodes([40, 30]))
    write_hdf5(tmp_path / "data.hdf5", episodes([40, 30], agents=1))
    write_vault(tmp_path / "vault.npz", episodes([40, 30]))
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=f"{name} ") as caught:
        read_foreign("auto", (tmp_path / name).parent if name.startswith("omar") else tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["data.hdf5", "vault.npz"])
def test_damaged_files_raise_nothing_else(tmp_path, name):
    path = tmp_path / name
    if name == "vault.npz":
        write_vault(path, episodes([6, 5]))
    else:
        write_hdf5(path, episodes([6, 5], agents=1))
    content, refused = path.read_bytes(), 0
    for place in range(0, len(content), 211):
        path.write_bytes(content[:place] + b"\xff" * 16 + content[place + 16 :])
        try:
            read_foreign("auto", path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 3


# The front


def test_the_format_is_guessed(tmp_path):
    made = episodes([4, 3], agents=1)
    write_omar(tmp_path / "omar" / "seed_0_data", made)
    write_hdf5(tmp_path / "data.hdf5", made)
    write_hdf5(tmp_path / "unnamed", made)
    write_vault(tmp_path / "vault.npz", made)
    found = {"omar": "omar", "omar/seed_0_data": "omar", "data.hdf5": "hdf5", "unnamed": "hdf5", "vault.npz": "vault"}
    for name, kind in found.items():
        assert guess_format(tmp_path / name) == kind
        assert read_foreign("auto", tmp_path / name).fingerprint() == read_foreign(kind, tmp_path / name).fingerprint()
    assert set(found.values()) == set(FORMATS)
    assert_same(read_foreign("auto", str(tmp_path / "data.hdf5")), made)


def test_what_is_of_no_known_format(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "empty").mkdir()
    write_dataset(
        "foreign/b-v0", read_foreign("omar", write_omar(tmp_path / "o", episodes([3]))), Provenance(), tmp_path
    )
    for name, message in (
        ("notes.txt", "notes.txt is of no known format: omar, a folder"),
        ("empty", "empty is of no known format: .*exported as .npz first"),
        ("nowhere", "there is no .*nowhere"),
        ("foreign/b-v0", "is a Minari dataset"),
    ):
        with pytest.raises(UserError, match=message):
            read_foreign("auto", tmp_path / name)
    with pytest.raises(UserError, match=r"notes.txt cannot be read as HDF5: .*file signature not found"):
        read_foreign("hdf5", tmp_path / "notes.txt")
    with pytest.raises(UserError, match=r"notes.txt is no .npz file"):
        read_foreign("vault", tmp_path / "notes.txt")
    for name in ("notes.txt", "empty", "foreign"):
        with pytest.raises(UserError, match=rf"{name} is no OMAR data \((no folder|empty|b-v0, .*)\): name a folder"):
            read_foreign("omar", tmp_path / name)
    with pytest.raises(UserError, match="there is no"):
        read_foreign("omar", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"unknown format 'omra': did you mean 'omar'\?"):
        read_foreign("omra", tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("core.data.importers.omar.Path.iterdir", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied; check its permissions"):
        read_foreign("omar", tmp_path)


def test_options(tmp_path):
    write_omar(tmp_path / "omar", episodes([3]))
    path = write_hdf5(tmp_path / "data.hdf5", episodes([3], agents=1))
    for options, message in (
        ({"length": -1}, "length must be at least 0, got -1"),
        ({"final": "keep"}, "unknown final 'keep'"),
        ({"action_scale": float("nan")}, "action_scale must be finite"),
        ({"action_scale": -1}, "action_scale must be finite"),
        ({"agents": 2}, "agents= means nothing for format hdf5"),
    ):
        with pytest.raises(UserError, match=message):
            read_foreign("hdf5", path, **options)
    with pytest.raises(UserError, match="final= means nothing for format omar"):
        read_foreign("omar", tmp_path / "omar", final="drop")
    with pytest.raises(UserError, match=r"agents=3, but .* has files of 2"):
        read_foreign("omar", tmp_path / "omar", agents=3)
    vault = write_vault(tmp_path / "vault.npz", episodes([3], choices=4))
    for options, message in (
        ({"agents": 3}, r"agents=3, but .* has 2"),
        ({"choices": 3}, r"choices=3, but the legal actions of .* are masks of 4"),
    ):
        with pytest.raises(UserError, match=message):
            read_foreign("vault", vault, **options)
    few = write_vault(tmp_path / "few.npz", episodes([9], choices=4), without=["infos/legals"])
    with pytest.raises(UserError, match=r"few.npz, actions holds the choice 3, but there are 3, counted from 0"):
        read_foreign("vault", few, choices=3)
    negative = write_vault(tmp_path / "negative.npz", episodes([3]), actions=np.full((3, 2), -1))
    with pytest.raises(UserError, match=r"negative.npz, actions has shape \[3, 2\], .*holds -1"):
        read_foreign("vault", negative)
    floats = write_vault(tmp_path / "floats.npz", episodes([3]), actions=np.zeros((3, 2), np.float32))
    with pytest.raises(UserError, match=r"floats.npz, actions has shape \[3, 2\], .*holds float32"):
        read_foreign("vault", floats)
    with pytest.raises(UserError, match="no episode of two steps or more: final=repeat"):
        read_foreign("vault", write_vault(tmp_path / "one.npz", episodes([1])), final="drop")
    with pytest.raises(UserError, match=r"long.npz, actions has shape \[3, 2, 2\]: all arrays of a vault begin"):
        long = {"observations": np.zeros((1, 3, 2, 3))}
        read_foreign("vault", write_vault(tmp_path / "long.npz", episodes([3]), without=["infos/state"], **long))


@pytest.mark.parametrize("kind", ["omar", "hdf5", "vault"])
def test_round_trip_through_minari(tmp_path, kind):
    made = episodes([4, 1, 9], agents=1 if kind == "hdf5" else 2, choices=4 if kind == "vault" else 0)
    write = {"omar": write_omar, "hdf5": write_hdf5, "vault": write_vault}[kind]
    path = write(tmp_path / {"omar": "omar", "hdf5": "data.hdf5", "vault": "vault.npz"}[kind], made)
    imported = FORMATS[kind].read(path, ImportOptions())
    data = imported.trajectories
    provenance = Provenance(agents=[f"agent_{i}" for i in range(data.agents)], layout=imported.layout)
    write_dataset("foreign/data-v0", data, provenance, tmp_path)
    again = read_dataset("foreign/data-v0", tmp_path)
    assert again.trajectories.fingerprint() == data.fingerprint()
    assert (again.trajectories.legal is not None) == (kind == "vault")
    assert again.spec.discrete == (kind == "vault")


# Minari's servers


def serve(monkeypatch, make):
    """Let `make` stand for Minari's download, which works in the folder that the environment names."""
    monkeypatch.setattr(minari, "download_dataset", make)


def point(name, space=None, parts=()):
    """A single agent's dataset, as Minari's own are."""
    observation = gymnasium.spaces.Box(-9, 9, (3,))
    buffer = EpisodeBuffer(
        observations=[np.full(3, i, np.float32) for i in range(4)],
        actions=[np.zeros(2, np.float32)] * 3,
        rewards=[1.0, 2.0, 3.0],
        terminations=[False] * 3,
        truncations=[False, False, True],
    )
    if isinstance(space, gymnasium.spaces.Dict):
        buffer = replace(buffer, observations={"position": buffer.observations})
    minari.create_dataset_from_buffers(
        name,
        [buffer],
        observation_space=space or observation,
        action_space=gymnasium.spaces.Box(-1, 1, (2,)),
        data_format="hdf5",
    )
    print("Downloading from Farama servers...")


def test_a_download(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "/somewhere")
    asked = []
    serve(monkeypatch, lambda name: (asked.append(name), point("D4RL/point/human-v2")))
    dataset, notes = download_minari("D4RL/point/human-v2", tmp_path)
    assert dataset.id == "D4RL/point/human-v2"
    assert dataset.trajectories.rewards[:3, 0].tolist() == [1, 2, 3]
    assert dataset.trajectories.observations[:, 0, 0].tolist() == [0, 1, 2, 3]
    again = read_dataset("D4RL/point/human-v2", tmp_path)
    assert again.trajectories.fingerprint() == dataset.trajectories.fingerprint()
    assert list_datasets(tmp_path) == ["D4RL/point/human-v2"]
    assert (tmp_path / "D4RL" / "point" / "namespace_metadata.json").exists()
    assert not list(tmp_path.glob(".*"))
    assert os.environ["MINARI_DATASETS_PATH"] == "/somewhere"
    assert capsys.readouterr().out == ""
    assert not any("Downloading" in note for note in notes)
    with pytest.raises(UserError, match=r"D4RL/point/human-v2 already exists in .*overwrite=true"):
        download_minari("D4RL/point/human-v2", tmp_path)
    download_minari("hf://farama-minari/D4RL/point/human-v2", tmp_path, overwrite=True)
    assert asked == ["D4RL/point/human-v2", "hf://farama-minari/D4RL/point/human-v2"]


def test_a_combined_download_brings_its_parts(tmp_path, monkeypatch):
    serve(monkeypatch, lambda name: (point("aa/whole-v0"), point("aa/part-v0"), point("bb/part-v0")))
    download_minari("aa/whole-v0", tmp_path)
    before = (tmp_path / "aa" / "part-v0" / "data" / "main_data.hdf5").stat().st_ino
    assert list_datasets(tmp_path) == ["aa/part-v0", "aa/whole-v0", "bb/part-v0"]
    download_minari("aa/whole-v0", tmp_path, overwrite=True)
    assert (tmp_path / "aa" / "part-v0" / "data" / "main_data.hdf5").stat().st_ino == before


class HubError(Exception):
    """Not an OSError, as some of the download libraries' are."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (HubError("Name or service not known\nretry"), "Name or service not known retry; mend the network, or copy"),
        (ConnectionError(111, "Connection refused"), "Connection refused; mend the network"),
        (ImportError('not installed, pip install "minari[hf]".'), r'pip install "minari\[hf\]"$'),
        (ValueError("Couldn't find any version for dataset"), "Couldn't find .*; minari list remote names"),
    ],
)
def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch, error, message):
    def fail(name):
        point("half/done-v0")
        raise error

    serve(monkeypatch, fail)
    with pytest.raises(UserError, match=f"cannot download D4RL/pen/human-v2: .*{message}") as caught:
        download_minari("D4RL/pen/human-v2", tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_download_that_cannot_be_used_leaves_nothing(tmp_path, monkeypatch):
    space = gymnasium.spaces.Dict({"position": gymnasium.spaces.Box(-9, 9, (3,))})
    serve(monkeypatch, lambda name: point(name, space))
    with pytest.raises(UserError, match=r"removed again: dataset maze/dict-v0 cannot be read: .*flatten") as caught:
        download_minari("maze/dict-v0", tmp_path)
    assert ".writing" not in str(caught.value)
    serve(monkeypatch, lambda name: None)
    with pytest.raises(UserError, match="removed again: no dataset 'maze/dict-v0'"):
        download_minari("maze/dict-v0", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../pen-v0", "/pen-v0", "pen", "", "hf://farama", "hf://farama/../pen-v0"])
def test_malformed_remote_ids(tmp_path, monkeypatch, name):
    serve(monkeypatch, lambda name: pytest.fail("asked the server"))
    with pytest.raises(UserError, match="malformed dataset id"):
        download_minari(name, tmp_path)

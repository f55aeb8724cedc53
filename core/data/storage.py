"""Datasets on disk: Minari (HDF5), with a convention for teams.

Minari has none for several agents yet. Ours: observations and actions are stacked as Box(A, O) and Box(A, U); the
scalar reward is the team's mean; each agent's reward and cost are `infos["rewards"]` and `infos["costs"]` [T + 1, A],
where row k + 1 belongs to step k, as Gymnasium returns infos, and row 0 (the reset) is zero. Legal choices and who
takes part, where they vary, are `infos["legal"]` [T + 1, A, U] and `infos["present"]` [T + 1, A], by observation. What
made the episodes stands in the metadata under "convoy": see `Provenance`. A Minari dataset without that entry is a
single agent's, A = 1, whose spaces are taken as environments' are.
"""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor

from core.data.trajectories import MASKS, Trajectories
from core.environments import TeamSpec
from core.errors import UserError, nearest
from core.files import check_writable, reason, scratch_folder, write_text

_ENVIRONMENT_VARIABLE = "MINARI_DATASETS_PATH"


@dataclass(frozen=True)
class Provenance:
    """Where a dataset comes from.

    Attributes:
        task, rules: the environment and its rule set, "" for a foreign dataset.
        quality: short name of the behaviour. behaviour: its parameters. behaviours: name of each episode tag.
        agents: the agents' names, in the order of the agent axis. layout: "discrete", "sizes" and "entities" of
            `core.environments.TeamSpec`, which the shapes do not tell. environment: further settings of the task.
        environment_id: Gymnasium's of a foreign dataset that tells it, "" otherwise.
        seed: of the first episode. episodes: how many.
        references: scores that normalise a return, "random" and "expert", and their "source".
        generator: program and version. licence: of the data. fingerprint: of the contents, checked on reading.
    """

    task: str = ""
    rules: str = ""
    quality: str = ""
    behaviour: dict[str, Any] = field(default_factory=dict)
    behaviours: list[str] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    environment_id: str = ""
    seed: int = 0
    episodes: int = 0
    references: dict[str, Any] = field(default_factory=dict)
    generator: str = ""
    licence: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class Dataset:
    """A dataset in memory, with its Minari id and where it comes from."""

    id: str
    trajectories: Trajectories
    provenance: Provenance
    bytes: int

    @property
    def spec(self) -> TeamSpec:
        """What its team sees and does."""
        data = self.trajectories
        return TeamSpec(data.agents, data.observations.shape[-1], data.actions.shape[-1], **self.provenance.layout)


def default_root() -> Path:
    """Minari's own folder: MINARI_DATASETS_PATH, or ~/.minari/datasets."""
    return Path(os.environ.get(_ENVIRONMENT_VARIABLE, "") or Path.home() / ".minari" / "datasets")


@contextmanager
def _minari_root(root: Path) -> Iterator[None]:
    """Let Minari work in `root`; it reads the folder from the environment only."""
    before = os.environ.get(_ENVIRONMENT_VARIABLE)
    os.environ[_ENVIRONMENT_VARIABLE] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ENVIRONMENT_VARIABLE]
        else:
            os.environ[_ENVIRONMENT_VARIABLE] = before


def list_datasets(root: Path) -> list[str]:
    """Ids of the datasets in `root`, sorted."""
    if not root.is_dir():
        return []
    folders = (path.parent.parent for path in root.rglob("data/main_data.hdf5"))
    ids = (str(folder.relative_to(root)) for folder in folders)
    return sorted(name for name in ids if not name.startswith("."))


def write_dataset(
    dataset_id: str, trajectories: Trajectories, provenance: Provenance, root: Path, *, overwrite: bool = False
) -> Path:
    """Write trajectories as a Minari dataset in the team convention; it appears whole or not at all.

    Raises:
        UserError: the dataset exists and `overwrite` is False, its id is malformed, or the folder cannot be written.
    """
    import minari
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        namespace = parse_dataset_id(dataset_id)[0]
    except (ValueError, TypeError) as error:
        raise UserError(f"malformed dataset id {dataset_id!r}: use the form namespace/name-v0") from error
    root = root.resolve()  # Minari loses its way in a relative one
    target = root / dataset_id
    if target.exists() and not overwrite:
        raise UserError(
            f"dataset {dataset_id} already exists in {root}: pass overwrite=true, or another quality or version"
        )
    check_writable(root)
    shape = trajectories.agents
    observation_space = Box(-np.inf, np.inf, (shape, trajectories.observations.shape[-1]), np.float32)
    action_space = Box(-1.0, 1.0, (shape, trajectories.actions.shape[-1]), np.float32)
    try:
        with scratch_folder(root) as scratch:
            with _minari_root(scratch), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it asks for an author's email and an environment that Gymnasium knows
                dataset = minari.create_dataset_from_buffers(
                    dataset_id,
                    _buffers(trajectories, provenance.seed),
                    algorithm_name=provenance.quality,
                    observation_space=observation_space,
                    action_space=action_space,
                    description=f"{provenance.quality} team of {provenance.task}, rules {provenance.rules}",
                    data_format="hdf5",
                )
                convention = {**asdict(provenance), "fingerprint": trajectories.fingerprint()}
                dataset.storage.update_metadata({"convoy": convention})
                dataset.storage.update_episode_metadata({"behaviour": tag} for tag in trajectories.tags.tolist())
            _swap(scratch / dataset_id, target, scratch / "replaced")
    except (OSError, RuntimeError) as error:  # HDF5 says RuntimeError of a full disk
        raise UserError(f"cannot write dataset {dataset_id} to {root}: {reason(error)}") from error
    if namespace:
        _declare_namespaces(namespace, root)
    return target


def _swap(new: Path, target: Path, aside: Path) -> None:
    """Put a folder in the place of another, which is set aside and comes back should that fail."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.replace(aside)
    try:
        new.replace(target)
    except OSError:
        if aside.exists():
            aside.replace(target)
        raise


def _declare_namespaces(namespace: str, root: Path) -> None:
    """Minari lists a namespace by a metadata file in its folder."""
    from minari.namespace import NAMESPACE_METADATA_FILENAME

    folder = root
    for part in namespace.split("/"):
        folder = folder / part
        declaration = folder / NAMESPACE_METADATA_FILENAME
        if not declaration.exists():
            write_text(declaration, "{}")


def _buffers(trajectories: Trajectories, seed: int) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    offsets = trajectories.offsets.tolist()
    masks = {name: mask for name in MASKS if (mask := getattr(trajectories, name)) is not None}
    for episode, (first, end) in enumerate(pairwise(offsets)):
        steps = end - first - 1

        def shifted(values: Tensor, first: int = first, end: int = end) -> np.ndarray:
            """Rows of steps 0..T-1 as infos rows 1..T, after a zero row for the reset."""
            rows = values[first : end - 1].numpy()
            return np.concatenate([np.zeros_like(rows[:1]), rows])

        terminated = bool(trajectories.terminated[episode])
        ends = np.arange(steps) == steps - 1
        yield EpisodeBuffer(
            id=episode,
            seed=seed + episode,
            observations=list(trajectories.observations[first:end].numpy()),
            actions=list(trajectories.actions[first : end - 1].numpy()),
            rewards=trajectories.rewards[first : end - 1].mean(dim=1).tolist(),
            terminations=(ends & terminated).tolist(),
            truncations=(ends & (not terminated)).tolist(),
            infos={
                "rewards": shifted(trajectories.rewards),
                "costs": shifted(trajectories.costs),
                **{name: mask[first:end].numpy() for name, mask in masks.items()},
            },
        )


def read_provenance(dataset_id: str, root: Path) -> Provenance:
    """The provenance of a dataset, empty for one that follows no convention.

    Raises:
        UserError: no such dataset, or its metadata cannot be read.
    """
    folder = root / dataset_id
    if not (folder / "data").is_dir():
        known = list_datasets(root)
        hint = nearest(dataset_id, known) if known else "collect one first: convoy collect task=... quality=..."
        raise UserError(f"no dataset {dataset_id!r} in {root}: {hint}")
    try:
        metadata = json.loads((folder / "data" / "metadata.json").read_text())
        provenance = Provenance(**metadata.get("convoy", {}))
        made_in = json.loads(metadata.get("env_spec") or "{}").get("id", provenance.environment_id)
        return replace(provenance, environment_id=made_in)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"dataset {dataset_id} in {root} has no readable metadata: {error}; collect it again"
        ) from error


def read_dataset(dataset_id: str, root: Path) -> Dataset:
    """Read a Minari dataset: a team's by our convention, any other as a single agent's, whose observations and actions
    are Box or Discrete. Discrete ones become one-hot, actions of a bounded Box are scaled to [-1, 1].

    Raises:
        UserError: no such dataset, or one whose files or spaces cannot be used.
    """
    from minari.dataset.minari_dataset import MinariDataset

    provenance = read_provenance(dataset_id, root)
    folder = root / dataset_id / "data"
    try:
        dataset = MinariDataset(folder)
        team, seen, acted = bool(provenance.agents), dataset.observation_space, dataset.action_space
        for what, space in (("observations", seen), ("actions", acted)):
            if not isinstance(space, Box if team else Box | Discrete):
                raise ValueError(f"its {what} are a {type(space).__name__}, not a Box or Discrete; flatten them first")
        if isinstance(acted, Discrete):
            provenance = replace(provenance, layout={"discrete": True})
        columns: dict[str, list[np.ndarray]] = {}
        lengths, terminated = [], []
        for episode in dataset.iterate_episodes():
            for name, values in _episode(episode, team, seen, acted).items():
                columns.setdefault(name, []).append(values)
            lengths.append(len(episode.rewards) + 1)
            terminated.append(bool(episode.terminations[-1]))
        metadata = dataset.storage.get_episode_metadata(range(len(lengths)))
        tags = [int(entry.get("behaviour", -1)) for entry in metadata]
        trajectories = Trajectories(
            offsets=torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(torch.tensor(lengths), 0)]),
            terminated=torch.tensor(terminated),
            tags=torch.tensor(tags),
            **{name: torch.from_numpy(np.concatenate(values)) for name, values in columns.items()},
        )
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError) as error:
        raise UserError(f"dataset {dataset_id} in {root} cannot be read: {reason(error)}; collect it again") from error
    if provenance.fingerprint and trajectories.fingerprint() != provenance.fingerprint:
        raise UserError(f"dataset {dataset_id} in {root} is corrupt: it is not what was written; collect it again")
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Dataset(dataset_id, trajectories, provenance, size)


def _rows(values: np.ndarray, space: Space, *, scale: bool = False) -> np.ndarray:
    """What a single agent saw or did, [T, ...], as rows [T, 1, N]: choices one-hot, numbers flattened, and with `scale`
    those of a bounded Box in [-1, 1], as `core.parallel_envs` takes them."""
    if isinstance(space, Discrete):
        values = np.eye(int(space.n), dtype=np.float32)[np.asarray(values) - int(space.start)]
    elif scale and isinstance(space, Box) and space.is_bounded() and ((space.low != -1) | (space.high != 1)).any():
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        values = 2 * (values - low) / np.where(high > low, high - low, 1) - 1
    return values.reshape(len(values), 1, -1)


def _episode(episode: Any, team: bool, seen: Space, acted: Space) -> dict[str, np.ndarray]:
    """Rows of one Minari episode, with the agent axis and the final row."""
    steps = len(episode.rewards)
    masks: dict[str, np.ndarray] = {}
    if team:
        observations, actions = episode.observations, episode.actions
        rewards, costs = (episode.infos[name][1:] for name in ("rewards", "costs"))
        masks = {name: np.asarray(episode.infos[name], bool) for name in MASKS if name in episode.infos}
    else:
        observations, actions = _rows(episode.observations, seen), _rows(episode.actions, acted, scale=True)
        rewards = np.asarray(episode.rewards)[:, None]
        costs = np.asarray((episode.infos or {}).get("cost", np.zeros(steps + 1)))[-steps:, None]

    def padded(values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, dtype=np.float32)
        return np.concatenate([values, np.zeros_like(values[:1])])

    if any(len(rows) != steps + 1 for rows in (observations, *masks.values())) or not (
        len(actions) == len(rewards) == len(costs) == steps
    ):
        raise ValueError(
            f"an episode of {steps} steps needs {steps + 1} observations and {steps} actions, rewards and costs"
        )
    return {
        "observations": np.asarray(observations, dtype=np.float32),
        "actions": padded(actions),
        "rewards": padded(rewards),
        "costs": padded(costs),
        **masks,
    }

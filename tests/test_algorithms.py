"""Every algorithm of the registry and every preset: train, save, load, act."""

from pathlib import Path

import pytest
import torch

import configs
import marl
from core import checkpoints
from core.acting import Acting
from core.algorithm import Algorithm
from core.cli.compose import configure
from core.cli.registry import ALGORITHMS
from core.cli.train import train
from core.data import Provenance, write_dataset
from core.rollout import rollout
from core.samplers import SamplerConfig

PRESETS = sorted(path.stem for path in (Path(configs.__file__).parent / "algo").glob("*.yaml"))
#: Presets that train on a dataset alone, in a moment; distillation is in tests/marl/test_distilled.py.
SMALL = [preset for preset in PRESETS if preset not in ("madiff_published", "madiff_distilled")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Datasets: four episodes of the expert."""
    folder, task = tmp_path_factory.mktemp("data"), marl.TaskConfig()
    data = rollout(marl.scripted_team(task.name, "expert"), task.make(), range(4)).trajectories
    provenance = Provenance(task=task.name, rules=task.rules, quality="expert", agents=list(task.make().agents))
    write_dataset(task.dataset_id("expert"), data, provenance, folder)
    return folder


def test_the_registry():
    assert {configure("train", [f"algo={preset}"]).algo.name for preset in PRESETS} == set(ALGORITHMS)
    for name, algorithm in ALGORITHMS.items():
        assert issubclass(algorithm, Algorithm)
        assert algorithm.config_class().name == name


@pytest.mark.parametrize("preset", SMALL)
def test_train_save_load_act(preset, root, tmp_path):
    arguments = [f"algo={preset}", f"data={root}", "trainer.steps=3", "trainer.batch_size=4", "trainer.device=cpu"]
    run = train(configure("train", arguments), tmp_path / "run")
    loaded = ALGORITHMS[run.config["algo"]["name"]].load(run.folder)
    tensors, metadata = checkpoints.load(run.checkpoint)
    assert metadata["step"] == "3"
    averages = checkpoints.strip(tensors, "ema.")
    assert averages
    assert all(torch.equal(parameter, averages[name]) for name, parameter in loaded.named_parameters())
    policy = loaded.policy(Acting(SamplerConfig(steps=2)))
    data = rollout(policy, marl.TaskConfig(max_cycles=3).make(), range(2)).trajectories
    assert (data.episodes, data.steps, data.agents) == (2, 6, 3)
    assert data.actions.isfinite().all()
    assert data.actions.abs().max() <= 1
    assert data.actions[data.decisions].any()

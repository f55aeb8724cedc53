"""Distilled planners: the run, its independence of the teacher's folder, and what the student starts from."""

import shutil

import pytest
import torch

import core
import marl
from core.acting import Acting
from core.cli.compose import configure
from core.cli.train import train
from core.cli.trainings import build
from core.data import Provenance, write_dataset
from core.errors import UserError
from core.rollout import rollout
from core.samplers import SamplerConfig

TINY = ["trainer.steps=4", "trainer.batch_size=4", "trainer.device=cpu"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset of four episodes, and a teacher trained on it for a moment with a network unlike the default."""
    folder, task = tmp_path_factory.mktemp("distilled"), marl.TaskConfig()
    data = rollout(marl.scripted_team(task.name, "expert"), task.make(), range(4)).trajectories
    provenance = Provenance(task=task.name, rules=task.rules, quality="expert", agents=list(task.make().agents))
    write_dataset(task.dataset_id("expert"), data, provenance, folder)
    options = ["algo.width=16", "algo.horizon=4", "algo.prediction=v", "algo.schedule=cosine"]
    train(configure("train", ["algo=madiff", f"data={folder}", *TINY, *options]), folder / "teacher")
    return folder


def distil(root, folder, *options):
    teacher = [] if any("algo.teacher" in option for option in options) else [f"algo.teacher={root / 'teacher'}"]
    return train(configure("train", ["algo=madiff_distilled", f"data={root}", *TINY, *teacher, *options]), folder)


def test_a_distilled_run_acts_without_its_teacher(root, tmp_path):
    shutil.copytree(root / "teacher", tmp_path / "teacher")
    run = distil(root, tmp_path / "run", f"algo.teacher={tmp_path / 'teacher'}")
    shutil.rmtree(tmp_path / "teacher")
    loaded = marl.Distilled.load(run.folder)
    assert loaded.config.planner == marl.MADiff.load(root / "teacher").config
    for steps in (1, 2):
        policy = loaded.policy(Acting(SamplerConfig("consistency", steps=steps)))
        data = rollout(policy, marl.TaskConfig(max_cycles=3).make(), range(2)).trajectories
        assert data.actions.isfinite().all()
    with pytest.raises(UserError, match=r"samples with sampler=consistency and sampler\.steps=1 to 4, not with ddim"):
        loaded.policy(Acting())


def test_the_student_starts_as_the_teacher_and_alone_learns(root, tmp_path):
    teacher = marl.MADiff.load(root / "teacher")
    algorithm = build(marl.DistilledConfig(teacher=str(root / "teacher"), planner=teacher.config), teacher.spec)
    observations = core.normal(range(3), (3, 18))
    data = rollout(marl.scripted_team("mpe/spread", "expert"), marl.TaskConfig().make(), range(4)).trajectories
    batches = algorithm.prepare(data)
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    assert torch.equal(algorithm.planner.plan(observations).actions, teacher.plan(observations).actions)
    run = distil(root, tmp_path / "run")
    after = marl.Distilled.load(run.folder).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(("planner.denoiser.", "target.denoiser.")) for name in moved)
    assert len(batches) == data.steps


def test_the_target_follows_the_student(root):
    teacher = marl.MADiff.load(root / "teacher")
    config = marl.DistilledConfig(teacher=str(root / "teacher"), planner=teacher.config, target_decay=0.75)
    algorithm = build(config, teacher.spec)
    old = [parameter.clone() for parameter in algorithm.target.parameters()]
    with torch.no_grad():
        for parameter in algorithm.student.parameters():
            parameter.add_(1.0)
    new = list(algorithm.student.parameters())
    algorithm.after_step()
    for target, before, student in zip(algorithm.target.parameters(), old, new, strict=True):
        assert torch.allclose(target, 0.75 * before + 0.25 * student, atol=1e-6)


def test_what_distillation_needs(root, tmp_path):
    with pytest.raises(UserError, match=r"needs algo\.teacher=FOLDER, a trained madiff run"):
        distil(root, tmp_path / "none", "algo.teacher=''")
    with pytest.raises(UserError, match="nowhere"):
        distil(root, tmp_path / "gone", f"algo.teacher={tmp_path / 'nowhere'}")
    for options in ({"levels": 1}, {"target_decay": 1.0}, {"boundary": 0.0}, {"name": "madiff"}):
        with pytest.raises(ValueError, match="algo"):
            marl.DistilledConfig(**options)

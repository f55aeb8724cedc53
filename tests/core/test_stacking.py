"""Seeds trained as a stack against the same seeds trained alone: items, noise, weights, averages and metrics."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import marl
from core import checkpoints
from core.algorithm import Algorithm, Phase
from core.cloning import Cloning, CloningConfig
from core.environments import TeamSpec
from core.rollout import rollout
from core.stacking import Stack
from core.training import Trainer, TrainerConfig, read_metrics
from marl import InverseConfig, MADiff, MADiffConfig

CONFIG = TrainerConfig(
    steps=12, batch_size=8, learning_rate=0.01, warmup=3, ema=0.9, checkpoint_every=5, log_every=4, gradient_clip=0.5
)
SEEDS = [3, 5, 11]


@pytest.fixture(scope="module")
def data():
    return rollout(marl.scripted_team("mpe/spread", "expert"), marl.TaskConfig().make(), range(6)).trajectories


def cloning():
    return Cloning(CloningConfig(hidden=16, condition=True), TeamSpec(3, 18, 2))


def madiff():
    config = MADiffConfig(
        width=16, horizon=4, inverse=InverseConfig(hidden=16, noise=0.1), condition_dropout=0.3, noise_emphasis=2.0
    )
    return MADiff(config, TeamSpec(3, 18, 2))


def joint():
    return MADiff(MADiffConfig(width=16, horizon=4, actions="joint", prediction="v"), TeamSpec(3, 18, 2))


class Dual(Algorithm):
    """Two phases, one of them every other step, a target that follows, and a step that never ends up in a gradient."""

    def __init__(self):
        super().__init__(None, TeamSpec(3, 18, 2))
        self.weight = nn.Linear(18, 2, bias=False)
        self.bias = nn.Parameter(torch.randn(2))
        self.register_buffer("target", torch.zeros(2, 18))

    uses = staticmethod(lambda config: frozenset())
    policy = None

    def prepare(self, trajectories):
        return Cloning(CloningConfig(), self.spec).prepare(trajectories)

    def phases(self):
        return [
            Phase("weight", list(self.weight.parameters()), self._loss),
            Phase("bias", [self.bias], self._bias, every=2),
        ]

    def _loss(self, batch, generator):
        noise = torch.randn(batch.inputs.shape, generator=generator)
        which = torch.randint(3, (len(batch.inputs), 1, 1), generator=generator)
        error = self.weight(batch.inputs + 0.1 * which * noise) + self.bias.detach() - batch.actions
        return {"loss": (error**2).mean(), "far": (self.weight.weight - self.target).abs().mean()}

    def _bias(self, batch, generator):
        error = self.weight(batch.inputs).detach() + self.bias - batch.actions
        return {"loss": (torch.rand(error.shape, generator=generator) * error**2).mean()}

    def after_step(self):
        self.target.lerp_(self.weight.weight.detach(), 0.1)


Dual.__abstractmethods__ = frozenset()


def made(make, seed):
    torch.manual_seed(seed)
    return make()


def alone(make, data, seed, folder, config=CONFIG):
    algorithm = made(make, seed)
    trainer = Trainer(algorithm, algorithm.prepare(data), replace(config, seed=seed), folder)
    assert trainer.run()
    return trainer


def stacked(make, data, seeds, folder, config=CONFIG, stop=lambda: False):
    members = [made(make, seed) for seed in seeds]
    batches, *_ = [member.prepare(data) for member in members]
    stack = Stack(members)
    runs = [folder / f"run-{seed}" for seed in seeds]
    trainer = Trainer(stack.algorithm, batches, config, *runs, stack=stack, seeds=seeds)
    return trainer, trainer.run(stop=stop), runs


@pytest.mark.parametrize("make", [cloning, madiff, joint, Dual])
def test_a_stacked_seed_learns_what_it_learns_alone(make, data, tmp_path):
    _, finished, runs = stacked(make, data, SEEDS, tmp_path)
    assert finished
    for seed, run in zip(SEEDS, runs, strict=True):
        alone(make, data, seed, tmp_path / f"alone-{seed}")
        found, metadata = checkpoints.load(run / "checkpoint.safetensors")
        wanted, expected = checkpoints.load(tmp_path / f"alone-{seed}" / "checkpoint.safetensors")
        assert found.keys() == wanted.keys()
        assert {name: metadata[name] for name in ("step", "ema_updates")} == {
            name: expected[name] for name in ("step", "ema_updates")
        }
        assert torch.equal(found["generator"], wanted["generator"])
        for name, tensor in wanted.items():
            assert found[name].shape == tensor.shape
            assert found[name].dtype == tensor.dtype
            scale = 5e-4 * (1 + tensor.abs().max()) if tensor.is_floating_point() else 0
            assert (found[name] - tensor).abs().max() <= scale, name
        rows, wanted_rows = (read_metrics(p / "metrics.csv") for p in (run, tmp_path / f"alone-{seed}"))
        assert [row.keys() for row in rows] == [row.keys() for row in wanted_rows]
        for row, other in zip(rows, wanted_rows, strict=True):
            for name in row.keys() - {"seconds"}:
                assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5)
    weights = [checkpoints.load(run / "checkpoint.safetensors")[0] for run in runs]
    name = next(name for name in weights[0] if name.startswith("model.") and name.endswith("weight"))
    assert (weights[0][name] - weights[1][name]).abs().max() > 0.01


@pytest.mark.parametrize("make", [cloning, Dual])
def test_a_stopped_stack_goes_on_to_the_same_weights(make, data, tmp_path):
    (tmp_path / "straight").mkdir()
    straight, _, _ = stacked(make, data, SEEDS, tmp_path / "straight")
    for stops in (7, 2):
        left = iter(range(stops))
        _, finished, _ = stacked(make, data, SEEDS, tmp_path, stop=lambda left=left: next(left, None) is None)
        assert not finished
    again, finished, _ = stacked(make, data, SEEDS, tmp_path)
    assert finished
    for path, other in zip(again.checkpoints, straight.checkpoints, strict=True):
        (found, metadata), (wanted, expected) = checkpoints.load(path), checkpoints.load(other)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert metadata["step"] == expected["step"]
    for tables in zip(again.tables, straight.tables, strict=True):
        rows, others = ([{k: v for k, v in row.items() if k != "seconds"} for row in table] for table in tables)
        assert rows == others


def test_gradients_are_clipped_for_each_seed_alone():
    members = [made(Dual, seed) for seed in SEEDS]
    stack = Stack(members)
    parameters = list(stack.algorithm.parameters())
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * torch.tensor([0.01, 1.0, 50.0]).reshape(
            -1, *[1] * (parameter.ndim - 1)
        )
    expected = []
    for index in range(3):
        lone = [nn.Parameter(parameter[index].clone()) for parameter in parameters]
        for one, parameter in zip(lone, parameters, strict=True):
            one.grad = parameter.grad[index].clone()
        nn.utils.clip_grad_norm_(lone, 0.5)
        expected.append([one.grad for one in lone])
    stack.clip(parameters, 0.5)
    for index in range(3):
        for parameter, wanted in zip(parameters, expected[index], strict=True):
            assert torch.allclose(parameter.grad[index], wanted, atol=1e-7)


class Uncountable(Dual):
    """Draws in a way that no stack can."""

    def _loss(self, batch, generator):
        noise = torch.empty(batch.inputs.shape).normal_(generator=generator)
        return {"loss": (self.weight(batch.inputs + noise) ** 2).mean()}


class Global(Dual):
    """Draws from the global generator."""

    def _loss(self, batch, generator):
        return {"loss": (self.weight(batch.inputs + torch.randn(batch.inputs.shape)) ** 2).mean()}


def test_a_loss_that_draws_otherwise_is_refused(data, tmp_path):
    with pytest.raises(NotImplementedError, match="normal_"):
        stacked(Uncountable, data, SEEDS, tmp_path)
    with pytest.raises(RuntimeError, match="random operation"):
        stacked(Global, data, SEEDS, tmp_path)

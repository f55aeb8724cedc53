import json
import math
import signal
from contextlib import chdir
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from core import checkpoints, training
from core.algorithm import Algorithm, Phase
from core.cli import main
from core.environments import TeamSpec
from core.errors import UserError
from core.runs import Run
from core.training import Trainer, TrainerConfig, read_metrics

CONFIG = TrainerConfig(
    steps=120, batch_size=8, learning_rate=0.1, warmup=10, ema=0.9, checkpoint_every=40, log_every=10
)


class Regression(Algorithm):
    """y = weight x + bias by two optimisers, the bias every other step; the target follows the weight."""

    def __init__(self):
        super().__init__(None, TeamSpec(1, 3, 1))
        torch.manual_seed(0)
        self.weight = nn.Linear(3, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("target", torch.zeros(1, 3))

    @staticmethod
    def uses(config):
        return frozenset()

    def prepare(self, trajectories):
        raise NotImplementedError

    def phases(self):
        return [
            Phase("weight", list(self.weight.parameters()), self._loss),
            Phase("bias", [self.bias], self._bias_loss, every=2),
        ]

    def _loss(self, batch, generator):
        x, y = batch
        loss = ((self.weight(x + 0.1 * torch.randn(x.shape, generator=generator)) + self.bias - y) ** 2).mean()
        return {"loss": loss, "one": torch.ones(())}

    def _bias_loss(self, batch, generator):
        x, y = batch
        return {"loss": ((self.weight(x).detach() + self.bias - y) ** 2).mean(), "one": torch.ones(())}

    def after_step(self):
        self.target.lerp_(self.weight.weight.detach(), 0.1)

    def policy(self, acting):
        raise NotImplementedError


class Points:
    """x [40, 3] and y = x . (1, -2, 0.5) + 0.7."""

    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(5))
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.7

    def __len__(self):
        return len(self.x)

    def gather(self, index):
        return self.x[index], self.y[index]


def trainer(folder, **options):
    return Trainer(Regression(), Points(), replace(CONFIG, **options), folder)


def after(steps):
    """A `stop` that lets this many steps happen."""
    left = iter(range(steps))
    return lambda: next(left, None) is None


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_state(folder, expected):
    """Weights, averages, optimisers and generator, bit for bit; and the table."""
    (found, metadata), (wanted, wanted_metadata) = (
        checkpoints.load(path / "checkpoint.safetensors") for path in (folder, expected)
    )
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different
    assert all(metadata[name] == wanted_metadata[name] for name in ("step", "ema_updates"))
    rows, wanted_rows = (without_seconds(read_metrics(path / "metrics.csv")) for path in (folder, expected))
    assert rows == wanted_rows


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    assert trainer(folder).run()
    return folder


def test_it_learns(straight):
    tensors, metadata = checkpoints.load(straight / "checkpoint.safetensors")
    assert torch.allclose(tensors["model.weight.weight"], torch.tensor([[1.0, -2.0, 0.5]]), atol=0.2)
    assert tensors["model.bias"].item() == pytest.approx(0.7, abs=0.2)
    assert metadata["step"] == "120"
    assert float(metadata["seconds"]) > 0


@pytest.mark.parametrize("warmup", [0, 1, 10, 300])
@pytest.mark.parametrize("decay", ["cosine", "none"])
def test_learning_rate_is_the_closed_form(decay, warmup, tmp_path):
    run = trainer(tmp_path, decay=decay, warmup=warmup)
    for step in range(120):
        rise = min(1, (step + 1) / warmup) if warmup else 1
        fall = (1 + math.cos(math.pi * step / 120)) / 2 if decay == "cosine" else 1
        assert run.learning_rate(step) == pytest.approx(0.1 * rise * fall, rel=1e-12)
    run.step = 4
    run._train_step()
    assert run.optimisers[0].param_groups[0]["lr"] == run.learning_rate(4)


def test_the_first_step_moves_by_the_learning_rate(tmp_path):
    """Adam's first step is lr g / (|g| + eps)."""
    run = trainer(tmp_path, warmup=10)
    before = run.algorithm.weight.weight.detach().clone()
    run._train_step()
    moved = (run.algorithm.weight.weight - before).abs()
    assert torch.allclose(moved, torch.full((1, 3), 0.01), rtol=1e-4)


def test_a_phase_takes_part_in_one_step_of_every(tmp_path):
    run = trainer(tmp_path)
    biases = [run.algorithm.bias.item()]
    for _ in range(6):
        run._train_step()
        run.step += 1
        biases.append(run.algorithm.bias.item())
    assert [a != b for a, b in pairwise(biases)] == [True, False] * 3


def test_metrics_are_means_over_the_steps_that_measured_them(straight):
    rows = read_metrics(straight / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(10, 130, 10))
    assert rows[0].keys() == {"step", "seconds", "weight.loss", "weight.one", "bias.loss", "bias.one"}
    assert [row["weight.one"] for row in rows] == [1] * 12
    assert [row["bias.one"] for row in rows] == [1] * 12
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_gradient_clip_bounds_the_step(tmp_path):
    run, norms = trainer(tmp_path, gradient_clip=1e-3), []
    step = run.optimisers[0].step

    def watched():
        norms.append(run.algorithm.weight.weight.grad.norm().item())
        return step()

    run.optimisers[0].step = watched
    run._train_step()
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


def test_the_same_seed_twice(straight, tmp_path):
    trainer(tmp_path / "again").run()
    assert_same_state(tmp_path / "again", straight)
    trainer(tmp_path / "other", seed=1).run()
    other, same = (checkpoints.load(f / "checkpoint.safetensors")[0] for f in (tmp_path / "other", straight))
    assert not torch.equal(other["model.weight.weight"], same["model.weight.weight"])


@pytest.mark.parametrize("stops", [[40], [50], [33], [1], [119], [7, 60, 1, 20]], ids=str)
def test_stopped_and_resumed_is_the_uninterrupted_run(stops, straight, tmp_path):
    for steps in stops:
        assert not trainer(tmp_path).run(stop=after(steps))
    assert trainer(tmp_path).step == sum(stops)
    assert trainer(tmp_path).run()
    assert_same_state(tmp_path, straight)


def test_stopped_at_once_and_run_twice(straight, tmp_path):
    assert not trainer(tmp_path).run(stop=lambda: True)
    assert trainer(tmp_path).run()
    content = (tmp_path / "checkpoint.safetensors").read_bytes()
    assert trainer(tmp_path).run()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == content
    assert_same_state(tmp_path, straight)


def test_killed_between_checkpoints(straight, tmp_path):
    """Steps after the last checkpoint are made again, and their rows are not there twice."""

    def die(step, metrics):
        if step == 70:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).run(progress=die)
    assert trainer(tmp_path).step == 40
    assert trainer(tmp_path).run()
    assert_same_state(tmp_path, straight)


def test_rows_after_the_checkpoint_are_dropped(straight, tmp_path, monkeypatch):
    """Killed between the writing of the metrics and that of the checkpoint."""
    save, calls = checkpoints.save_all, []

    def dies_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(training.checkpoints, "save_all", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).run()
    monkeypatch.undo()
    assert read_metrics(tmp_path / "metrics.csv")[-1]["step"] == 80
    resumed = trainer(tmp_path)
    assert (resumed.step, resumed.rows[-1]["step"]) == (40, 40)
    assert resumed.run()
    assert_same_state(tmp_path, straight)


def test_a_resumed_table_is_written_the_same_way(straight, tmp_path):
    trainer(tmp_path).run(stop=after(40))
    trainer(tmp_path).run()
    steps, expected = (
        [line.split(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]
        for folder in (tmp_path, straight)
    )
    assert steps == expected


def test_progress_is_told_of_each_row(tmp_path):
    told = []
    run = trainer(tmp_path)
    run.run(progress=lambda step, metrics: told.append((step, metrics)))
    assert told == [(row["step"], row) for row in run.rows]


@pytest.mark.parametrize("damage", ["truncated", "another structure"])
def test_resuming_from_a_checkpoint_that_does_not_fit(damage, tmp_path):
    trainer(tmp_path).run(stop=after(5))
    path = tmp_path / "checkpoint.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        tensors, metadata = checkpoints.load(path)
        checkpoints.save(path, tensors | {"model.weight.weight": torch.zeros(1, 4)}, metadata)
    with pytest.raises(UserError, match=r"is corrupt|does not fit the run's configuration"):
        trainer(tmp_path)


class Diverging(Regression):
    def _loss(self, batch, generator):
        losses = super()._loss(batch, generator)
        self.calls = getattr(self, "calls", 0) + 1
        return losses | {"loss": losses["loss"] * (torch.nan if self.calls == 25 else 1)}


@pytest.mark.parametrize("checkpoint_every", [40, 20, 4])
def test_a_diverging_loss_is_an_error_that_keeps_a_good_checkpoint(checkpoint_every, tmp_path):
    config = replace(CONFIG, checkpoint_every=checkpoint_every)
    with pytest.raises(UserError, match=r"training of \S+ diverged before step (28|30): .*lower trainer.learning_rate"):
        Trainer(Diverging(), Points(), config, tmp_path).run()
    if checkpoint_every == 40:
        assert not list(tmp_path.iterdir())
        return
    tensors, metadata = checkpoints.load(tmp_path / "checkpoint.safetensors")
    assert int(metadata["step"]) in (20, 24)
    assert all(torch.isfinite(tensors[name]).all() for name in tensors if name.startswith(("model.", "ema.")))


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        trainer(tmp_path / "run").run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "trainer.steps must be at least 1, got 0"),
        ({"threads": 0}, "trainer.threads must be at least 1"),
        ({"learning_rate": 0.0}, "trainer.learning_rate must be positive"),
        ({"warmup": -1}, "at least 0"),
        ({"ema": 1.0}, r"trainer.ema lies in \[0, 1\)"),
        ({"decay": "linear"}, "unknown trainer.decay 'linear': choose one of cosine, none"),
        ({"device": "gpu"}, "unknown .*device 'gpu'"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**options)


# Runs


RUN = {
    "method": "bc",
    "task": {"name": "mpe/spread"},
    "algo": {"name": "cloning", "hidden": 16},
    "trainer": {"steps": 10, "seed": 0, "log_every": 50, "checkpoint_every": 500, "device": "auto"},
    "dataset": {"id": "a/b-v0", "quality": "expert", "fingerprint": "1234"},
    "spec": {"agents": 3},
}


def changed(group, name, value):
    return RUN | {group: RUN[group] | {name: value}}


def test_a_run_is_created_once_and_opened(tmp_path):
    run = Run.create(tmp_path / "run", RUN)
    assert Run.open(tmp_path / "run") == run == Run(tmp_path / "run", RUN)
    assert (run.method, run.rows()) == ("bc", [])
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert versions["torch"] == torch.__version__
    assert Run.create(tmp_path / "run", RUN) == run
    for name, value in (("log_every", 10), ("checkpoint_every", 10), ("device", "cpu")):
        Run.create(tmp_path / "run", changed("trainer", name, value))


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [("dataset", "fingerprint", "5678"), ("algo", "hidden", 32), ("trainer", "steps", 20), ("algo", "layers", 3)],
)
def test_another_configuration_is_refused(group, name, value, tmp_path):
    Run.create(tmp_path, RUN)
    with pytest.raises(UserError, match=rf"holds another run \({group}.{name} was .*, is {value}\): choose another"):
        Run.create(tmp_path, changed(group, name, value))
    assert Run.open(tmp_path).config == RUN


@pytest.mark.parametrize("text", ["", "3", "[]", "{", "method: bc", "\x00", "method: [\n  'a"])
def test_a_broken_configuration(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config.yaml (cannot be read|is not a run's configuration): \S") as caught:
        Run.open(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is not a run"):
        Run.open(tmp_path / "nowhere")


# Stopped processes; tests/core/test_kills.py kills them


TINY = [
    "algo=madiff", "algo.width=16", "algo.horizon=4", "algo.inverse.hidden=16", "data=data", "trainer.batch_size=8",
    "trainer.device=cpu", "trainer.steps=100", "trainer.warmup=10", "trainer.checkpoint_every=5", "trainer.log_every=5",
]  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A small dataset and an uninterrupted run of it."""
    folder = tmp_path_factory.mktemp("workplace")
    with chdir(folder):
        assert main(["collect", "quality=expert", "episodes=6", "data=data"]) == 0
        assert main(["train", *TINY, "run=straight"]) == 0
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_asked_to_stop(workplace, number, monkeypatch, capsys):
    """A checkpoint is written, the exit code says why, and the same command goes on to the same weights."""
    monkeypatch.chdir(workplace)
    run = f"run={number.name}"
    step, raised = Trainer._train_step, []

    def interrupted(self):
        if self.step == 64:
            raised.append(signal.raise_signal(number))
        return step(self)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    code = main(["train", *TINY, run])
    assert raised == [None]
    assert checkpoints.load(workplace / number.name / "checkpoint.safetensors")[1]["step"] == "65"
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setattr(Trainer, "_train_step", step)
    assert main(["train", *TINY, run]) == 0
    assert_same_state(workplace / number.name, workplace / "straight")
    assert code == 128 + number


def test_a_changed_dataset_or_option_is_refused(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    checkpoint = (workplace / "straight" / "checkpoint.safetensors").read_bytes()
    assert main(["train", *TINY, "run=straight", "algo.discount=0.9"]) == 2
    assert "algo.discount was 1.0, is 0.9" in capsys.readouterr().err
    assert main(["collect", "quality=expert", "episodes=6", "seed=1", "data=other"]) == 0
    capsys.readouterr()
    assert main(["train", *TINY, "run=straight", "data=other"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "straight holds another run (dataset.fingerprint was" in line
    assert (workplace / "straight" / "checkpoint.safetensors").read_bytes() == checkpoint

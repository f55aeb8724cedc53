import errno
import os
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from core import checkpoints, files
from core.errors import UserError

TENSORS = {
    "model.weight": torch.linspace(-1, 1, 12).reshape(3, 4),
    "model.count": torch.tensor(7),
    "model.empty": torch.empty(0, 2),
    "flags": torch.tensor([True, False]),
    "generator": torch.arange(16, dtype=torch.uint8),
    "double": torch.tensor([1e-300, torch.inf], dtype=torch.float64),
}
METADATA = {"step": "120", "note": "in one line"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run" / "checkpoint.safetensors"
    checkpoints.save(path, TENSORS, METADATA)
    return path


def assert_holds(path, tensors=TENSORS, metadata=METADATA):
    loaded, found = checkpoints.load(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert metadata.items() <= found.items()


def test_round_trip(path):
    assert_holds(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_strided_and_learned_tensors(path):
    weight = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
    checkpoints.save(path, {"a": weight, "b": weight.detach()[:, 0]}, {})
    assert_holds(path, {"a": weight.detach(), "b": weight.detach()[:, 0]}, {})


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint at .*train the run first"):
        checkpoints.load(tmp_path / "checkpoint.safetensors")


def test_truncated_anywhere(path):
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"is corrupt: .*train again"):
            checkpoints.load(path)


def test_one_flipped_byte_in_a_tensor(path):
    content = path.read_bytes()
    for place in range(8 + int.from_bytes(content[:8], "little"), len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(UserError, match="is corrupt: its contents do not match their digest"):
            checkpoints.load(path)


def test_one_flipped_byte_in_the_header(path):
    """It is refused, or changes nothing."""
    content = path.read_bytes()
    accepted = []
    for place in range(8 + int.from_bytes(content[:8], "little")):
        for mask in (0x01, 0x0F, 0x80):
            path.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
            try:
                assert_holds(path)
            except UserError as error:
                assert "\n" not in str(error)
            except AssertionError:
                accepted.append(f"{content[max(0, place - 12) : place + 1]!r} ^ {mask}")
    assert not accepted


def test_another_safetensors_file_has_no_digest(path):
    checkpoints.save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(UserError, match="do not match their digest"):
        checkpoints.load(path)


@pytest.mark.parametrize("module", [nn.Linear(4, 3), nn.Linear(5, 3, bias=False), nn.Linear(4, 3, bias=False)])
def test_load_state_wants_the_same_structure(module, path):
    tensors = checkpoints.strip({"model.weight": TENSORS["model.weight"]}, "model.")
    assert tensors.keys() == {"weight"}
    if module.bias is None and module.in_features == 4:
        checkpoints.load_state(module, tensors, path)
        assert torch.equal(module.weight, TENSORS["model.weight"])
    else:
        with pytest.raises(UserError, match="does not fit the run's configuration") as caught:
            checkpoints.load_state(module, tensors, path)
        assert "\n" not in str(caught.value)


def test_trained_weights_are_the_averaged_ones(path):
    """Buffers have no average; they come from the model."""
    module = nn.BatchNorm1d(2)
    state = {f"model.{name}": value for name, value in module.state_dict().items()}
    state |= {"model.running_mean": torch.tensor([3.0, 4.0]), "ema.weight": torch.tensor([5.0, 6.0])}
    checkpoints.save(path, state, METADATA)
    metadata = checkpoints.load_trained(module, path)
    assert module.weight.tolist() == [5, 6]
    assert module.running_mean.tolist() == [3, 4]
    assert not module.training
    assert metadata["step"] == "120"


def test_optimiser_round_trip(tmp_path):
    def step(model, optimiser):
        optimiser.zero_grad()
        model(torch.ones(1, 3)).pow(2).sum().backward()
        optimiser.step()

    torch.manual_seed(0)
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first, second = (torch.optim.Adam(model.parameters(), 0.1, fused=True) for model in models)
    for _ in range(3):
        step(models[0], first)
    models[1].load_state_dict(models[0].state_dict())
    checkpoints.save(tmp_path / "state", checkpoints.optimiser_tensors(first, "optimiser.policy."), {})
    tensors, _ = checkpoints.load(tmp_path / "state")
    assert "optimiser.policy.0.exp_avg" in tensors
    checkpoints.load_optimiser(second, checkpoints.strip(tensors, "optimiser.policy."))
    step(models[0], first)
    step(models[1], second)
    assert torch.equal(models[0].weight, models[1].weight)


@pytest.mark.parametrize("where", ["opening", "in the middle", "at the end"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "denied")])
def test_a_full_disk_keeps_the_previous_checkpoint(path, monkeypatch, where, error):
    def full(*arguments, **options):
        if where == "in the middle":
            arguments[1].write_bytes(b"half a file")
        raise error

    module, name = {
        "opening": (files.tempfile, "mkstemp"),
        "in the middle": (checkpoints, "save_file"),
        "at the end": (files.os, "fsync"),
    }[where]
    monkeypatch.setattr(module, name, full)
    with pytest.raises(UserError, match=f"cannot write checkpoint .*: {error.strerror}; the previous one is kept"):
        checkpoints.save(path, {"weight": torch.zeros(2)}, {"step": "121"})
    monkeypatch.undo()
    assert_holds(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="cannot write checkpoint"):
        checkpoints.save(tmp_path / "run" / "checkpoint.safetensors", TENSORS, METADATA)


def test_nothing_is_unpickled(path):
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(UserError, match="is corrupt"):
        checkpoints.load(path)


def steps_of(paths):
    return [checkpoints.read_metadata(path)["step"] if path.exists() else None for path in paths]


def states(step):
    metadata = {"step": str(step), "seconds": "0"}
    return [({"x": torch.full((3,), float(10 * step + index))}, metadata) for index in range(3)]


class Killed(BaseException):
    """Nothing that follows happens."""


@contextmanager
def killed_after(changes):
    """A kill at the change of a file after this many: no later one is made, clean-up included."""
    calls = []

    def dying(function):
        def call(*arguments, **options):
            calls.append(function)
            if len(calls) > changes:
                raise Killed
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "unlink", "touch"):
            patch.setattr(Path, name, dying(getattr(Path, name)))
        patch.setattr(os, "link", dying(os.link))
        with suppress(Killed):
            yield
        if len(calls) <= changes:
            calls.clear()
    killed_after.survived = not calls


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("beside", [True, False], ids=["beside another run", "alone"])
def test_several_checkpoints_are_of_one_step_wherever_they_were_killed(tmp_path, first, beside):
    """Killed at every change of a file, and killed again at every change of the mending."""
    seen = set()
    for changes, again in product(range(40), range(12)):
        folder = tmp_path / f"{changes}-{again}"
        paths = [folder / f"run-{index}" / "checkpoint.safetensors" for index in range(3)]
        other = folder / "run-3" / "checkpoint.safetensors"
        for path in (*paths, other):
            path.parent.mkdir(parents=True)
        checkpoints.save_all([other], states(3)[:1])
        if not first:
            checkpoints.save_all(paths, states(5))
        job = [other, *paths] if beside else paths
        with killed_after(changes):
            checkpoints.save_all(paths, states(6))
        survived = killed_after.survived
        with killed_after(again):
            checkpoints.settle(job)
        checkpoints.settle(job)
        (step,) = set(steps_of(paths))
        seen.add((step, survived))
        if step:
            for path, (tensors, _) in zip(paths, states(int(step)), strict=True):
                assert torch.equal(checkpoints.load(path)[0]["x"], tensors["x"])
        assert steps_of([other]) == ["3"]
        assert not list(folder.rglob(".*.before"))
        if survived:
            break
    old = None if first else "5"
    assert seen == {(old, False), ("6", False), ("6", True)}
    assert changes > 8


def test_a_full_disk_leaves_several_checkpoints_as_they_were(tmp_path, monkeypatch):
    paths = [tmp_path / f"run-{index}" / "checkpoint.safetensors" for index in range(3)]
    checkpoints.save_all(paths, states(5))
    save_file, calls = checkpoints.save_file, []

    def full(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save_file(*arguments, **options)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        checkpoints.save_all(paths, states(6))
    assert steps_of(paths) == ["5"] * 3
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["checkpoint.safetensors"] * 3

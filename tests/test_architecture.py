"""What a file's place allows it to do, read off the sources."""

import ast
import inspect
from functools import cache
from pathlib import Path

import pytest

from core.samplers import Sampler

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = {
    package: sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / package).rglob("*.py"))
    for package in ("core", "marl", "safe")
}
ALL = [path for paths in FILES.values() for path in paths]

#: The one module of `safe` that joins the two.
JOINT = "safe/teams"


@cache
def tree_of(path):
    return ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))


def imports(path):
    """Top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            found.add((node.module or "").split(".")[0])
    return found


def calls(path, method):
    """Calls of `anything.method(...)` in a file."""
    return [
        node
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method
    ]


@pytest.mark.parametrize("path", ALL)
def test_imports_point_one_way(path):
    forbidden = {"tests", "benchmarks"}
    if path.startswith("core/") and not path.startswith("core/cli/"):
        forbidden |= {"marl", "safe"}
    elif path.startswith("marl/"):
        forbidden |= {"safe"}
    elif path.startswith("safe/") and not path.startswith(JOINT):
        forbidden |= {"marl"}
    assert not imports(path) & forbidden


def test_the_packages_are_found():
    assert len(FILES["core"]) > 20
    assert len(FILES["marl"]) > 5
    assert {"einops", "torch"} <= imports("core/networks/temporal_unet.py")


def test_there_is_one_loop_of_each_kind():
    """Nothing else takes a step of a sampler, an optimiser or an environment, save within a `step` that it wraps, and
    `core/parallel_envs.py`, which is many environments as one."""
    found = {
        path
        for path in ALL
        for function in _functions(path)
        if function.name != "step" and any(call in ast.walk(function) for call in calls(path, "step"))
    }
    assert found - {"core/parallel_envs.py"} == {"core/sampling.py", "core/training.py", "core/rollout.py"}


def test_there_is_one_sampling_loop():
    """Only one place calls a `step` with as many arguments as `Sampler.step` has."""
    arity = len(inspect.signature(Sampler.step).parameters) - 1
    found = [path for path in ALL for call in calls(path, "step") if len(call.args) + len(call.keywords) == arity]
    assert arity == 5
    assert found == ["core/sampling.py"]


def test_there_is_one_training_loop():
    assert {path for path in ALL if calls(path, "backward")} == {"core/training.py"}


def _functions(path):
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", ALL)
def test_nothing_is_unpickled(path):
    unsafe = {"pickle", "dill", "cloudpickle", "joblib"}
    assert not imports(path) & unsafe
    assert not [c for c in calls(path, "load") if isinstance(c.func.value, ast.Name) and c.func.value.id == "torch"]


@pytest.mark.parametrize("path", ALL)
def test_no_global_randomness(path):
    """Randomness is an argument; only the command line seeds the initial weights."""
    seeded = [call for name in ("manual_seed", "seed") for call in calls(path, name)]
    of_modules = [call for call in seeded if ast.unparse(call.func.value) in ("torch", "np.random", "random")]
    assert not of_modules or path == "core/cli/trainings.py"


@pytest.mark.parametrize("path", FILES["core"] + FILES["marl"])
def test_what_is_public_has_a_docstring(path):
    tree = tree_of(path)
    missing = [] if ast.get_docstring(tree) or not tree.body else ["the module"]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            # The module's own docstring says what the verb's `command` is.
            verb = path.startswith("core/cli/") and node.name == "command"
            if not verb and not ast.get_docstring(node):
                missing.append(node.name)
    assert not missing


@pytest.mark.parametrize("path", ALL)
def test_files_stay_short(path):
    assert len((REPOSITORY / path).read_text(encoding="utf-8").splitlines()) < 320


@pytest.mark.parametrize("package", ["core", "core.data", "core.networks", "marl", "safe"])
def test_public_names_exist(package):
    module = __import__(package, fromlist=["__all__"])
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names))
    assert all(hasattr(module, name) for name in names)
    assert names or package == "safe"

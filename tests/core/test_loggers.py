import contextlib
import importlib.util
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core.errors import UserError
from core.loggers import LOGGERS, open_loggers

pytestmark = [
    pytest.mark.extra,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow.*"),  # it calls SQLAlchemy in an old way
]

CONFIG = {
    "method": "madiff",
    "trainer": {"steps": 70, "learning_rate": 4e-3, "device": None},
    "spacing": ["lambda", 2],
    "many": {f"p{index}": index for index in range(120)},  # more than MLflow takes at once
}

CHILD = """
import json, logging, os, signal, socket, sys, time
from pathlib import Path
from core.loggers import open_loggers
from tests.core.test_loggers import CONFIG, row, state

calls = []
connect = socket.socket.connect
def record(self, address):
    if self.family != socket.AF_UNIX:
        calls.append(str(address))
    return connect(self, address)
socket.socket.connect = record

before = state()
loggers = open_loggers(["tensorboard", "wandb", "mlflow"], Path(sys.argv[1]), CONFIG)
for step in range(10, 60, 10):
    for logger in loggers:
        logger.log(step, row(step))
time.sleep(1.0)
print(json.dumps([before, state(), calls]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=LOGGERS)
def name(request):
    pytest.importorskip(request.param, reason="an extra: pip install 'convoy-rl[loggers]'", exc_type=ImportError)
    return request.param


def row(step):
    return {"loss": 1 / step, "actor.loss": -step / 3}


def state():
    """What a library must leave as it found it. The levels of loggers that it brings along are its own."""
    talkers = [logging.root] + [logging.getLogger(name) for name in ("core", "torch", "alembic")]
    return {
        "environment": dict(os.environ),
        "levels": [talker.level for talker in talkers] + [logging.root.manager.disable],
        "handlers": [str(handler) for handler in logging.root.handlers],
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "hooks": [str(sys.excepthook), str(sys.exit), str(sys.stdout), str(sys.stderr)],
        "files": sorted(str(path) for path in Path().iterdir()),
    }


def train(name, folder, first, last, step=0):
    [logger] = open_loggers([name], folder, CONFIG, step)
    for number in range(first, last + 1, 10):
        logger.log(number, row(number))
    logger.close()


def read(name, folder):
    """The rows, {metric: [(step, value)]}, and the hyper-parameters, by each library's own reader."""
    return {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow}[name](folder)


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    rows = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return rows, {key: getattr(value, value.WhichOneof("kind")) for key, value in values.items()}


def read_wandb(folder):
    rows = {}
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({path.name for path in files}) == 1  # one id, so one run for W&B
    for path in files:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        environment = os.environ | {"WANDB_ERROR_REPORTING": "false", "TMPDIR": str(path.parent)}
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        for record in map(json.loads, output.splitlines()):
            if "run" in record:
                config = record["run"]["config"]["update"]
                assert record["run"]["resume"]
                assert record["run"]["telemetry"]["feature"]["offline"]
            for key, value in record.get("history", {}).get("item", {}).items():
                if not key.startswith("_"):
                    rows.setdefault(key, []).append((record["history"]["item"]["_step"], value))
    assert config["spacing"] == CONFIG["spacing"]
    nested = {f"{group}.{key}": value for group in ("trainer", "many") for key, value in config[group].items()}
    return rows, {"method": config["method"], "spacing": str(config["spacing"]), **nested}


def read_mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("convoy").experiment_id])
    assert run.info.status == "FINISHED"
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {
        name: [(point.step, point.value) for point in points] for name, points in histories.items()
    }, run.data.params


def check(name, folder):
    rows, parameters = read(name, folder)
    steps = list(range(10, 80, 10))
    assert rows.keys() == {"loss", "actor.loss"}
    for metric, points in rows.items():
        assert [step for step, _ in points] == steps
        assert [value for _, value in points] == pytest.approx([row(step)[metric] for step in steps], rel=1e-6)
    assert parameters["method"] == "madiff"
    assert parameters["spacing"] == "['lambda', 2]"
    assert float(parameters["trainer.learning_rate"]) == 4e-3
    assert {int(float(parameters[f"many.p{index}"])) for index in range(120)} == set(range(120))


def test_a_resumed_training_shows_each_step_once(name, tmp_path):
    folder = tmp_path / "a run, 100%"
    train(name, folder, 10, 50)
    train(name, folder, 40, 70, step=30)  # its last checkpoint was older than its last row
    check(name, folder)


@pytest.mark.slow
def test_a_killed_training_keeps_its_rows_and_resumes(tmp_path):
    for package in LOGGERS:
        pytest.importorskip(package, reason="an extra: pip install 'convoy-rl[loggers]'", exc_type=ImportError)
    home, here, folder = tmp_path / "home", tmp_path / "here", tmp_path / "run"
    home.mkdir()
    here.mkdir()
    # MLflow takes these for reasons to keep quiet; a user has none of them
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "PYTEST_CURRENT_TEST")}
    root = Path(__file__).parents[2]
    environment |= {"HOME": str(home), "XDG_CONFIG_HOME": "", "PYTHONPATH": str(root), "AI_AGENT": "claude"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], cwd=here, env=environment, capture_output=True, text=True
    )
    assert (child.returncode, child.stderr) == (-signal.SIGKILL, "")
    before, after, calls = json.loads(child.stdout)
    assert before == after
    assert not calls
    assert not list(home.iterdir()) + list(here.iterdir())
    for name in LOGGERS:
        train(name, folder, 40, 70, step=30)
        check(name, folder)


def test_nothing_is_left_outside_the_folder(name, tmp_path, monkeypatch, capfd):
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = state()
    train(name, Path("../run"), 10, 20)
    assert state() == before
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "home").iterdir()) + list((tmp_path / "here").iterdir())


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow"), ("mlflow", "sqlalchemy")],
)
def test_a_missing_package_names_the_extra_before_any_file_is_made(name, package, tmp_path, monkeypatch):
    others = [other for other in LOGGERS if importlib.util.find_spec(other)]  # none of which may make a file either
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"logger '{name}'.*pip install 'convoy-rl\[loggers\]'"):
        open_loggers([*others, name], tmp_path, CONFIG)
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_is_told_the_nearest(tmp_path):
    with pytest.raises(UserError, match="unknown logger 'wandbb': did you mean 'wandb'"):
        open_loggers(["wandbb"], tmp_path, CONFIG)
    assert open_loggers([], tmp_path, CONFIG) == []
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_the_users_error(name, tmp_path):
    (tmp_path / {"mlflow": "mlflow.db"}.get(name, name)).write_text("something else\n" * 100)
    with pytest.raises(UserError, match="cannot write"):
        open_loggers([name], tmp_path, CONFIG)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"], indirect=True)  # W&B does not say so
def test_a_full_disk_is_the_users_error(name, tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)  # TensorBoard's writer dies in its thread
    [logger] = open_loggers([name], tmp_path, CONFIG)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*(File too large|disk I/O error); free the disk"):
            logger.log(10, row(10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with contextlib.suppress(UserError):
        logger.close()

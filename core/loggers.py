"""Experiment loggers that a training may write to as well: TensorBoard, Weights & Biases and MLflow, all offline."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from core.errors import UserError, nearest
from core.files import check_writable, reason

_PACKAGES = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
_WANDB: dict[str, Any] = {"mode": "offline", "project": "convoy", "resume": "allow", "reinit": "create_new"}
_WANDB |= {"silent": True, "console": "off", "x_disable_machine_info": True, "x_save_requirements": False}
_WANDB |= {"x_transaction_log_flush_interval": 0.05}  # seconds; what is not flushed is lost when the training is killed
#: No usage statistics over the network, no hints to coding agents, no log handlers.
_SILENCE = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_DISABLE_AGENT_HINT": "true"}
_SILENCE |= {"MLFLOW_CONFIGURE_LOGGING": "false", "WANDB_ERROR_REPORTING": "false"}


class Logger(Protocol):
    """Where rows of metrics go. Both methods raise `UserError` where the library says that it cannot write."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the row of a step. Steps rise; one that was there before the logger was opened is passed over."""

    def close(self) -> None:
        """Write what is left and let go of the files. Nothing can be logged afterwards."""


class _TensorBoard:
    """Event files in `folder/tensorboard`; its readers drop the steps that a resumed training takes again."""

    def __init__(self, folder: Path, config: dict[str, Any], step: int):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.folder = folder / "tensorboard"
        check_writable(self.folder)
        with _library(self.folder):
            self.writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else 0)
            for part in hparams(_flat(config), {}):  # add_hparams would make a second event file
                self.writer._get_file_writer().add_summary(part)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        with _library(self.folder):
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def close(self) -> None:
        with _library(self.folder):
            self.writer.close()


class _WeightsAndBiases:
    """Offline runs in `folder/wandb`, one a session and all of one id: `wandb sync` joins them in their order."""

    def __init__(self, folder: Path, config: dict[str, Any], step: int):
        import wandb

        self.wandb = wandb
        self.folder = folder / "wandb"
        check_writable(self.folder)  # wandb itself would turn to the system's temporary folder
        self.shared = "WANDB_SERVICE" in os.environ  # the process that writes is the user's, not ours to end
        sessions = sorted(self.folder.glob("offline-run-*/run-*.wandb"))
        name = sessions[0].stem.removeprefix("run-") if sessions else os.urandom(4).hex()
        with _library(self.folder, wandb.Error, WANDB_CACHE_DIR=str(self.folder / "cache")):
            self.last = next((last for path in reversed(sessions) if (last := _last_step(path)) >= 0), -1)
            settings = wandb.Settings(**_WANDB)
            self.run = wandb.init(dir=folder, name=folder.name, id=name, config=config, settings=settings)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self.last:
            with _library(self.folder, self.wandb.Error):
                self.run.log(dict(metrics), step=step, commit=True)

    def close(self) -> None:
        with _library(self.folder, self.wandb.Error):
            self.run.finish()
            if not self.shared and self.wandb.setup().most_recent_active_run is None:
                self.wandb.teardown()


class _MLflow:
    """One run in `folder/mlflow.db`; a full MLflow shows it: `mlflow ui --backend-store-uri sqlite:///mlflow.db`."""

    def __init__(self, folder: Path, config: dict[str, Any], step: int):
        from mlflow import MlflowClient, MlflowException
        from mlflow.entities import Metric, Param

        self.path = folder / "mlflow.db"
        self.metric, self.error = Metric, MlflowException
        check_writable(folder)
        with _library(self.path, sqlite3.Error), closing(sqlite3.connect(self.path)) as database:
            database.execute("pragma schema_version")  # MLflow would try a broken file again for minutes
        with _library(self.path, MlflowException):
            self.client = client = MlflowClient(tracking_uri=f"sqlite:///{self.path}")
            known = client.get_experiment_by_name("convoy")
            artifacts = (folder / "mlflow-artifacts").as_uri()
            experiment = known.experiment_id if known else client.create_experiment("convoy", artifacts)
            runs = client.search_runs([experiment], max_results=1)
            run = runs[0] if runs else client.create_run(experiment, run_name=folder.name)
            self.id = run.info.run_id
            client.update_run(self.id, "RUNNING")
            params = [Param(key, str(value)) for key, value in _flat(config).items() if key not in run.data.params]
            for start in range(0, len(params), 100):  # the most that MLflow takes at once
                client.log_batch(self.id, params=params[start : start + 100])
            rows = [metric for name in run.data.metrics for metric in client.get_metric_history(self.id, name)]
            self.last = max((metric.step for metric in rows), default=-1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self.last:
            now = int(time.time() * 1000)  # ms
            with _library(self.path, self.error):
                self.client.log_batch(self.id, [self.metric(name, value, now, step) for name, value in metrics.items()])

    def close(self) -> None:
        with _library(self.path, self.error):
            self.client.set_terminated(self.id)


#: What a training can be asked to log to.
LOGGERS: dict[str, Callable[[Path, dict[str, Any], int], Logger]]
LOGGERS = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases, "mlflow": _MLflow}


def open_loggers(names: Sequence[str], folder: Path, config: dict[str, Any], step: int = 0) -> list[Logger]:
    """Loggers by name, each of which keeps its files in `folder`.

    Args:
        names: of LOGGERS. folder: the run's. config: the run's configuration, logged as hyper-parameters.
        step: where the training goes on from; rows that a killed training wrote beyond it do not show up twice.

    Raises:
        UserError: a name is unknown, its package is not installed, or the folder cannot be written.
    """
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"unknown logger {name!r}: {nearest(name, LOGGERS)}")
        try:
            with _library(folder):
                for package in _PACKAGES[name]:
                    import_module(package)
        except ImportError as error:
            raise UserError(f"logger {name!r} cannot be used ({error}): pip install 'convoy-rl[loggers]'") from error
    loggers: list[Logger] = []
    with ExitStack() as opened:
        for name in dict.fromkeys(names):
            loggers.append(LOGGERS[name](folder.resolve(), config, step))
            opened.callback(loggers[-1].close)
        opened.pop_all()
    return loggers


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """A nested configuration as one level of plain values, {"trainer.steps": 5000}; lists and None become text."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in config.items():
        plain = value if isinstance(value, bool | int | float | str) else str(value)
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": plain}
    return flat


def _last_step(path: Path) -> int:
    """The last step in a W&B file, by W&B's own reader; -1 for none, UserError where it cannot be read."""
    command = [sys.executable, "-P", "-m", "wandb", "leet", "inspect", "--json", str(path)]
    here = os.environ | {"TMPDIR": str(path.parent)}  # the command keeps a log there
    records = subprocess.run(command, capture_output=True, text=True, env=here)
    if records.returncode:
        raise UserError(f"{path} cannot be read: {records.stderr.strip()}; delete {path.parent} to go on without it")
    rows = [record["history"] for record in map(json.loads, records.stdout.splitlines()) if "history" in record]
    return max((int(row["item"]["_step"]) for row in rows), default=-1)


@contextmanager
def _library(path: Path, error: type[Exception] = OSError, **environment: str) -> Iterator[None]:
    """Call a library, silent and offline; an OSError or `error` of it is a UserError: `path` cannot be written."""
    before, disabled, hooks = dict(os.environ), logging.root.manager.disable, (sys.excepthook, sys.exit)
    try:
        os.environ.update(_SILENCE | environment)
        logging.disable(logging.CRITICAL)
        yield
    except (OSError, error) as failure:
        said = reason(failure).split(" [SQL:")[0].split("Error) ")[-1]
        raise UserError(f"cannot write {path}: {said}; free the disk or train without this logger") from failure
    finally:
        logging.disable(disabled)
        sys.excepthook, sys.exit = hooks
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)

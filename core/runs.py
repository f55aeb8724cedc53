"""Run folders: a training's full configuration, weights, metrics, versions and evaluations."""

import json
import math
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from core.config import differences
from core.errors import UserError
from core.files import check_writable, write_text

_PACKAGES = ("convoy-rl", "torch", "numpy", "gymnasium", "pettingzoo", "mpe2", "minari")

#: Settings of the trainer that do not change what is learned, so that a resumed run may differ in them.
_FREE = ("trainer.checkpoint_every", "trainer.log_every", "trainer.device")


@dataclass(frozen=True)
class Run:
    """A run's folder and its resolved configuration: task, algo, trainer, dataset and spec."""

    folder: Path
    config: dict[str, Any]

    @staticmethod
    def open(folder: Path) -> "Run":
        """An existing run.

        Raises:
            UserError: the folder holds no run, or its configuration cannot be read.
        """
        path = folder / "config.yaml"
        if not path.is_file():
            raise UserError(f"{folder} is not a run: it has no config.yaml; train one first with convoy train")
        try:
            config = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
        wanted = {"method": str, "task": dict, "algo": dict, "trainer": dict, "dataset": dict, "spec": dict}
        entries = config if isinstance(config, dict) else {}
        wrong = [name for name, kind in wanted.items() if not isinstance(entries.get(name), kind)]
        if not wrong and not {"id", "quality"} <= entries["dataset"].keys():
            wrong = ["dataset"]
        if wrong:
            raise UserError(f"{path} is not a run's configuration: {', '.join(wrong)} missing or not as written")
        return Run(folder, entries)

    @staticmethod
    def create(folder: Path, config: dict[str, Any]) -> "Run":
        """A new run, or the same one to be resumed.

        Raises:
            UserError: the folder cannot be written, or holds a run of another configuration.
        """
        if (folder / "config.yaml").exists():
            run = Run.open(folder)
            changed = [line for line in differences(run.config, config) if not line.startswith(_FREE)]
            if changed:
                raise UserError(
                    f"{folder} holds another run ({'; '.join(changed[:3])}): choose run=another/folder or delete it"
                )
            return run
        check_writable(folder)
        write_text(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        return Run(folder, config)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def method(self) -> str:
        """The run's name in tables."""
        return str(self.config["method"])

    @property
    def dataset(self) -> str:
        """Quality of the data it was trained on."""
        return str(self.config["dataset"]["quality"])

    def append_rows(self, rows: list["Row"]) -> None:
        """Add evaluations to the run's table, evaluations.json."""
        table = [row.as_json() for row in [*self.rows(), *rows]]
        write_text(self.folder / "evaluations.json", json.dumps(table, indent=2) + "\n")

    def rows(self) -> list["Row"]:
        """The run's table.

        Raises:
            UserError: it cannot be read.
        """
        path = self.folder / "evaluations.json"
        if not path.exists():
            return []
        try:
            return [Row.from_json(row) for row in json.loads(path.read_text())]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} cannot be read: {error}; delete it and evaluate again") from error


@dataclass(frozen=True)
class Row:
    """One evaluation of one trained run.

    Attributes:
        dataset, method: what it was trained on, and its algorithm's preset.
        sampler: what it planned with, "" for a method that does not sample. guidance_scale, returns: what was asked
            of it; None where the method takes no such request.
        return_mean: over episodes, of the team's mean return. interval: its 95% confidence interval, infinite for a
            single episode.
        normalised_score: 0 is the random, 100 the scripted expert team; None without references.
        cost_mean: over episodes, of the summed costs per agent. episodes: how many; seed: of the first.
        cost_limit, violation_rate: a budget and the share of episodes above it; None where none was given.
        seconds_per_decision: of the policy, for one team.
        training_steps, training_seconds: of the run, when it was evaluated.
    """

    dataset: str
    method: str
    sampler: str
    guidance_scale: float | None
    returns: float | None
    return_mean: float
    interval: tuple[float, float]
    normalised_score: float | None
    cost_mean: float
    episodes: int
    seed: int
    seconds_per_decision: float
    training_steps: int
    training_seconds: float
    cost_limit: float | None = None
    violation_rate: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data; an infinite interval, which JSON has no number for, is null."""
        interval = list(self.interval) if math.isfinite(self.interval[0]) else None
        return {**asdict(self), "interval": interval}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Row":
        interval = values["interval"] or (-math.inf, math.inf)
        return Row(**{**values, "interval": tuple(interval)})


def versions() -> dict[str, str]:
    """What a result may depend on: packages, Python, the machine and the commit."""
    found = {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "started": time.strftime("%FT%TZ", time.gmtime()),
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["commit"] = _commit()
    return found


def _commit() -> str:
    """The commit of the sources, with "+changes" where they differ from it; "" outside a repository."""
    here = Path(__file__).resolve().parent
    try:

        def git(*arguments: str) -> str:
            command = ["git", "-C", str(here), *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

        if here.parent != Path(git("rev-parse", "--show-toplevel")):
            return ""
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return ""

"""Run folders: a training's full configuration, weights, metrics, versions and evaluations."""

import json
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from core.config import differences
from core.errors import UserError
from core.evaluations import Row, append_rows, read_rows
from core.files import check_writable, write_text

#: LibYAML's safe loader reads a configuration ten times faster, where it is built in.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_PACKAGES = ("convoy-rl", "torch", "numpy", "gymnasium", "pettingzoo", "minari")

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
            config = yaml.load(path.read_text(), Loader=_LOADER)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
        wanted = {"method": str, "task": dict, "algo": dict, "trainer": dict, "dataset": dict, "spec": dict}
        entries = config if isinstance(config, dict) else {}
        wrong = [name for name, kind in wanted.items() if not isinstance(entries.get(name), kind)]
        if not wrong and not {"id", "quality"} <= entries["dataset"].keys():
            wrong = ["dataset"]
        if not wrong and not isinstance(entries["trainer"].get("seed"), int):
            wrong = ["trainer.seed"]
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
            run.refuse_changes(config)
            return run
        check_writable(folder)
        write_text(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        return Run(folder, config)

    def refuse_changes(self, config: dict[str, Any]) -> None:
        """Raise a UserError if the run was made with other entries than those of `config`."""
        mine = {name: self.config.get(name) for name in config}
        changed = [line for line in differences(mine, config) if not line.startswith(_FREE)]
        if changed:
            raise UserError(
                f"{self.folder} holds another run ({'; '.join(changed[:3])}): choose another folder or delete it"
            )

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

    @property
    def evaluations(self) -> Path:
        """The file of the run's evaluations."""
        return self.folder / "evaluations.jsonl"

    def append_rows(self, rows: Sequence[Row]) -> None:
        """Add evaluations to the run's table."""
        append_rows(self.evaluations, rows)

    def rows(self) -> list[Row]:
        """The run's table.

        Raises:
            UserError: it cannot be read.
        """
        return read_rows(self.evaluations)


@cache
def version() -> str:
    """Of the suite, with the commit of its sources where there is one."""
    found = versions()
    changed = "+" if found["commit"].endswith("+changes") else ""
    return f"{found['convoy-rl']} {found['commit'][:12]}{changed}".strip()


def versions() -> dict[str, str]:
    """What a result may depend on: packages, Python, the machine and the commit."""
    found = {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "started": time.strftime("%FT%TZ", time.gmtime()),
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
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

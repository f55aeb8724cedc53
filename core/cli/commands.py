"""What each verb is configured by."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

import marl
import safe
from core.acting import Acting, GuidanceConfig
from core.cli.registry import ALGORITHMS
from core.config import register
from core.data import CurationConfig
from core.data.storage import default_root
from core.device import check_device
from core.errors import UserError, nearest
from core.loggers import LOGGERS
from core.samplers import SamplerConfig
from core.training import TrainerConfig


def _at_least(least: int, command: Any, *names: str) -> None:
    for name in names:
        value = getattr(command, name)
        if not least <= value < 2**62:
            bound = f"at least {least}" if value < least else "below 2^62"
            raise ValueError(f"{name} must be {bound}, got {value}")


@dataclass
class Collect:
    """Roll out a scripted team and write a Minari dataset.

    Attributes:
        quality: the behaviour. episodes: how many. seed: of the first; the others follow it.
        data: folder of datasets, Minari's own unless given. overwrite: replace a dataset of the same id.
        parallel: environments stepped at once.
    """

    task: Any = MISSING
    quality: str = "expert"
    episodes: int = 2000
    seed: int = 0
    data: str | None = None
    overwrite: bool = False
    parallel: int = 256

    def __post_init__(self) -> None:
        _at_least(1, self, "episodes", "parallel")
        _at_least(0, self, "seed")


@dataclass
class Train:
    """Train an algorithm on a dataset; the same command resumes a run that was stopped.

    Attributes:
        dataset: a quality of the task, or a full Minari id. curation: which of its episodes count, and how often.
        data: folder of datasets, Minari's own unless given.
        run: the run's folder, runs/TASK-DATASET-METHOD-sSEED unless given.
        method: the name in tables, the chosen preset of `algo` unless given.
        loggers: that get the metrics as well: tensorboard, wandb (offline), mlflow; see `core.loggers`.
    """

    task: Any = MISSING
    algo: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    curation: CurationConfig = field(default_factory=CurationConfig)
    dataset: str = "expert"
    data: str | None = None
    run: str | None = None
    method: str = ""
    loggers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.loggers:
            if name not in LOGGERS:
                raise ValueError(f"unknown logger {name!r}: {nearest(name, LOGGERS)}")


#: What trains the jobs of a sweep: processes of this machine, or Hydra's launchers, which are extras.
LAUNCHERS = ("local", "joblib", "submitit", "slurm")


@dataclass
class Sweep(Train):
    """Train every combination of comma lists, such as algo=madiff,bc dataset=expert,mixed trainer.seed=0,1,2.

    What is trained already is left as it is, and what was stopped goes on.

    Attributes:
        output: folder of the runs. method: what names them in tables; swept options are added to it.
        cpus: CPU threads of a job. workers: jobs at a time; 0 takes as many as there are cores for.
        minutes: that each training may take in all, 0 for no limit; one that reaches it keeps its checkpoint.
        stack: seeds of a configuration that train as one job, stacked; 0 shares them out among the workers where the
            network is small enough to gain by it (`core.stacking`).
        launcher: "local" processes, "joblib", "submitit" (its local executor) or "slurm".
        options: of the launcher, such as [hydra.launcher.partition=gpu].
        seeds: of one job, set by the sweep.
    """

    output: str = "runs"
    cpus: int = 1
    workers: int = 0
    minutes: float = 0.0
    stack: int = 0
    launcher: str = "local"
    options: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(1, self, "cpus")
        _at_least(0, self, "workers", "minutes", "stack")
        if self.launcher not in LAUNCHERS:
            raise ValueError(f"unknown launcher {self.launcher!r}: {nearest(self.launcher, LAUNCHERS)}")
        if self.trainer.threads not in (1, self.cpus):
            raise ValueError(f"trainer.threads is cpus= in a sweep, got {self.trainer.threads} and {self.cpus}")
        if self.run is not None:
            raise ValueError("run= is one run's folder: convoy sweep takes output=, the folder of all its runs")


@dataclass
class ShiftConfig:
    """How the environments of an evaluation differ from those that a run was trained for; None is as trained.

    Attributes:
        agents, landmarks, missing, circle, speed, max_cycles, prey: of the task, as far as it has them.
    """

    agents: int | None = None
    landmarks: int | None = None
    missing: int | None = None
    circle: int | None = None
    speed: float | None = None
    max_cycles: int | None = None
    prey: str | None = None

    def of(self, task: Any) -> Any:
        """The task with what differs.

        Raises:
            UserError: it makes no task.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name in given:
            if not hasattr(task, name):
                raise UserError(f"shift.{name} means nothing to {task.name}, which has no {name}")
        try:
            return replace(task, **given)
        except ValueError as error:
            words = ", ".join(f"{name} {value}" for name, value in given.items())
            raise UserError(f"{words} makes no task of {task.name}: {error}") from error

    def label(self, task: Any) -> str:
        """What differs from the task."""
        shifted = self.of(task)
        words = [
            f"{name} {getattr(shifted, name)}"
            for name in vars(self)
            if getattr(shifted, name, None) != getattr(task, name, None)
        ]
        return ", ".join(words)


@dataclass
class Evaluate(Acting):
    """Roll out trained runs in their environments.

    Attributes:
        shift: how the environments differ from those trained for, such as shift.agents=5 or shift.speed=0.5.
        run: a run's folder, or one that holds runs. episodes: how many. seed: of the first; the others follow it.
        parallel: environments stepped at once, with one planning call for all of them.
        guidance: what is asked of it; `budget=` for short sets guidance.budget, which costs are held against as well.
        device: "auto" takes CUDA where there is one. threads: CPU threads of a process.
        workers: processes that share the cells of a grid; 0 takes one for each core.
    """

    run: str = MISSING
    shift: ShiftConfig = field(default_factory=ShiftConfig)
    episodes: int = 200
    seed: int = 1_000_000
    parallel: int = 256
    device: str = "auto"
    threads: int = 1
    workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(1, self, "episodes", "parallel", "threads")
        _at_least(0, self, "seed", "workers")
        check_device(self.device)
        if not self.run:
            raise ValueError("run= is empty: name a run's folder, or one that holds runs")


@dataclass
class Demo:
    """The whole story: two datasets, MADiff and three baselines on each, the guidance ablation, a report.

    Attributes:
        output: folder of the demo. collected: episodes of each dataset. episodes: of each evaluation.
        datasets: qualities of mpe/spread. planner, baselines: presets of `algo`.
        scales: guidance scales of the planner. returns: the rank that planner and baselines are asked for.
        overrides: further options of every training. seed: of everything.
        workers: processes, with one CPU thread each; 0 takes one for each core.
    """

    output: str = "runs/demo"
    collected: int = 2000
    episodes: int = 256
    datasets: list[str] = field(default_factory=lambda: ["expert", "mixed"])
    planner: str = "madiff"
    baselines: list[str] = field(default_factory=lambda: ["bc", "bc_returns", "bc_best"])
    scales: list[float] = field(default_factory=lambda: [0.0, 1.0, 1.4, 2.0])
    returns: float = 0.9
    overrides: list[str] = field(default_factory=list)
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        _at_least(1, self, "collected", "episodes")
        _at_least(0, self, "seed", "workers")
        GuidanceConfig(returns=self.returns)


def register_schemas() -> None:
    """Tell Hydra of every dataclass that the YAML files build on."""
    for command in (Collect, Train, Sweep, Evaluate, Demo):
        register(f"schema_{command.__name__.lower()}", command)
    for name, algorithm in ALGORITHMS.items():
        register(f"schema_{name}", algorithm.config_class, "algo")
    register("schema", marl.TaskConfig, "task")
    register("schema_safe", safe.SafeTaskConfig, "task")
    register("schema", TrainerConfig, "trainer")
    register("schema", SamplerConfig, "sampler")
    register("schema", GuidanceConfig, "guidance")


def data_root(data: str | None) -> Path:
    """The folder of datasets that a command works with."""
    return (Path(data).expanduser() if data else default_root()).resolve()

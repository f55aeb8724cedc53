"""Jobs through Hydra's launcher plugins: joblib or submitit on this machine, submitit in a Slurm queue.

A plugin is driven as Hydra's sweeper drives it, but keeps its files in one folder and leaves the loggers alone.
"""

import math
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig

from core.cli.commands import register_schemas
from core.config import compose_config, grid
from core.errors import UserError, nearest
from core.files import check_writable

#: Hydra's names of the launchers.
LAUNCHERS = {"joblib": "joblib", "submitit": "submitit_local", "slurm": "submitit_slurm"}
#: Minutes that submitit grants beyond a job's own limit: to start in, and it warns Slurm's jobs two before the end.
MARGIN = 10
#: Minutes that stand for no limit: submitit wants a number.
YEAR = 365 * 24 * 60


def launch(
    launcher: str,
    config_name: str,
    jobs: Sequence[Sequence[str]],
    function: Callable[[DictConfig], Any],
    *,
    folder: Path,
    workers: int,
    cpus: int,
    minutes: float,
    options: Sequence[str] = (),
) -> list[Any]:
    """Call a function with each job's configuration, in other processes, and return the results in order.

    Failures are raised when all jobs are done. Stopped itself, this stops the jobs.

    Args:
        launcher: "joblib", "submitit" or "slurm". "submitit" runs the jobs in batches of `workers`, and hides all GPUs
            that hydra.launcher.gpus_per_node= does not ask for.
        config_name: the configuration in the package `configs`. jobs: overrides of each.
        function: one that a fresh process can import.
        folder: where the launcher keeps its files; Slurm's nodes must share it.
        workers: jobs at a time. cpus: of a job, and its threads in PyTorch.
        minutes: a job's own limit, 0 for none; submitit ends the job `MARGIN` minutes later, joblib never does.
        options: further overrides of the plugin, such as hydra.launcher.partition=gpu.

    Raises:
        UserError: an unknown launcher or override, no plugin, no Slurm, jobs that it refuses, a folder that cannot be
            written, a job that raised one or whose process was ended.
        RuntimeError: a job failed in another way; the message has its traceback.
        KeyboardInterrupt: this process or a job was asked to stop.
    """
    register_schemas()
    if launcher not in LAUNCHERS:
        raise UserError(f"unknown launcher {launcher!r}: {nearest(launcher, LAUNCHERS)}")
    folder = folder.expanduser().resolve()
    timeout = math.ceil(minutes) + MARGIN if minutes else YEAR
    settings = _settings(launcher, folder, workers, cpus, timeout)
    plugin = _plugin(launcher, config_name, partial(_outcome, function, cpus, Path.cwd()), settings, options)
    if launcher == "slurm" and not shutil.which("srun"):
        raise UserError("there is no Slurm here: srun is not found; choose joblib or submitit, or go to a cluster")
    for job in jobs:  # a mistake that only a worker finds would end the other jobs
        compose_config(config_name, job)
    composed = [next(grid(job)) for job in jobs]
    check_writable(folder)
    batch = workers if launcher == "submitit" else max(len(jobs), 1)
    runs: list[Any] = []
    for first in range(0, len(jobs), batch):
        with nullcontext() if launcher == "joblib" else _submitting():
            try:
                runs += plugin.launch(composed[first : first + batch], initial_job_idx=first)
            except BrokenProcessPool as error:
                reason = str(error).partition(". ")[0]
                raise UserError(f"{reason}, and all jobs with it; run the command again with fewer workers") from error
    return _results(jobs, [run.return_value if isinstance(run, JobReturn) else run for run in runs])


def _settings(launcher: str, folder: Path, workers: int, cpus: int, timeout: int) -> list[str]:
    """What a plugin is told, as overrides."""
    quoted = str(folder).replace("'", "\\'")
    settings: dict[str, Any] = {"sweep.dir": f"'{quoted}'", "sweep.subdir": ".", "output_subdir": "null"}
    settings |= {"job.name": "convoy", "job.chdir": "false"}
    if launcher == "joblib":
        # A single worker would be this very process; what is dispatched ahead limits the jobs at a time too.
        settings |= {"launcher.n_jobs": max(workers, 2), "launcher.pre_dispatch": workers, "launcher.batch_size": 1}
    else:
        # Files are named by process or job, and those numbers come again.
        own = f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
        settings |= {"launcher.submitit_folder": f"'{quoted}/{own}/%j'"}
        settings |= {"launcher.cpus_per_task": cpus, "launcher.timeout_min": timeout}
        # On this machine submitit would start a job that reached its limit three times more.
        settings |= {"launcher.array_parallelism": workers} if launcher == "slurm" else {"launcher.max_num_timeout": 0}
    chosen = [f"hydra/launcher={LAUNCHERS[launcher]}", "hydra/hydra_logging=none", "hydra/job_logging=none"]
    return [*chosen, *(f"++hydra.{key}={value}" for key, value in settings.items())]


def _plugin(
    launcher: str,
    config_name: str,
    task: Callable[[DictConfig], tuple[str, Any]],
    settings: list[str],
    options: Sequence[str],
) -> Any:
    """The plugin, ready to launch. Hydra's global state is back as it was, so that workers can compose as well."""
    with initialize_config_module("configs", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        if LAUNCHERS[launcher] not in loader.get_group_options("hydra/launcher"):
            raise UserError(f"launcher {launcher!r} is not installed: pip install 'convoy-rl[launchers]'")
        known = compose(config_name, settings, return_hydra_config=True).hydra.launcher
        given = [f"++{_option(option, list(known))}" for option in options]
        try:
            config = compose(config_name, [*settings, *given], return_hydra_config=True)
        except HydraException as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"{' '.join(options)} does not fit launcher {launcher!r}: {reason}") from error
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)


def _option(option: str, known: list[str]) -> str:
    """A user's override of the plugin as Hydra reads it."""
    lines = list(grid([option]))
    key = option.partition("=")[0]
    keys = [f"hydra.launcher.{name}" for name in known if name not in ("_target_", "submitit_folder")]
    if not any(f"{key}.".startswith(f"{name}.") for name in keys):
        raise UserError(f"unknown option {key!r} of the launcher: {nearest(key, keys)}")
    if len(lines) > 1:
        raise UserError(f"{option!r} is several values, and a launcher takes one: put it in quotes")
    return lines[0][0]


def _outcome(function: Callable[[DictConfig], Any], cpus: int, place: Path, config: DictConfig) -> tuple[str, Any]:
    """What became of a job, told by its process: an exception would lose its traceback on the way."""
    os.chdir(place)  # joblib's processes are kept for the next launch, which may be made from elsewhere
    torch.set_num_threads(cpus)
    try:
        return "result", function(config)
    except UserError as error:
        return "mistake", str(error)
    except KeyboardInterrupt:
        return "stopped", ""
    except Exception:
        return "failure", traceback.format_exc()


@contextmanager
def _submitting() -> Iterator[None]:
    """Wait for all jobs, and cancel them when stopped: by itself the plugin leaves the others at the first death."""
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError

    executor: Any = AutoExecutor
    map_array = executor.map_array
    started: list[Any] = []

    def submit(*arguments: Any) -> list[SimpleNamespace]:
        started.extend(map_array(*arguments))
        return [SimpleNamespace(results=partial(_answer, job)) for job in started]

    executor.map_array = submit
    try:
        yield
    except FailedJobError as error:
        raise UserError(f"the jobs were refused: {error}; change them or the launcher's options") from error
    except KeyboardInterrupt:
        for job in started:
            job.cancel(check=False)
        raise
    finally:
        executor.map_array = map_array


def _answer(job: Any) -> list[Any]:
    """What a submitted job came to, also where it ended without a word."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return list(job.results())
    except FailedJobError as error:
        return [("failure", str(error))]
    except UncompletedJobError:
        return [("mistake", f"it was ended, {job.paths.stderr} may say why; run the command again")]


def _results(jobs: Sequence[Sequence[str]], outcomes: Sequence[tuple[str, Any]]) -> list[Any]:
    """The results, once all jobs have one."""
    names = [f"job {n} of {len(jobs)} ({' '.join(job)})" for n, job in enumerate(jobs, 1)]
    told = [(name, *outcome) for name, outcome in zip(names, outcomes, strict=True)]
    if any(kind == "stopped" for _, kind, _ in told):
        raise KeyboardInterrupt
    if failures := [f"{name} failed:\n{trace}" for name, kind, trace in told if kind == "failure"]:
        raise RuntimeError("\n".join(failures))
    if mistakes := [f"{name}: {message}" for name, kind, message in told if kind == "mistake"]:
        others = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        raise UserError(mistakes[0] + others)
    return [value for _, _, value in told]

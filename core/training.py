"""The one training loop: any algorithm, resumable at any moment to the same weights."""

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from core import checkpoints
from core.algorithm import Algorithm, Batches, Phase
from core.device import check_device
from core.ema import EMA
from core.errors import UserError
from core.files import write_text
from core.stacking import Stack

CHECKPOINT = "checkpoint.safetensors"
DECAYS = ("cosine", "none")


@dataclass
class TrainerConfig:
    """How an algorithm is trained.

    Attributes:
        steps: training steps. batch_size: items a step. learning_rate: of Adam, after `warmup` steps of linear rise.
        decay: "cosine" lets the learning rate fall to 0 at the last step, "none" keeps it.
        ema: decay of the averaged parameters, which are the ones that act. gradient_clip: largest norm, 0 for none.
        checkpoint_every, log_every: steps between checkpoints and between rows of the metrics.
        seed: of the initial weights, the data order and the noise.
        device: "auto" takes CUDA where there is one. threads: CPU threads; small networks are fastest with one.
    """

    steps: int = 5000
    batch_size: int = 64
    learning_rate: float = 4e-3
    warmup: int = 200
    decay: str = "cosine"
    ema: float = 0.999
    gradient_clip: float = 0.0
    checkpoint_every: int = 500
    log_every: int = 50
    seed: int = 0
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "log_every", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"trainer.learning_rate must be positive, got {self.learning_rate}")
        if self.warmup < 0 or self.gradient_clip < 0:
            raise ValueError("trainer.warmup and trainer.gradient_clip must be at least 0")
        if not 0 <= self.ema < 1:
            raise ValueError(f"trainer.ema lies in [0, 1), got {self.ema}")
        if self.decay not in DECAYS:
            raise ValueError(f"unknown trainer.decay {self.decay!r}: choose one of {', '.join(DECAYS)}")
        if not 0 <= self.seed < 2**62:
            raise ValueError(f"trainer.seed must be at least 0 and below 2^62, got {self.seed}")
        check_device(self.device, "trainer.device")


class DivergenceError(UserError):
    """A loss is not finite. The last checkpoint is from before."""


class Trainer:
    """Trains an algorithm, or a stack of several seeds of it, on prepared batches and keeps its state in run folders.

    `checkpoint.safetensors` holds the weights, their averages, the optimisers' state, the generator and the step;
    `metrics.csv` a row every `log_every` steps. A trainer made in a folder that has them goes on from there. Each seed
    of a stack has its own folder, with the files that it would have alone; they must be of one step to go on together.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        batches: Batches,
        config: TrainerConfig,
        *folders: Path,
        stack: Stack | None = None,
        seeds: Sequence[int] = (),
    ):
        """Args: folders: of the run, or of each run of a stack. stack: whose `algorithm` it is, of these `seeds`."""
        self.algorithm = algorithm
        self.stack = stack
        self.folders = folders
        self.batches = batches
        self.config = config
        self.device = next(algorithm.parameters()).device
        self.phases = list(algorithm.phases())
        self.optimisers = [
            torch.optim.Adam(phase.parameters, config.learning_rate, fused=True) for phase in self.phases
        ]
        self.ema = EMA(algorithm, config.ema)
        self.generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds or [config.seed]]
        self.step = 0
        self.seconds = 0.0  # of one run: its share of a stack's
        self.tables: list[list[dict[str, float]]] = [[] for _ in folders]
        self.sums: dict[str, Tensor] = {}  # [S, 2]: each metric's sum since the last row, and how many made it
        if any(path.exists() for path in self.checkpoints):
            self._resume()

    @property
    def checkpoints(self) -> list[Path]:
        """The file of each run."""
        return [folder / CHECKPOINT for folder in self.folders]

    def run(
        self,
        progress: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the last step, or until `stop()` says so between two steps; a checkpoint is written either way.

        Returns whether the training is complete. `progress` is told of each new row of the metrics.

        Raises:
            DivergenceError: the loss is not finite.
            UserError: nothing can be written to the folder.
        """
        config = self.config
        self.algorithm.train()
        clock = time.perf_counter()
        try:
            while self.step < config.steps:
                if stop():
                    self.save()
                    return False
                for name, value in self._train_step().items():
                    pair = torch.stack([value.float(), torch.ones_like(value, dtype=torch.float32)], dim=-1)
                    self.sums[name] = self.sums[name] + pair if name in self.sums else pair
                self.step += 1
                self.seconds += (time.perf_counter() - clock) / len(self.folders)
                clock = time.perf_counter()
                if self.step % config.log_every == 0 or self.step == config.steps:
                    self._log()
                    progress(self.step, self.rows[-1])
                if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                    self.save()
        except (MemoryError, RuntimeError) as error:
            if "memory" not in str(error).lower():
                raise
            raise UserError("out of memory: lower trainer.batch_size or the size of the network") from error
        except FloatingPointError as error:
            raise DivergenceError(f"{error}; lower trainer.learning_rate or set trainer.gradient_clip") from error
        return True

    def _train_step(self) -> dict[str, Tensor]:
        config = self.config
        loss_of = self._losses()
        rate = self.learning_rate(self.step)
        metrics: dict[str, Tensor] = {}
        for phase, optimiser in zip(self.phases, self.optimisers, strict=True):
            if self.step % phase.every:
                continue
            for group in optimiser.param_groups:
                group["lr"] = rate
            losses = loss_of(phase)
            optimiser.zero_grad(set_to_none=True)
            losses["loss"].sum().backward(inputs=list(phase.parameters))  # and nothing of other phases
            if config.gradient_clip and self.stack:
                self.stack.clip(phase.parameters, config.gradient_clip)
            elif config.gradient_clip:
                nn.utils.clip_grad_norm_(phase.parameters, config.gradient_clip)
            optimiser.step()
            for name, value in losses.items():
                key = name if len(self.phases) == 1 else f"{phase.name}.{name}"
                metrics[key] = value.detach().reshape(-1)
        self.algorithm.after_step()
        self.ema.update()
        return metrics

    def _losses(self) -> Callable[[Phase], dict[str, Tensor]]:
        """The losses of this step's items, each seed's its own."""
        shape, device = (self.config.batch_size,), self.device
        index = [torch.randint(len(self.batches), shape, generator=one, device=device) for one in self.generators]
        if stack := self.stack:
            return lambda phase: stack.losses(phase, self.batches, torch.stack(index), self.generators)
        batch = self.batches.gather(index[0])
        return lambda phase: phase.loss(batch, self.generators[0])

    def learning_rate(self, step: int) -> float:
        config = self.config
        rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup))
        if config.decay == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / config.steps))
        return rate

    @property
    def rows(self) -> list[dict[str, float]]:
        """The metrics of the training, the first one's of a stack."""
        return self.tables[0]

    def _means(self) -> list[dict[str, float]]:
        """Each training's means of the metrics since the last row, over the steps that measured them.

        Raises:
            FloatingPointError: one is not finite.
        """
        if not self.sums:
            return [{} for _ in self.folders]
        names = list(self.sums)
        sums = torch.stack(list(self.sums.values()))
        columns = (sums[..., 0] / sums[..., 1]).T.tolist()
        means = [dict(zip(names, column, strict=True)) for column in columns]
        for folder, row in zip(self.folders, means, strict=True):
            if not all(map(math.isfinite, row.values())):
                raise FloatingPointError(f"training of {folder.name} diverged before step {self.step}: {row}")
        return means

    def _log(self) -> None:
        for table, means in zip(self.tables, self._means(), strict=True):
            table.append({"step": self.step, "seconds": round(self.seconds, 3), **means})
        self.sums = {}

    def save(self) -> None:
        """Write the metrics, then the checkpoint: a checkpoint never knows of rows that are not there."""
        self._means()  # no checkpoint of a training that diverged
        for folder, table in zip(self.folders, self.tables, strict=True):
            write_metrics(folder / "metrics.csv", table)
        tensors, metadata = self._state()
        parts = self.stack.members(tensors) if self.stack else [tensors]
        checkpoints.save_all(self.checkpoints, [(part, metadata) for part in parts])

    def _state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of a checkpoint, or of a stack's."""
        tensors = {f"model.{name}": value for name, value in self.algorithm.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.average.items()}
        for phase, optimiser in zip(self.phases, self.optimisers, strict=True):
            tensors |= checkpoints.optimiser_tensors(optimiser, f"optimiser.{phase.name}.")
        tensors |= {f"sums.{name}": pair if self.stack else pair[0] for name, pair in self.sums.items()}
        states = torch.stack([generator.get_state() for generator in self.generators])
        tensors["generator"] = states if self.stack else states[0]
        metadata = {"step": str(self.step), "ema_updates": str(self.ema.updates), "seconds": repr(self.seconds)}
        return tensors, metadata

    def _resume(self) -> None:
        loaded = [checkpoints.load(path) for path in self.checkpoints]
        parts, metadata = [part for part, _ in loaded], loaded[0][1]
        if len({other["step"] for _, other in loaded}) > 1:
            raise ValueError(f"the runs of a stack must be of one step: {[other['step'] for _, other in loaded]}")
        tensors = self.stack.joined(parts) if self.stack else parts[0]
        checkpoints.load_state(self.algorithm, checkpoints.strip(tensors, "model."), self.checkpoints[0])
        self.ema.load(checkpoints.strip(tensors, "ema."), int(metadata["ema_updates"]))
        for phase, optimiser in zip(self.phases, self.optimisers, strict=True):
            checkpoints.load_optimiser(optimiser, checkpoints.strip(tensors, f"optimiser.{phase.name}."))
        size = len(self.generators)
        for generator, state in zip(self.generators, tensors["generator"].reshape(size, -1), strict=True):
            generator.set_state(state.clone())
        self.step = int(metadata["step"])
        self.seconds = max(float(other["seconds"]) for _, other in loaded)
        sums = checkpoints.strip(tensors, "sums.")
        self.sums = {name: pair.to(self.device).reshape(size, 2) for name, pair in sums.items()}
        for index, folder in enumerate(self.folders):
            self.tables[index] = [row for row in read_metrics(folder / "metrics.csv") if row["step"] <= self.step]


def write_metrics(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write a metrics file whole."""
    table = io.StringIO()
    if rows:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(table, fieldnames=names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    write_text(path, table.getvalue())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics file, empty where there is none.

    Raises:
        UserError: it cannot be read.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        return [{**row, "step": int(row["step"])} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}; delete it to go on without it") from error

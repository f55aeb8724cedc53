"""A trained planner in one to four steps: MADiff distilled into a consistency model (Song et al. 2023)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from core.acting import Acting, GuidanceConfig
from core.algorithm import Algorithm, Phase
from core.consistency import ConsistencyModel, consistency_loss
from core.data import Trajectories, WindowBatch, Windows
from core.environments import TeamSpec
from core.errors import UserError
from core.guidance import ClassifierFree
from marl.madiff import MADiff
from marl.madiff_config import MADiffConfig
from marl.planning import MADiffPolicy


@dataclass
class DistilledConfig:
    """Distillation of a trained MADiff run. The settings are ours.

    Attributes:
        teacher: folder of the trained run; it is read when training begins, and not needed afterwards.
        scale: of the teacher's classifier-free guidance, which the student makes its own.
        levels: of the teacher's grid. boundary: see `core.ConsistencyModel`. target_decay: of the target's average.
        planner: the teacher's configuration, taken from its run.
    """

    name: str = "distilled"
    teacher: str = ""
    scale: float = 1.2
    levels: int = 18
    boundary: float = 0.05
    target_decay: float = 0.99
    planner: MADiffConfig | None = None

    def __post_init__(self) -> None:
        if self.name != "distilled":
            raise ValueError(f"algo.name is distilled here, got {self.name!r}: choose another algorithm with algo=")
        if self.levels < 2 or not 0 <= self.target_decay < 1 or not self.boundary > 0:
            raise ValueError("algo.levels must be at least 2, algo.target_decay in [0, 1) and algo.boundary positive")


class Distilled(Algorithm):
    """A MADiff planner whose denoiser is a consistency model; it acts by consistency sampling."""

    config_class = DistilledConfig

    def __init__(self, config: DistilledConfig, spec: TeamSpec):
        super().__init__(config, spec)
        if config.planner is None:
            raise ValueError("a distilled planner needs algo.teacher=FOLDER, a trained madiff run")
        self.planner = MADiff(config.planner, spec)
        self.planner.requires_grad_(False).denoiser.requires_grad_(True)  # inverse dynamics stay the teacher's
        self.target = copy.deepcopy(self.student).requires_grad_(False)
        self._teacher: list[MADiff] = []  # in a list, so that its weights are no part of this run's

    @property
    def student(self) -> ConsistencyModel:
        """The planner's own network, read as a consistency model."""
        return ConsistencyModel(self.planner.denoiser, self.config.boundary)

    @staticmethod
    def completed(config: DistilledConfig) -> DistilledConfig:
        return replace(config, planner=_load(config).config) if config.teacher else config

    @staticmethod
    def uses(config: DistilledConfig) -> frozenset[str]:
        return frozenset({"sampler", "planning", "returns"})

    def prepare(self, trajectories: Trajectories) -> Windows:
        device = next(self.parameters()).device
        teacher = _load(self.config).to(device).requires_grad_(False)
        if teacher.spec != self.spec:
            raise UserError(f"the teacher {self.config.teacher} plans for {teacher.spec}, the data are of {self.spec}")
        self._teacher = [teacher]
        self.planner.load_state_dict(teacher.state_dict())
        self.target.denoiser.load_state_dict(teacher.denoiser.state_dict())
        return self.planner.windows(trajectories)

    def phases(self) -> Sequence[Phase]:
        return [Phase("student", list(self.student.parameters()), self._loss)]

    def _loss(self, batch: WindowBatch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        x0 = self.planner.clean(batch)
        (teacher,) = self._teacher
        loss = consistency_loss(
            self.student,
            self.target,
            ClassifierFree(teacher.denoiser, self.config.scale),
            x0,
            clamp=self.planner.given(batch, generator),
            weights=None if batch.present is None else batch.present[..., None],
            cond=batch.ranks,
            levels=self.config.levels,
            generator=generator,
        )
        return {"loss": loss}

    @torch.no_grad()
    def after_step(self) -> None:
        weight = 1 - self.config.target_decay
        torch._foreach_lerp_(list(self.target.parameters()), list(self.student.parameters()), weight)

    def policy(self, acting: Acting, guidance: Sequence[GuidanceConfig] = ()) -> MADiffPolicy:
        if acting.sampler.name != "consistency":
            raise UserError(
                f"a distilled planner samples with sampler=consistency and sampler.steps=1 to 4, "
                f"not with {acting.sampler.name}"
            )
        acting = replace(acting, guidance=replace(acting.guidance, scale=1.0))
        guidance = [replace(one, scale=1.0) for one in guidance]
        return MADiffPolicy(self.planner, acting, guidance, self.student)


def _load(config: DistilledConfig) -> MADiff:
    if not config.teacher:
        raise UserError("distillation needs algo.teacher=FOLDER, a trained madiff run")
    return MADiff.load(config.teacher)

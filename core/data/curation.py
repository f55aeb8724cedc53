"""Which of a dataset's episodes are learned from, and how often: the same for every algorithm."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.data.trajectories import Trajectories

#: Ranks of the thresholds where they are asked for as quantiles: those of DOM2 for medium-replay.
QUANTILES = (0.5, 0.75, 0.875, 0.875)
REWEIGHT = ("none", "quantiles", "thresholds")


@dataclass
class CurationConfig:
    """Which episodes are learned from, and how often.

    Attributes:
        share: of the episodes, evenly spread over the dataset.
        reweight: DOM2's trajectory reweighting, "none", by "quantiles" of the data's returns, or by `thresholds`.
        thresholds: returns, each of which an episode must exceed to count once more.
    """

    share: float = 1.0
    reweight: str = "none"
    thresholds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"curation.share is a share in (0, 1], got {self.share}")
        if self.reweight not in REWEIGHT:
            raise ValueError(f"unknown curation.reweight {self.reweight!r}: choose one of {', '.join(REWEIGHT)}")
        if (self.reweight == "thresholds") != bool(self.thresholds) or not all(map(math.isfinite, self.thresholds)):
            raise ValueError(
                f"curation.thresholds are returns for curation.reweight=thresholds, got {self.thresholds} for "
                f"{self.reweight}"
            )

    def of(self, trajectories: Trajectories) -> Trajectories:
        """The trajectories to learn from. Those that count more often are there as often.

        Raises:
            ValueError: fewer than one episode is left.
        """
        if self.share < 1:
            count = round(self.share * trajectories.episodes)
            if count < 1:
                raise ValueError(f"curation.share={self.share} of {trajectories.episodes} episodes is none")
            trajectories = trajectories.subset(torch.arange(count) * trajectories.episodes // count)
        if self.reweight == "none":
            return trajectories
        scores = trajectories.scores
        levels = scores.quantile(scores.new_tensor(QUANTILES)) if self.reweight == "quantiles" else self.thresholds
        return trajectories.subset(
            torch.arange(len(scores)).repeat_interleave(weights(scores, torch.as_tensor(levels)))
        )


def weights(scores: Tensor, thresholds: Tensor) -> Tensor:
    """How often each episode counts, [E] integers: 1 + the number of thresholds that its return exceeds (DOM2,
    section 4.3)."""
    return 1 + (scores[:, None] > thresholds.to(scores)).sum(dim=1)

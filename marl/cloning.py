"""Behaviour cloning: what imitation alone, and knowledge of returns alone, buy."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.algorithm import Acting, Algorithm, GuidanceConfig, Phase, TeamSpec
from core.data import Affine, Trajectories, return_ranks
from core.networks import mlp
from core.rollout import Context, Reactive


@dataclass
class CloningConfig:
    """Per-agent cloning with weights shared across agents.

    Attributes:
        hidden, layers: of the policy's MLP.
        condition: True adds the return rank to its input (RvS, Emmons et al. 2022).
        best: share of the episodes, best returns first, that is cloned (x% BC, Chen et al. 2021).
        discount: of the return that is conditioned on.
    """

    name: str = "cloning"
    hidden: int = 256
    layers: int = 2
    condition: bool = False
    best: float = 1.0
    discount: float = 1.0

    def __post_init__(self) -> None:
        if self.name != "cloning":
            raise ValueError(f"algo.name is cloning here, got {self.name!r}: choose another algorithm with algo=")
        if not 0 < self.best <= 1:
            raise ValueError(f"algo.best is a share in (0, 1], got {self.best}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"algo.discount lies in (0, 1], got {self.discount}")
        if self.hidden < 1 or self.layers < 1:
            raise ValueError(f"algo.hidden and algo.layers must be at least 1, got {self.hidden} and {self.layers}")


@dataclass(frozen=True)
class _Batch:
    inputs: Tensor  # [B, A, O (+ 1)]
    actions: Tensor  # [B, A, U]


@dataclass(frozen=True)
class _Decisions:
    """Every decision of the cloned episodes."""

    inputs: Tensor
    actions: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def gather(self, index: Tensor) -> _Batch:
        return _Batch(self.inputs[index], self.actions[index])


class Cloning(Algorithm):
    """Mean squared error of each agent's action given its own observation, and its return rank where conditioned."""

    config_class = CloningConfig
    stackable = True

    def __init__(self, config: CloningConfig, spec: TeamSpec):
        super().__init__(config, spec)
        self.normaliser = Affine(spec.observation_dim)
        self.net = mlp(spec.observation_dim + config.condition, spec.action_dim, config.hidden, config.layers)

    @staticmethod
    def uses(config: CloningConfig) -> frozenset[str]:
        return frozenset({"returns"} if config.condition else ())

    def prepare(self, trajectories: Trajectories) -> _Decisions:
        device = self.normaliser.shift.device
        ranks = return_ranks(trajectories, self.config.discount)
        rows = trajectories.decisions
        if self.config.best < 1:
            count = max(1, round(self.config.best * trajectories.episodes))
            chosen = torch.zeros(trajectories.episodes, dtype=torch.bool)
            chosen[trajectories.scores.topk(count).indices] = True
            rows = rows[chosen[trajectories.episode[rows]]]
        observations = trajectories.observations[rows].to(device)
        self.normaliser.fit(observations)
        return _Decisions(
            self._inputs(observations, ranks[rows][..., None].to(device)), trajectories.actions[rows].to(device)
        )

    def _inputs(self, observations: Tensor, ranks: Tensor) -> Tensor:
        normalised = self.normaliser(observations)
        return torch.cat([normalised, ranks], dim=-1) if self.config.condition else normalised

    def phases(self) -> Sequence[Phase]:
        return [Phase("policy", list(self.parameters()), self._loss)]

    def _loss(self, batch: _Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": ((self.net(batch.inputs) - batch.actions) ** 2).mean()}

    @torch.no_grad()
    def act(self, observations: Tensor, returns: float | Tensor) -> Tensor:
        """[B, A, O] -> [B, A, U], with one return rank for all or [B]."""
        observations = observations.to(self.normaliser.shift.device)
        ranks = torch.as_tensor(returns, dtype=observations.dtype, device=observations.device).reshape(-1, 1, 1)
        ranks = ranks.expand_as(observations[..., :1])
        return self.net(self._inputs(observations, ranks)).clamp(-1, 1)

    def policy(self, acting: Acting, guidance: Sequence[GuidanceConfig] = ()) -> "CloningPolicy":
        return CloningPolicy(self, acting, guidance)


class CloningPolicy(Reactive):
    """Acts for every agent from its own observation."""

    def __init__(self, cloning: Cloning, acting: Acting, guidance: Sequence[GuidanceConfig] = ()):
        self.cloning = cloning
        self.guidance = guidance
        self.returns: float | Tensor = acting.guidance.returns

    def reset(self, seeds: Sequence[int]) -> None:
        if self.guidance:
            _, self.returns = GuidanceConfig.of_episodes(self.guidance, seeds)

    def act(self, observations: Tensor, context: Context) -> Tensor:
        return self.cloning.act(observations, self.returns)

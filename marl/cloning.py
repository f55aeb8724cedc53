"""Behaviour cloning: what imitation alone, and knowledge of returns alone, buy."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.acting import Acting, Asked, GuidanceConfig
from core.actions import action_loss, execute
from core.algorithm import Algorithm, Phase
from core.data import Affine, Trajectories, return_ranks
from core.environments import TeamSpec
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
class _Decisions:
    """N decisions of teams, or those of a batch.

    Attributes:
        inputs: [N, A, O], and the return rank where conditioned. actions: [N, A, U].
        legal: [N, A, U]. present: [N, A]. None where nothing restricts them.
    """

    inputs: Tensor
    actions: Tensor
    legal: Tensor | None
    present: Tensor | None

    def __len__(self) -> int:
        return len(self.inputs)

    def gather(self, index: Tensor) -> "_Decisions":
        masks = (None if mask is None else mask[index] for mask in (self.legal, self.present))
        return _Decisions(self.inputs[index], self.actions[index], *masks)


class Cloning(Algorithm):
    """Each agent's action given its own observation, and its return rank where conditioned.

    The loss is the mean squared error, or the cross-entropy among the legal choices, of the agents that take part.
    """

    config_class = CloningConfig
    stackable = True
    real: Tensor | None

    def __init__(self, config: CloningConfig, spec: TeamSpec):
        super().__init__(config, spec)
        self.normaliser = Affine(spec.observation_dim)
        # Which entries of each agent's observation are its own, [A, O]; the others are padding.
        sizes = torch.tensor(spec.sizes)[:, None] if spec.sizes else None
        real = None if sizes is None else torch.arange(spec.observation_dim) < sizes
        self.register_buffer("real", real, persistent=False)
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
        legal, present = (
            None if mask is None else mask[rows].to(device) for mask in (trajectories.legal, trajectories.present)
        )
        counted = self.real
        if present is not None:
            counted = present[..., None] if counted is None else present[..., None] & counted
        self.normaliser.fit(observations, counted)
        inputs = self._inputs(observations, ranks[rows][..., None].to(device))
        return _Decisions(inputs, trajectories.actions[rows].to(device), legal, present)

    def _inputs(self, observations: Tensor, ranks: Tensor) -> Tensor:
        normalised = self.normaliser(observations)
        if self.real is not None:
            normalised = torch.where(self.real, normalised, 0.0)
        return torch.cat([normalised, ranks], dim=-1) if self.config.condition else normalised

    def phases(self) -> Sequence[Phase]:
        return [Phase("policy", list(self.parameters()), self._loss)]

    def _loss(self, batch: _Decisions, generator: torch.Generator) -> dict[str, Tensor]:
        error = action_loss(self.net(batch.inputs), batch.actions, self.spec.discrete, batch.legal)
        if batch.present is None:
            return {"loss": error.mean()}
        return {"loss": (error * batch.present).sum() / batch.present.sum().clamp(min=1)}

    @torch.no_grad()
    def act(self, observations: Tensor, returns: float | Tensor, legal: Tensor | None = None) -> Tensor:
        """[B, A, O] -> [B, A, U], with one return rank for all or [B], and the legal choices [B, A, U]."""
        observations = observations.to(self.normaliser.shift.device)
        ranks = torch.as_tensor(returns, dtype=observations.dtype, device=observations.device).reshape(-1, 1, 1)
        ranks = ranks.expand_as(observations[..., :1])
        return execute(self.net(self._inputs(observations, ranks)), self.spec.discrete, legal)

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
            self.returns = Asked.of(self.guidance, seeds).returns

    def act(self, observations: Tensor, context: Context) -> Tensor:
        return self.cloning.act(observations, self.returns, context.legal)

"""Behaviour cloning: of all episodes or of some, told what is wanted or not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.acting import Acting, Asked, GuidanceConfig
from core.actions import action_loss, execute
from core.algorithm import Algorithm, Phase
from core.budgets import Allowance
from core.data import Affine, Trajectories, return_ranks
from core.environments import TeamSpec
from core.errors import UserError
from core.networks import mlp
from core.rollout import Context

#: Inputs that tell of a budget.
BUDGETS = {"none": 0, "rate": 1, "to_go": 2}


@dataclass
class CloningConfig:
    """Cloning of an agent's actions, with weights shared across agents.

    Attributes:
        hidden, layers: of the policy's MLP.
        cost_limit: largest cost, averaged over the agents, of an episode that is cloned (BC-Safe, Liu et al. 2024);
            None for any.
        best: share of those episodes, best returns first, that is cloned (x% BC, Chen et al. 2021).
        condition: True adds the return rank to the policy's input (RvS, Emmons et al. 2022).
        budget: what it is told of the cost that is left to the episode's end: "none", its "rate", which is the cost
            for each step to go, or both the cost and the steps "to_go".
        discount: of the return that is conditioned on.
    """

    name: str = "cloning"
    hidden: int = 256
    layers: int = 2
    cost_limit: float | None = None
    best: float = 1.0
    condition: bool = False
    budget: str = "none"
    discount: float = 1.0

    def __post_init__(self) -> None:
        if self.name != "cloning":
            raise ValueError(f"algo.name is cloning here, got {self.name!r}: choose another algorithm with algo=")
        if self.cost_limit is not None and not 0 <= self.cost_limit < math.inf:
            raise ValueError(f"algo.cost_limit is a cost of at least 0, or none for any, got {self.cost_limit}")
        if self.budget not in BUDGETS:
            raise ValueError(f"unknown algo.budget {self.budget!r}: choose one of {', '.join(BUDGETS)}")
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
        inputs: [N, A, I], what the policy is told. actions: [N, A, U].
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
    """Each agent's action given its own observation, and its return rank and the team's budget where conditioned.

    The loss is the mean squared error, or the cross-entropy among the legal choices, of the agents that take part. In
    training the budget is what the rest of the episode did cost; acting, it is what is left, and at most what the data
    ever spent in all and in each step to go, as nothing is known of more. Steps to go are those to the end of the
    data's longest episode.
    """

    config_class = CloningConfig
    stackable = True
    real: Tensor
    steps_most: Tensor
    cost_most: Tensor
    rate_most: Tensor

    def __init__(self, config: CloningConfig, spec: TeamSpec):
        super().__init__(config, spec)
        self.normaliser = Affine(spec.observation_dim)
        # Which entries of each agent's observation are its own, [A, O]; the others are padding.
        sizes = torch.tensor(spec.sizes or (spec.observation_dim,))[:, None]
        self.register_buffer("real", torch.arange(spec.observation_dim) < sizes, persistent=False)
        for name in ("steps_most", "cost_most", "rate_most"):
            self.register_buffer(name, torch.ones(()))
        told = spec.observation_dim + config.condition + BUDGETS[config.budget]
        self.net = mlp(told, spec.action_dim, config.hidden, config.layers)

    @staticmethod
    def uses(config: CloningConfig) -> frozenset[str]:
        return frozenset({*(["returns"] if config.condition else []), *(["budget"] if config.budget != "none" else [])})

    def prepare(self, trajectories: Trajectories) -> _Decisions:
        """Lay out the decisions of the chosen episodes.

        Raises:
            UserError: no episode is within the cost limit.
        """
        device = self.normaliser.shift.device
        rows = trajectories.decisions
        rows = rows[self._chosen(trajectories)[trajectories.episode[rows]]]
        observations = trajectories.observations[rows].to(device)
        legal, present = (
            None if mask is None else mask[rows].to(device) for mask in (trajectories.legal, trajectories.present)
        )
        counted = self.real if present is None else self.real & present[..., None]
        self.normaliser.fit(observations, counted.expand_as(observations))
        ranks = return_ranks(trajectories, self.config.discount)[rows].to(device)
        left, step = trajectories.costs_to_go().mean(dim=1)[rows].to(device), trajectories.time[rows].to(device)
        self.steps_most.copy_(step.max() + 1)
        self.cost_most.copy_(left.max().clamp(min=1e-6))
        self.rate_most.copy_((left / (self.steps_most - step)).max().clamp(min=1e-6))
        inputs = self._inputs(observations, ranks, left, step)
        return _Decisions(inputs, trajectories.actions[rows].to(device), legal, present)

    def _chosen(self, trajectories: Trajectories) -> Tensor:
        """The episodes to clone, [E] bool."""
        costs = trajectories.episode_sums(trajectories.costs).mean(dim=1)
        limit = math.inf if self.config.cost_limit is None else self.config.cost_limit
        safe = costs <= limit
        if not safe.any():
            raise UserError(
                f"no episode of the data costs at most algo.cost_limit={limit:g}: the least costs {costs.min():g}"
            )
        count = max(1, round(self.config.best * int(safe.sum())))
        best = trajectories.scores.masked_fill(~safe, -torch.inf).topk(count).indices
        return torch.zeros_like(safe).index_fill(0, best, True)

    def _inputs(self, observations: Tensor, ranks: Tensor, left: Tensor, step: Tensor) -> Tensor:
        """What the network reads [B, A, I], of observations [B, A, O], ranks [B, A], budgets left [B] and steps [B]."""
        told = [torch.where(self.real, self.normaliser(observations), 0.0)]
        if self.config.condition:
            told.append(ranks[..., None])
        if self.config.budget != "none":
            told.append(self._budgets(left, step)[:, None].expand(-1, observations.shape[1], -1))
        return torch.cat(told, dim=-1)

    def _budgets(self, left: Tensor, step: Tensor) -> Tensor:
        """What is told of budgets left [B] at steps [B], as shares of the data's largest: [B, 1] or [B, 2]."""
        to_go = (self.steps_most - step).clamp(min=1)
        left = left.clamp(min=0).minimum(self.cost_most).minimum(self.rate_most * to_go)
        if self.config.budget == "rate":
            return (left / (self.rate_most * to_go))[:, None]
        return torch.stack([left / self.cost_most, to_go / self.steps_most], dim=-1)

    def phases(self) -> Sequence[Phase]:
        return [Phase("policy", list(self.parameters()), self._loss)]

    def _loss(self, batch: _Decisions, generator: torch.Generator) -> dict[str, Tensor]:
        error = action_loss(self.net(batch.inputs), batch.actions, self.spec.discrete, batch.legal)
        if batch.present is None:
            return {"loss": error.mean()}
        return {"loss": (error * batch.present).sum() / batch.present.sum().clamp(min=1)}

    @torch.no_grad()
    def act(
        self,
        observations: Tensor,
        returns: float | Tensor = 1.0,
        legal: Tensor | None = None,
        *,
        budget: float | Tensor = math.inf,
        step: int = 0,
    ) -> Tensor:
        """[B, A, O] -> [B, A, U], with the legal choices [B, A, U].

        Args:
            returns, budget: the return rank, and the cost that may still arise; one for all or [B].
            step: of the episode, from 0 on.
        """
        observations = observations.to(self.normaliser.shift)
        batch, agents, _ = observations.shape
        ranks, left = (torch.as_tensor(value).to(observations).expand(batch) for value in (returns, budget))
        told = self._inputs(observations, ranks[:, None].expand(-1, agents), left, torch.full_like(left, step))
        return execute(self.net(told), self.spec.discrete, legal)

    def policy(self, acting: Acting, guidance: Sequence[GuidanceConfig] = ()) -> "CloningPolicy":
        return CloningPolicy(self, acting, guidance)


class CloningPolicy:
    """Acts for every agent from its own observation, and keeps account of what is left of the budget; without one,
    anything may be spent."""

    def __init__(self, cloning: Cloning, acting: Acting, guidance: Sequence[GuidanceConfig] = ()):
        self.cloning = cloning
        self.acting = acting
        self.guidance = guidance

    def reset(self, seeds: Sequence[int]) -> None:
        self.asked = Asked.of(self.guidance or [self.acting.guidance], seeds)
        self.allowance = Allowance(self.asked)

    def act(self, observations: Tensor, context: Context) -> Tensor:
        returns, left = self.asked.returns, self.allowance.left
        return self.cloning.act(observations, returns, context.legal, budget=left, step=context.step)

    def observe(self, rewards: Tensor, costs: Tensor, done: Tensor) -> None:
        self.allowance.spend(costs)

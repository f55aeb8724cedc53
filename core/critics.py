"""Twin critics for any number of agents, and what they learn from."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.networks import linear_of, mlp

VIEWS = ("independent", "centralised")
NEGATIVES = ("data", "uniform")


@dataclass
class CriticConfig:
    """Twin critics Q(o, a). The defaults are ours, for tasks of some 25 steps with a reward at each.

    Attributes:
        view: "independent" judges an agent by what it sees and does, "centralised" by what all do (CTDE).
        hidden, layers: of their MLPs. shared: whether the agents share their weights.
        discount: of rewards. lookahead: steps whose rewards are summed before the critics judge the rest.
        polyak: step of the target networks towards the learned ones.
        conservative: weight of the conservative penalty (CQL, Kumar et al. 2020); 0 for none.
        samples: actions that the penalty compares with, beside the `candidates` of the policy. negatives: which they
            are, "uniform" as published, or what the "data" do at other steps. Where the data often act at their bounds,
            as exploring teams do, uniform ones are hardly ever there, and the penalty then praises the bounds.
        expectile: above 0, a value network learns this expectile of Q over the data, and Q from it alone (IQL,
            Kostrikov et al. 2022).
        candidates: actions of the policy for the backup. backup: their "mean", "max" or "softmax" of `sharpness` Q.
    """

    view: str = "independent"
    hidden: int = 256
    layers: int = 2
    shared: bool = True
    discount: float = 0.85
    lookahead: int = 1
    polyak: float = 0.01
    conservative: float = 0.0
    samples: int = 2
    negatives: str = "data"
    expectile: float = 0.0
    candidates: int = 1
    backup: str = "mean"
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise ValueError(f"unknown critic.view {self.view!r}: choose one of {', '.join(VIEWS)}")
        if self.negatives not in NEGATIVES:
            raise ValueError(f"unknown critic.negatives {self.negatives!r}: choose one of {', '.join(NEGATIVES)}")
        if self.backup not in BACKUPS:
            raise ValueError(f"unknown critic.backup {self.backup!r}: choose one of {', '.join(BACKUPS)}")
        for name in ("hidden", "layers", "lookahead", "samples", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"critic.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.discount <= 1 or not 0 < self.polyak <= 1 or not 0 <= self.expectile < 1:
            raise ValueError(
                "critic.discount, critic.polyak and critic.expectile lie in [0, 1], (0, 1] and [0, 1), got "
                f"{self.discount}, {self.polyak} and {self.expectile}"
            )
        if not 0 <= self.conservative < math.inf or not 0 < self.sharpness < math.inf:
            raise ValueError(
                "critic.conservative must be at least 0 and critic.sharpness positive, got "
                f"{self.conservative} and {self.sharpness}"
            )


def _softmax(values: Tensor, sharpness: float) -> Tensor:
    return ((sharpness * values).softmax(dim=1) * values).sum(dim=1)


#: What a backup makes of the values [B, n, A] of the policy's n actions.
BACKUPS = {
    "mean": lambda values, sharpness: values.mean(dim=1),
    "max": lambda values, sharpness: values.amax(dim=1),
    "softmax": _softmax,
}


class Critics(nn.Module):
    """Twin critics of each agent, all of them in one call, and their slowly moving targets.

    Observations are those of the agents' normaliser, actions in [-1, 1] or one-hot.

    Args:
        config: of the critics. agents: A. observation_dim: O. action_dim: U.
    """

    def __init__(self, config: CriticConfig, agents: int, observation_dim: int, action_dim: int):
        super().__init__()
        self.config = config
        self.agents = agents
        team = agents if config.view == "centralised" else 1
        groups = 2 if config.shared else 2 * agents
        judged = team * (observation_dim + action_dim)
        self.q = mlp(judged, 1, config.hidden, config.layers, activation="relu", linear=linear_of(groups))
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.v = None
        if config.expectile:
            linear = linear_of(0 if config.shared else agents)
            self.v = mlp(team * observation_dim, 1, config.hidden, config.layers, activation="relu", linear=linear)
        # Each agent's view of the team begins with itself, so that shared weights can serve all.
        place = torch.arange(agents)
        self.register_buffer("order", (place[:, None] + place) % agents, persistent=False)
        self.order: Tensor

    def values(self, observations: Tensor, actions: Tensor, *, target: bool = False) -> Tensor:
        """What each critic thinks of each agent's step, [2, ..., A]; of the step [..., A, O] and [..., A, U]."""
        return self._judge(self.target if target else self.q, torch.cat([observations, actions], dim=-1))

    def own_values(self, observations: Tensor, actions: Tensor, own: Tensor) -> Tensor:
        """The same where each agent does `own` [..., A, U] and takes the others' actions as they were."""
        pair = torch.cat([observations, own], dim=-1)
        if self.config.view == "independent":
            return self._judge(self.q, pair)
        others = torch.cat([observations, actions], dim=-1)[..., self.order[:, 1:], :].flatten(-2)
        return self._both(self.q, torch.cat([pair, others], dim=-1))

    def _judge(self, network: nn.Module, pair: Tensor) -> Tensor:
        if self.config.view == "centralised":
            pair = pair[..., self.order, :].flatten(-2)
        return self._both(network, pair)

    def _both(self, network: nn.Module, judged: Tensor) -> Tensor:
        """[..., A, D] -> [2, ..., A], both critics in one call."""
        if self.config.shared:
            both = network(judged[..., None, :].expand(*judged.shape[:-1], 2, -1))  # [..., A, 2, 1]
            return both.squeeze(-1).movedim(-1, 0)
        both = network(judged.repeat(*[1] * (judged.ndim - 2), 2, 1)).squeeze(-1)  # [..., 2 A]
        return both.unflatten(-1, (2, self.agents)).movedim(-2, 0)

    def state_values(self, observations: Tensor) -> Tensor:
        """V of IQL, [..., A]."""
        assert self.v is not None
        seen = observations
        if self.config.view == "centralised":
            seen = seen[..., self.order, :].flatten(-2)
        return self.v(seen).squeeze(-1)

    @torch.no_grad()
    def backup(self, observations: Tensor, actions: Tensor) -> Tensor:
        """What the policy's actions [B, n, A, U] after a step promise, [B, A]: min over the critics of what
        `config.backup` makes of their values."""
        seen = observations[:, None].expand(-1, actions.shape[1], -1, -1)
        values = self.values(seen, actions, target=True)
        return torch.stack([BACKUPS[self.config.backup](one, self.config.sharpness) for one in values]).amin(dim=0)

    def penalty(self, observations: Tensor, actions: Tensor, proposed: Tensor, others: Tensor) -> Tensor:
        """The conservative penalty's gap logsumexp_a Q(o, a) - Q(o, a_data), [2, B, A] (CQL, eq. 4).

        Args:
            actions: the data's [B, A, U]. proposed: the policy's [B, n, A, U]. others: any, [B, m, A, U].
        """
        tried = torch.cat([proposed, others], dim=1)
        seen = observations[:, None].expand(-1, tried.shape[1], -1, -1)
        told = actions[:, None].expand_as(tried)
        tried_values = self.own_values(seen, told, tried)
        return tried_values.logsumexp(dim=2) - math.log(tried.shape[1]) - self.values(observations, actions)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the targets a step towards the learned critics."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.q.parameters()), self.config.polyak)

"""What the offline baselines with a deterministic actor share: TD3's parts (Fujimoto et al. 2018) for a team."""

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.acting import Acting, SelectionConfig
from core.actions import action_loss
from core.actor_critic import ActorCritic
from core.algorithm import Phase
from core.critics import CriticConfig
from core.data import Transitions
from core.environments import TeamSpec
from core.networks import linear_of, mlp


@dataclass
class DeterministicConfig:
    """A deterministic policy of each agent's own actions. The defaults are for a small network, ours.

    Attributes:
        hidden, layers: of the actor's MLP. shared: whether the agents share its weights.
        every: critic's steps for one of the actor.
        polyak: step of the slowly moving actor, which acts, towards the learned one.
        smoothing, smoothing_clip: of the noise on the actions that critics learn from, its standard deviation and
            bound; choices have none.
        selection: of one candidate, as others would be the same.
    """

    name: str = ""
    hidden: int = 256
    layers: int = 2
    shared: bool = True
    every: int = 2
    polyak: float = 0.01
    smoothing: float = 0.2
    smoothing_clip: float = 0.5
    critic: CriticConfig = field(default_factory=CriticConfig)
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(1))

    def __post_init__(self) -> None:
        name = type(self).name
        if self.name != name:
            raise ValueError(f"algo.name is {name} here, got {self.name!r}: choose another algorithm with algo=")
        for each in ("hidden", "layers", "every"):
            if getattr(self, each) < 1:
                raise ValueError(f"algo.{each} must be at least 1, got {getattr(self, each)}")
        if not 0 < self.polyak <= 1:
            raise ValueError(f"algo.polyak lies in (0, 1], got {self.polyak}")
        self.check(0, "smoothing", "smoothing_clip")
        if self.selection.candidates != 1:
            raise ValueError(
                f"a deterministic policy has one candidate: set algo.selection.candidates=1, got "
                f"{self.selection.candidates}"
            )

    def check(self, least: float, *names: str) -> None:
        """Raises a ValueError for a setting below `least` or not finite."""
        for each in names:
            if not least <= getattr(self, each) < math.inf:
                raise ValueError(f"algo.{each} must be finite and at least {least:g}, got {getattr(self, each)}")


class Deterministic(ActorCritic):
    """Each agent's action is a function of its own observation; subclasses say what its loss is.

    The actor's outputs are actions before their tanh, or the logits of discrete choices. Of these, critics judge the
    probabilities of the legal ones (as MADDPG's relaxation, Lowe et al. 2017), and the best of them is executed.
    """

    config: Any

    def __init__(self, config: DeterministicConfig, spec: TeamSpec):
        super().__init__(config, spec)
        linear = linear_of(0 if config.shared else spec.agents)
        seen, acted = spec.observation_dim, spec.action_dim
        self.actor = mlp(seen, acted, config.hidden, config.layers, activation="relu", linear=linear)
        self.target = copy.deepcopy(self.actor).requires_grad_(False)

    @staticmethod
    def uses(config: Any) -> frozenset[str]:
        return frozenset()

    def propose(
        self, observations: Tensor, noise: Tensor, acting: Acting | None = None, scales: Tensor | None = None
    ) -> Tensor:
        """The slowly moving actor's actions [B, n, A, U]; in training, noise smooths what critics learn from (TD3,
        section 5.3), and an evaluation has none."""
        actions = self.relaxed(self.target(observations))[:, None].expand(noise.shape)
        if acting is not None or self.spec.discrete:
            return actions
        bound = self.config.smoothing_clip
        return (actions + (self.config.smoothing * noise).clamp(-bound, bound)).clamp(-1, 1)

    def relaxed(self, outputs: Tensor, legal: Tensor | None = None) -> Tensor:
        """The actions [..., A, U] of an actor's outputs, or a softmax over the legal choices, as critics judge them."""
        if not self.spec.discrete:
            return outputs.tanh()
        if legal is not None:  # where nothing is, everything counts: a gradient must stay finite
            outputs = outputs.masked_fill(~legal & legal.any(dim=-1, keepdim=True), torch.finfo(outputs.dtype).min)
        return outputs.softmax(dim=-1)

    def judged(self, batch: Transitions, own: Tensor) -> Tensor:
        """What the first critic thinks of each agent's `own` actions [..., B, A, U], the others' being the data's."""
        assert self.critics is not None
        seen, told = (value.expand(*own.shape[:-1], -1) for value in (batch.observations, batch.actions))
        return self.critics.own_values(seen, told, own)[0]

    def distance(self, outputs: Tensor, actions: Tensor, batch: Transitions) -> Tensor:
        """The loss of imitating the actions by an actor's outputs, [B, A]."""
        discrete = self.spec.discrete
        return action_loss(outputs if discrete else outputs.tanh(), actions, discrete, batch.legal)

    @abstractmethod
    def actor_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """Named scalars; "loss" is minimised by the actor."""

    def actor_phases(self) -> Sequence[Phase]:
        return [Phase("policy", list(self.actor.parameters()), self.actor_loss, every=self.config.every)]

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        learned: list[Tensor] = list(self.actor.parameters())
        slow: list[Tensor] = list(self.target.parameters())
        torch._foreach_lerp_(slow, learned, self.config.polyak)

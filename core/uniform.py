"""The policy that knows nothing."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from core.actions import execute
from core.environments import TeamSpec
from core.noise import normal
from core.rollout import Context, Reactive, policy_keys


class Uniform(Reactive):
    """Every action uniform in [-1, 1], or any legal choice.

    Attributes:
        behaviours: names of the behaviours that `tags` counts. description: of the policy, for a dataset's metadata.
    """

    behaviours: ClassVar[tuple[str, ...]] = ("uniform",)
    description: ClassVar[dict[str, Any]] = {"team": "Uniform"}

    def __init__(self, spec: TeamSpec):
        self.spec = spec

    def tags(self, seeds: Sequence[int]) -> Tensor:
        """Behaviour of each episode [B]: there is one."""
        return torch.zeros(len(seeds), dtype=torch.int64)

    def reset(self, seeds: Sequence[int]) -> None:
        self.keys = policy_keys(seeds)

    def act(self, observations: Tensor, context: Context) -> Tensor:
        """[B, A, O] -> [B, A, U]."""
        shape = (self.spec.agents, self.spec.action_dim)
        drawn = 2 * torch.special.ndtr(normal(self.keys, shape, stream=context.step)) - 1
        return execute(drawn, self.spec.discrete, context.legal)

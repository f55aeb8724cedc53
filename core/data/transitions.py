"""Single steps of trajectories with what came of them, for critics."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.data.trajectories import Trajectories


@dataclass(frozen=True)
class Transitions:
    """What N teams did at a step, and what came of it some steps later.

    Attributes:
        observations: [N, A, O] before the step. actions: [N, A, U].
        rewards, costs: [N, A], discounted and summed until then.
        following: [N, A, O] what they saw then.
        discount: [N, A] of what is worth from then on; 0 where the episode terminated or the agent has left, though not
            where the episode was only cut off by its time limit.
        legal, following_legal: [N, A, U] bool, the legal choices before and then. present: [N, A] bool, who takes part.
            None where nothing restricts them.
        following_actions: [N, A, U] what they did then; it counts where `followed` says so alone.
        followed: [N, A] bool, whether the data tell what an agent did then. They do not where nothing is worth anything
            any more, and where the episode was cut off: its last row has no action, though what it sees is worth
            something. None where nobody has looked.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    costs: Tensor
    following: Tensor
    discount: Tensor
    legal: Tensor | None = None
    following_legal: Tensor | None = None
    present: Tensor | None = None
    following_actions: Tensor | None = None
    followed: Tensor | None = None

    @staticmethod
    def of(trajectories: Trajectories, discount: float, lookahead: int = 1) -> "Transitions":
        """Every step of the trajectories, in order, with what came of it `lookahead` steps later or at the end."""
        rows = trajectories.decisions
        last = trajectories.last[rows]
        end = torch.minimum(rows + lookahead, last)
        over = ((end == last) & trajectories.terminated[trajectories.episode[rows]])[:, None]
        over = over.expand(-1, trajectories.agents)
        present, legal = trajectories.present, trajectories.legal
        if present is not None:
            over = over | ~present[end]

        def summed(values: Tensor) -> Tensor:
            # Those of last rows are zeros, so that steps beyond an end add nothing.
            return torch.as_tensor(sum(discount**k * values[torch.minimum(rows + k, last)] for k in range(lookahead)))

        ahead = (discount ** (end - rows).float())[:, None].expand(-1, trajectories.agents)
        legal_at = [None if legal is None else legal[at] for at in (rows, end)]
        return Transitions(
            trajectories.observations[rows],
            trajectories.actions[rows],
            summed(trajectories.rewards),
            summed(trajectories.costs),
            trajectories.observations[end],
            torch.where(over, 0.0, ahead),
            legal_at[0],
            legal_at[1],
            None if present is None else present[rows],
            trajectories.actions[end],
            ~over & (end < last)[:, None],
        )

    def __len__(self) -> int:
        return len(self.rewards)

    def gather(self, index: Tensor) -> "Transitions":
        """The steps of an index tensor [B]."""
        return replace(self, **{name: value[index] for name, value in vars(self).items() if value is not None})

    def to(self, device: torch.device) -> "Transitions":
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})

"""What a team planner is given: whose past and present observations are known, and who takes part."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.edits import Clamp


@dataclass(frozen=True)
class Knowledge:
    """How what is known of a plan stands in its sample [B, T, A, D].

    Attributes:
        history: steps before the current one. observation_dim: O. features: D.
        status: whether the last entry is the status channel of `marl.team_network.TeamNetwork`.
    """

    history: int
    observation_dim: int
    features: int
    status: bool

    def clamp(self, past: Tensor, known: Tensor | None = None, present: Tensor | None = None, steps: int = 0) -> Clamp:
        """The edit that holds a sample at what is given of it.

        A known agent's history and present are its observations; an unknown one's history is 0 and its present
        generated; an absent one is 0 throughout.

        Args:
            past: normalised observations [B, history + 1, A, O], the current ones last.
            known, present: bool [B, A], all unless given. steps: T.
        """
        batch, _, agents, seen = past.shape
        device, now = past.device, self.history
        everyone = torch.ones(batch, agents, dtype=torch.bool, device=device)
        present = everyone if present is None else present.to(device)
        known = present if known is None else known.to(device) & present
        time = torch.arange(steps, device=device)[:, None, None]
        entry = torch.arange(self.features, device=device)
        before, current = (time < now) & (entry < self.features), (time == now) & (entry < seen)
        status = (entry == self.features - 1) & self.status
        here, told = present[:, None, :, None], known[:, None, :, None]
        values = F.pad(past, (0, self.features - seen, 0, 0, 0, steps - now - 1))
        values = torch.where(told, values, 0.0)
        values = torch.where(status, told.to(values.dtype) - (~here).to(values.dtype), values)
        return Clamp(before | (current & told) | status | ~here, values)

    def past(self, observations: Tensor) -> Tensor:
        """Observations [B, A, O], or with earlier ones [B, C, A, O], as [B, history + 1, A, O]: the first repeated, as
        at the beginning of an episode, where there are fewer."""
        past = observations[:, None] if observations.ndim == 3 else observations
        missing = self.history + 1 - past.shape[1]
        return torch.cat([past[:, :1].expand(-1, missing, -1, -1), past], dim=1) if missing else past


def draw_known(kind: str, batch: int, agents: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """Whose observations each training item is given, bool [B, A].

    kind: "all"; "own", one agent's, drawn for each item; "random", which is all in two items of five, one agent's in
    two more, and any number's, none included, in the last.
    """
    if kind == "all":
        return torch.ones(batch, agents, dtype=torch.bool, device=device)
    rank = torch.rand(batch, agents, generator=generator, device=device).argsort(dim=1)
    if kind == "own":
        return rank < 1
    u = torch.rand(batch, 1, generator=generator, device=device)
    some = torch.floor((u - 0.8) * 5 * (agents + 1))
    return rank < torch.where(u < 0.4, agents, torch.where(u < 0.8, 1, some))

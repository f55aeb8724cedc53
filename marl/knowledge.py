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
        sizes: entries of each agent's own observation where they differ. What pads them is 0, normalised, and known.
    """

    history: int
    observation_dim: int
    features: int
    status: bool
    sizes: tuple[int, ...] = ()

    def own(self, device: torch.device) -> Tensor:
        """Which entries of a normalised observation are real, bool [A, O], or [1, O] where all are."""
        entry = torch.arange(self.observation_dim, device=device)
        return entry < torch.tensor(self.sizes or (self.observation_dim,), device=device)[:, None]

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
        before, current = time < now, (time == now) & (entry < seen)
        status = (entry == self.features - 1) & self.status
        padding = F.pad(~self.own(device), (0, self.features - seen))
        here, told = present[:, None, :, None], known[:, None, :, None]
        values = F.pad(past, (0, self.features - seen, 0, 0, 0, steps - now - 1))
        values = torch.where(told & ~padding, values, 0.0)
        values = torch.where(status, told.to(values.dtype) - (~here).to(values.dtype), values)
        return Clamp(before | (current & told) | status | padding | ~here, values)

    def past(self, observations: Tensor, agents: int) -> Tensor:
        """What a plan of A agents is given, [B, history + 1, A, O].

        Args:
            observations: current ones [B, A, O], or with earlier ones [B, C, A, O].

        Raises:
            ValueError: they have another shape.
        """
        shape, length = (agents, self.observation_dim), self.history + 1
        steps = 1 if observations.ndim == 3 else observations.shape[1]
        if observations.ndim not in (3, 4) or observations.shape[-2:] != shape or steps > length:
            raise ValueError(
                f"observations must be [B, {agents}, {self.observation_dim}], got {list(observations.shape)}; or, with "
                f"up to {self.history} steps before, [B, C, {agents}, {self.observation_dim}]"
            )
        return self.repeated(observations)

    def repeated(self, values: Tensor) -> Tensor:
        """Values [B, A, ...] or [B, C, A, ...] as [B, history + 1, A, ...]: the first repeated where there are fewer,
        as at the beginning of an episode."""
        past = values[:, None] if values.ndim == 3 else values
        missing = self.history + 1 - past.shape[1]
        return torch.cat([past[:, :1].expand(-1, missing, -1, -1), past], dim=1) if missing else past


def draw_known(
    kind: str, batch: int, agents: int, device: torch.device, generator: torch.Generator, present: Tensor | None = None
) -> Tensor:
    """Whose observations each training item is given, bool [B, A].

    kind: "all"; "own", one agent's, drawn for each item; "random", which is all in two items of five, one agent's in
        two more, and any number's, none included, in the last.
    present: [B, A], who takes part, of whom that one is.
    """
    if kind == "all":
        return torch.ones(batch, agents, dtype=torch.bool, device=device)
    drawn = torch.rand(batch, agents, generator=generator, device=device)
    rank = (drawn if present is None else drawn + (~present)).argsort(dim=1).argsort(dim=1)
    if kind == "own":
        return rank < 1
    u = torch.rand(batch, 1, generator=generator, device=device)
    some = torch.floor((u - 0.8) * 5 * (agents + 1))
    return rank < torch.where(u < 0.4, agents, torch.where(u < 0.8, 1, some))

"""Actions of both kinds: numbers in [-1, 1], and choices of which some may be illegal."""

import torch
import torch.nn.functional as F
from torch import Tensor


def execute(raw: Tensor, discrete: bool, legal: Tensor | None = None) -> Tensor:
    """The actions that a network's output [..., U] stands for: clamped to [-1, 1], or the best legal choice, one-hot.

    legal: [..., U] bool, None where all choices are. A row without any takes the first choice.
    """
    if not discrete:
        return raw.clamp(-1, 1)
    allowed = raw if legal is None else raw.masked_fill(~legal.to(raw.device), -torch.inf)
    return F.one_hot(allowed.argmax(dim=-1), raw.shape[-1]).to(raw.dtype)


def action_loss(raw: Tensor, actions: Tensor, discrete: bool, legal: Tensor | None = None) -> Tensor:
    """Loss [...] of a network's output [..., U]: the mean squared error, or the cross-entropy among legal choices."""
    if not discrete:
        return ((raw - actions) ** 2).mean(dim=-1)
    if legal is not None:
        # What was chosen counts as legal, and so does everything where nothing was: a loss must stay finite.
        taken = actions > 0.5
        raw = raw.masked_fill(~(legal | taken) & taken.any(dim=-1, keepdim=True), torch.finfo(raw.dtype).min)
    return -(actions * raw.log_softmax(dim=-1)).sum(dim=-1)

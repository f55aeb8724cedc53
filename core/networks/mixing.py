"""Where agents exchange features inside a network that is otherwise shared by them."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

#: (channels C, embedding width E) -> a module (features [B, A, C, T], embedding [B, A, E], present [B, A] or None) ->
#: features. What a mixer gives an agent that is present must not depend on those that are absent.
MixerFactory = Callable[[int, int], nn.Module]


def mix(mixer: nn.Module, h: Tensor, embedding: Tensor, present: Tensor | None = None) -> Tensor:
    """Apply a mixer to features whose agents are folded into the batch, [(B A), C, T]."""
    mixed = mixer(rearrange(h, "(b a) c t -> b a c t", a=embedding.shape[1]), embedding, present)
    return rearrange(mixed, "b a c t -> (b a) c t")


def silence(x: Tensor, cond: Tensor | None, present: Tensor) -> tuple[Tensor, Tensor | None]:
    """A plan x [B, T, A, D] with zeros for the agents that are absent, and conditions [B, A, c] with none for them.

    Whatever they held cannot overflow on its way through a network, nor reach a gradient.

    Raises:
        ValueError: `present` is not boolean or not [B, A].
    """
    batch, _, agents, _ = x.shape
    if present.dtype != torch.bool or present.shape != (batch, agents):
        raise ValueError(
            f"present must be a boolean tensor [B, A] = [{batch}, {agents}], True where an agent takes part, "
            f"got {present.dtype} {list(present.shape)}"
        )
    if cond is not None and cond.ndim == 3:
        cond = torch.where(present[..., None], cond, torch.nan)
    return torch.where(present[:, None, :, None], x, 0.0), cond

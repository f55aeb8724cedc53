"""Where agents exchange features inside a network that is otherwise shared by them."""

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn

#: (channels C, embedding width E) -> a module (features [B, A, C, T], embedding [B, A, E]) -> features.
MixerFactory = Callable[[int, int], nn.Module]


def mix(mixer: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    """Apply a mixer to features whose agents are folded into the batch, [(B A), C, T]."""
    mixed = mixer(rearrange(h, "(b a) c t -> b a c t", a=embedding.shape[1]), embedding)
    return rearrange(mixed, "b a c t -> (b a) c t")

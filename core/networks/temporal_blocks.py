"""The blocks of the temporal U-Net, of which the value network of plans is made as well."""

from dataclasses import dataclass

from torch import Tensor, nn

ACTIVATIONS = {"mish": nn.Mish, "silu": nn.SiLU}


@dataclass(frozen=True)
class Conv:
    """What every convolution block of a network has in common."""

    kernel: int
    groups: int
    activation: str

    def block(self, inputs: int, outputs: int) -> nn.Sequential:
        """Convolution, normalisation, activation."""
        return nn.Sequential(
            nn.Conv1d(inputs, outputs, self.kernel, padding=self.kernel // 2),
            nn.GroupNorm(self.groups, outputs),
            ACTIVATIONS[self.activation](),
        )


class ResidualBlock(nn.Module):
    """Two convolution blocks with the embedding added in between."""

    def __init__(self, inputs: int, outputs: int, embedding: int, conv: Conv):
        super().__init__()
        self.first = conv.block(inputs, outputs)
        self.second = conv.block(outputs, outputs)
        self.embed = nn.Linear(embedding, outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.first(x) + self.embed(embedding)[..., None]
        return self.second(h) + self.skip(x)


class Pair(nn.Module):
    """The two residual blocks of a level."""

    def __init__(self, first: ResidualBlock, second: ResidualBlock):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.second(self.first(x, embedding), embedding)


def check_horizon(horizon: int, levels: int) -> None:
    """
    Raises:
        ValueError: plans of that many steps cannot be halved so often.
    """
    if horizon < 1 or horizon % 2 ** (levels - 1):
        raise ValueError(
            f"horizon {horizon} does not fit a U-Net of {levels} levels: "
            f"choose a multiple of {2 ** (levels - 1)}, or fewer multipliers"
        )

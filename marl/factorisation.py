"""DoF: a joint denoiser as a function of the agents' individual ones (Li et al., ICLR 2025).

The noise is factorised, eps_tot = f(eps_1, ..., eps_A), so that sampling all agents jointly is sampling each by itself,
and so is the clean sample, x0_tot = h(x0_1, ..., x0_A), which relates agents that were denoised alone. f concatenates
("concat") or weights each agent's part ("weighted"); h does either, or attends ("attention"). The rest is ours:

- The individual networks are one network shared by the agents, without exchange, such as one without mixers.
- Weights are A softmax(logits): 1 at first, A in sum, and positive. The published code divides free weights by their
  sum, which leaves 1 / A at first and nothing defined where they cancel.
- Attention, which the published code has none of, is as MADiff's: over one token for each agent, its whole trajectory,
  behind a gate that starts at 0.
- h acts on the clean estimate at every step of denoising, in training as in sampling, so that the diffusion loss alone
  trains it. In the published code it enters the losses of actions only, and there "weighted" sums over the agents.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from core.denoiser import NetworkDenoiser, Time, alpha_sigma
from core.schedules import Schedule

NOISE_FACTORISATIONS = ("concat", "weighted")
DATA_FACTORISATIONS = ("concat", "weighted", "attention")


class AgentWeights(nn.Module):
    """A learned factor for each of A agents by its place: A softmax(logits), so that they sum to A."""

    def __init__(self, agents: int):
        super().__init__()
        if agents < 1:
            raise ValueError(f"weights need at least one agent, got {agents}")
        self.logits = nn.Parameter(torch.zeros(agents))

    def weights(self, present: Tensor | None = None) -> Tensor:
        """The factors [A], or [B, A] where present [B, A] says who takes part: then they sum to the number of those,
        and the others' are 1."""
        if present is None:
            return len(self.logits) * self.logits.softmax(dim=0)
        there = torch.where(present, self.logits, torch.finfo(self.logits.dtype).min).softmax(dim=1)
        return torch.where(present, present.sum(dim=1, keepdim=True) * there, 1.0)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """x [B, T, A, D], each agent's part times its weight."""
        if x.shape[2] != len(self.logits):
            raise ValueError(
                f"there are weights for {len(self.logits)} agents, got {list(x.shape)}: "
                'teams of another size need the factorisation "concat" or "attention"'
            )
        weights = self.weights(present)
        return x * (weights[:, None] if present is None else weights[:, None, :, None])


class TrajectoryAttention(nn.Module):
    """Self-attention over agents, one token for each: its whole trajectory. Its gate starts at 0.

    Permuting the agents permutes the result, and they may be of any number.
    """

    def __init__(self, features: int, heads: int = 4, width: int = 64):
        """Args: features: D. width: of queries, keys and values at each time step, a multiple of the heads."""
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(f"the attention's width {width} must be a multiple of its {heads} >= 1 heads")
        self.heads = heads
        self.project = nn.Linear(features, 3 * width)
        self.out = nn.Linear(width, features)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """x [B, T, A, D] -> [B, T, A, D]; present [B, A] bool says who is attended to, None for all."""
        agents, mask, seen = x.shape[2], None, x
        if present is not None:
            seen = torch.where(present[:, None, :, None], x, 0.0)
            mask = (present[:, None] | torch.eye(agents, dtype=torch.bool, device=x.device))[:, None]
        q, k, v = rearrange(self.project(seen), "b t a (s n c) -> s b n a (t c)", s=3, n=self.heads)
        mixed = rearrange(F.scaled_dot_product_attention(q, k, v, mask), "b n a (t c) -> b t a (n c)", t=x.shape[1])
        return x + self.gate * self.out(mixed)


class NoiseFactorisation(nn.Module):
    """f: the joint output of a network that predicts for each agent by itself. Either kind keeps agents independent."""

    def __init__(self, kind: str, agents: int):
        super().__init__()
        self.kind = _known(kind, NOISE_FACTORISATIONS, "noise")
        self.joint = AgentWeights(agents) if kind == "weighted" else None

    def forward(self, output: Tensor, present: Tensor | None = None) -> Tensor:
        """output [B, T, A, D], present [B, A] or None -> [B, T, A, D]."""
        return output if self.joint is None else self.joint(output, present)


class DataFactorisation(nn.Module):
    """h: the joint clean sample made of the agents' individual ones. "attention" alone lets them exchange."""

    def __init__(self, kind: str, agents: int, features: int, heads: int = 4, width: int = 64):
        super().__init__()
        self.kind = _known(kind, DATA_FACTORISATIONS, "data")
        self.joint: nn.Module | None = None
        if kind == "weighted":
            self.joint = AgentWeights(agents)
        elif kind == "attention":
            self.joint = TrajectoryAttention(features, heads, width)

    def forward(self, x0: Tensor, present: Tensor | None = None) -> Tensor:
        """x0 [B, T, A, D], present [B, A] or None -> [B, T, A, D]."""
        return x0 if self.joint is None else self.joint(x0, present)


class Factorised(NetworkDenoiser):
    """The joint denoiser of an exchange-free network: f on what it predicts, then h on the clean estimate of that.

    `predict` says what a joint network would have said, output + (h(x0) - x0) / q where x0 = p x + q output
    (`core.predictions`), so that losses and samplers take it as they take any other. A new one is its network alone.
    With data "concat" or "weighted" each agent's plan depends on its own sample only.

    Predict "x0" where data are "weighted" or "attention": an error of h then counts the same at all times, and with
    "noise" (alpha / sigma)^2 as much, which is most where there is least to learn.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: str = "x0",
        *,
        noise: NoiseFactorisation,
        data: DataFactorisation,
        present: Callable[[Tensor], Tensor] | None = None,
        data_std: float = 1.0,
        autocast: torch.dtype | None = None,
    ):
        """Args, beside those of `core.NetworkDenoiser`:
        noise, data: f and h.
        present: reads off a sample x [B, T, A, D] who takes part, bool [B, A]; all do where it is None.
        """
        super().__init__(network, schedule, prediction, data_std=data_std, autocast=autocast)
        self.noise = noise
        self.data = data
        self.present = present

    def predict(self, x: Tensor, t: Time | Tensor, cond: Tensor | None = None) -> Tensor:
        """What a joint network would have said."""
        present = None if self.present is None else self.present(x)
        output = self.noise(super().predict(x, t, cond), present)
        if self.data.joint is None:
            return output
        x0 = self.to_x0(output, x, t)
        _, q = self._kind.estimate(*alpha_sigma(self.schedule, x, t), self.data_std)
        return output + (self.data(x0, present) - x0) / q


def _known(kind: str, kinds: tuple[str, ...], what: str) -> str:
    if kind not in kinds:
        raise ValueError(f"unknown {what} factorisation {kind!r}: choose one of {', '.join(kinds)}")
    return kind

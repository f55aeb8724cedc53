"""Constrained decision transformer (Liu et al. 2023): actions that follow from the return and the cost to go."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from core.acting import Acting, Asked, GuidanceConfig
from core.actions import action_loss, execute
from core.algorithm import Algorithm, Phase
from core.budgets import Allowance
from core.data import Affine, Trajectories, WindowBatch, Windows
from core.environments import TeamSpec
from core.rollout import Context
from safe.decision_transformer_config import CDTConfig

#: Bound on either side of the logarithm of a Gaussian's deviation.
DEVIATIONS = 5.0


class _Block(nn.Module):
    """Causal attention and an MLP, each of normalised tokens and added to them."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, drop: Callable[[Tensor], Tensor]) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norms[0](h)), "b l (s n c) -> s b n l c", s=3, n=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + drop(self.out(rearrange(attended, "b n l c -> b l (n c)")))
        return h + drop(self.mlp(self.norms[1](h)))


class DecisionNetwork(nn.Module):
    """Transformer over the tokens (return to go, cost to go, observation) of each time step, and its action where those
    are told, shared by all agents, which do not meet. What it says at an observation depends on that token and those
    before it alone.

    Args:
        config: of its sizes and tokens. observation_dim: O. action_dim: U.
        outputs: P, entries of what is said of each action.
    """

    def __init__(self, config: CDTConfig, observation_dim: int, action_dim: int, outputs: int):
        super().__init__()
        self.dropout = config.dropout
        width = config.width
        sizes = (1, 1, observation_dim, *([action_dim] if config.actions else []))
        self.tokens = nn.ModuleList([nn.Linear(size, width) for size in sizes])
        self.blocks = nn.ModuleList([_Block(width, config.heads) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2) / max(1, width // 2 - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor

    def forward(self, seen: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What is said [B, T, A, P] at each step, of `seen` [B, T, A, 3 + O], which is the step's number within the
        episode, the return and the cost to go and the observation, and of actions [B, T, A, U].

        With a generator, as in training, it drops out.
        """

        def drop(h: Tensor) -> Tensor:
            if generator is None or not self.dropout:
                return h
            kept = torch.rand(h.shape, generator=generator, device=h.device) >= self.dropout
            return h * kept / (1 - self.dropout)

        parts = (seen[..., 1:2], seen[..., 2:3], seen[..., 3:], actions)
        tokens = torch.stack([read(part) for read, part in zip(self.tokens, parts, strict=False)], dim=2)
        phase = seen[:, :, None, :, :1] * self.frequencies
        h = drop(rearrange(tokens + torch.cat([phase.sin(), phase.cos()], dim=-1), "b t k a w -> (b a) (t k) w"))
        for block in self.blocks:
            h = block(h, drop)
        read_last = self.norm(h[:, 2 :: len(self.tokens)])  # where the observation has just been read
        return rearrange(self.head(read_last), "(b a) t p -> b t a p", b=len(seen))


class Frontier(nn.Module):
    """The returns that episodes of the data reach within a budget, kept as a table.

    Attributes:
        costs: [G], quantiles of the episodes' costs, each of them an episode's own.
        returns: [G, R], evenly spread quantiles of the returns of the episodes that cost at most so much.
    """

    costs: Tensor
    returns: Tensor

    def __init__(self, budgets: int = 128, ranks: int = 21):
        super().__init__()
        self.register_buffer("costs", torch.zeros(budgets))
        self.register_buffer("returns", torch.zeros(budgets, ranks))

    def fit(self, returns: Tensor, costs: Tensor) -> None:
        """Take the table from episodes of returns and costs [E]."""
        levels, ranks = (torch.linspace(0, 1, size).to(costs) for size in self.returns.shape)
        self.costs.copy_(costs.quantile(levels, interpolation="nearest"))
        self.returns.copy_(torch.stack([returns[costs <= limit].quantile(ranks) for limit in self.costs.to(costs)]))

    def forward(self, ranks: Tensor, budgets: Tensor) -> Tensor:
        """The return [B] of a rank [B] in [0, 1] among the episodes within a budget [B], or among the cheapest where
        none is."""
        rounding = 1e-5 * self.costs[-1]
        within = self.returns[(torch.searchsorted(self.costs, budgets + rounding, right=True) - 1).clamp(min=0)]
        place = ranks * (within.shape[1] - 1)
        low, high = (within.gather(1, end.long()[:, None])[:, 0] for end in (place.floor(), place.ceil()))
        return torch.lerp(low, high, place.frac())


def infeasible_targets(returns: Tensor, costs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Targets that the data cannot meet, and which of E episodes comes nearest: the best within the target's cost
    (Liu et al. 2023, section 4.3).

    The costs are evenly spread over the data's, and the returns between the best within the cost and the best of all.

    Args:
        returns, costs: [E].

    Returns:
        The episodes [count], and by how much the target's return and cost exceed theirs, [count, 2].
    """
    ordered, order = costs.sort()
    best, place = returns[order].cummax(dim=0)
    budgets = torch.lerp(ordered[0], ordered[-1], torch.linspace(0, 1, count).to(costs))
    nearest = (torch.searchsorted(ordered, budgets, right=True) - 1).clamp(min=0)
    episodes = order[place[nearest]]
    spread = (torch.arange(count).to(returns) * 0.5 * (5**0.5 - 1)).frac()  # even, whatever the cost
    raised = spread * (best[-1] - best[nearest])
    return episodes, torch.stack([raised, budgets - costs[episodes]], dim=-1)


class CDT(Algorithm):
    """Each agent's action by a transformer over what it saw and did, and over the team's return and cost to go.

    Numbers are Gaussian, and their means are executed; choices are categorical, and the best legal one is. The loss is
    the negative log-likelihood, less the entropy times a temperature that keeps it at the one configured. Return and
    cost are averaged over the agents, and not discounted.
    """

    config_class = CDTConfig
    stackable = True
    real: Tensor

    def __init__(self, config: CDTConfig, spec: TeamSpec):
        super().__init__(config, spec)
        self.normaliser = Affine(spec.observation_dim)
        # Which entries of each agent's observation are its own, [A, O]; the others are padding.
        sizes = torch.tensor(spec.sizes or (spec.observation_dim,))[:, None]
        self.register_buffer("real", torch.arange(spec.observation_dim) < sizes, persistent=False)
        self.scale = Affine(2)
        self.frontier = Frontier()
        self.log_temperature = nn.Parameter(torch.tensor(0.1).log())
        outputs = spec.action_dim if spec.discrete else 2 * spec.action_dim
        self.net = DecisionNetwork(config, spec.observation_dim, spec.action_dim, outputs)

    @staticmethod
    def uses(config: CDTConfig) -> frozenset[str]:
        return frozenset({"returns", "budget"})

    def prepare(self, trajectories: Trajectories) -> Windows:
        device = self.scale.shift.device
        returns, costs = trajectories.scores, trajectories.episode_sums(trajectories.costs).mean(dim=1)
        self.frontier.fit(returns, costs)
        raised = torch.zeros(trajectories.episodes, 2)
        if count := round(self.config.relabelled * trajectories.episodes):
            episodes, more = infeasible_targets(returns, costs, count)
            trajectories = Trajectories.concatenate([trajectories, trajectories.subset(episodes)])
            raised = torch.cat([raised, more])
        targets = torch.stack(
            [trajectories.returns_to_go().mean(dim=1), trajectories.costs_to_go().mean(dim=1)], dim=-1
        )
        targets = targets + raised[trajectories.episode]
        rows, present = trajectories.decisions, trajectories.present
        observations = trajectories.observations[rows]
        counted = self.real.cpu() if present is None else self.real.cpu() & present[rows][..., None]
        self.normaliser.fit(observations, counted.expand_as(observations))
        self.scale.fit(targets[rows])
        seen = self.seen(trajectories.time.to(device), targets.to(device), trajectories.observations.to(device))
        return Windows(trajectories, seen, self.config.context)

    def seen(self, step: Tensor, targets: Tensor, observations: Tensor) -> Tensor:
        """What the network reads [B, A, 3 + O], of steps [B], returns and costs to go [B, 2] and observations
        [B, A, O]."""
        told = torch.cat([step[:, None], self.scale(targets)], dim=-1)[:, None].expand(-1, observations.shape[1], -1)
        return torch.cat([told, torch.where(self.real, self.normaliser(observations), 0.0)], dim=-1)

    def phases(self) -> Sequence[Phase]:
        return [Phase("policy", list(self.parameters()), self._loss)]

    def _loss(self, batch: WindowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        counted = batch.valid[..., None].expand(batch.actions.shape[:-1])
        if batch.present is not None:
            counted = counted & batch.present
        outputs = self.net(batch.observations, batch.actions, generator)
        surprise, entropy = (
            torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)
            for values in self.likelihood(outputs, batch.actions, batch.legal)
        )
        temperature = self.log_temperature.exp()
        found = {"surprise": surprise, "entropy": entropy, "temperature": temperature}
        # The temperature rises while there is less entropy than there should be (Haarnoja et al. 2018).
        dual = temperature * (entropy.detach() - self.config.entropy)
        return {"loss": surprise - temperature.detach() * entropy + dual, **found}

    def likelihood(self, outputs: Tensor, actions: Tensor, legal: Tensor | None) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of actions [..., U] by the network's outputs [..., P], and its entropy, each [...]:
        nats of a choice, or for each entry of an action."""
        if self.spec.discrete:
            surprise = action_loss(outputs, actions, True, legal)
            if legal is not None:  # where nothing is, everything counts
                outputs = outputs.masked_fill(~legal & legal.any(dim=-1, keepdim=True), torch.finfo(outputs.dtype).min)
            logs = outputs.log_softmax(dim=-1)
            return surprise, -(logs.exp() * logs).sum(dim=-1)
        mean, raw = outputs.chunk(2, dim=-1)
        log_deviation = DEVIATIONS * (raw / DEVIATIONS).tanh()
        gap = (actions - mean) * (-log_deviation).exp()
        constant = 0.5 * math.log(2 * math.pi)
        return (gap**2 / 2 + log_deviation + constant).mean(dim=-1), (log_deviation + constant + 0.5).mean(dim=-1)

    def executed(self, outputs: Tensor, legal: Tensor | None) -> Tensor:
        """The likeliest actions [..., U] of the network's outputs [..., P]."""
        return execute(outputs[..., : self.spec.action_dim], self.spec.discrete, legal)

    def policy(self, acting: Acting, guidance: Sequence[GuidanceConfig] = ()) -> "CDTPolicy":
        return CDTPolicy(self, acting, guidance)


class CDTPolicy:
    """Aims at a return and a cost, both less what was received.

    The return is that of the wanted rank among the data's episodes within the budget, and the cost is the budget, or
    what the data ever cost where that is less.
    """

    def __init__(self, cdt: CDT, acting: Acting, guidance: Sequence[GuidanceConfig] = ()):
        self.cdt = cdt
        self.acting = acting
        self.guidance = guidance

    def reset(self, seeds: Sequence[int]) -> None:
        self.asked = Asked.of(self.guidance or [self.acting.guidance], seeds)
        self.allowance = Allowance(self.asked)
        self.earned = torch.zeros(len(seeds))
        self.seen: list[Tensor] = []
        self.done: list[Tensor] = []

    @torch.no_grad()
    def act(self, observations: Tensor, context: Context) -> Tensor:
        """[B, A, O] -> [B, A, U]."""
        cdt, length = self.cdt, self.cdt.config.context
        targets = self.targets()
        observations = observations.to(targets)
        step = torch.full_like(targets[:, 0], context.step)
        self.seen = [*self.seen, cdt.seen(step, targets, observations)][-length:]
        unknown = observations.new_zeros(*observations.shape[:2], cdt.spec.action_dim)
        self.done = [*self.done, unknown][-length:]
        outputs = cdt.net(torch.stack(self.seen, dim=1), torch.stack(self.done, dim=1))
        self.done[-1] = cdt.executed(outputs[:, -1], context.legal)
        return self.done[-1]

    def targets(self) -> Tensor:
        """The return and the cost to go [B, 2]."""
        frontier, allowance = self.cdt.frontier, self.allowance
        ranks, earned, spent, left = (
            values.to(frontier.costs)
            for values in (self.asked.returns, self.earned, allowance.spent, allowance.unclamped)
        )
        budgets = (left + spent).minimum(frontier.costs[-1])
        return torch.stack([frontier(ranks, budgets) - earned, (budgets - spent).clamp(min=0)], dim=-1)

    def observe(self, rewards: Tensor, costs: Tensor, done: Tensor) -> None:
        self.earned = self.earned + rewards.mean(dim=1)
        self.allowance.spend(costs)

"""What algorithms of a policy and critics share: their data, the critics' learning, and how actions are chosen."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from core.acting import Acting, Asked, GuidanceConfig, SelectionConfig
from core.actions import execute
from core.algorithm import Algorithm, Phase
from core.critics import Critics
from core.data import Affine, Trajectories, Transitions
from core.environments import TeamSpec
from core.errors import UserError
from core.noise import normal
from core.rollout import Context, Reactive, policy_keys


class ActorCritic(Algorithm):
    """Critics of a policy, learned from transitions, and the policy that heeds them.

    Rewards are divided by their deviation in the data, so that weights mean the same for every task; and where no
    episode of the data terminates, they are taken from their mean, which favours no action over another. Subclasses say
    what the policy would do (`propose`) and how it learns.

    Attributes:
        critics: None where the configuration has no critic.
    """

    stackable = True
    reward_scale: Tensor
    reward_shift: Tensor

    def __init__(self, config: Any, spec: TeamSpec):
        super().__init__(config, spec)
        self.normaliser = Affine(spec.observation_dim)
        self.register_buffer("reward_scale", torch.ones(()))
        self.register_buffer("reward_shift", torch.zeros(()))
        # Which entries of each agent's observation are its own, [A, O]; the others are padding.
        sizes = torch.tensor(spec.sizes or (spec.observation_dim,))[:, None]
        self.register_buffer("real", torch.arange(spec.observation_dim) < sizes, persistent=False)
        self.real: Tensor
        self.critics = None
        if config.critic is not None:
            self.critics = Critics(config.critic, spec.agents, spec.observation_dim, spec.action_dim)

    @staticmethod
    def uses(config: Any) -> frozenset[str]:
        return frozenset({"selection"})

    @abstractmethod
    def propose(
        self, observations: Tensor, noise: Tensor, acting: Acting | None = None, scales: Tensor | None = None
    ) -> Tensor:
        """What the slowly moving policy would do [B, n, A, U]: in [-1, 1], or in [0, 1] for each of discrete choices.

        Args:
            observations: [B, A, O], normalised. noise: standard normal [B, n, A, U], all the randomness there is.
            acting: of an evaluation; as in training unless given. scales: of its guidance, [B].
        """

    @abstractmethod
    def actor_phases(self) -> Sequence[Phase]:
        """The optimisers' shares that are not the critics'."""

    def prepare(self, trajectories: Trajectories) -> Transitions:
        device = self.reward_scale.device
        critic = self.config.critic
        discount, lookahead = (critic.discount, critic.lookahead) if critic else (1.0, 1)
        transitions = Transitions.of(trajectories, discount, lookahead).to(device)
        present = transitions.present
        counted = self.real if present is None else self.real & present[..., None]
        self.normaliser.fit(transitions.observations, counted.expand_as(transitions.observations))
        rewards = trajectories.rewards[trajectories.decisions]
        self.reward_scale.copy_(1 / rewards.std(correction=0).clamp(min=1e-3))
        if not trajectories.terminated.any() and present is None:
            self.reward_shift.copy_(rewards.mean())
        worth = (1 - transitions.discount) / (1 - discount) if discount < 1 else float(lookahead)
        return replace(
            transitions,
            observations=self.normalised(transitions.observations),
            following=self.normalised(transitions.following),
            # What a step of every lookahead is worth on average, summed as its rewards are.
            rewards=(transitions.rewards - self.reward_shift * worth) * self.reward_scale,
        )

    def normalised(self, observations: Tensor) -> Tensor:
        """Observations [..., A, O] as the networks read them; what pads them is 0."""
        return torch.where(self.real, self.normaliser(observations.to(self.reward_scale)), 0.0)

    def phases(self) -> Sequence[Phase]:
        learned = [] if self.critics is None else [p for p in self.critics.parameters() if p.requires_grad]
        return [*([Phase("critic", learned, self.critic_loss)] if learned else []), *self.actor_phases()]

    def critic_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        """Squared error of the twin critics, with what the configuration adds to it."""
        critics, config = self.critics, self.config.critic
        assert critics is not None
        found = {}
        wanted = self.targets(batch, generator)
        if critics.v is not None:
            with torch.no_grad():
                known = critics.values(batch.observations, batch.actions, target=True).amin(dim=0)
            gap = known - critics.state_values(batch.observations)
            # |tau - 1(gap < 0)| gap^2 (IQL, eq. 5)
            side = torch.where(gap < 0, 1 - config.expectile, config.expectile)
            found["value"] = self.mean(side * gap**2, batch)
        values = critics.values(batch.observations, batch.actions)
        found["error"] = self.mean((values - wanted) ** 2, batch) * 2
        if config.conservative:
            found["gap"] = self.mean(self._gap(batch, generator), batch) * 2
        weights = {"value": 1.0, "error": 1.0, "gap": config.conservative}
        total = torch.stack([weights[name] * value for name, value in found.items()]).sum()
        return {"loss": total, "q": self.mean(values.detach(), batch), **found}

    @torch.no_grad()
    def targets(self, batch: Transitions, generator: torch.Generator) -> Tensor:
        """What the critics learn of each step, [B, A]: its rewards, and what follows by the policy or by V."""
        critics, config = self.critics, self.config.critic
        assert critics is not None
        if critics.v is not None:
            following = critics.state_values(batch.following)
        else:
            proposed = self._drawn(batch.following, config.candidates, generator)
            following = critics.backup(batch.following, self.executed(proposed, batch.following_legal))
        return batch.rewards + batch.discount * following

    def _gap(self, batch: Transitions, generator: torch.Generator) -> Tensor:
        """The conservative penalty of each critic, [2, B, A]."""
        assert self.critics is not None
        config, actions = self.config.critic, batch.actions
        items, agents, size = actions.shape
        drawn = torch.rand(items, config.samples, agents, size, generator=generator, device=actions.device)
        if config.negatives == "data":
            picked = (drawn[..., 0] * items).long().clamp(max=items - 1), torch.arange(agents, device=actions.device)
            others = actions[picked]
            if batch.present is not None:  # who was not there did nothing
                others = torch.where(batch.present[picked][..., None], others, actions[:, None])
            others = self.executed(others, batch.legal)
        else:
            others = self.executed(drawn, batch.legal) if self.spec.discrete else 2 * drawn - 1
        proposed = self._drawn(batch.observations, config.candidates, generator)
        return self.critics.penalty(batch.observations, actions, self.executed(proposed, batch.legal), others)

    @torch.no_grad()
    def _drawn(self, observations: Tensor, count: int, generator: torch.Generator) -> Tensor:
        shape = (len(observations), count, self.spec.agents, self.spec.action_dim)
        return self.propose(observations, torch.randn(shape, generator=generator, device=observations.device))

    def executed(self, proposed: Tensor, legal: Tensor | None) -> Tensor:
        """Proposals [B, n, A, U] as they would be executed."""
        return execute(proposed, self.spec.discrete, None if legal is None else legal[:, None])

    def mean(self, values: Tensor, batch: Transitions) -> Tensor:
        """Mean of values [..., B, A] over those who take part."""
        if batch.present is None:
            return values.mean()
        there = batch.present.expand_as(values)
        return torch.where(there, values, 0.0).sum() / there.sum().clamp(min=1)

    def agent_means(self, values: Tensor, batch: Transitions) -> Tensor:
        """Each agent's mean [..., A] of values [..., B, A] over the steps that it takes part in."""
        if batch.present is None:
            return values.mean(dim=-2)
        there = batch.present.expand_as(values)
        return torch.where(there, values, 0.0).sum(dim=-2) / there.sum(dim=-2).clamp(min=1)

    def after_step(self) -> None:
        if self.critics is not None:
            self.critics.follow()

    @torch.no_grad()
    def choose(self, observations: Tensor, candidates: Tensor, selection: SelectionConfig, noise: Tensor) -> Tensor:
        """One of each agent's executable candidates [B, n, A, U] by its critics' lower value: [B, A, U].

        Where a critic judges the team's actions, the team chooses one of its n joint actions.

        Args:
            noise: standard normal [B, n, A], for a choice by softmax.
        """
        if candidates.shape[1] == 1:
            return candidates[:, 0]
        assert self.critics is not None
        seen = observations[:, None].expand(-1, candidates.shape[1], -1, -1)
        values = self.critics.values(seen, candidates).amin(dim=0)
        if self.critics.config.view == "centralised":
            values, noise = values.mean(dim=2, keepdim=True), noise[..., :1]
        if selection.pick == "softmax":
            uniform = torch.special.ndtr(noise).clamp(1e-7, 1 - 1e-7)
            values = selection.sharpness * values - (-uniform.log()).log()  # Gumbel: the largest is a softmax sample
        best = values.argmax(dim=1)[:, None, :, None].expand(-1, 1, candidates.shape[2], candidates.shape[3])
        return candidates.gather(1, best)[:, 0]

    def policy(self, acting: Acting, guidance: Sequence[GuidanceConfig] = ()) -> "ActorCriticPolicy":
        return ActorCriticPolicy(self, acting, guidance)


class ActorCriticPolicy(Reactive):
    """Each agent draws candidates from its own observation and takes one of them."""

    def __init__(self, algorithm: ActorCritic, acting: Acting, guidance: Sequence[GuidanceConfig] = ()):
        self.algorithm = algorithm
        self.acting = acting
        self.guidance = guidance
        self.selection = acting.selection.completed(algorithm.config.selection)
        if self.selection.candidates > 1 and algorithm.critics is None:
            raise UserError("selection.candidates above 1 needs critics to choose by, and this run has none")

    def reset(self, seeds: Sequence[int]) -> None:
        self.keys = policy_keys(seeds)
        self.scales = Asked.of(self.guidance or [self.acting.guidance], seeds).scales

    @torch.no_grad()
    def act(self, observations: Tensor, context: Context) -> Tensor:
        """[B, A, O] -> [B, A, U]."""
        algorithm, count = self.algorithm, self.selection.candidates
        spec = algorithm.spec
        shape = (count, spec.agents, spec.action_dim + 1)
        noise = normal(self.keys, shape, stream=context.step).to(algorithm.reward_scale)
        seen = algorithm.normalised(observations)
        legal = None if context.legal is None else context.legal.to(seen.device)
        proposed = algorithm.propose(seen, noise[..., :-1], self.acting, self.scales.to(noise))
        candidates = algorithm.executed(proposed, legal)
        return algorithm.choose(seen, candidates, self.selection, noise[..., -1])

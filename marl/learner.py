"""A learner for teams: what it does on the way to a policy is data of every quality."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from core.algorithm import Acting, Algorithm, GuidanceConfig, Phase
from core.data import Affine, Trajectories
from core.device import device_of
from core.environments import Environments, TeamSpec
from core.errors import UserError
from core.noise import normal
from core.rollout import Context, Policy, Reactive, policy_keys, rollout
from core.training import CHECKPOINT, Trainer, TrainerConfig
from marl.learner_config import LearnerConfig
from marl.replay import Replay, Transitions


class MATD3(Algorithm):
    """Multi-agent TD3. Twin critics, smoothed target actions and a delayed actor, all agents in one call."""

    config_class = LearnerConfig
    reward_scale: Tensor
    order: Tensor

    def __init__(self, config: LearnerConfig, spec: TeamSpec):
        super().__init__(config, spec)
        if spec.discrete or spec.sizes:
            raise UserError(f"the learner needs continuous actions and observations of one size, got {spec}")
        generator = torch.Generator().manual_seed(config.seed)
        agents, seen, acted = spec.agents, spec.observation_dim, spec.action_dim
        judged = (seen + acted) * (agents if config.critic == "centralised" else 1)
        self.normaliser = Affine(seen)
        self.register_buffer("reward_scale", torch.ones(()))
        self.actor = _mlp(seen, acted, config, generator).append(nn.Tanh())
        self.critics = nn.ModuleList(_mlp(judged, 1, config, generator) for _ in range(2))
        self.target_actor = _mlp(seen, acted, config, generator).append(nn.Tanh()).requires_grad_(False)
        self.target_critics = nn.ModuleList(_mlp(judged, 1, config, generator) for _ in range(2)).requires_grad_(False)
        self.target_actor.load_state_dict(self.actor.state_dict())
        self.target_critics.load_state_dict(self.critics.state_dict())
        # Each agent's view of the team begins with itself, so that one critic serves all.
        place = torch.arange(agents)
        self.register_buffer("order", (place[:, None] + place) % agents, persistent=False)
        self.updates = 0
        self.experience: _Experience | None = None

    @staticmethod
    def uses(config: LearnerConfig) -> frozenset[str]:
        return frozenset()

    def prepare(self, trajectories: Trajectories) -> Replay:
        device = self.reward_scale.device
        done = trajectories.decisions
        self.normaliser.fit(trajectories.observations[done].to(device))
        self.reward_scale.copy_(1 / trajectories.rewards[done].std().clamp(min=1e-3))
        replay = Replay(self.config.capacity, device)
        replay.add(self.transitions(trajectories))
        return replay

    def transitions(self, trajectories: Trajectories) -> Transitions:
        """What is learned from trajectories."""
        return Transitions.of(trajectories, self.config.discount, self.config.lookahead)

    def phases(self) -> Sequence[Phase]:
        return [
            Phase("critic", list(self.critics.parameters()), self._critic_loss),
            Phase("actor", list(self.actor.parameters()), self._actor_loss, every=self.config.actor_every),
        ]

    def values(
        self, critics: nn.ModuleList, observations: Tensor, actions: Tensor, own: Tensor | None = None
    ) -> Tensor:
        """What each critic thinks of each agent's step [2, B, A]; `own`: the agents' own actions, in place of those."""
        seen = self.normaliser(observations)
        pair = torch.cat([seen, actions], dim=-1)
        if self.config.critic == "centralised":
            pair = pair[:, self.order].flatten(2)  # [B, A, A (O + U)]
        if own is not None:
            first = seen.shape[-1]
            pair = torch.cat([pair[..., :first], own, pair[..., first + own.shape[-1] :]], dim=-1)
        return torch.stack([critic(pair).squeeze(-1) for critic in critics])

    @torch.no_grad()
    def targets(self, batch: Transitions, noise: Tensor) -> Tensor:
        """What the critics learn [B, A]: r + discount min Q'(o', clip(a' + noise)) (TD3, Algorithm 1)."""
        config = self.config
        noise = (config.smoothing * noise).clamp(-config.smoothing_clip, config.smoothing_clip)
        actions = (self.target_actor(self.normaliser(batch.following)) + noise).clamp(-1, 1)
        following = self.values(self.target_critics, batch.following, actions).amin(dim=0)
        return batch.rewards * self.reward_scale + batch.discount[:, None] * following

    def _critic_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(batch.actions.shape, generator=generator, device=batch.actions.device)
        error = self.values(self.critics, batch.observations, batch.actions) - self.targets(batch, noise)
        return {"loss": (error**2).mean(dim=(1, 2)).sum()}

    def _actor_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        own = self.actor(self.normaliser(batch.observations))
        value = self.values(self.critics[:1], batch.observations, batch.actions, own).mean()
        return {"loss": -value}

    @torch.no_grad()
    def after_step(self) -> None:
        self.updates += 1
        if self.updates % self.config.actor_every == 0:
            learned: list[Tensor] = [*self.actor.parameters(), *self.critics.parameters()]
            targets: list[Tensor] = [*self.target_actor.parameters(), *self.target_critics.parameters()]
            torch._foreach_lerp_(targets, learned, self.config.polyak)
        if self.experience is not None and self.updates % self.config.updates == 0:
            self.experience.collect(Exploring(self, self.config.exploration))

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """[B, A, O] -> [B, A, U]."""
        return self.actor(self.normaliser(observations.to(self.reward_scale.device)))

    def policy(self, acting: Acting | None = None, guidance: Sequence[GuidanceConfig] = ()) -> "Exploring":
        return Exploring(self, 0.0)


def _mlp(inputs: int, outputs: int, config: LearnerConfig, generator: torch.Generator) -> nn.Sequential:
    """Hidden layers with ReLU and a linear head, with the generator's weights in torch's usual ranges."""
    widths = [inputs, *[config.hidden] * config.layers, outputs]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layer = nn.utils.skip_init(nn.Linear, before, after)
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -(before**-0.5), before**-0.5, generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Exploring(Reactive):
    """A learner's actor, with Gaussian noise on its actions; infinite noise stands for uniform actions."""

    def __init__(self, learner: MATD3, noise: float):
        self.learner = learner
        self.noise = noise

    def reset(self, seeds: Sequence[int]) -> None:
        self.keys = policy_keys(seeds)

    def act(self, observations: Tensor, context: Context) -> Tensor:
        shape = (observations.shape[1], self.learner.spec.action_dim)
        if not self.noise:
            return self.learner.act(observations)
        noise = normal(self.keys, shape, stream=context.step)
        if math.isinf(self.noise):
            return 2 * torch.special.ndtr(noise) - 1
        return (self.learner.act(observations).cpu() + self.noise * noise).clamp(-1, 1)


class _Experience:
    """Everything that a learner does, in order."""

    def __init__(self, environments: Environments, learner: MATD3):
        self.environments = environments
        self.learner = learner
        self.config: LearnerConfig = learner.config
        self.parts: list[Trajectories] = []
        self.scores: list[float] = []
        self.curve: list[tuple[int, float]] = []
        self.replay: Replay | None = None

    def collect(self, policy: Policy, episodes: int = 0) -> Trajectories:
        """Roll out whole episodes and keep them."""
        first = self.config.seed * 1_000_000 + len(self.scores)
        count = episodes or self.config.parallel
        done = rollout(policy, self.environments, range(first, first + count), parallel=count).trajectories
        self.parts.append(done)
        self.scores += done.scores.tolist()
        self.curve.append((sum(part.steps for part in self.parts), float(done.scores.mean())))
        if self.replay is not None:
            self.replay.add(self.learner.transitions(done))
        return done

    @property
    def reached(self) -> bool:
        """Whether the latest episodes, as many as the window has, return the target on average."""
        recent = self.scores[self.config.warmup :][-self.config.window :]
        return len(recent) == self.config.window and sum(recent) / len(recent) >= self.config.target


@dataclass(frozen=True)
class Learned:
    """What came of learning.

    Attributes:
        policy: the learned one, without exploration. learner: that it is of.
        replay: everything it did, whole episodes in order, tagged with the stage of the learning, 0 the first.
        curve: of each collection, the environment steps by its end and its mean return, exploration included.
        reached: whether the target stopped it.
    """

    policy: Policy
    learner: MATD3
    replay: Trajectories
    curve: tuple[tuple[int, float], ...]
    reached: bool


def learn(
    environments: Environments,
    config: LearnerConfig,
    folder: Path,
    progress: Callable[[int, float], None] = lambda steps, score: None,
) -> Learned:
    """Learn a policy from nothing, in whole episodes that the replay keeps.

    Args:
        folder: for the trainer's checkpoint and metrics; one that has them is refused, as a replay cannot be resumed.
        progress: told the environment steps and the mean return of each collection.

    Raises:
        UserError: discrete actions, observations of several sizes, or a folder with a training.
    """
    if (folder / CHECKPOINT).exists():
        raise UserError(f"{folder} holds a training already, and a learner begins anew: choose another folder")
    learner = MATD3(config, environments.spec).to(device_of(config.device))
    experience = _Experience(environments, learner)
    learner.experience = experience
    experience.replay = learner.prepare(experience.collect(Exploring(learner, math.inf), config.warmup))
    steps = config.collections * config.updates
    trainer = Trainer(
        learner,
        experience.replay,
        TrainerConfig(
            steps=steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            warmup=0,
            decay="none",
            ema=0.0,
            checkpoint_every=steps,
            log_every=config.updates,
            seed=config.seed,
            device=config.device,
        ),
        folder,
    )
    trainer.run(lambda step, metrics: progress(*experience.curve[-1]), lambda: experience.reached)
    replay = Trajectories.concatenate(experience.parts)
    stages = torch.arange(replay.episodes) * config.stages // replay.episodes
    return Learned(learner.policy(), learner, replace(replay, tags=stages), tuple(experience.curve), experience.reached)

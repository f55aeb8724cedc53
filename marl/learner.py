"""A learner for teams: what it does on the way to a policy is data of every quality."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from core.acting import Acting, GuidanceConfig
from core.algorithm import Algorithm, Phase
from core.critics import CriticConfig, Critics
from core.data import Affine, Trajectories, Transitions
from core.device import device_of
from core.environments import Environments, TeamSpec
from core.errors import UserError
from core.networks import GroupedLinear, mlp
from core.noise import normal
from core.rollout import Context, Policy, Reactive, policy_keys, rollout
from core.training import CHECKPOINT, Trainer, TrainerConfig
from marl.learner_config import LearnerConfig
from marl.replay import Replay


class MATD3(Algorithm):
    """Multi-agent TD3. Twin critics, smoothed target actions and a delayed actor, all agents in one call."""

    config_class = LearnerConfig
    reward_scale: Tensor

    def __init__(self, config: LearnerConfig, spec: TeamSpec):
        super().__init__(config, spec)
        if spec.discrete or spec.sizes:
            raise UserError(f"the learner needs continuous actions and observations of one size, got {spec}")
        generator = torch.Generator().manual_seed(config.seed)
        seen, acted = spec.observation_dim, spec.action_dim
        self.normaliser = Affine(seen)
        self.register_buffer("reward_scale", torch.ones(()))
        judge = CriticConfig(config.critic, config.hidden, config.layers, shared=True, polyak=config.polyak)
        with torch.random.fork_rng(devices=[]):  # whose initial weights are drawn again
            self.actor = mlp(seen, acted, config.hidden, config.layers, activation="relu").append(nn.Tanh())
            self.critics = Critics(judge, spec.agents, seen, acted)
        for network in (self.actor, self.critics.q):
            _draw(network, generator)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.critics.target.load_state_dict(self.critics.q.state_dict())
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
            Phase("critic", list(self.critics.q.parameters()), self._critic_loss),
            Phase("actor", list(self.actor.parameters()), self._actor_loss, every=self.config.actor_every),
        ]

    @torch.no_grad()
    def targets(self, batch: Transitions, noise: Tensor) -> Tensor:
        """What the critics learn [B, A]: r + discount min Q'(o', clip(a' + noise)) (TD3, Algorithm 1)."""
        config = self.config
        noise = (config.smoothing * noise).clamp(-config.smoothing_clip, config.smoothing_clip)
        actions = (self.target_actor(self.normaliser(batch.following)) + noise).clamp(-1, 1)
        following = self.critics.values(self.normaliser(batch.following), actions, target=True).amin(dim=0)
        return batch.rewards * self.reward_scale + batch.discount * following

    def _critic_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(batch.actions.shape, generator=generator, device=batch.actions.device)
        values = self.critics.values(self.normaliser(batch.observations), batch.actions)
        error = values - self.targets(batch, noise)
        return {"loss": (error**2).mean(dim=(1, 2)).sum()}

    def _actor_loss(self, batch: Transitions, generator: torch.Generator) -> dict[str, Tensor]:
        seen = self.normaliser(batch.observations)
        value = self.critics.own_values(seen, batch.actions, self.actor(seen))[0].mean()
        return {"loss": -value}

    @torch.no_grad()
    def after_step(self) -> None:
        self.updates += 1
        if self.updates % self.config.actor_every == 0:
            learned: list[Tensor] = list(self.actor.parameters())
            targets: list[Tensor] = list(self.target_actor.parameters())
            torch._foreach_lerp_(targets, learned, self.config.polyak)
            self.critics.follow()
        if self.experience is not None and self.updates % self.config.updates == 0:
            self.experience.collect(Exploring(self, self.config.exploration))

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """[B, A, O] -> [B, A, U]."""
        return self.actor(self.normaliser(observations.to(self.reward_scale.device)))

    def policy(self, acting: Acting | None = None, guidance: Sequence[GuidanceConfig] = ()) -> "Exploring":
        return Exploring(self, 0.0)


def _draw(network: nn.Module, generator: torch.Generator) -> None:
    """Initial weights in torch's usual ranges, from the generator."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | GroupedLinear):
            inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.weight.shape[1]
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)


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

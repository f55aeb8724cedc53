import math

import pytest
import torch
from torch import nn

from core.data import Transitions
from core.environments import Environments, Observed, Stepped, TeamSpec
from core.errors import UserError
from core.rollout import Context, rollout
from marl.behaviours import scripted_team
from marl.hunted import Hunted, as_prey, learn_prey
from marl.learner import MATD3, learn
from marl.learner_config import LearnerConfig
from marl.particles import Particles, learned_path, load_prey
from marl.replay import Replay

PAIR = TeamSpec(2, 1, 1)
TINY = {"hidden": 8, "warmup": 10, "parallel": 10, "updates": 3, "episodes": 30, "batch_size": 16, "window": 10}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Twice(nn.Module):
    """Q1 = o + 2 a and Q2 = 3 o, of [..., 2, 2] -> [..., 2, 1]."""

    def forward(self, pair):
        return (pair * torch.tensor([[1.0, 2.0], [3.0, 0.0]])).sum(dim=-1, keepdim=True)


def test_targets_by_hand():
    """r + discount min(Q1, Q2)(o', a'), with a' = 0 + clip(0.2 noise, -0.5, 0.5), Q1 = o + 2 a and Q2 = 3 o."""
    learner = MATD3(LearnerConfig(), PAIR)
    learner.critics.target = Twice()
    for parameter in learner.target_actor.parameters():
        parameter.data.zero_()
    learner.reward_scale.fill_(0.5)
    following = torch.tensor([[[2.0], [-1.0]]]).expand(2, -1, -1)
    batch = Transitions(
        torch.zeros(2, 2, 1),
        torch.zeros(2, 2, 1),
        torch.tensor([[10.0, 20.0]] * 2),
        torch.zeros(2, 2),
        following,
        torch.tensor([[0.9], [0.0]]),
    )
    noise = torch.tensor([[[1.0], [10.0]]] * 2)  # a' = 0.2 and 0.5: Q1 = 2.4 and 0, Q2 = 6 and -3
    expected = torch.tensor([[5 + 0.9 * 2.4, 10 + 0.9 * -3.0], [5.0, 10.0]])
    assert torch.allclose(learner.targets(batch, noise), expected)


def test_the_critics_loss_is_the_squared_error():
    learner = MATD3(LearnerConfig(smoothing=0.0), PAIR)
    learner.critics.q, learner.critics.target = Twice(), Twice()
    seen, acted = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[0.5], [-0.5]]])
    batch = Transitions(seen, acted, torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2), seen, torch.zeros(1, 2))
    # Q1 = 2 and 1, Q2 = 3 and 6; rewards 1 and 3: (1 + 4) / 2 + (4 + 9) / 2
    loss = learner._critic_loss(batch, torch.Generator().manual_seed(0))["loss"]
    assert loss.item() == pytest.approx(2.5 + 6.5)


def test_a_replay_keeps_the_latest():
    replay = Replay(5, torch.device("cpu"))

    def steps(first, count):
        values = torch.arange(first, first + count).float()
        wide, flat = values.reshape(-1, 1, 1), values[:, None]
        return Transitions(wide, wide, flat, flat, wide, flat)

    replay.add(steps(0, 3))
    assert len(replay) == 3
    assert replay.gather(torch.tensor([2, 0])).rewards.flatten().tolist() == [2, 0]
    replay.add(steps(3, 4))
    assert len(replay) == 5
    assert sorted(replay.gather(torch.arange(5)).discount.flatten().tolist()) == [2, 3, 4, 5, 6]
    replay.add(steps(7, 12))
    assert sorted(replay.gather(torch.arange(5)).discount.flatten().tolist()) == [14, 15, 16, 17, 18]


class Follow(Environments):
    """Two agents see a number in [-1, 1] for four steps; each is best off pushing half of what it sees."""

    agents = ("left", "right")
    spec = PAIR

    def reset(self, seeds):
        self.generator = torch.Generator().manual_seed(int(seeds[0]))
        self.count, self.steps = len(seeds), 0
        return self._seen()

    def _seen(self):
        self.seen = 2 * torch.rand(self.count, 2, 1, generator=self.generator) - 1
        return Observed(self.seen)

    def step(self, actions):
        rewards = -((actions - 0.5 * self.seen) ** 2).squeeze(2)
        self.steps += 1
        over = torch.full((self.count,), self.steps == 4)
        return Stepped(self._seen(), rewards, torch.zeros_like(rewards), torch.zeros_like(over), over)


def test_it_learns_what_is_best(tmp_path):
    config = LearnerConfig(hidden=32, warmup=50, parallel=20, updates=30, episodes=330, discount=0.5, batch_size=64)
    learned = learn(Follow(), config, tmp_path)
    seen = torch.linspace(-0.8, 0.8, 9)[:, None, None].expand(-1, 2, -1)
    acted = learned.policy.act(seen, Context(0, torch.ones(9, dtype=torch.bool)))
    assert (acted - 0.5 * seen).abs().mean() < 0.1
    assert learned.curve[-1][1] > learned.curve[0][1]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return learn(Particles("spread", "omar"), LearnerConfig(**TINY), tmp_path_factory.mktemp("learned"))


def test_the_replay_is_all_that_happened(learned):
    """The actions of the replay, taken again in the environment, lead to its observations and rewards."""
    replay = learned.replay
    assert (replay.episodes, replay.steps) == (30, 750)
    assert not replay.terminated.any()
    environments = Particles("spread", "omar")
    rows = replay.offsets[:-1]
    seen = environments.reset(range(30)).observations
    for step in range(25):
        assert torch.allclose(replay.observations[rows + step], seen, atol=1e-5)
        stepped = environments.step(replay.actions[rows + step])
        assert torch.allclose(replay.rewards[rows + step], stepped.rewards, atol=1e-3)
        seen = stepped.observed.observations
    assert torch.allclose(replay.observations[rows + 25], seen, atol=1e-5)


def test_the_curve_and_the_stages_tell_the_replays_story(learned):
    assert [steps for steps, _ in learned.curve] == [250, 500, 750]
    scores = learned.replay.scores.reshape(3, 10).mean(dim=1)
    assert torch.allclose(torch.tensor([score for _, score in learned.curve]), scores, atol=1e-4)
    assert learned.replay.tags.tolist() == [k // 6 for k in range(30)]
    assert not learned.reached


def test_the_warm_up_is_uniform_and_what_follows_explores(learned, tmp_path):
    warm = learned.replay.actions[:260][torch.arange(260) % 26 < 25].flatten()
    assert abs(float(warm.std()) - 1 / math.sqrt(3)) < 0.03
    assert warm.abs().max() < 1
    # Without noise, what follows is the actor's own choice.
    done = learn(Particles("spread", "omar"), LearnerConfig(**TINY | {"exploration": 0.0, "updates": 1}), tmp_path)
    last = done.replay.subset(torch.arange(20, 30))
    learner = MATD3(LearnerConfig(**TINY), done.learner.spec)
    assert not torch.equal(learner.actor[0].weight, done.learner.actor[0].weight)
    rows = last.decisions
    # One more update follows no further collection: the actor that acted is the learned one, up to the last update.
    assert torch.allclose(done.learner.act(last.observations[rows]), last.actions[rows], atol=0.05)


def test_the_same_seed_is_the_same_replay(learned, tmp_path):
    state = torch.get_rng_state()
    torch.manual_seed(5)
    again = learn(Particles("spread", "omar"), LearnerConfig(**TINY), tmp_path / "a")
    assert again.replay.fingerprint() == learned.replay.fingerprint()
    other = learn(Particles("spread", "omar"), LearnerConfig(**TINY, seed=1), tmp_path / "b")
    assert other.replay.fingerprint() != learned.replay.fingerprint()
    torch.set_rng_state(state)


def test_initial_weights_come_from_the_seed_and_leave_global_randomness_alone():
    before = torch.get_rng_state()
    first, second, third = (MATD3(LearnerConfig(seed=seed), TeamSpec(3, 18, 2)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.actor[0].weight, third.actor[0].weight)
    assert first.actor[0].weight.abs().max() <= 1 / math.sqrt(18)
    assert torch.equal(first.actor[0].weight, first.target_actor[0].weight)


def test_it_stops_at_the_target(tmp_path):
    config = LearnerConfig(**TINY | {"episodes": 100, "target": -1e9})
    told = []
    learned = learn(Particles("spread", "omar"), config, tmp_path, lambda steps, score: told.append((steps, score)))
    assert learned.reached
    assert learned.replay.episodes == 20
    assert told[-1] == learned.curve[-1]


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="continuous actions and observations of one size"):
        learn(Particles("tag", "omar", prey=None), LearnerConfig(**TINY), tmp_path)
    learn(Particles("spread", "omar"), LearnerConfig(**TINY), tmp_path)
    with pytest.raises(UserError, match="holds a training already"):
        learn(Particles("spread", "omar"), LearnerConfig(**TINY), tmp_path)
    with pytest.raises(ValueError, match="unknown critic 'central'"):
        LearnerConfig(critic="central")
    with pytest.raises(ValueError, match="episodes must allow for the warm-up's 200"):
        LearnerConfig(episodes=100)


def test_target_networks_follow(tmp_path):
    """After one update of the actor, targets are a step of `polyak` from the first weights to the learned ones."""
    config = LearnerConfig(**TINY | {"updates": 2, "episodes": 20, "polyak": 0.25})
    fresh = MATD3(config, Particles("spread", "omar").spec)
    done = learn(Particles("spread", "omar"), config, tmp_path).learner
    assert done.updates == 2
    for before, after, target in zip(
        fresh.critics.q.parameters(), done.critics.q.parameters(), done.critics.target.parameters(), strict=True
    ):
        assert torch.allclose(target, before + 0.25 * (after - before), atol=1e-6)


@pytest.mark.parametrize(("scenario", "rules", "prey"), [("tag", "omar", 1), ("world", "mpe2", 2)])
def test_the_hunted_have_the_preys_side(scenario, rules, prey):
    """Stepped beside the full environment with the same predators, it gives the prey's rows."""
    full = Particles(scenario, rules)
    team = scripted_team(f"mpe/{scenario}", "medium", rules)
    hunted = Hunted(Particles(scenario, rules), scripted_team(f"mpe/{scenario}", "medium", rules))
    count = full.world.team
    assert hunted.agents == full.agents[count:]
    assert hunted.spec == TeamSpec(prey, full.spec.sizes[-1], 2)
    whole, seen = full.reset(range(4)).observations, hunted.reset(range(4)).observations
    team.reset(range(4))
    for step in range(6):
        assert torch.equal(seen, whole[:, count:, : hunted.spec.observation_dim])
        mine = torch.tanh(random(4, prey, 2, seed=step))
        others = team.act(whole[:, :count], Context(step, torch.ones(4, dtype=torch.bool)))
        padded = nn.functional.pad(mine, (0, full.spec.action_dim - 2))
        expected, stepped = full.step(torch.cat([others, padded], dim=1)), hunted.step(mine)
        assert torch.equal(stepped.rewards, expected.rewards[:, count:])
        whole, seen = expected.observed.observations, stepped.observed.observations
    with pytest.raises(UserError, match="the prey can learn where they are agents"):
        Hunted(Particles("spread", "omar"), team)


def test_a_prey_does_what_its_learner_does(tmp_path):
    hunted = Hunted(Particles("tag", "omar"), scripted_team("mpe/tag", "expert", "omar"))
    learner = learn(hunted, LearnerConfig(**TINY), tmp_path).learner
    seen = random(50, 1, 14)
    assert torch.allclose(as_prey(learner, "x").act(seen), learner.act(seen), atol=1e-5)
    prey = learn_prey("tag", "omar", LearnerConfig(**TINY), tmp_path / "prey")
    assert prey.description == "learned by TD3 from 30 episodes with scripted predators"
    assert Particles("tag", "omar", prey=prey).reset([0]).observations.shape == (1, 3, 16)


class Restless:
    """Prey that push at random."""

    name = "random"
    description = ""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def act(self, observations):
        return 2 * torch.rand(*observations.shape[:-1], 2, generator=self.generator) - 1


@pytest.mark.parametrize("scenario", ["tag", "world"])
@pytest.mark.parametrize("rules", ["omar", "mpe2"])
def test_the_shipped_prey_evade(scenario, rules):
    """The expert catches them less than prey that push at random, and still catches them."""
    assert learned_path(scenario, rules).is_file()
    team = scripted_team(f"mpe/{scenario}", "expert", rules)
    restless, learned = (
        rollout(team, Particles(scenario, rules, prey=prey), range(300), parallel=300).trajectories.scores.mean()
        for prey in (Restless(), load_prey("learned", scenario, rules))
    )
    assert 10 < learned < 0.7 * restless


@pytest.mark.slow
@pytest.mark.parametrize(("task", "rules", "target"), [("spread", "omar", 278.8), ("tag", "omar", 24.0)])
def test_a_third_of_the_way_to_the_expert(tmp_path, task, rules, target):
    """In at most the published replay's 100,000 steps."""
    environments = Particles(task, rules, prey=load_prey("flight", task, rules) if task != "spread" else None)
    config = LearnerConfig.for_task(f"mpe/{task}", episodes=4000, target=target)
    learned = learn(environments, config, tmp_path)
    assert learned.reached
    random_scores = learned.replay.scores[: config.warmup].mean()
    assert random_scores < learned.replay.scores.mean() < target
    greedy = rollout(learned.policy, environments, range(10**6, 10**6 + 300), parallel=300).trajectories.scores
    assert greedy.mean() > 0.95 * target

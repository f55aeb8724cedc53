from dataclasses import asdict, replace

import pytest
import torch

import core
from core.acting import Acting, GuidanceConfig
from core.cloning import Cloning, CloningConfig
from core.data import Trajectories, return_ranks
from core.environments import TeamSpec
from core.errors import UserError
from core.noise import normal
from core.rollout import Context, policy_keys
from core.runs import Run
from core.samplers import SamplerConfig
from core.training import Trainer, TrainerConfig
from marl import AgentAttention, InverseConfig, MADiff, MADiffConfig

A, O, U = 3, 5, 2  # noqa: E741
SPEC = TeamSpec(A, O, U)
TINY = MADiffConfig(horizon=4, width=16, inverse=InverseConfig(hidden=16))
TRAINER = TrainerConfig(steps=3, batch_size=8, warmup=0, device="cpu")
ORDER = torch.tensor([2, 0, 1])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def team_data(lengths=(6, 3, 5, 4)):
    """Episodes whose agents' entries differ in scale, with random actions and rewards."""
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(torch.tensor(lengths) + 1, 0)])
    rows = int(offsets[-1])
    observations = random(rows, A, O) * torch.tensor([1.0, 5.0, 0.1, 2.0, 1.0]) + 3
    actions = torch.tanh(random(rows, A, U, seed=1))
    rewards = random(rows, A, seed=2)
    actions[offsets[1:] - 1], rewards[offsets[1:] - 1] = 0, 0
    return Trajectories(observations, actions, rewards, rewards.abs(), offsets, torch.ones(len(lengths), dtype=bool))


DATA = team_data()
OBSERVATIONS = DATA.observations[DATA.decisions[[0, 8, 3, 11]]]


def planner_of(config=TINY, gate=1.0):
    """An untrained planner, fitted to the data's scale, whose agents do talk."""
    torch.manual_seed(0)
    planner = MADiff(config, SPEC)
    planner.prepare(DATA)
    for module in planner.modules():
        if isinstance(module, AgentAttention):
            module.gate.data.fill_(gate)
    return planner.eval()


@pytest.fixture(scope="module")
def planner():
    return planner_of()


def trained(config, folder, steps=3):
    algorithm = planner_of(config)
    trainer = Trainer(algorithm, algorithm.prepare(DATA), replace(TRAINER, steps=steps), folder)
    trainer.run()
    return trainer


def test_shapes_and_units(planner):
    plan = planner.plan(OBSERVATIONS, trace=True, sampler=core.DDIM(steps=3))
    assert plan.observations.shape == (4, 4, A, O)
    assert plan.actions.shape == (4, 3, A, U)
    assert plan.faults.tolist() == [False] * 4
    assert [stage.shape for stage in plan.trace] == [plan.observations.shape] * 4
    assert torch.allclose(plan.trace[-1], plan.observations, atol=1e-5)
    assert plan.actions.abs().max() <= 1
    # The plan is clipped to the data's own range, in its units.
    planned = plan.observations[:, 1:].flatten(0, 2)
    low, high = (getattr(DATA.observations.flatten(0, 1), name)(dim=0) for name in ("amin", "amax"))
    assert (planned >= low - 1e-4).all()
    assert (planned <= high + 1e-4).all()
    assert planned.std() > 0.1


@pytest.mark.parametrize("factor", [1, 100], ids=["within the data", "far outside"])
def test_the_first_step_is_exactly_the_current_observation(planner, factor):
    observations = factor * OBSERVATIONS
    plan = planner.plan(observations)
    assert torch.allclose(plan.observations[:, 0], observations, rtol=1e-6, atol=1e-6)
    assert torch.equal(plan.observations[:, 0], observations)


@pytest.mark.parametrize("actions", ["inverse", "joint"])
@pytest.mark.parametrize("prediction", ["x0", "noise"])
@pytest.mark.parametrize("sampler", [core.DDIM(steps=4), core.DPMSolver(steps=4)], ids=["ddim", "dpm"])
def test_permuting_the_agents_permutes_plans_and_actions(actions, prediction, sampler):
    planner = planner_of(replace(TINY, actions=actions, prediction=prediction))
    noise, returns = random(4, *planner.plan_shape(), seed=3), torch.rand(4, A)
    plan = planner.plan(OBSERVATIONS, returns, noise=noise, sampler=sampler)
    permuted = planner.plan(OBSERVATIONS[:, ORDER], returns[:, ORDER], noise=noise[:, :, ORDER], sampler=sampler)
    assert torch.allclose(permuted.observations, plan.observations[:, :, ORDER], atol=1e-4, rtol=1e-5)
    assert torch.allclose(permuted.actions, plan.actions[:, :, ORDER], atol=1e-4)
    assert not torch.allclose(permuted.observations, plan.observations, atol=1e-2)


@pytest.mark.parametrize(
    ("config", "gate", "talk"), [(TINY, 1.0, True), (TINY, 0.0, False), (replace(TINY, attention=False), 1.0, False)]
)
def test_agents_meet_in_attention_only(config, gate, talk):
    planner = planner_of(config, gate)
    changed = OBSERVATIONS.clone()
    changed[:, 0] += 1
    noise = random(4, *planner.plan_shape(), seed=3)
    plan, other = (planner.plan(observations, noise=noise) for observations in (OBSERVATIONS, changed))
    assert torch.allclose(plan.observations[:, :, 1:], other.observations[:, :, 1:], atol=1e-6) != talk
    assert not torch.allclose(plan.observations[:, 1:, 0], other.observations[:, 1:, 0], atol=1e-4)


def test_guidance_scale_0_ignores_the_returns(planner):
    plans = [planner.plan(OBSERVATIONS, returns, guidance_scale=0.0) for returns in (0.1, 0.9)]
    assert torch.equal(plans[0].observations, plans[1].observations)
    for scale in (1.0, 1.5):
        low, high = (planner.plan(OBSERVATIONS, returns, guidance_scale=scale) for returns in (0.1, 0.9))
        assert not torch.allclose(low.observations, high.observations, atol=1e-4)


def test_returns_of_each_agent(planner):
    plan = planner.plan(OBSERVATIONS, 0.3)
    same = planner.plan(OBSERVATIONS, torch.full((4, A), 0.3))
    assert torch.equal(plan.observations, same.observations)
    others = planner.plan(OBSERVATIONS, torch.tensor([0.3, 0.3, 0.9]).expand(4, A))
    assert not torch.allclose(plan.observations[:, 1:, 2], others.observations[:, 1:, 2], atol=1e-4)


def test_the_same_seed_is_the_same_plan_whatever_the_batch(planner):
    plan, again = planner.plan(OBSERVATIONS, seed=5), planner.plan(OBSERVATIONS, seed=5)
    assert torch.equal(plan.observations, again.observations)
    part = planner.plan(OBSERVATIONS[:2], seed=5)
    assert torch.allclose(part.observations, plan.observations[:2], atol=1e-5, rtol=1e-5)
    assert torch.allclose(part.actions, plan.actions[:2], atol=1e-5)
    other = planner.plan(OBSERVATIONS, seed=6)
    assert not torch.allclose(other.observations, plan.observations, atol=1e-2)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_a_policy_acts_by_its_seeds_whatever_the_batch(planner, name):
    policy = planner.policy(Acting(SamplerConfig(name, steps=3)))
    context = Context(2, torch.ones(4, dtype=torch.bool))
    policy.reset([11, 12, 13, 14])
    actions = policy.act(OBSERVATIONS, context)
    policy.reset([13])
    alone = policy.act(OBSERVATIONS[2:3], context)
    assert torch.allclose(alone[0], actions[2], atol=1e-5)
    assert not torch.allclose(policy.act(OBSERVATIONS[2:3], replace(context, step=3)), alone, atol=1e-4)


def test_a_policy_plans_with_what_it_was_given(planner):
    acting = Acting(SamplerConfig("dpm", steps=3, spacing="karras"), GuidanceConfig(2.0, 0.7), temperature=0.5)
    policy = planner.policy(acting)
    policy.reset([3, 4, 5, 6])
    plan = planner.plan(
        OBSERVATIONS, 0.7, sampler=core.DPMSolver(3, "karras"), guidance_scale=2.0, temperature=0.5,
        noise=normal(policy_keys([3, 4, 5, 6]), planner.plan_shape(), stream=9),
    )  # fmt: skip
    actions = policy.act(OBSERVATIONS, Context(9, torch.ones(4, dtype=torch.bool)))
    assert torch.equal(actions, plan.actions[:, 0])


def test_temperature_0_forgets_the_noise(planner):
    plans = [planner.plan(OBSERVATIONS, temperature=0.0, seed=seed) for seed in (0, 1)]
    assert torch.equal(plans[0].observations, plans[1].observations)


def test_further_edits_follow_the_clamp(planner):
    seen = []

    class Edit(core.Edit):
        def before(self, x, step):
            seen.append(planner.normaliser.invert(x[:, 0]))
            return x

        def finish(self, x):
            return torch.zeros_like(x)

    plan = planner.plan(OBSERVATIONS, sampler=core.DDIM(steps=2), edits=[Edit()])
    assert len(seen) == 2
    assert all(torch.allclose(first, OBSERVATIONS, atol=1e-4) for first in seen)
    assert torch.allclose(plan.observations[:, 1:], planner.normaliser.shift.expand(4, 3, A, O), atol=1e-5)


def test_joint_actions(tmp_path):
    config = replace(TINY, actions="joint")
    planner = planner_of(config)
    assert planner.inverse is None
    assert planner.plan_shape() == (4, A, O + U)
    plan = planner.plan(OBSERVATIONS)
    assert plan.observations.shape == (4, 4, A, O)
    assert plan.actions.shape == (4, 3, A, U)
    assert plan.actions.abs().max() <= 1
    # The current action is planned, not given.
    assert not torch.equal(plan.actions[:, 0], planner.plan(OBSERVATIONS, seed=1).actions[:, 0])
    assert trained(config, tmp_path).rows[-1].keys() == {"step", "seconds", "loss", "diffusion"}


@pytest.mark.parametrize("source", ["data", "estimate"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_inverse_dynamics_trains_from_either_source(source, noise, tmp_path):
    config = replace(TINY, inverse=InverseConfig(hidden=16, source=source, noise=noise, noise_below=0.9))
    before = planner_of(config).inverse.state_dict()
    trainer = trained(config, tmp_path)
    after = trainer.algorithm.inverse.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert trainer.rows[-1].keys() == {"step", "seconds", "loss", "diffusion", "inverse"}


@pytest.mark.parametrize("source", ["data", "estimate"])
def test_inverse_dynamics_does_not_move_the_planner(source):
    """Its loss reaches its own weights alone."""
    planner = planner_of(replace(TINY, inverse=InverseConfig(hidden=16, source=source, noise_below=1.0)))
    batch = planner.prepare(DATA).gather(torch.arange(8))
    losses = planner._loss(batch, torch.Generator().manual_seed(0))
    losses["inverse"].backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in planner.denoiser.parameters())
    assert all(parameter.grad is not None for parameter in planner.inverse.parameters())
    assert losses["loss"].item() == pytest.approx((losses["diffusion"] + losses["inverse"]).item() / 2)


def test_inverse_dynamics_reads_the_entries_it_is_told_to():
    planner = planner_of(replace(TINY, inverse=InverseConfig(hidden=16, entries=[3, 1])))
    pair = random(4, A, O), random(4, A, O, seed=1)
    changed = [values.clone() for values in pair]
    for values in changed:
        values[..., [0, 2, 4]] = 9.0
    assert torch.equal(planner.inverse(*pair), planner.inverse(*changed))
    with pytest.raises(ValueError, match="entry 5 of observations of 5 entries"):
        MADiff(replace(TINY, inverse=InverseConfig(entries=[0, 5])), SPEC)


def test_steps_past_the_end_have_no_action_to_learn():
    """What stands in the rows after an episode's last action changes nothing."""
    planner = planner_of()
    losses = []
    for filler in (0.0, 1e6):
        actions = DATA.actions.clone()
        actions[DATA.offsets[1:] - 1] = filler
        batches = planner.prepare(replace(DATA, actions=actions))
        loss = planner._loss(batches.gather(torch.arange(len(batches))), torch.Generator().manual_seed(0))
        losses.append(loss["inverse"].item())
    assert losses[0] == losses[1]


def test_windows_are_the_normalised_data():
    planner = planner_of()
    batches = planner.prepare(DATA)
    assert len(batches) == DATA.steps == 18
    batch = batches.gather(torch.tensor([4, 6]))  # the last but one decision of an episode, and the first of the next
    normalised = planner.normaliser(DATA.observations)
    assert torch.equal(batch.observations[0], normalised[[4, 5, 6, 6]])
    assert torch.equal(batch.observations[1], normalised[[7, 8, 9, 10]])
    assert torch.equal(batch.actions[1], DATA.actions[7:11])
    assert batch.valid.tolist() == [[True, True, False, False], [True, True, True, False]]
    assert torch.equal(batch.ranks[..., 0], return_ranks(DATA)[[4, 7]])


def test_next_step_weight_counts_the_first_planned_step_more():
    losses = {}
    for weight in (1.0, 3.0, 1e6):
        planner = planner_of(replace(TINY, next_step_weight=weight))
        batch = planner.prepare(DATA).gather(torch.arange(18))
        losses[weight] = planner._loss(batch, torch.Generator().manual_seed(0))["diffusion"].item()
    # Three planned steps: with rest r and first f, (f + r) / 3 becomes (3 f + r) / 5, and f alone in the limit.
    first = losses[1e6]
    rest = 3 * losses[1.0] - first
    assert losses[3.0] == pytest.approx((3 * first + rest) / 5, rel=1e-4)


@pytest.mark.parametrize("shape", [(A, O), (2, A, O + 1), (2, A + 1, O), (2, 2, A, O), (2, 1, 1, A, O)])
def test_observations_of_a_wrong_shape(planner, shape):
    with pytest.raises(ValueError, match=r"observations must be \[B, 3, 5\], got \["):
        planner.plan(torch.zeros(shape))


def test_faults_are_flagged(planner):
    observations = OBSERVATIONS.clone()
    observations[1, 2, 0] = torch.nan
    plan, good = planner.plan(observations), planner.plan(OBSERVATIONS)
    assert plan.faults.tolist() == [False, True, False, False]
    sound = [0, 2, 3]
    assert torch.allclose(plan.observations[sound], good.observations[sound], atol=1e-5, rtol=1e-5)
    assert plan.actions[sound].isfinite().all()


def test_acting_on_a_plan_that_is_not_finite_is_an_error(planner):
    policy = planner.policy(Acting())
    policy.reset([1, 2])
    observations = OBSERVATIONS[:2].clone()
    observations[1, 2, 0] = torch.nan
    with pytest.raises(UserError, match="1 of 2 plans at step 0 are not finite"):
        policy.act(observations, Context(0, torch.ones(2, dtype=torch.bool)))


def test_every_stage_of_the_trace_holds_the_current_observation(planner):
    for stage in planner.plan(OBSERVATIONS, trace=True).trace:
        assert torch.allclose(stage[:, 0], OBSERVATIONS, atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 3, 1)])
def test_returns_of_a_wrong_shape(planner, shape):
    with pytest.raises(ValueError, match="returns must be one number or"):
        planner.plan(OBSERVATIONS, returns=torch.ones(shape))


@pytest.mark.parametrize("config", [TINY, replace(TINY, actions="joint", normaliser="minmax", schedule="cosine")])
def test_saved_and_loaded_it_plans_the_same(config, tmp_path):
    run = {
        "method": "madiff",
        "task": {},
        "algo": asdict(config),
        "trainer": {"seed": 0},
        "dataset": {"id": "mpe/spread-v0", "quality": "expert"},
        "spec": asdict(SPEC),
    }
    Run.create(tmp_path, run)
    trainer = trained(config, tmp_path)
    loaded = MADiff.load(tmp_path)
    trainer.ema.copy_to(trainer.algorithm)
    trainer.algorithm.eval()
    plan, expected = (algorithm.plan(OBSERVATIONS, trace=True) for algorithm in (loaded, trainer.algorithm))
    assert torch.equal(plan.observations, expected.observations)
    assert torch.equal(plan.actions, expected.actions)
    assert (loaded.config, loaded.spec) == (config, SPEC)
    assert not loaded.training


def test_loading_another_algorithms_run(tmp_path):
    run = {
        "method": "bc",
        "task": {},
        "algo": asdict(CloningConfig()),
        "trainer": {"seed": 0},
        "dataset": {"id": "mpe/spread-v0", "quality": "expert"},
        "spec": asdict(SPEC),
    }
    Run.create(tmp_path, run)
    with pytest.raises(UserError, match="is a run of 'cloning', not of 'madiff'"):
        MADiff.load(tmp_path)
    with pytest.raises(UserError, match="no checkpoint at"):
        Cloning.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 5}, "horizon 5 does not fit a U-Net of 2 levels: choose a multiple of 2"),
        ({"width": 12}, "width 12 must be a multiple of the 8"),
        ({"kernel": 4}, "kernel must be odd, got 4"),
        ({"activation": "relu"}, "unknown activation 'relu'"),
        ({"normaliser": "pdf"}, "unknown normaliser 'pdf'"),
        ({"known": "some"}, "unknown algo.known 'some'"),
        ({"network": "mlp"}, "unknown algo.network 'mlp'"),
        ({"token": "word"}, "unknown algo.token 'word'"),
        ({"data_factor": "sum"}, "unknown algo.data_factor 'sum'"),
        ({"data_factor": "attention"}, "denoised alone: set algo.attention=false"),
        ({"history": 1}, "algo.history=1 and algo.horizon=4 do not fit a U-Net of 2 levels"),
        ({"schedule": "flow", "prediction": "noise"}, "algo.prediction=noise says nothing where algo.schedule=flow"),
        ({"history": -1}, "algo.history must be at least 0"),
        ({"heads": 0}, "heads"),
        ({"schedule": "edm"}, "algo.schedule: unknown schedule 'edm'"),
        ({"actions": "none"}, "unknown algo.actions 'none'"),
        ({"condition_dropout": 1.0}, r"algo.condition_dropout lies in \[0, 1\)"),
        ({"discount": 0.0}, r"algo.discount lies in \(0, 1\]"),
        ({"multipliers": []}, "algo.multipliers must be positive integers"),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        MADiff(replace(TINY, **options), SPEC)

"""Where strangers meet the engine: empty batches, foreign denoisers, wrong shapes, and what is said of them."""

import math

import pytest
import torch

import core
from core.networks import ResidualMLP, TimeEmbedding
from tests.core.every import samplers
from tests.core.gaussian import correlated

NOISE = core.normal(range(4), (3,), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 4, 2)])
@pytest.mark.parametrize("sampler", samplers(3), ids=str)
def test_empty_batches_and_samples(shape, sampler):
    result = core.sample(core.wrap(lambda x, t: 0.5 * x, core.VPLinear()), torch.zeros(shape), sampler)
    assert result.x.shape == shape
    assert result.faults.shape == shape[:1]


@pytest.mark.parametrize("sampler", [core.DDPM(3), core.Heun(3)], ids=str)
def test_a_walk_under_inference_mode_leaves_later_ones_alone(sampler):
    schedule = core.VPLinear(0.1, 19.0 + len(str(sampler)))  # a grid of its own

    def scaled(x, t):
        return x * t

    with torch.inference_mode():
        core.sample(core.wrap(scaled, schedule), NOISE, sampler)
    noise = NOISE.clone().requires_grad_()
    core.sample(core.wrap(scaled, schedule), noise, sampler, grad=True).x.sum().backward()
    assert noise.grad.isfinite().all()


@pytest.mark.parametrize("made", [lambda x: x[:, 0], lambda x: x[:, :1], lambda x: x[None]])
def test_a_denoiser_keeps_its_sample_s_shape(made):
    with pytest.raises(ValueError, match=r"made \[.*\] of a sample \[4, 3\]: their shapes must agree"):
        core.sample(core.wrap(lambda x, t: made(x), core.VPLinear()), NOISE, core.DDIM(2))


def test_a_foreign_estimate_is_taken_in_the_sample_s_precision():
    schedule = core.VPCosine()
    denoiser = core.wrap(lambda x, t: schedule.alpha(t.expand(len(x)))[:, None] * x, schedule)
    assert core.sample(denoiser, NOISE.float(), core.DPMSolver(3)).x.dtype == torch.float32


def test_known_values_are_taken_in_the_sample_s_precision():
    clamp = core.Clamp(torch.tensor([True, False, False]), torch.ones(3, dtype=torch.float64))
    warm = core.WarmStart(torch.zeros(4, 3, dtype=torch.float64), 0.5)
    result = core.sample(correlated_float(), NOISE.float(), core.DDIM(2), edits=[clamp], start=warm)
    assert result.x.dtype == torch.float32
    with pytest.raises(ValueError, match=r"has the noise's shape \[4, 3\], got \[2, 4, 3\]"):
        core.sample(correlated_float(), NOISE.float(), core.DDIM(2), start=core.WarmStart(torch.zeros(2, 4, 3), 0.5))


def correlated_float():
    data = correlated(core.VPLinear())
    return core.wrap(lambda x, t: data(x.double(), t), core.VPLinear())


@pytest.mark.parametrize("energy", [lambda x0: x0.mean(), lambda x0: x0, lambda x0: x0.sum(dim=1, keepdim=True)])
def test_an_energy_is_one_number_a_sample(energy):
    for options in ({}, {"on": "frozen"}):
        with pytest.raises(ValueError, match=r"one number a sample, \[4\], got"):
            core.sample(core.Energy(correlated(core.VPLinear()), energy, **options), NOISE, core.DDIM(2))
    move = core.GradientMove(lambda x, t: energy(x), 0.1)
    with pytest.raises(ValueError, match=r"one number a sample, \[4\], got"):
        core.sample(correlated(core.VPLinear()), NOISE, core.DDIM(2), edits=[move])


class Doubling(core.Denoiser):
    """A user's subclass: it does arithmetic with t, and knows nothing of the engine's own object."""

    schedule = core.VPLinear()

    def __call__(self, x, t, cond=None):
        return x * (1 - t) / self.schedule.alpha(t)


class Passing(core.Denoiser):
    """A user's guidance that hands t on as it is."""

    takes_time = True

    def __init__(self, denoiser):
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def __call__(self, x, t, cond=None):
        return self.denoiser(x, t, cond)


def test_users_subclasses_are_given_times_as_tensors_unless_they_ask_otherwise():
    plain = core.sample(Doubling(), NOISE, core.DDIM(3)).x
    assert plain.isfinite().all()
    assert torch.equal(core.sample(core.ClassifierFree(Doubling(), 1.0), NOISE, core.DDIM(3), cond=NOISE).x, plain)
    torch.manual_seed(0)
    network = ResidualMLP(3, width=8, blocks=1)
    calls = []
    network.time.mlp.register_forward_hook(lambda *_: calls.append(1))
    denoiser = core.NetworkDenoiser(network, core.VPLinear(), "x0")
    noise = NOISE.float()
    assert torch.equal(
        core.sample(Passing(denoiser), noise, core.DDIM(3)).x, core.sample(denoiser, noise, core.DDIM(3)).x
    )
    assert len(calls) == 2  # embedded once a walk, through a user's guidance too


@pytest.mark.parametrize("null", [-1.0, torch.tensor([0.0, 0.0, 9.0], dtype=torch.float64)])
def test_no_condition_may_be_a_user_s_own_mark(null):
    seen = []

    def fn(x, t, cond):
        seen.append(cond)
        return 0.5 * x + cond.nan_to_num()

    guided = core.ClassifierFree(core.wrap(fn, core.VPLinear()), 2.0, null=null)
    core.sample(guided, NOISE, core.DDIM(2), cond=torch.ones(4, 3, dtype=torch.float64))
    for cond in seen:
        assert torch.equal(cond[:4], torch.as_tensor(null).expand(4, 3).double())
        assert (cond[4:] == 1).all()


def test_class_labels_are_conditions_with_a_null_class():
    table = torch.tensor([[0.0], [1.0], [-1.0]])
    labels = torch.tensor([1, 2])
    denoiser = core.wrap(lambda x, t, cond: table[cond].expand_as(x), core.VPLinear())
    x = core.sample(core.ClassifierFree(denoiser, 1.5, null=0), torch.randn(2, 3), core.DDIM(2), cond=labels).x
    assert torch.allclose(x, 1.5 * table[labels].expand(2, 3), atol=1e-6)


def test_the_time_embedding_keeps_its_digits_in_bf16():
    torch.manual_seed(0)
    embedding = TimeEmbedding(32)
    t = torch.linspace(0, 1, 1001)
    exact = embedding(t)
    low = embedding.bfloat16()(t)
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).norm() < 0.02 * exact.norm()


def test_a_distilled_flow_has_a_finite_loss_whatever_it_predicts():
    torch.manual_seed(0)
    for prediction in ("noise", "score", "edm", "x0", "v", "flow"):
        teacher = core.NetworkDenoiser(ResidualMLP(3, width=8, blocks=1).double(), core.Flow(), prediction)
        model = core.ConsistencyModel(teacher)
        loss = core.consistency_loss(model, model, teacher, NOISE.repeat(50, 1), generator=torch.Generator())
        assert math.isfinite(loss.item())

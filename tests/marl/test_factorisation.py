import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.denoiser import Denoiser, NetworkDenoiser
from core.edits import Clamp
from core.losses import diffusion_loss
from core.networks import TemporalUNet
from core.predictions import PREDICTIONS
from core.samplers import DDIM
from core.sampling import sample
from core.schedules import VPLinear
from marl.factorisation import (
    DATA_FACTORISATIONS,
    NOISE_FACTORISATIONS,
    AgentWeights,
    DataFactorisation,
    Factorised,
    NoiseFactorisation,
    TrajectoryAttention,
)

B, T, A, D = 2, 4, 3, 5
#: Logits whose softmax is 1/8, 2/8 and 5/8.
LOGITS = torch.tensor([1.0, 2.0, 5.0]).log()
WEIGHTS = torch.tensor([3 / 8, 6 / 8, 15 / 8])
SHARED = TemporalUNet(D, T, width=8, multipliers=(1, 2), groups=4)
PRESENT = torch.tensor([[True, True, False], [True, True, True]])


def inputs(seed=0):
    x = torch.randn(B, T, A, D, generator=torch.Generator().manual_seed(seed))
    return x, torch.tensor([0.3, 0.8], dtype=torch.float64)


def factorised(noise="concat", data="concat", prediction="x0", network=SHARED, present=None, learned=False):
    torch.manual_seed(0)
    parts = NoiseFactorisation(noise, A), DataFactorisation(data, A, D, heads=2, width=4)
    if learned:
        for part in parts:
            for name, parameter in part.named_parameters():
                if name.endswith("logits"):
                    parameter.data.copy_(LOGITS)
                elif name.endswith("gate"):
                    parameter.data.fill_(0.7)
    return Factorised(network, VPLinear(), prediction, noise=parts[0], data=parts[1], present=present)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("data", DATA_FACTORISATIONS)
@pytest.mark.parametrize("noise", NOISE_FACTORISATIONS)
def test_a_new_factorisation_is_the_network_alone(noise, data, prediction):
    x, t = inputs()
    alone, joint = NetworkDenoiser(SHARED, VPLinear(), prediction), factorised(noise, data, prediction)
    with torch.no_grad():
        assert torch.allclose(joint.predict(x, t), alone.predict(x, t), rtol=1e-4, atol=1e-5)
        assert torch.allclose(joint(x, t), alone(x, t), rtol=1e-4, atol=1e-5)
        losses = [
            diffusion_loss(
                denoiser,
                x,
                clamp=Clamp(torch.arange(T)[:, None, None] < 1, x),
                generator=torch.Generator().manual_seed(3),
            )
            for denoiser in (joint, alone)
        ]
    for found, expected in zip(*losses, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_in_closed_form():
    part = AgentWeights(A)
    assert torch.allclose(part.weights(), torch.ones(A))
    part.logits.data.copy_(LOGITS)
    assert torch.allclose(part.weights(), WEIGHTS)
    # Of the two that take part: 1/3 and 2/3 of two.
    expected = torch.tensor([[2 / 3, 4 / 3, 1.0], WEIGHTS.tolist()])
    assert torch.allclose(part.weights(PRESENT), expected)
    x, _ = inputs()
    assert torch.allclose(part(x), torch.stack([x[:, :, a] * WEIGHTS[a] for a in range(A)], dim=2))
    assert torch.allclose(part(x, PRESENT), x * expected[:, None, :, None])
    none = torch.zeros(B, A, dtype=torch.bool)
    part(x, none).sum().backward()
    assert torch.equal(part(x, none), x)
    assert part.logits.grad.isfinite().all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_noise_weights_multiply_the_prediction_and_data_weights_the_clean_estimate(prediction):
    x, t = inputs()
    alone = NetworkDenoiser(SHARED, VPLinear(), prediction)
    weights = WEIGHTS[:, None]
    with torch.no_grad():
        output = alone.predict(x, t)
        found = factorised("weighted", "concat", prediction, learned=True).predict(x, t)
        assert torch.allclose(found, weights * output, rtol=1e-4, atol=1e-5)
        found = factorised("concat", "weighted", prediction, learned=True)(x, t)
        assert torch.allclose(found, weights * alone(x, t), rtol=1e-4, atol=1e-4)
        found = factorised("weighted", "weighted", prediction, learned=True)(x, t)
        assert torch.allclose(found, weights * alone.to_x0(weights * output, x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("present", [None, PRESENT])
def test_attention_by_hand(present):
    torch.manual_seed(1)
    heads, width = 2, 6
    attention = TrajectoryAttention(D, heads, width)
    nn.init.constant_(attention.gate, 0.7)
    x, _ = inputs()
    output = attention(x, present)
    for b in range(B):
        agents = [a for a in range(A) if present is None or present[b, a]]
        qkv = x[b] @ attention.project.weight.T + attention.project.bias  # [T, A, 3 width]
        for a in agents:
            mixed = torch.zeros(T, width)
            for head in range(heads):
                columns = [slice(part * width + head * 3, part * width + head * 3 + 3) for part in range(3)]
                q, k, v = (qkv[..., column] for column in columns)
                scores = torch.stack([(q[:, a] * k[:, other]).sum() / math.sqrt(3 * T) for other in agents])
                shares = scores.exp() / scores.exp().sum()
                mixed[:, 3 * head : 3 * head + 3] = sum(
                    share * v[:, other] for share, other in zip(shares, agents, strict=True)
                )
            expected = x[b, :, a] + 0.7 * (mixed @ attention.out.weight.T + attention.out.bias)
            assert torch.allclose(output[b, :, a], expected, atol=1e-5)


def test_attention_takes_any_team_in_any_order():
    attention = TrajectoryAttention(D, heads=2, width=8)
    nn.init.constant_(attention.gate, 0.7)
    x = torch.randn(B, T, 6, D, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.allclose(attention(x[:, :, order]), attention(x)[:, :, order], atol=1e-5)
    # Three absent agents are as good as not there, whatever they hold.
    present = torch.arange(6).expand(B, -1) < 3
    garbage = x.clone()
    garbage[:, :, 3:] = torch.nan
    output = attention(garbage, present)[:, :, :3]
    assert torch.allclose(output, attention(x[:, :, :3]), atol=1e-5)
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in attention.parameters())


@pytest.mark.parametrize(("data", "exchanging"), [("concat", False), ("weighted", False), ("attention", True)])
def test_only_attention_makes_plans_depend_on_others(data, exchanging):
    denoiser = factorised("weighted", data, learned=True)
    x, t = inputs()
    other = x.clone()
    other[:, :, 2] += 1
    with torch.no_grad():
        change = (denoiser(other, t) - denoiser(x, t)).abs().amax(dim=(0, 1, 3))
    assert change[2] > 1e-3
    assert (change[:2] > 1e-6).tolist() == [exchanging, exchanging]


def test_absent_agents_are_read_off_the_sample():
    """Their last entry says -1; the rest is as if they were not there."""
    denoiser = factorised("weighted", "attention", present=lambda x: x[:, 0, :, -1] > -0.5, learned=True)
    x, t = inputs()
    x[..., -1] = torch.where(PRESENT, 1.0, -1.0)[:, None]
    other = x.clone()
    other[0, :, 2, :-1] = 100.0
    with torch.no_grad():
        output = denoiser.predict(x, t)
        assert torch.allclose(output[0, :, :2], denoiser.predict(other, t)[0, :, :2], atol=1e-5)
        assert torch.allclose(output[1], denoiser.predict(other, t)[1], atol=1e-5)
        everyone = factorised("weighted", "attention", learned=True).predict(x, t)
    assert torch.allclose(output[1], everyone[1], atol=1e-5)
    assert (output[0] - everyone[0]).abs().max() > 1e-3


def test_gradients_reach_every_parameter():
    x, _ = inputs()
    for data in ("weighted", "attention"):
        for learned in (False, True):
            denoiser = factorised("weighted", data, learned=learned)
            denoiser.zero_grad()
            diffusion_loss(denoiser, x, generator=torch.Generator().manual_seed(1))[0].backward()
            idle = {
                name
                for name, parameter in denoiser.named_parameters()
                if parameter.grad is None or not parameter.grad.any()
            }
            # Behind a closed gate nothing learns yet but the gate.
            closed = {f"data.joint.{layer}.{kind}" for layer in ("project", "out") for kind in ("weight", "bias")}
            assert idle == (closed if data == "attention" and not learned else set())


def test_weights_find_the_agents_scales():
    """Individual networks that are right up to a factor."""

    class Scaled(nn.Module):
        def forward(self, x, t, cond=None):
            return clean / WEIGHTS[:, None]

    clean, _ = inputs()
    denoiser = factorised("weighted", network=Scaled())
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=0.1)
    for step in range(100):
        optimiser.zero_grad()
        diffusion_loss(denoiser, clean, generator=torch.Generator().manual_seed(step))[0].backward()
        optimiser.step()
    assert torch.allclose(denoiser.noise.joint.weights(), WEIGHTS, atol=0.01)


@pytest.mark.parametrize("prediction", ["x0", "noise", "v"])
def test_sampling_and_training_see_the_same_denoiser(prediction):
    denoiser = factorised("weighted", "attention", prediction, learned=True)
    asked = []

    class Recorded(Denoiser):
        takes_time = True
        schedule = denoiser.schedule

        def __call__(self, x, t, cond=None):
            asked.append((x, t.tensor, denoiser(x, t, cond)))
            return asked[-1][2]

    with torch.no_grad():
        result = sample(Recorded(), inputs()[0], DDIM(steps=3))
        for x, t, estimate in asked:
            assert torch.allclose(denoiser(x, t.expand(B)), estimate, rtol=1e-3, atol=1e-4)
    assert len(asked) == 3
    assert result.x.isfinite().all()


@pytest.mark.parametrize("data", ["weighted", "attention"])
def test_seeds_stack(data):
    x, t = inputs()
    members = [
        factorised("weighted", data, learned=learned, present=lambda x: x[..., 0].amax(1) < 2) for learned in (0, 1)
    ]
    stacked = {name: torch.stack([one.state_dict()[name] for one in members]) for name in members[0].state_dict()}

    def output(state):
        return functional_call(members[0], state, (x, t))

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # as core.stacking does
        found = torch.vmap(output)(stacked)
        assert torch.allclose(found, torch.stack([one(x, t) for one in members]), atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 0.01


def test_errors():
    with pytest.raises(ValueError, match="unknown noise factorisation 'attention': choose one of concat, weighted"):
        NoiseFactorisation("attention", A)
    with pytest.raises(ValueError, match="unknown data factorisation 'sum': choose one of concat, weighted, attention"):
        DataFactorisation("sum", A, D)
    with pytest.raises(ValueError, match="width 6 must be a multiple of its 4 >= 1 heads"):
        DataFactorisation("attention", A, D, heads=4, width=6)
    with pytest.raises(ValueError, match=r"weights for 3 agents, got \[2, 4, 5, 5\]: teams of another size"):
        NoiseFactorisation("weighted", A)(torch.zeros(B, T, 5, D))
    with pytest.raises(ValueError, match="at least one agent, got 0"):
        AgentWeights(0)

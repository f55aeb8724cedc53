"""The temporal transformer, against its own block written out, and its symmetries; the residual MLP likewise."""

import hashlib
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import core
from core.networks import ResidualMLP, TemporalTransformer
from marl.attention import AgentAttention


def mixed(channels, embedding, **options):
    """Attention with an open gate: at its initial 0 the agents would not meet at all."""
    attention = AgentAttention(channels, embedding, heads=2, **options)
    torch.nn.init.constant_(attention.gate, 0.7)
    return attention


MIXERS = {"independent": None, "attention": mixed, "step": partial(mixed, token="step")}
every_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)


def opened(network):
    """The gates, modulations and the head start at 0; give them values."""
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def transformer(features=3, **options):
    torch.manual_seed(0)
    return opened(TemporalTransformer(features, **({"width": 16, "layers": 2, "heads": 2} | options)))


def inputs(batch=2, horizon=7, agents=3, features=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, horizon, agents, features, generator=generator), torch.linspace(0.1, 0.9, batch)


@pytest.mark.parametrize("horizon", [1, 5, 24])
@every_mixer
def test_output_has_the_shape_of_the_input_at_any_horizon(horizon, mixer):
    x, t = inputs(horizon=horizon)
    output = transformer(mixer=mixer)(x, t)
    assert output.shape == x.shape
    assert output.isfinite().all()


def test_a_new_network_says_zero():
    x, t = inputs()
    assert (TemporalTransformer(3, width=16, layers=2, heads=2)(x, t) == 0).all()


@every_mixer
def test_every_parameter_takes_part(mixer):
    network = transformer(condition_dim=2, mixer=mixer, current=1)
    x, t = inputs()
    network(x, t, torch.ones(2, 3, 2)).square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_block_is_the_published_one():
    # Peebles and Xie 2023, figure 3: h += gate * attention(norm(h) (1 + scale) + shift), then the same with the MLP.
    network = transformer(layers=1, heads=2)
    x, t = inputs(batch=1, agents=1)
    block = network.blocks[0]
    embedding = F.silu(network.time(t))[0]
    steps = torch.arange(7)[:, None] * torch.tensor([10_000 ** (-i / 7) for i in range(8)])
    h = network.inputs(x[0, :, 0]) + torch.cat([steps.sin(), steps.cos()], dim=1)
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        block.modulation(embedding)[16 * i : 16 * (i + 1)] for i in range(6)
    )

    def norm(values):
        return (values - values.mean(dim=1, keepdim=True)) / (
            values.var(dim=1, correction=0, keepdim=True) + 1e-5
        ).sqrt()

    q, k, v = block.qkv(norm(h) * (1 + scale1) + shift1).split(16, dim=1)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        weights = (q[:, part] @ k[:, part].T / math.sqrt(8)).softmax(dim=1)
        heads.append(weights @ v[:, part])
    h = h + gate1 * block.out(torch.cat(heads, dim=1))
    h = h + gate2 * block.mlp(norm(h) * (1 + scale2) + shift2)
    shift, scale = network.modulation(embedding).chunk(2)
    expected = network.head(norm(h) * (1 + scale) + shift)
    assert (network(x, t)[0, :, 0] - expected).abs().max() < 1e-5


@every_mixer
def test_agents_permute_and_meet_in_the_mixers_only(mixer):
    network = transformer(condition_dim=1, mixer=mixer)
    x, t = inputs(agents=4)
    cond = torch.linspace(-1, 1, 8).reshape(2, 4, 1)
    output, order = network(x, t, cond), torch.tensor([2, 0, 3, 1])
    assert (network(x[:, :, order], t, cond[:, order]) - output[:, :, order]).abs().max() < 1e-5
    other = x.clone()
    other[:, :, 1] += 1
    change = (network(other, t, cond) - output).abs().amax(dim=(0, 1, 3))
    assert change[1] > 1e-2
    assert ((change[[0, 2, 3]] > 1e-4).all() if mixer else (change[[0, 2, 3]] == 0).all()).item()


def test_time_condition_and_order_in_time_reach_the_output():
    network, (x, t) = transformer(condition_dim=1), inputs()
    output = network(x, t, torch.ones(2, 3, 1))
    assert (network(x, t + 0.05, torch.ones(2, 3, 1)) - output).abs().max() > 1e-3
    assert (network(x, t) - output).abs().max() > 1e-3
    assert (network(x.flip(1), t, torch.ones(2, 3, 1)).flip(1) - output).abs().max() > 1e-3
    assert torch.equal(network(x, t), network(x, t, torch.full((2, 3, 1), torch.nan)))


def test_defaults_are_what_they_were():
    # Recorded: other names, or initial weights drawn in another order, are another network to a saved run.
    network, (x, t) = transformer(condition_dim=1, mixer=mixed), inputs()
    state = network.state_dict()
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (50, 19189)
    assert hashlib.sha256(" ".join(state).encode()).hexdigest().startswith("5e239b58212d")
    output = network(x, t, torch.ones(2, 3, 1)).detach()
    recorded = [[-0.22138944, -0.52166677, 0.57415468], [-0.28035608, 1.13640237, 0.12624341]]
    assert (torch.stack([output[0, 0, 0], output[1, 6, 2]]) - torch.tensor(recorded)).abs().max() < 1e-5
    assert abs(output.double().sum().item() - 7.56999695) < 1e-4


@pytest.mark.parametrize("garbage", [3.0, 1e30, float("nan")])
@every_mixer
def test_absent_agents_are_as_if_they_were_not_there(mixer, garbage):
    network = transformer(condition_dim=1, mixer=mixer)
    x, t = inputs(batch=3, agents=4)
    cond = torch.linspace(-1, 1, 12).reshape(3, 4, 1)
    present = torch.tensor([[True, False, True, True], [False, False, True, False], [False] * 4])
    x[~present.unsqueeze(1).expand(-1, 7, -1)] = garbage
    cond[~present] = garbage
    output = network(x, t, cond, present)
    assert output.isfinite().all()
    for row, here in enumerate(present[:2]):
        alone = network(x[row : row + 1, :, here], t[row : row + 1], cond[row : row + 1, here])
        assert (output[row : row + 1, :, here] - alone).abs().max() < 1e-5
    everyone = torch.ones(3, 4, dtype=torch.bool)
    x, _ = inputs(batch=3, agents=4)
    assert (network(x, t, None, everyone) - network(x, t)).abs().max() < 1e-6


@every_mixer
def test_a_planner_is_built_on_it_with_the_same_call(mixer):
    network = transformer(condition_dim=1, mixer=mixer)
    denoiser = core.NetworkDenoiser(network, core.VPLinear(), "x0")
    x, t = inputs()
    cond = torch.ones(2, 3, 1)
    assert torch.equal(denoiser(x, t, cond), network(x, t, cond))
    mask = torch.zeros(7, 1, 3, dtype=torch.bool)
    mask[0] = True
    values = torch.full((2, 7, 3, 3), 0.25)
    guided = core.ClassifierFree(denoiser, scale=1.5)
    sampled = core.sample(guided, x, core.DDIM(steps=3), cond=cond, edits=[core.Clamp(mask, values)]).x
    assert sampled.shape == x.shape
    assert sampled.isfinite().all()
    assert (sampled[:, 0] == 0.25).all()

    def each_time_by_itself(x, t, cond):  # without the embeddings computed for the whole walk
        t = t.to(x).expand(len(x))
        return 1.5 * network(x, t, cond) - 0.5 * network(x, t)

    plain = core.wrap(each_time_by_itself, core.VPLinear())
    again = core.sample(plain, x, core.DDIM(steps=3), cond=cond, edits=[core.Clamp(mask, values)]).x
    assert (sampled - again).abs().max() < 1e-4


@pytest.mark.parametrize(
    "options", [{"width": 18, "heads": 4}, {"width": 15, "heads": 3}, {"layers": 0}, {"width": 2, "heads": 1}]
)
def test_bad_transformers(options):
    with pytest.raises(ValueError, match="must be even and a multiple of the"):
        TemporalTransformer(3, **options)


def test_residual_mlp_is_its_formula():
    torch.manual_seed(0)
    network = ResidualMLP(3, width=8, blocks=2, condition_dim=2).eval()
    x, t, cond = torch.randn(4, 3), torch.rand(4), torch.randn(4, 2)
    h = network.inputs(x) + network.embed(network.time(t)) + network.condition(cond)
    for block in network.blocks:
        _, _, first, _, second = block.layers
        h = h + second(F.silu(first(F.layer_norm(h, (8,)))))
    expected = network.head[1](F.silu(h))
    assert (network(x, t, cond) - expected).abs().max() < 1e-6


def test_residual_mlp_treats_agents_alike_and_knows_no_condition():
    torch.manual_seed(0)
    network = ResidualMLP(3, width=8, blocks=1, condition_dim=2).eval()
    x, t, cond = torch.randn(4, 5, 3), torch.rand(4), torch.randn(4, 5, 2)
    output = network(x, t, cond)
    assert output.shape == x.shape
    for agent in range(5):
        assert (network(x[:, agent], t, cond[:, agent]) - output[:, agent]).abs().max() < 1e-6
    unknown = cond.clone()
    unknown[1, 2, 0] = torch.nan
    partly = network(x, t, unknown)
    assert torch.allclose(partly[1, 2], network(x, t)[1, 2], atol=1e-6)
    assert ((partly - output).abs().amax(dim=-1) > 1e-5).sum() == 1
    with pytest.raises(ValueError, match="without a condition"):
        ResidualMLP(3, width=8)(x, t, cond)


def test_residual_mlp_options():
    torch.manual_seed(0)
    plain = ResidualMLP(3, width=8, blocks=2, layer_norm=False, dropout=0.5)
    assert not any(isinstance(module, torch.nn.LayerNorm) for module in plain.modules())
    x, t = torch.randn(64, 3), torch.rand(64)
    assert (plain(x, t) - plain(x, t)).abs().max() > 0  # dropout while training
    assert torch.equal(plain.eval()(x, t), plain(x, t))
    for options in ({"width": 0}, {"blocks": 0}, {"dropout": 1.0}, {"condition_dim": -1}):
        with pytest.raises(ValueError, match="a residual MLP needs"):
            ResidualMLP(3, **options)

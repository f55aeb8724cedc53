import hashlib
from functools import partial

import pytest
import torch

from core.networks import ConditionEmbedding, TemporalUNet, TimeEmbedding, mlp
from marl.attention import AgentAttention

SMALL = {"width": 16, "multipliers": (1, 2), "groups": 4}


def mixed(channels, embedding, **options):
    """Attention with an open gate: at its initial 0 the agents would not meet at all."""
    attention = AgentAttention(channels, embedding, heads=2, **options)
    torch.nn.init.constant_(attention.gate, 0.7)
    return attention


MIXERS = {
    "independent": {"mixer": None},
    "attention": {"mixer": mixed},
    "step": {"mixer": partial(mixed, token="step")},
    "published": {"mixer": partial(mixed, widths="published"), "decoder": "published"},
    "global condition": {"mixer": mixed, "current": 2},
}
every_mixer = pytest.mark.parametrize("options", MIXERS.values(), ids=MIXERS)


def build(features=3, horizon=8, **options):
    torch.manual_seed(0)
    return TemporalUNet(features, horizon, **(SMALL | options)).eval()


def inputs(batch=2, horizon=8, agents=3, features=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, horizon, agents, features, generator=generator), torch.linspace(0.1, 0.9, batch)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 8, 3, 3), {}),
        ((1, 8, 1, 1), {}),
        ((3, 24, 2, 5), {"multipliers": (1, 2, 4)}),
        ((2, 4, 1, 7), {"multipliers": (1, 2, 4)}),
        ((2, 7, 2, 3), {"multipliers": (1,)}),
        ((2, 1, 2, 3), {"multipliers": (1,)}),
        ((2, 8, 2, 3), {"kernel": 3, "groups": 8, "activation": "silu"}),
        ((2, 8, 5, 3), {"mixer": mixed}),
        ((2, 8, 2, 3), {"multipliers": (2, 4)}),
        ((2, 8, 2, 3), {"multipliers": (1, 3, 4), "decoder": "published", "mixer": mixed}),
        ((2, 7, 2, 3), {"multipliers": (1,), "decoder": "published", "mixer": mixed}),
    ],
    ids=str,
)
def test_output_has_the_shape_of_the_input(shape, options):
    batch, horizon, agents, features = shape
    x, t = inputs(batch, horizon, agents, features)
    output = build(features, horizon, **options)(x, t)
    assert output.shape == shape
    assert output.isfinite().all()


@every_mixer
def test_every_parameter_takes_part(options):
    network = build(condition_dim=2, **options)
    x, t = inputs()
    network(x, t, torch.ones(2, 3, 2)).square().mean().backward()
    idle = [
        name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert idle == []


def test_time_reaches_the_output():
    network, (x, t) = build(), inputs()
    assert (network(x, t) - network(x, t + 0.05)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("horizon", "options", "message"),
    [
        (10, {"multipliers": (1, 2, 4)}, "horizon 10 does not fit a U-Net of 3 levels: choose a multiple of 4"),
        (0, {}, "horizon 0"),
        (8, {"width": 18}, "width 18 must be a multiple of the 4"),
        (8, {"kernel": 4}, "kernel must be odd, got 4"),
        (8, {"activation": "relu"}, "unknown activation 'relu': choose one of mish, silu"),
        (8, {"decoder": "heavy"}, "unknown decoder 'heavy': choose one of light, published"),
        (6, {"multipliers": (1, 2, 4), "decoder": "published"}, "horizon 6 does not fit a U-Net of 3 levels"),
    ],
)
def test_bad_shapes(horizon, options, message):
    with pytest.raises(ValueError, match=message):
        build(horizon=horizon, **options)


def test_no_condition_is_a_nan_condition():
    network, (x, t) = build(condition_dim=2), inputs()
    none = network(x, t)
    assert torch.equal(network(x, t, torch.full((2, 3, 2), torch.nan)), none)
    assert (network(x, t, torch.zeros(2, 3, 2)) - none).abs().max() > 1e-3


def test_conditions_are_each_row_s_and_agent_s_own():
    network, (x, t) = build(condition_dim=2), inputs()
    cond = torch.ones(2, 3, 2)
    cond[1, 2, 0] = torch.nan  # one unknown entry makes the whole vector unknown
    output = network(x, t, cond)
    changed = (output - network(x, t)).abs().amax(dim=(1, 3)) > 1e-4
    assert changed.tolist() == [[True, True, True], [True, True, False]]
    shared = network(x, t, torch.ones(2, 1, 2))
    assert torch.allclose(shared, network(x, t, torch.ones(2, 3, 2)), atol=1e-6)


def test_an_embedded_step_is_known_at_every_other():
    """One level and its one kernel reach two steps a convolution, at most 16: the embedding reaches all 40."""
    x, t = inputs(horizon=40)
    moved = x.clone()
    moved[:, 0, 1] += 1.0
    network = build(horizon=40, multipliers=(1,), groups=16, current=0)  # a group a channel and a step
    for block in network.modules():
        if isinstance(block, torch.nn.GroupNorm):
            block.forward = lambda h: h  # which joins all steps
    change = (network(moved, t) - network(x, t)).abs().amax(dim=(0, 3))
    assert (change[:, 1] > 1e-6).all()
    assert change[:, [0, 2]].max() == 0  # each agent is told its own
    network.embedding.now[-1].weight.data.zero_()
    change = (network(moved, t) - network(x, t)).abs().amax(dim=(0, 3))
    assert change[0, 1] > 1e-6 and change[20:].max() == 0


def test_a_condition_needs_a_network_built_for_one():
    network, (x, t) = build(), inputs()
    with pytest.raises(ValueError, match="without a condition"):
        network(x, t, torch.ones(2, 3, 1))


@every_mixer
def test_permuting_the_agents_permutes_the_output(options):
    network = build(condition_dim=1, **options)
    x, t = inputs(agents=4)
    cond = torch.linspace(-1, 1, 8).reshape(2, 4, 1)
    order = torch.tensor([2, 0, 3, 1])
    permuted = network(x[:, :, order], t, cond[:, order])
    output = network(x, t, cond)
    assert (permuted - output[:, :, order]).abs().max() < 1e-5
    assert (permuted - output).abs().max() > 1e-2


@every_mixer
def test_agents_meet_in_the_attention_only(options):
    network, (x, t) = build(**options), inputs()
    other = x.clone()
    other[:, :, 1] += 1
    change = (network(other, t) - network(x, t)).abs().amax(dim=(0, 1, 3))
    assert change[1] > 1e-2
    if options["mixer"]:
        assert (change[[0, 2]] > 1e-4).all()
    else:
        assert (change[[0, 2]] == 0).all()


@every_mixer
def test_samples_of_a_batch_do_not_meet(options):
    network, (x, t) = build(condition_dim=1, **options), inputs(batch=3)
    cond = torch.ones(3, 3, 1)
    batch = network(x, t, cond)
    for row in range(3):
        assert (network(x[row : row + 1], t[row : row + 1], cond[row : row + 1])[0] - batch[row]).abs().max() < 1e-5


def test_defaults_are_what_they_were():
    # Recorded: other names, or initial weights drawn in another order, are another network to a saved run.
    network, (x, t) = build(condition_dim=1, mixer=mixed), inputs()
    state = network.state_dict()
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (120, 67581)
    assert hashlib.sha256(" ".join(state).encode()).hexdigest().startswith("0e27af102da7")
    output = network(x, t, torch.ones(2, 3, 1)).detach()
    recorded = [[-0.01846639, -0.18859361, -0.31226632], [-0.17851602, -0.11180289, 0.04377506]]
    assert (torch.stack([output[0, 0, 0], output[1, 7, 2]]) - torch.tensor(recorded)).abs().max() < 1e-5
    assert abs(output.double().square().sum().item() - 25.26328781) < 1e-4


def test_the_published_decoder_is_the_published_order():
    # Three levels: the skips of the two coarsest ones join, each before its blocks and the upsampling.
    network = build(multipliers=(1, 2, 4), decoder="published", mixer=mixed, condition_dim=1)
    x, t = inputs(batch=1)
    embedding = torch.nn.functional.mish(
        torch.cat([network.time(t[:1]).expand(3, -1), network.embedding.condition(torch.ones(3, 1))], dim=1)
    )

    def meet(mixer, h):
        return mixer(h[None], embedding[None])[0]

    fine = network.down_blocks[0](x[0].permute(1, 2, 0), embedding)
    middle = network.down_blocks[1](network.downsamples[0](fine), embedding)
    coarse = network.down_blocks[2](network.downsamples[1](middle), embedding)
    h = network.middle[1](network.middle[0](coarse, embedding), embedding)
    h = torch.cat([meet(network.middle_mixer, h), meet(network.skip_mixers[1], coarse)], dim=1)
    h = network.upsamples[0](network.up_blocks[0](h, embedding))
    h = torch.cat([h, meet(network.skip_mixers[0], middle)], dim=1)
    h = network.upsamples[1](network.up_blocks[1](h, embedding))
    expected = network.head(h).permute(2, 0, 1)
    assert (network(x, t[:1], torch.ones(1, 3, 1))[0] - expected).abs().max() < 1e-6


def published_count(features):
    """Parameters of the published network, layer by layer, and of the attention it has but never calls."""
    levels, width = (128, 512, 1024), 256

    def linear(inputs, outputs, kernel=1):
        return inputs * outputs * kernel + outputs

    def block(inputs, outputs):
        convolutions = linear(inputs, outputs, 5) + linear(outputs, outputs, 5) + 4 * outputs
        return convolutions + linear(width, outputs) + (linear(inputs, outputs) if inputs != outputs else 0)

    def attention(channels):  # four heads, each with queries and keys of C/16 and values of C/4
        return 1 + sum(
            linear(channels, 4 * part) + linear(width, 4 * part) for part in [channels // 16] * 2 + [channels // 4]
        )

    time = linear(128, 512) + linear(512, 128)
    returns = linear(1, 128) + time
    down = sum(block(a, b) + block(b, b) for a, b in zip((features, *levels), levels))
    sizes = linear(128, 128, 3) + linear(512, 512, 3) + linear(512, 512, 4) + linear(128, 128, 4)
    up = block(2 * 1024, 512) + block(512, 512) + block(2 * 512, 128) + block(128, 128)
    head = linear(128, 128, 5) + 2 * 128 + linear(128, features)
    meetings = attention(1024) + attention(1024) + attention(512)
    return time + returns + down + 2 * block(1024, 1024) + sizes + up + head + meetings, attention(128)


@pytest.mark.parametrize(("features", "count"), [(18, 64_268_437), (16, 64_266_643)])
def test_the_published_network_has_64_million_parameters(features, count):
    with torch.device("meta"):
        network = TemporalUNet(
            features, 24, condition_dim=1, mixer=partial(AgentAttention, widths="published"), decoder="published"
        )
        light = TemporalUNet(18, 24, condition_dim=1, mixer=AgentAttention)
    called, idle = published_count(features)
    assert sum(parameter.numel() for parameter in network.parameters()) == called == count
    assert round(called / 1e6, 1) == round((called + idle) / 1e6, 1) == 64.3
    assert sum(parameter.numel() for parameter in light.parameters()) == 58_240_501


@every_mixer
@pytest.mark.parametrize("horizon", [4, 12, 40])
def test_horizons_are_free(horizon, options):
    network = build(multipliers=(1, 2, 4), **options)
    other = build(horizon=horizon, multipliers=(1, 2, 4), **options)
    other.load_state_dict(network.state_dict())
    x, t = inputs(horizon=horizon)
    output = network(x, t)
    assert output.shape == x.shape
    assert torch.equal(output, other(x, t))
    with pytest.raises(ValueError, match=f"horizon {horizon + 2} does not fit a U-Net of 3 levels"):
        network(*inputs(horizon=horizon + 2))


PRESENT = torch.tensor([[True, True, False, True], [False, True, False, True], [True] * 4, [False] * 4])


@pytest.mark.parametrize("garbage", [3.0, 1e30, float("inf"), float("nan")])
@every_mixer
def test_absent_agents_are_as_if_they_were_not_there(options, garbage):
    network = build(condition_dim=2, **options)
    x, t = inputs(batch=4, agents=4)
    cond = torch.linspace(-1, 1, 32).reshape(4, 4, 2)
    x[~PRESENT.unsqueeze(1).expand(-1, 8, -1)] = garbage
    cond[~PRESENT] = garbage
    output = network(x, t, cond, PRESENT)
    assert output.isfinite().all()
    for row, here in enumerate(PRESENT):
        if here.any():
            alone = network(x[row : row + 1, :, here], t[row : row + 1], cond[row : row + 1, here])
            assert (output[row : row + 1, :, here] - alone).abs().max() < 1e-5
    output[PRESENT.unsqueeze(1).expand(-1, 8, -1)].square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    for row, here in enumerate(PRESENT[:3]):
        network(x[row : row + 1, :, here], t[row : row + 1], cond[row : row + 1, here]).square().sum().backward()
    for gradient, parameter in zip(gradients, network.parameters()):
        assert torch.allclose(gradient, parameter.grad, rtol=1e-3, atol=1e-4)


@every_mixer
def test_all_present_is_no_mask(options):
    network, (x, t) = build(condition_dim=1, **options), inputs()
    for cond in (None, torch.ones(2, 3, 1), torch.ones(2, 1, 1)):
        assert (network(x, t, cond, torch.ones(2, 3, dtype=torch.bool)) - network(x, t, cond)).abs().max() < 1e-6


@pytest.mark.parametrize("present", [torch.ones(2, 3), torch.ones(2, 4, dtype=torch.bool), torch.tensor([True] * 3)])
def test_presence_is_one_flag_an_agent(present):
    network, (x, t) = build(), inputs()
    with pytest.raises(ValueError, match=r"present must be a boolean tensor \[B, A\] = \[2, 3\]"):
        network(x, t, None, present)


def test_time_embedding():
    embedding = TimeEmbedding(8)
    assert embedding(torch.tensor([0.0, 0.5, 1.0])).shape == (3, 8)
    features = []
    embedding.mlp.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    embedding(torch.tensor([0.25]))
    expected = [250 * 10_000 ** (-i / 3) for i in range(4)]
    phases = torch.tensor(expected, dtype=torch.float64)
    assert torch.allclose(features[0][0].double(), torch.cat([phases.sin(), phases.cos()]), atol=1e-4)
    for width in (2, 7):
        with pytest.raises(ValueError, match="even width of at least 4"):
            TimeEmbedding(width)


def test_condition_embedding_of_an_unknown_condition_is_zero():
    embedding = ConditionEmbedding(2, 4)
    condition = torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [2.0, 1.0]], requires_grad=True)
    output = embedding(condition)
    assert [row.any().item() for row in output] == [True, False, True]
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in embedding.parameters())


def test_mlp():
    network = mlp(3, 2, hidden=8, layers=3)
    assert network(torch.zeros(5, 4, 3)).shape == (5, 4, 2)
    assert [tuple(layer.weight.shape) for layer in network if hasattr(layer, "weight")] == [
        (8, 3),
        (8, 8),
        (8, 8),
        (2, 8),
    ]
    for options in ({"hidden": 0}, {"layers": 0}):
        with pytest.raises(ValueError, match="at least one hidden layer"):
            mlp(3, 2, **options)

import pytest
import torch

from core.networks import ConditionEmbedding, TemporalUNet, TimeEmbedding, mlp
from marl.attention import AgentAttention

SMALL = {"width": 16, "multipliers": (1, 2), "groups": 4}


def mixed(channels, embedding):
    """Attention with an open gate: at its initial 0 the agents would not meet at all."""
    attention = AgentAttention(channels, embedding, heads=2)
    torch.nn.init.constant_(attention.gate, 0.7)
    return attention


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
    ],
    ids=str,
)
def test_output_has_the_shape_of_the_input(shape, options):
    batch, horizon, agents, features = shape
    x, t = inputs(batch, horizon, agents, features)
    output = build(features, horizon, **options)(x, t)
    assert output.shape == shape
    assert output.isfinite().all()


@pytest.mark.parametrize("mixer", [None, mixed], ids=["independent", "attention"])
def test_every_parameter_takes_part(mixer):
    network = build(condition_dim=2, mixer=mixer)
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


def test_a_condition_needs_a_network_built_for_one():
    network, (x, t) = build(), inputs()
    with pytest.raises(ValueError, match="without a condition"):
        network(x, t, torch.ones(2, 3, 1))


@pytest.mark.parametrize("mixer", [None, mixed], ids=["independent", "attention"])
def test_permuting_the_agents_permutes_the_output(mixer):
    network = build(condition_dim=1, mixer=mixer)
    x, t = inputs(agents=4)
    cond = torch.linspace(-1, 1, 8).reshape(2, 4, 1)
    order = torch.tensor([2, 0, 3, 1])
    permuted = network(x[:, :, order], t, cond[:, order])
    output = network(x, t, cond)
    assert (permuted - output[:, :, order]).abs().max() < 1e-5
    assert (permuted - output).abs().max() > 1e-2


@pytest.mark.parametrize("mixer", [None, mixed], ids=["independent", "attention"])
def test_agents_meet_in_the_attention_only(mixer):
    network, (x, t) = build(mixer=mixer), inputs()
    other = x.clone()
    other[:, :, 1] += 1
    change = (network(other, t) - network(x, t)).abs().amax(dim=(0, 1, 3))
    assert change[1] > 1e-2
    if mixer:
        assert (change[[0, 2]] > 1e-4).all()
    else:
        assert (change[[0, 2]] == 0).all()


@pytest.mark.parametrize("mixer", [None, mixed], ids=["independent", "attention"])
def test_samples_of_a_batch_do_not_meet(mixer):
    network, (x, t) = build(condition_dim=1, mixer=mixer), inputs(batch=3)
    cond = torch.ones(3, 3, 1)
    batch = network(x, t, cond)
    for row in range(3):
        assert (network(x[row : row + 1], t[row : row + 1], cond[row : row + 1])[0] - batch[row]).abs().max() < 1e-5


def test_attention_starts_closed():
    attention = AgentAttention(16, 8)
    h, embedding = torch.randn(2, 3, 16, 4), torch.randn(2, 3, 8)
    assert torch.equal(attention(h, embedding), h)


def test_attention_is_the_published_formula():
    torch.manual_seed(0)
    attention = AgentAttention(6, 5, heads=1, key_channels=2, value_channels=3)
    torch.nn.init.constant_(attention.gate, 0.5)
    h, embedding = torch.randn(1, 3, 6, 4), torch.randn(1, 3, 5)
    weight, bias = attention.project.weight[:, :, 0], attention.project.bias
    tokens = [weight @ h[0, a] + bias[:, None] + attention.embed(embedding[0, a])[:, None] for a in range(3)]
    q, k, v = ([token[part] for token in tokens] for part in (slice(0, 2), slice(2, 4), slice(4, 7)))
    for agent in range(3):
        logits = torch.stack([(q[agent] * k[other]).sum() for other in range(3)]) / (2 * 4) ** 0.5
        value = sum(w * v[other] for other, w in enumerate(logits.softmax(dim=0)))
        expected = h[0, agent] + 0.5 * (attention.out.weight[:, :, 0] @ value + attention.out.bias[:, None])
        assert (attention(h, embedding)[0, agent] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("options", [{"key_channels": 6}, {"value_channels": 10}])
def test_attention_widths_are_multiples_of_the_heads(options):
    with pytest.raises(ValueError, match="must be a multiple of the 4 attention heads"):
        AgentAttention(16, 8, **options)


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

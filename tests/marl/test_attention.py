"""Attention across agents, against its formula written out; its symmetries, and agents that are absent."""

import math
from functools import partial

import pytest
import torch
from torch.func import functional_call, stack_module_state
from torch.nn.attention import SDPBackend, sdpa_kernel

from marl.attention import AgentAttention

TOKENS = ("trajectory", "step")
every_token = pytest.mark.parametrize("token", TOKENS)
PRESENT = torch.tensor([[True, False, True, True, False], [False, False, True, False, False], [False] * 5])


def attention(channels=8, embedding=5, **options):
    """With an open gate."""
    torch.manual_seed(0)
    module = AgentAttention(channels, embedding, **({"heads": 2} | options))
    torch.nn.init.constant_(module.gate, 0.5)
    return module


def inputs(batch=3, agents=5, channels=8, time=4, embedding=5):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, agents, channels, time, generator=generator),
        torch.randn(batch, agents, embedding, generator=generator),
    )


def written_out(module, h, embedding, keys, values, token):
    """The result [A, C, T] for one team, agent by agent and head by head, from features h [A, C, T]."""
    agents, _, time = h.shape
    weight, bias = module.project.weight[:, :, 0], module.project.bias
    qkv = [weight @ h[a] + bias[:, None] + module.embed(embedding[a])[:, None] for a in range(agents)]
    steps = [slice(None)] if token == "trajectory" else [slice(step, step + 1) for step in range(time)]
    rows = []
    for agent in range(agents):
        mixed = torch.zeros(values, time)
        for head in range(module.heads):
            k, v = keys // module.heads, values // module.heads
            q_part = slice(head * k, (head + 1) * k)
            k_part = slice(keys + head * k, keys + (head + 1) * k)
            v_part = slice(2 * keys + head * v, 2 * keys + (head + 1) * v)
            for step in steps:
                query = qkv[agent][q_part, step]
                scores = [(query * other[k_part, step]).sum() / math.sqrt(query.numel()) for other in qkv]
                shares = torch.stack(scores).softmax(dim=0)
                mixed[head * v : (head + 1) * v, step] = sum(
                    share * other[v_part, step] for share, other in zip(shares, qkv)
                )
        if isinstance(module.out, torch.nn.Conv1d):
            mixed = module.out.weight[:, :, 0] @ mixed + module.out.bias[:, None]
        rows.append(h[agent] + module.gate * mixed)
    return torch.stack(rows)


def test_attention_starts_closed():
    module = AgentAttention(16, 8)
    h, embedding = torch.randn(2, 3, 16, 4), torch.randn(2, 3, 8)
    assert torch.equal(module(h, embedding), h)


@pytest.mark.parametrize(
    ("options", "keys", "values"),
    [
        ({"heads": 1, "key_channels": 2, "value_channels": 3}, 2, 3),
        ({}, 2, 2),
        ({"heads": 4, "widths": "published"}, 4, 8),
        ({"key_channels": 4, "value_channels": 2}, 4, 2),
    ],
)
@pytest.mark.parametrize("agents", [1, 4, 9])
@every_token
@torch.no_grad()
def test_attention_is_its_formula(token, agents, options, keys, values):
    module = attention(token=token, **options)
    h, embedding = inputs(batch=2, agents=agents)
    output = module(h, embedding)
    for row in range(2):
        expected = written_out(module, h[row], embedding[row], keys, values, token)
        assert (output[row] - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("channels", "options", "keys", "values"),
    [
        (16, {}, 4, 4),
        (128, {}, 8, 32),
        (128, {"token": "step"}, 8, 32),
        (24, {"heads": 3, "key_channels": 6, "value_channels": 9}, 6, 9),
    ],
)
def test_parameters(channels, options, keys, values):
    count = sum(parameter.numel() for parameter in AgentAttention(channels, 256, **options).parameters())
    assert count == (2 * keys + values) * (channels + 256 + 2) + (values + 1) * channels + 1


def test_parameters_of_the_published_widths():
    # Four heads, queries and keys of C/16 and values of C/4 in each, 1x1 convolutions and linear layers of E = 256.
    count = sum(parameter.numel() for parameter in AgentAttention(128, 256, widths="published").parameters())
    assert count == 2 * (129 * 32 + 257 * 32) + (129 * 128 + 257 * 128) + 1


@every_token
def test_permuting_the_agents_permutes_the_result(token):
    module, (h, embedding) = attention(token=token), inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    output = module(h, embedding)
    assert (module(h[:, order], embedding[:, order]) - output[:, order]).abs().max() < 1e-6
    assert (module(h[:, order], embedding) - output[:, order]).abs().max() > 1e-3  # the embedding belongs to an agent
    masked = module(h, embedding, PRESENT)
    assert (module(h[:, order], embedding[:, order], PRESENT[:, order]) - masked[:, order]).abs().max() < 1e-6


def test_a_step_sees_its_own_time_only():
    h, embedding = inputs()
    module = attention(token="step")
    output = module(h, embedding)
    for step in range(4):
        assert (module(h[..., step : step + 1], embedding) - output[..., step : step + 1]).abs().max() < 1e-6
    other = h.clone()
    other[..., 2] += 1
    for token, times in (("step", [False, False, True, False]), ("trajectory", [True] * 4)):
        module = attention(token=token)
        change = (module(other, embedding) - module(h, embedding)).abs().amax(dim=(0, 1, 2))
        assert (change > 1e-5).tolist() == times


@pytest.mark.parametrize("garbage", [2.0, 1e30, float("inf"), float("nan")])
@every_token
def test_absent_agents_are_as_if_they_were_not_there(token, garbage):
    module, (h, embedding) = attention(token=token), inputs()
    h[~PRESENT], embedding[~PRESENT] = garbage, garbage
    output = module(h, embedding, PRESENT)
    for row, here in enumerate(PRESENT[:2]):
        alone = module(h[row : row + 1, here], embedding[row : row + 1, here])
        assert (output[row : row + 1, here] - alone).abs().max() < 1e-6


@every_token
def test_many_agents_may_be_absent(token):
    module, (h, embedding) = attention(token=token, value_channels=8), inputs(agents=20)
    present = (torch.arange(60) % 3 > 0).reshape(3, 20)
    present[2] = False
    output = module(h, embedding, present)
    assert output.isfinite().all()
    for row, here in enumerate(present[:2]):
        alone = module(h[row : row + 1, here], embedding[row : row + 1, here])
        assert (output[row : row + 1, here] - alone).abs().max() < 1e-6


@every_token
def test_a_team_of_absent_agents_is_finite(token):
    module, (h, embedding) = attention(token=token), inputs()
    output = module(h, embedding, PRESENT)
    assert output.isfinite().all()
    output.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    everyone = torch.ones_like(PRESENT)
    assert (module(h, embedding, everyone) - module(h, embedding)).abs().max() < 1e-6


@every_token
def test_stacked_modules_are_the_modules(token):
    modules = [attention(token=token) for _ in range(3)]
    for index, module in enumerate(modules):
        torch.nn.init.normal_(module.gate, generator=torch.Generator().manual_seed(index))
    h, embedding = inputs()
    state = stack_module_state(modules)

    def call(parameters, buffers, present):
        return functional_call(modules[0], (parameters, buffers), (h, embedding, present))

    for present in (None, PRESENT):
        with sdpa_kernel(SDPBackend.MATH):
            stacked = torch.vmap(partial(call, present=present))(*state)
        for module, output in zip(modules, stacked):
            assert (module(h, embedding, present) - output).abs().max() < 1e-6


@pytest.mark.parametrize("options", [{"key_channels": 6}, {"value_channels": 10}])
def test_widths_are_multiples_of_the_heads(options):
    with pytest.raises(ValueError, match="must be a multiple of the 4 attention heads"):
        AgentAttention(16, 8, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "at least one head, got 0"),
        ({"token": "plan"}, "unknown token 'plan' of the attention: choose one of trajectory, step"),
        ({"widths": "wide"}, "unknown widths 'wide' of the attention: choose one of light, published"),
        ({"widths": "published", "value_channels": 8}, "value_channels 8 must be the 16 channels"),
        ({"widths": "published", "heads": 3}, "value_channels 16 must be a multiple of the 3 attention heads"),
    ],
)
def test_bad_attention(options, message):
    with pytest.raises(ValueError, match=message):
        AgentAttention(16, 8, **options)

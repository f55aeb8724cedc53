import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from core.critics import CriticConfig, Critics
from core.networks import ConcatMLP, GroupedLinear, LinearUNet, ResidualMLP, linear_of, mlp

A, SEEN, U = 3, 4, 2


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def critics(**settings):
    torch.manual_seed(0)
    return Critics(CriticConfig(**({"hidden": 8, "shared": False} | settings)), A, SEEN, U)


def alone(network, group, x):
    """One group of a grouped MLP, by torch's own linear layers."""
    layers = [layer for layer in network if isinstance(layer, GroupedLinear)]
    for layer in layers[:-1]:
        x = F.relu(F.linear(x, layer.weight[group].T, layer.bias[group]))
    return F.linear(x, layers[-1].weight[group].T, layers[-1].bias[group])


@pytest.mark.parametrize("lead", [(5,), (5, 2), ()])
def test_a_grouped_layer_is_as_many_layers(lead):
    torch.manual_seed(0)
    layer, x = GroupedLinear(3, 4, 2), random(*lead, 3, 4)
    expected = [F.linear(x[..., g, :], layer.weight[g].T, layer.bias[g]) for g in range(3)]
    assert torch.allclose(layer(x), torch.stack(expected, dim=-2), atol=1e-6)
    assert max(layer.weight.abs().max(), layer.bias.abs().max()) <= 0.5
    with pytest.raises(ValueError, match=r"takes \[..., 3, 4\]"):
        layer(random(3, 5))


NETWORKS = {
    "mlp": lambda linear: ConcatMLP(U, condition_dim=SEEN, hidden=8, layers=2, linear=linear),
    "unet": lambda linear: LinearUNet(U, condition_dim=SEEN, widths=(8, 4), linear=linear),
    "residual": lambda linear: ResidualMLP(U, condition_dim=SEEN, width=8, blocks=2, linear=linear),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks_of_their_own_say_what_each_says_alone(make):
    """An agent's network, cut out of the grouped one, is the network of one agent."""
    torch.manual_seed(0)
    network, x, t, cond = make(linear_of(A)), random(5, A, U), torch.rand(5), random(5, A, SEEN, seed=1)
    output = network(x, t, cond)
    for agent in range(A):
        single = make(linear_of(1))
        state = {
            name: value[agent : agent + 1]
            if name in single.state_dict() and value.shape[:1] == (A,) and single.state_dict()[name].shape[:1] == (1,)
            else value
            for name, value in network.state_dict().items()
        }
        single.load_state_dict(state)
        own = slice(agent, agent + 1)
        assert torch.allclose(single(x[:, own], t, cond[:, own]), output[:, own], atol=1e-6)
    shared = make(linear_of(0))
    assert torch.allclose(shared(x, t, cond)[:, 1], shared(x[:, 1:2], t, cond[:, 1:2])[:, 0], atol=1e-6)
    idle = [
        name
        for name, p in network.named_parameters()
        if torch.autograd.grad(output.square().sum(), p, retain_graph=True, allow_unused=True)[0] is None
    ]
    assert idle == []


def test_an_mlp_s_activation_is_named():
    assert "Mish" in str(mlp(2, 1, 4, 1, activation="mish"))
    with pytest.raises(ValueError, match="unknown activation 'tanh': choose one of silu, mish, relu"):
        mlp(2, 1, activation="tanh")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("view", ["independent", "centralised"])
def test_values_are_each_critic_s_of_each_agent(view, shared):
    judge, seen, acted, own = (
        critics(view=view, shared=shared),
        random(5, A, SEEN),
        random(5, A, U, seed=1),
        random(5, A, U, seed=2),
    )
    values, replaced = judge.values(seen, acted), judge.own_values(seen, acted, own)
    assert values.shape == replaced.shape == (2, 5, A)
    for agent in range(A):
        others = [(agent + k) % A for k in range(1, A)] if view == "centralised" else []
        rest = [torch.cat([seen[:, k], acted[:, k]], dim=1) for k in others]
        for index in range(2):
            group = index if shared else index * A + agent
            told = torch.cat([seen[:, agent], acted[:, agent], *rest], dim=1)
            assert torch.allclose(values[index, :, agent], alone(judge.q, group, told).squeeze(1), atol=1e-6)
            told = torch.cat([seen[:, agent], own[:, agent], *rest], dim=1)
            assert torch.allclose(replaced[index, :, agent], alone(judge.q, group, told).squeeze(1), atol=1e-6)


def test_several_actions_are_judged_as_each_is():
    judge, seen, acted = critics(), random(5, A, SEEN), random(5, 7, A, U, seed=1)
    together = judge.values(seen[:, None].expand(-1, 7, -1, -1), acted)
    for n in range(7):
        assert torch.allclose(together[:, :, n], judge.values(seen, acted[:, n]), atol=1e-6)


class Known(torch.nn.Module):
    """Q1 = sum of the actions, Q2 = twice that plus 1, for groups [critic 1's agents, critic 2's agents]."""

    def forward(self, judged):
        total = judged[..., SEEN:].sum(dim=-1, keepdim=True)
        first, second = total.split(A, dim=-2)
        return torch.cat([first, 2 * second + 1], dim=-2)


@pytest.mark.parametrize("kind", ["mean", "max", "softmax"])
def test_backups_by_hand(kind):
    judge = critics(backup=kind, sharpness=2.0)
    judge.target = Known()
    acted = random(5, 4, A, U)
    one = acted.sum(dim=-1).double().numpy()
    values = np.stack([one, 2 * one + 1])  # [2, B, n, A]
    weight = np.exp(2 * values) / np.exp(2 * values).sum(axis=2, keepdims=True)
    backed = {"mean": values.mean(axis=2), "max": values.max(axis=2), "softmax": (weight * values).sum(axis=2)}[kind]
    assert np.abs(judge.backup(random(5, A, SEEN, seed=1), acted).numpy() - backed.min(axis=0)).max() < 1e-5


def test_the_conservative_gap_by_hand():
    judge = critics()
    judge.q = Known()
    seen, acted = random(5, A, SEEN), random(5, A, U, seed=1)
    proposed, uniform = random(5, 2, A, U, seed=2), random(5, 3, A, U, seed=3)
    gap = judge.penalty(seen, acted, proposed, uniform)
    tried = torch.cat([proposed, uniform], dim=1).sum(dim=-1).double().numpy()
    data = acted.sum(dim=-1).double().numpy()
    for index, (scale, shift) in enumerate([(1, 0), (2, 1)]):
        expected = np.log(np.mean(np.exp(scale * tried + shift), axis=1)) - (scale * data + shift)
        assert np.abs(gap[index].numpy() - expected).max() < 1e-5


def test_targets_follow_by_their_step():
    judge = critics(polyak=0.25)
    before = judge.target[0].weight.clone()
    judge.q[0].weight.data += 1.0
    judge.follow()
    assert torch.allclose(judge.target[0].weight, before + 0.25, atol=1e-6)
    assert not any(p.requires_grad for p in judge.target.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"view": "joint"}, "unknown critic.view 'joint': choose one of independent, centralised"),
        ({"backup": "min"}, "unknown critic.backup 'min': choose one of mean, max, softmax"),
        ({"hidden": 0}, "critic.hidden must be at least 1, got 0"),
        ({"polyak": 0.0}, r"lie in \[0, 1\], \(0, 1\] and \[0, 1\), got 0.85, 0.0 and 0.0"),
        ({"expectile": 1.0}, r"critic.expectile lie in"),
        ({"conservative": -1.0}, "critic.conservative must be at least 0 and critic.sharpness positive, got -1.0"),
        ({"sharpness": math.inf}, "critic.sharpness positive, got 0.0 and inf"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        CriticConfig(**settings)

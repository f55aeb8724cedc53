import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.denoiser import NetworkDenoiser
from core.edits import Clamp
from core.losses import diffusion_loss
from core.networks import TemporalUNet, TimeEmbedding, mlp
from core.samplers import DDIM
from core.sampling import sample
from core.schedules import VPLinear
from marl.attention import AgentAttention
from marl.entities import EntityNetwork

OWN, HORIZON = 3, 4
#: Tokens of 2 entries for landmarks and of 1 for fellows, in teams of 3, 5 and 1.
THREE, FIVE, ALONE = ((3, 2), (2, 1)), ((5, 2), (4, 1)), ((3, 2), (0, 1))


def attention(channels, embedding):
    """With an open gate: at its initial 0 the agents would not meet at all."""
    mixer = AgentAttention(channels, embedding, heads=2)
    nn.init.constant_(mixer.gate, 0.7)
    return mixer


def inner(width):
    return TemporalUNet(width, HORIZON, width=8, multipliers=(1, 2), groups=4, condition_dim=1, mixer=attention)


class Doubled(nn.Module):
    """An inner network that can be written down."""

    def forward(self, x, t, cond=None, present=None):
        return 2 * x


def build(entities=THREE, inner=inner, **options):
    torch.manual_seed(0)
    return EntityNetwork(OWN, entities, inner, **({"width": 8} | options))


def inputs(entities=THREE, agents=3, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    entries = OWN + sum(count * size for count, size in entities) + 1
    x = torch.randn(batch, HORIZON, agents, entries, generator=generator)
    x[..., -1] = (torch.arange(HORIZON) == 0).float()[:, None]
    return x, torch.linspace(0.2, 0.8, batch), torch.linspace(-1, 1, batch * agents).reshape(batch, agents, 1)


def columns(entities, orders):
    """Places of an observation's entries and status when the tokens of each kind come in other orders."""
    places, start = list(range(OWN)), OWN
    for (count, size), order in zip(entities, orders, strict=True):
        assert sorted(order) == list(range(count))
        places += [start + token * size + entry for token in order for entry in range(size)]
        start += count * size
    return [*places, start]


def test_every_entry_by_hand():
    """One agent, one time step and one token after the other, by MLPs of everything side by side."""
    network = build(inner=lambda width: Doubled(), current=1)
    x = inputs()[0]
    output = network(x, torch.zeros(2))

    def of(tokens, context, token):
        weight = torch.cat([tokens.context.weight, tokens.token.weight], dim=1)
        return tokens.rest(weight @ torch.cat([context, token]) + tokens.context.bias)

    for b, t, a in torch.cartesian_prod(torch.arange(2), torch.arange(HORIZON), torch.arange(3)).tolist():
        now, current = x[b, t, a], x[b, 1, a]
        context = torch.cat([now[:OWN], now[-1:], current[:OWN], current[-1:]])
        places = [[slice(3, 5), slice(5, 7), slice(7, 9)], [slice(9, 10), slice(10, 11)]]
        tokens = [[torch.cat([now[place], current[place]]) for place in kind] for kind in places]
        features = [context]
        for kind, read in zip(tokens, network.read, strict=True):
            each = torch.stack([of(read, context, token) for token in kind])
            features += [each.mean(dim=0), each.max(dim=0).values]
        known = torch.cat([2 * network.merge(torch.cat(features)), context])
        expected = [network.head(known)]
        for kind, write in zip(tokens, network.write, strict=True):
            expected += [of(write, known, token) for token in kind]
        assert torch.allclose(output[b, t, a], torch.cat([*expected, torch.zeros(1)]), atol=1e-5)


def test_one_set_of_parameters_serves_any_number_of_tokens():
    network = build()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    for entities, agents in ((THREE, 3), (FIVE, 5), (((5, 2), (2, 1)), 3), (ALONE, 1), (((0, 2), (1, 1)), 2)):
        other = build(entities)
        assert sum(parameter.numel() for parameter in other.parameters()) == parameters
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
        other.load_state_dict(network.state_dict())
        x, t, cond = inputs(entities, agents)
        output = network.expand(entities)(x, t, cond)
        assert output.shape == x.shape
        assert output.isfinite().all()
        assert torch.equal(output, other(x, t, cond))
    assert network.entities == THREE
    assert next(network.expand(FIVE).parameters()) is next(network.parameters())


def test_permuting_tokens_permutes_what_is_said_of_them():
    network, (x, t, cond) = build(FIVE), inputs(FIVE, agents=5)
    order = columns(FIVE, ([3, 0, 4, 1, 2], [2, 3, 0, 1]))
    output = network(x, t, cond)
    permuted = network(x[..., order], t, cond)
    assert torch.allclose(permuted, output[..., order], atol=1e-5)
    assert (permuted - output)[..., OWN:-1].abs().max() > 0.01


def test_permuting_the_agents_permutes_the_output():
    network, (x, t, cond) = build(FIVE), inputs(FIVE, agents=5)
    order = torch.tensor([2, 0, 4, 3, 1])
    output = network(x, t, cond)
    permuted = network(x[:, :, order], t, cond[:, order])
    assert torch.allclose(permuted, output[:, :, order], atol=1e-5)
    assert (permuted - output).abs().max() > 0.01


def test_agents_meet_in_the_inner_network():
    network, (x, t, cond) = build(), inputs()
    other = x.clone()
    other[:, :, 2, :-1] += 1
    change = (network(other, t, cond) - network(x, t, cond)).abs().amax(dim=(0, 1, 3))
    assert (change > 1e-4).all()


def test_absent_agents_are_as_good_as_not_there():
    """Five agents of which the second and the fourth are absent, whatever they hold, against a team of three."""
    present = torch.tensor([[True, False, True, False, True]]).expand(2, -1)
    there = [0, 2, 4]
    larger = ((3, 2), (4, 1))
    network = build(larger, others=1)
    x, t, cond = inputs(larger, agents=5)
    x[:, :, [1, 3]] = torch.nan
    fellows = [[place for place, agent in enumerate(i for i in range(5) if i != a) if agent in there] for a in there]
    for a, places in zip(there, fellows, strict=True):
        gone = [9 + place for place in range(4) if place not in places]
        x[:, :, a, gone] = torch.inf
    kept = [[*range(9), *(9 + place for place in places), 13] for places in fellows]
    of_three = torch.stack([x[:, :, a, entries] for a, entries in zip(there, kept, strict=True)], dim=2)
    output = network(x, t, cond, present)
    expected = network.expand(THREE)(of_three, t, cond[:, there])
    for place, (a, entries) in enumerate(zip(there, kept, strict=True)):
        assert torch.allclose(output[:, :, a, entries], expected[:, :, place], atol=1e-5)
    output[:, :, there][..., :9].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)
    with pytest.raises(ValueError, match="an agent of 5 has 4 fellows, but 2 tokens for them"):
        build(((3, 2), (2, 1)), others=1)(inputs(THREE, agents=5)[0], t, None, present)


def test_every_parameter_takes_part():
    network, (x, t, cond) = build(), inputs()
    network(x, t, cond).square().mean().backward()
    idle = [
        name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert idle == []


def test_sampling_embeds_the_times_of_a_walk_at_once(monkeypatch):
    network = build()
    assert network.time is network.inner.time
    assert not hasattr(build(inner=lambda width: Doubled()), "time")
    calls = []
    features = TimeEmbedding.features
    monkeypatch.setattr(TimeEmbedding, "features", lambda self, t: calls.append(len(t)) or features(self, t))
    x, _, cond = inputs()
    with torch.no_grad():
        result = sample(NetworkDenoiser(network, VPLinear(), "x0"), x, DDIM(steps=5), cond=cond)
    assert result.x.isfinite().all()
    assert calls == [5]


def test_seeds_stack():
    networks = [build(others=1), build(others=1)]
    for parameter in networks[1].parameters():
        parameter.data += 0.1
    x, t, cond = inputs(batch=2)
    given = (x, t, cond, torch.tensor([[True, True, False], [True, True, True]]))
    stacked = {name: torch.stack([n.state_dict()[name] for n in networks]) for name in networks[0].state_dict()}
    with sdpa_kernel(SDPBackend.MATH):  # as core.stacking does
        found = torch.vmap(lambda state: functional_call(networks[0], state, given))(stacked)
    assert torch.allclose(found, torch.stack([network(*given) for network in networks]), atol=1e-5)


def walks(batch, agents, seed):
    """Teams in which everyone sees itself, as many landmarks, and its fellows, and jumps to its nearest landmark:
    two steps, [B, 2, A, D]."""
    generator = torch.Generator().manual_seed(seed)
    position, landmarks = (2 * torch.rand(batch, agents, 2, generator=generator) - 1 for _ in range(2))
    fellows = torch.tensor([[other for other in range(agents) if other != agent] for agent in range(agents)])
    steps = []
    for known in (1.0, 0.0):
        offsets = landmarks[:, None] - position[:, :, None]
        apart = (position[:, None] - position[:, :, None]).gather(2, fellows[None, ..., None].expand(batch, -1, -1, 2))
        status = torch.full_like(position[..., :1], known)
        steps.append(torch.cat([position, offsets.flatten(2), apart.flatten(2), status], dim=-1))
        nearest = offsets.norm(dim=-1).argmin(dim=-1)[..., None, None].expand(-1, -1, 1, 2)
        position = position + offsets.gather(2, nearest).squeeze(2)
    return torch.stack(steps, dim=1)


class Meeting(nn.Module):
    """An inner network in which agents hear their mean."""

    def __init__(self, width):
        super().__init__()
        self.net = mlp(2 * width + 1, width, hidden=64, layers=1)

    def forward(self, x, t, cond=None):
        mean = x.mean(dim=2, keepdim=True).expand_as(x)
        return self.net(torch.cat([x, mean, t[:, None, None, None].expand_as(x[..., :1])], dim=-1))


def loss_of(network, x, generator):
    known = torch.zeros(x.shape[1:], dtype=torch.bool)
    known[0], known[..., -1] = True, True
    return diffusion_loss(NetworkDenoiser(network, VPLinear(), "x0"), x, clamp=Clamp(known, x), generator=generator)[0]


def test_what_three_agents_learned_five_can_use():
    torch.manual_seed(0)
    network = EntityNetwork(2, ((3, 2), (2, 2)), Meeting, width=32)
    five = network.expand(((5, 2), (4, 2)))
    data = walks(256, agents=5, seed=99)
    strangers = data.clone()
    strangers[:, 0, :, 2:12] = data.roll(1, dims=0)[:, 0, :, 2:12]  # the landmarks of another team

    def evaluated(x):
        with torch.no_grad():
            return float(loss_of(five, x, torch.Generator().manual_seed(7)))

    untrained = evaluated(data)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, total_iters=120)
    generator = torch.Generator().manual_seed(0)
    for step in range(120):
        optimiser.zero_grad()
        loss_of(network, walks(32, agents=3, seed=step), generator).backward()
        optimiser.step()
        schedule.step()
    trained = evaluated(data)
    standing = float((data[:, 1] - data[:, 0])[..., :-1].square().mean())
    assert trained < 0.3 * untrained
    assert trained < 0.7 * standing
    assert trained < 0.4 * evaluated(strangers)


def test_errors():
    network, (x, t, cond) = build(), inputs(FIVE, agents=5)
    with pytest.raises(ValueError, match=r"have 12 entries with the status, got \[2, 4, 5, 18\]"):
        network(x, t, cond)
    with pytest.raises(ValueError, match=r"knows tokens of \[2, 1\] entries, got entities \(\(3, 2\), \(2, 2\)\)"):
        network.expand(((3, 2), (2, 2)))
    with pytest.raises(ValueError, match="others is the place of one of 2 kinds of tokens, got 2"):
        build(others=2)
    with pytest.raises(ValueError, match="tokens of at least one, got 3"):
        build(entities=())

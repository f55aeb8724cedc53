"""The network of a team planner: which trajectory network, how agents exchange, and what it is told of them."""

import copy
from functools import partial

from torch import Tensor, nn

from core.denoiser import NetworkDenoiser
from core.environments import TeamSpec
from core.errors import UserError
from core.networks import TemporalTransformer, TemporalUNet
from core.schedules import schedule_of
from marl.attention import AgentAttention
from marl.entities import EntityNetwork
from marl.factorisation import DataFactorisation, Factorised, NoiseFactorisation
from marl.madiff_config import PRECISIONS, MADiffConfig


class TeamNetwork(nn.Module):
    """A trajectory network whose samples end in a status channel: 1 where an agent's present is known, 0 where it is
    generated, -1 for an agent that takes no part and that nobody attends to."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    @property
    def time(self) -> Tensor | nn.Module:
        """The time embedding, where `core.NetworkDenoiser` looks for it."""
        return self.inner.time

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x [B, T, A, D], t [B], cond [B, A, 1] or None -> [B, T, A, D]."""
        return self.inner(x, t, cond, present=present_in(x))


def present_in(x: Tensor) -> Tensor:
    """Who takes part [B, A], read off the status channel of samples [B, T, A, D]."""
    return x[:, 0, :, -1] > -0.5


def denoiser_of(config: MADiffConfig, spec: TeamSpec, network: nn.Module) -> NetworkDenoiser:
    """The denoiser of a configuration around its network."""
    settings = (network, schedule_of(config.schedule), config.prediction)
    precision = PRECISIONS[config.precision]
    if (config.noise_factor, config.data_factor) == ("concat", "concat"):
        return NetworkDenoiser(*settings, autocast=precision)
    told = isinstance(network, TeamNetwork)
    # The status channel is no part of an agent's plan, and its place in the output means nothing.
    features = spec.observation_dim + (spec.action_dim if config.actions == "joint" else 0) + told
    return Factorised(
        *settings,
        noise=NoiseFactorisation(config.noise_factor, spec.agents),
        data=DataFactorisation(config.data_factor, spec.agents, features, config.heads),
        present=present_in if told else None,
        autocast=precision,
    )


def network_of(config: MADiffConfig, spec: TeamSpec, features: int) -> nn.Module:
    """The network of a configuration, for samples of D entries an agent and step."""
    if not spec.entities:
        return _trajectory_network(config, features)
    return EntityNetwork(
        own_entries(spec),
        spec.entities,
        partial(_trajectory_network, config),
        width=config.width,
        current=config.history,
        others=len(spec.entities) - 1,
    )


def expanded(denoiser: NetworkDenoiser, spec: TeamSpec) -> NetworkDenoiser:
    """A denoiser of entity-wise observations for another team, with the same parameters.

    Raises:
        UserError: the team sees things of other kinds.
    """
    network = denoiser.network
    assert isinstance(network, TeamNetwork) and isinstance(network.inner, EntityNetwork)
    copied = copy.copy(denoiser)
    copied._modules = dict(denoiser._modules)
    try:
        copied.network = TeamNetwork(network.inner.expand(spec.entities))
    except ValueError as error:
        raise UserError(str(error)) from error
    return copied


def own_entries(spec: TeamSpec) -> int:
    """Entries of an observation before its tokens."""
    return spec.observation_dim - sum(count * size for count, size in spec.entities)


def _trajectory_network(config: MADiffConfig, features: int) -> nn.Module:
    current = config.history if config.global_condition else None
    mixer = partial(AgentAttention, heads=config.heads, token=config.token, widths=config.layout)
    if config.network == "transformer":
        return TemporalTransformer(
            features,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            condition_dim=1,
            current=current,
            mixer=mixer if config.attention else None,
        )
    return TemporalUNet(
        features,
        config.history + config.horizon,
        width=config.width,
        multipliers=config.multipliers,
        kernel=config.kernel,
        activation=config.activation,
        condition_dim=1,
        current=current,
        mixer=mixer if config.attention else None,
        decoder=config.layout,
    )

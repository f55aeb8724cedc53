"""Any PettingZoo ParallelEnv as batched environments: one for each episode, stepped one by one."""

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from core.environments import Environments, Observed, Stepped, TeamSpec
from core.errors import UserError


class ParallelEnvironments(Environments):
    """B environments of one class.

    Observations are of any space that Gymnasium flattens, or a Dict with an "action_mask" beside them; the mask may
    stand in the infos instead. Actions are Box, given here in [-1, 1] and scaled to their bounds, or Discrete, given
    one-hot. Agents with fewer entries are padded with zeros.

    An agent takes part from when the environment lists it in `agents` until it is terminated, truncated or listed no
    more; it may join late, and come back. Its rewards and its costs, info["cost"], count for the steps that it acted
    in. An episode is over when nobody is left, and terminated if all who took part were.

    Making an environment can take as long as an episode in it, so they are kept.
    """

    def __init__(self, make: Callable[[], Any]):
        """Args: make: makes one ParallelEnv.

        Raises:
            UserError: spaces that are none of these, or an environment that is not as PettingZoo has them.
        """
        self._make = make
        self._environments = [make()]
        try:
            self._codec = _Codec(self._environments[0])
        except UserError:
            self.close()
            raise
        self.agents = tuple(str(agent) for agent in self._codec.places)
        self.spec = self._codec.spec
        self._running: list[bool] = []

    def reset(self, seeds: Sequence[int]) -> Observed:
        self._environments += [self._make() for _ in range(len(seeds) - len(self._environments))]
        shape = (len(seeds), len(self.agents))
        self._running = [True] * len(seeds)
        self._ended: list[set[Hashable]] = [set() for _ in seeds]
        self._terminated = np.ones(shape, bool)  # of those who never take part
        self._observations = np.zeros((*shape, self.spec.observation_dim), np.float32)
        self._legal = np.tile(self._codec.choices, (len(seeds), 1, 1))
        self._masked = self._codec.masked
        self._present = np.zeros(shape, bool)
        for index, seed in enumerate(seeds):
            environment = self._environments[index]
            observations, infos = self._codec.answer(environment.reset(seed=int(seed)), "reset")
            self._take(index, observations, infos)
            self._present[index, self._codec.those(environment.agents, observations)] = True
            if not self._present[index].any():
                raise UserError(f"{self._codec.name} has no agents after its reset: an episode begins with one or more")
        return self._observed()

    def step(self, actions: Tensor) -> Stepped:
        chosen = actions.detach().cpu().numpy()
        shape = (len(self._running), len(self.agents))
        rewards, costs = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        terminated, truncated = np.zeros(shape[0], bool), np.zeros(shape[0], bool)
        for index, running in enumerate(self._running):
            if not running:
                continue
            over = self._step(index, chosen[index], rewards[index], costs[index])
            self._running[index] = not over
            terminated[index] = over and self._terminated[index].all()
            truncated[index] = over and not terminated[index]
        return Stepped(
            self._observed(),
            torch.from_numpy(rewards),
            torch.from_numpy(costs),
            torch.from_numpy(terminated),
            torch.from_numpy(truncated),
        )

    def _step(self, index: int, chosen: np.ndarray, rewards: np.ndarray, costs: np.ndarray) -> bool:
        """Step one episode, whose rewards and costs [A] are filled in; whether it is over."""
        codec, environment, here = self._codec, self._environments[index], self._present[index].copy()
        taken = {agent: codec.action(agent, chosen[codec.places[agent]]) for agent in list(environment.agents)}
        observations, rewarded, terminations, truncations, infos = codec.answer(environment.step(taken), "step")
        for agent, place in codec.places.items():
            if here[place]:
                rewards[place] = np.asarray(rewarded.get(agent, 0.0)).item()  # some are arrays of one entry
                costs[place] = np.asarray(_info(infos, agent).get("cost", 0.0)).item()
                self._terminated[index, place] = bool(terminations.get(agent, False))
        ends = {agent for flags in (terminations, truncations) for agent, flag in flags.items() if flag}
        # Some environments go on listing whom they ended; who returns was not listed in between.
        self._ended[index] = (self._ended[index] | ends) & set(environment.agents)
        staying = [agent for agent in environment.agents if agent not in self._ended[index]]
        self._take(index, observations, infos)
        self._present[index] = False
        if staying:
            self._present[index, codec.those(staying, observations)] = True
        else:
            self._present[index] = here & [agent in observations for agent in codec.places]
        return not staying

    def close(self) -> None:
        for environment in self._environments:
            environment.close()
        self._environments = []

    def _take(self, index: int, observations: Mapping[Hashable, Any], infos: Any) -> None:
        """Keep what the agents of an episode see, and what is legal by then."""
        for agent, place in self._codec.places.items():
            if agent in observations:
                row, mask = self._codec.observation(agent, observations[agent], _info(infos, agent))
                self._observations[index, place] = row
                self._legal[index, place] = self._codec.choices[place] if mask is None else mask
                self._masked = self._masked or mask is not None

    def _observed(self) -> Observed:
        return Observed(
            torch.from_numpy(self._observations.copy()),
            torch.from_numpy(self._legal.copy()) if self._masked else None,
            None if self._present.all() else torch.from_numpy(self._present.copy()),
        )


def _info(infos: Any, agent: Hashable) -> Mapping[str, Any]:
    return (infos or {}).get(agent) or {}


class _Codec:
    """Between an environment's spaces and rows of numbers.

    Attributes:
        places: row of each agent. choices: [A, U] bool, those that an agent ever has.
        masked: whether it is plain from the spaces that choices differ.
    """

    def __init__(self, environment: Any):
        metadata = getattr(environment, "metadata", None) or {}
        self.name = str(metadata.get("name") or type(environment).__name__)
        agents = list(getattr(environment, "possible_agents", []))
        if not agents:
            raise UserError(f"{self.name} does not name its possible_agents: it needs a list of all that may take part")
        parameters = inspect.signature(environment.reset).parameters.values()
        if not any(each.name == "seed" or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
            raise UserError(f"{self.name}.reset takes no seed: write reset(self, seed=None, options=None)")
        self.places: dict[Hashable, int] = {agent: place for place, agent in enumerate(agents)}
        try:
            self.seen = {agent: environment.observation_space(agent) for agent in agents}
            self.acted = {agent: environment.action_space(agent) for agent in agents}
        except (AttributeError, KeyError, NotImplementedError) as error:
            raise UserError(
                f"{self.name} does not tell the spaces of each of its possible_agents: "
                f"{type(error).__name__} {error}; write observation_space(agent) and action_space(agent)"
            ) from error
        masks = False
        for agent, space in self.seen.items():
            if isinstance(space, spaces.Dict) and "action_mask" in space.spaces:
                rest = {name: part for name, part in space.spaces.items() if name != "action_mask"}
                self.seen[agent] = rest["observation"] if rest.keys() == {"observation"} else spaces.Dict(rest)
                masks = True
        for agent in agents:
            self._check(agent)
        kinds = {isinstance(space, spaces.Discrete) for space in self.acted.values()}
        if len(kinds) > 1:
            raise UserError(f"{self.name} mixes discrete and continuous actions: give all agents one of them")
        self.sizes = {agent: spaces.flatdim(space) for agent, space in self.seen.items()}
        self.counts = {agent: spaces.flatdim(space) for agent, space in self.acted.items()}
        sizes, counts = tuple(self.sizes.values()), tuple(self.counts.values())
        differ = sizes if len(set(sizes)) > 1 else ()
        self.spec = TeamSpec(len(agents), max(sizes), max(counts), kinds == {True}, differ)
        self.choices = np.arange(max(counts)) < np.array(counts)[:, None]
        self.masked = self.spec.discrete and (masks or not self.choices.all())

    def _check(self, agent: Hashable) -> None:
        seen, acted = self.seen[agent], self.acted[agent]
        if not isinstance(seen, spaces.Space) or not seen.is_np_flattenable:
            raise UserError(
                f"{self.name}: {agent} observes a {type(seen).__name__}, which has no fixed number of entries: "
                "make it a Box with a wrapper"
            )
        if not isinstance(acted, spaces.Box | spaces.Discrete):
            raise UserError(
                f"{self.name}: {agent} acts in a {type(acted).__name__}; Box and Discrete are supported: "
                "make it one of them with a wrapper"
            )
        if isinstance(acted, spaces.Box) and not (np.isfinite(acted.low).all() and np.isfinite(acted.high).all()):
            raise UserError(f"{self.name}: the actions of {agent} have no bounds; give its Box a finite range")

    def answer(self, answer: Any, method: str) -> tuple[Any, ...]:
        """What a method returned, checked for its parts."""
        parts = {"reset": "observations, infos", "step": "observations, rewards, terminations, truncations, infos"}
        wanted = parts[method].split(", ")
        if not isinstance(answer, tuple) or len(answer) != len(wanted):
            got = f"{len(answer)} values" if isinstance(answer, tuple) else f"a {type(answer).__name__}"
            raise UserError(f"{self.name}.{method} returned {got}; a ParallelEnv's returns {parts[method]}")
        return answer

    def those(self, agents: Sequence[Hashable], observations: Mapping[Hashable, Any]) -> list[int]:
        """The places of agents that take part."""
        for agent in agents:
            if agent not in self.places:
                raise UserError(f"{self.name} lists {agent}, which is none of its possible_agents: name it there")
            if agent not in observations:
                raise UserError(f"{self.name} lists {agent} and gave it no observation: take it out of agents")
        return [self.places[agent] for agent in agents]

    def observation(self, agent: Hashable, value: Any, info: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """An agent's observation [O], padded, and its legal choices [U], None where nothing is said of them."""
        mask = info.get("action_mask")
        if isinstance(value, Mapping) and "action_mask" in value:
            mask = value["action_mask"]
            value = value if isinstance(self.seen[agent], spaces.Dict) else value["observation"]
        flat = np.ravel(np.asarray(spaces.flatten(self.seen[agent], value), np.float32))
        if len(flat) != self.sizes[agent]:
            raise UserError(
                f"{self.name}: {agent} observed {len(flat)} entries, and its observation_space has {self.sizes[agent]}"
            )
        row = np.zeros(self.spec.observation_dim, np.float32)
        row[: len(flat)] = flat
        if mask is None or not self.spec.discrete:
            return row, None
        mask, count = np.ravel(np.asarray(mask, bool)), self.counts[agent]
        if len(mask) != count:
            raise UserError(f"{self.name}: the action_mask of {agent} has {len(mask)} entries for {count} actions")
        return row, np.pad(mask, (0, self.spec.action_dim - count))

    def action(self, agent: Hashable, row: np.ndarray) -> Any:
        """What the environment is given for an action [U], as its space samples them."""
        space, row = self.acted[agent], row[: self.counts[agent]]
        if isinstance(space, spaces.Discrete):
            return np.int64(space.start + np.argmax(row))
        action = np.clip(row.reshape(space.shape), -1.0, 1.0)
        if (space.low != -1).any() or (space.high != 1).any():
            action = np.clip(space.low * (1 - action) / 2 + space.high * (1 + action) / 2, space.low, space.high)
        return (np.rint(action) if np.issubdtype(space.dtype, np.integer) else action).astype(space.dtype)

"""A single agent's environment, as Gymnasium has them, as a team of one."""

import inspect
from typing import Any

import gymnasium
from gymnasium import spaces
from pettingzoo import ParallelEnv

from core.errors import UserError

_AGENT = "agent"

_PARTS = {"reset": "observation, info", "step": "observation, reward, terminated, truncated, info"}


class SingleAgentEnv(ParallelEnv):
    """A gymnasium.Env as a PettingZoo ParallelEnv of one agent, "agent".

    Spaces, seeds and time limits are the environment's own. Its infos are passed on, with a cost of 0.0 where they tell
    none.
    """

    def __init__(self, environment: gymnasium.Env):
        """
        Raises:
            UserError: it has no spaces, or its reset takes no seed.
        """
        self.environment, self.render_mode = environment, environment.render_mode
        inner = environment.unwrapped
        name = environment.spec.id if environment.spec else type(inner).__name__
        self.metadata = {**environment.metadata, "name": name}
        for kind in ("observation_space", "action_space"):
            if not isinstance(getattr(environment, kind, None), spaces.Space):
                raise UserError(f"{name} has no {kind}: set self.{kind} to one of gymnasium.spaces in its __init__")
        parameters = inspect.signature(inner.reset).parameters.values()
        if not any(each.name == "seed" or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
            raise UserError(f"{name}.reset takes no seed: write reset(self, *, seed=None, options=None)")
        self.possible_agents = [_AGENT]
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> spaces.Space:
        return self.environment.observation_space

    def action_space(self, agent: str) -> spaces.Space:
        return self.environment.action_space

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        observation, info = self._answer(self.environment.reset(seed=seed, options=options), "reset")
        self.agents = [_AGENT]
        return {_AGENT: observation}, {_AGENT: {"cost": 0.0, **info}}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        if not self.agents:
            return {}, {}, {}, {}, {}
        answer = self._answer(self.environment.step(actions[_AGENT]), "step")
        observation, reward, terminated, truncated, info = answer
        if terminated or truncated:
            self.agents = []
        return (
            {_AGENT: observation},
            {_AGENT: reward},
            {_AGENT: bool(terminated)},
            {_AGENT: bool(truncated)},
            {_AGENT: {"cost": 0.0, **info}},
        )

    def render(self) -> Any:
        return self.environment.render()

    def close(self) -> None:
        self.environment.close()

    def _answer(self, answer: Any, method: str) -> tuple[Any, ...]:
        """What a method returned, checked for its parts."""
        parts = _PARTS[method]
        if not isinstance(answer, tuple) or len(answer) != len(parts.split(", ")):
            got = f"{len(answer)} values" if isinstance(answer, tuple) else f"a {type(answer).__name__}"
            raise UserError(f"{self.metadata['name']}.{method} returned {got}; a gymnasium.Env's returns {parts}")
        return answer

"""What tasks of one agent that moves by a formula have in common: batches of them, and single ones for Gymnasium."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from core.environments import Environments, Observed, Stepped
from core.errors import UserError
from core.noise import normal


class Analytic(Environments, ABC):
    """B episodes of one agent, in float64 tensors alone: no step waits for the device.

    An episode follows from its seed and its actions alone, to rounding, whatever the batch. It begins uniformly in a
    box and is truncated after `max_cycles` steps.

    Attributes:
        low, high: bounds of the states [D] that episodes begin in.

    Args:
        max_cycles: steps of an episode. state: that every episode begins in, [D]; drawn by its seed unless given.

    Raises:
        UserError: no steps, or a state of another size.
    """

    agents = ("agent",)
    low: ClassVar[tuple[float, ...]]
    high: ClassVar[tuple[float, ...]]

    def __init__(
        self, *, max_cycles: int, state: Sequence[float] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        if max_cycles < 1:
            raise UserError(f"max_cycles must be at least 1, got {max_cycles}")
        self.max_cycles, self.device = max_cycles, torch.device(device)
        self._start = None if state is None else _checked(state, len(self.low))
        self._state: Tensor | None = None

    @property
    def state(self) -> Tensor:
        """Where the episodes are, [B, D] float64. Later steps leave it as it is."""
        if self._state is None:
            raise RuntimeError("no episode has begun: call reset(seeds) or start(state) first")
        return self._state

    def reset(self, seeds: Sequence[int] | Tensor) -> Observed:
        if self._start is not None:
            return self.start(torch.from_numpy(self._start).expand(len(seeds), -1))
        return self.start(drawn(seeds, self.low, self.high, self.device))

    def start(self, state: Tensor) -> Observed:
        """Begin episodes in the states [B, D], which stay as they are.

        Raises:
            ValueError: states of another size.
        """
        if state.ndim != 2 or state.shape[1] != len(self.low):
            raise ValueError(f"states must have shape {('B', len(self.low))}, got {tuple(state.shape)}")
        self._state, self._time = state.to(self.device, torch.float64), 0
        return self._observed(self._state)

    def step(self, actions: Tensor) -> Stepped:
        expected = (len(self.state), 1, self.spec.action_dim)
        if actions.shape != expected:
            raise ValueError(f"actions must have shape {expected}, got {tuple(actions.shape)}")
        action = actions[:, 0].to(self.device, torch.float64).clamp(-1, 1)
        self._state, rewards, costs, terminated = self._moved(self.state, action)
        self._time += 1
        truncated = ~terminated if self._time >= self.max_cycles else torch.zeros_like(terminated)
        return Stepped(
            self._observed(self._state), rewards[:, None].float(), costs[:, None].float(), terminated, truncated
        )

    def _observed(self, state: Tensor) -> Observed:
        return Observed(self._seen(state)[:, None].float())

    @abstractmethod
    def _seen(self, state: Tensor) -> Tensor:
        """What is observed [B, O] in states [B, D]."""

    @abstractmethod
    def _moved(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The states [B, D] that actions [B, U] lead to; rewards, costs [B]; whether the episodes are terminated."""


class AnalyticEnv(gymnasium.Env[np.ndarray, np.ndarray], ABC):
    """One such episode step by step, written apart from the batches: actions in [-1, 1], the cost in info["cost"].

    reset(seed=k) begins the very episode of the batch's reset([k]); without a seed, one is drawn from the generator
    that the last seed began. Its option "state" is the state [D] to begin in.

    Attributes:
        batch: the class of the same task's batches, whose bounds of a start hold here. state: [D] float64.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    batch: ClassVar[type[Analytic]]

    def __init__(self, state: Sequence[float] | None = None, render_mode: str | None = None):
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"unknown render_mode {render_mode!r}: choose 'rgb_array', or None for no frames")
        self.render_mode = render_mode
        self._start = None if state is None else _checked(state, len(self.batch.low))
        self.action_space = spaces.Box(-1.0, 1.0, (self.batch.spec.action_dim,), np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.batch.spec.observation_dim,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        low, high = self.batch.low, self.batch.high
        state = (options or {}).get("state", self._start)
        if state is None:
            seed = int(self.np_random.integers(2**62)) if seed is None else seed
            state = drawn([seed], low, high)[0].numpy()
        self.state = _checked(state, len(low))
        return self._seen().astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape:
            raise ValueError(f"an action must have shape {self.action_space.shape}, got {action.shape}")
        reward, cost, terminated = self._move(np.clip(action, -1.0, 1.0))
        return self._seen().astype(np.float32), reward, terminated, False, {"cost": cost}

    def render(self) -> Any:
        """A frame [240, 240, 3] uint8; None without render_mode="rgb_array"."""
        return picture(self._draw) if self.render_mode else None

    @abstractmethod
    def _seen(self) -> np.ndarray:
        """What is observed [O]."""

    @abstractmethod
    def _move(self, action: np.ndarray) -> tuple[float, float, bool]:
        """Go on to the next state; reward, cost, and whether the episode is terminated."""

    @abstractmethod
    def _draw(self, axes: Any) -> None:
        """Draw the state into Matplotlib's axes, and set their limits."""


def drawn(
    seeds: Sequence[int] | Tensor, low: Sequence[float], high: Sequence[float], device: torch.device | str = "cpu"
) -> Tensor:
    """Points [B, D] uniform in a box, each by its seed alone."""
    keys = torch.as_tensor(seeds, dtype=torch.int64, device=device)
    bounds = torch.tensor([low, high], dtype=torch.float64, device=device)
    shares = torch.special.ndtr(normal(keys, (len(low),), dtype=torch.float64))
    return bounds[0] + shares * (bounds[1] - bounds[0])


def picture(draw: Callable[[Any], None], size: int = 240) -> np.ndarray:
    """What is drawn into square axes, as an image [size, size, 3] uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(size / 100, size / 100), dpi=100))
    axes = canvas.figure.add_axes((0, 0, 1, 1))
    draw(axes)
    axes.set_aspect("equal")
    axes.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _checked(state: Sequence[float] | np.ndarray, size: int) -> np.ndarray:
    values = np.array(state, np.float64)
    if values.shape != (size,) or not np.isfinite(values).all():
        raise UserError(f"a state to begin in is {size} finite numbers, got {np.asarray(state).tolist()}")
    return values

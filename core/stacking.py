"""Several seeds of one small model as one: parameters are stacked, and one call of `torch.vmap` computes all losses.

A small network's training step is mostly the starting of its many small operations. Stacked, each is started once for
all seeds. Every seed keeps its own data order and noise, so it learns what it would have learned alone, to rounding.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from core.algorithm import Algorithm, Batches, Phase

#: Calls that draw random numbers of a shape.
_DRAWS = (torch.rand, torch.randn, torch.randint, torch.randperm)

#: Entries of a checkpoint that have no dimension for the seeds: Adam counts the steps of a tensor.
_COMMON = re.compile(r"optimiser\..*\.step")

_SAME = "a stacked loss must draw the same shapes in the same order at every step"

_Draw = tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]


class Stack:
    """S algorithms of one configuration as the first of them, with a leading dimension S on every parameter and buffer.

    What works element by element (optimisers, averages, target networks) takes it as it is; `losses` calls each seed's
    loss on its slice. A loss may draw with torch.rand, randn, randint and randperm from the generator it is given.
    """

    def __init__(self, members: Sequence[Algorithm]):
        self.algorithm = members[0]
        self.size = len(members)
        states = [member.state_dict() for member in members]
        tensors = dict(self.algorithm.named_parameters()) | dict(self.algorithm.named_buffers())
        for name in states[0]:
            tensors[name].data = torch.stack([state[name] for state in states])
        self._state = {f"algorithm.{name}": tensors[name] for name in states[0]}
        self._call = _Call(self.algorithm)
        self._drawn: dict[str, list[_Draw]] = {}
        self._generator = torch.Generator(next(iter(self._state.values())).device)  # what losses are given

    def losses(
        self, phase: Phase, batches: Batches, index: Tensor, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """Named losses [S] of a phase, on items [S, B], with each seed's randomness from its own generator."""
        if phase.name not in self._drawn:
            self._drawn[phase.name] = self._record(phase, batches, index[0])
        drawn = [
            torch.stack([draw(*args, **options, generator=one) for one in generators])
            for draw, args, options in self._drawn[phase.name]
        ]

        def loss(state: dict[str, Tensor], index: Tensor, drawn: list[Tensor]) -> dict[str, Tensor]:
            replay = _Replay(self._generator, self._drawn[phase.name], drawn)
            with replay if drawn else nullcontext():
                found = functional_call(self._call, state, (phase, batches, index, self._generator))
            if replay.left:
                raise RuntimeError(_SAME)
            return found

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel of CPUs would be called for each seed
            return torch.vmap(loss, randomness="error")(self._state, index, drawn)

    def _record(self, phase: Phase, batches: Batches, index: Tensor) -> list[_Draw]:
        """What a loss draws, found out by calling it once for the first seed."""
        first = {name: tensor[0] for name, tensor in self._state.items()}
        with torch.no_grad(), _Record(self._generator) as record:
            functional_call(self._call, first, (phase, batches, index, self._generator))
        return record.draws

    def members(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Each seed's part of a checkpoint's tensors; what has no dimension is common to all."""
        return [
            {name: tensor[index] if tensor.ndim else tensor for name, tensor in tensors.items()}
            for index in range(self.size)
        ]

    def joined(self, parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A checkpoint's tensors from its `members`."""
        common = {name for name in parts[0] if _COMMON.fullmatch(name)}
        return {
            name: parts[0][name] if name in common else torch.stack([part[name] for part in parts]) for name in parts[0]
        }

    def clip(self, parameters: Sequence[nn.Parameter], largest: float) -> None:
        """Scale each seed's gradients to a norm of at most `largest`."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms = torch.stack([gradient.reshape(self.size, -1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        factor = (largest / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.reshape(-1, *[1] * (gradient.ndim - 1)))


class _Call(nn.Module):
    """A loss of an algorithm as a module's forward, as `functional_call` wants it."""

    def __init__(self, algorithm: Algorithm):
        super().__init__()
        self.algorithm = algorithm

    def forward(self, phase: Phase, batches: Batches, index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return phase.loss(batches.gather(index), generator)


class _Draws(TorchFunctionMode, ABC):
    """Stands between a loss and its generator."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if options.get("generator") is not self.generator:
            return function(*args, **options)
        if function not in _DRAWS or any(isinstance(value, Tensor) for value in (*args, *options.values())):
            raise NotImplementedError(f"a stacked loss cannot draw with {function.__name__}: use torch.rand or randn")
        return self.draw(function, args, {name: value for name, value in options.items() if name != "generator"})

    @abstractmethod
    def draw(self, function: Callable[..., Tensor], args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        """What the loss gets."""


class _Record(_Draws):
    """Draws, and remembers what was asked."""

    def __init__(self, generator: torch.Generator):
        super().__init__(generator)
        self.draws: list[_Draw] = []

    def draw(self, function: Callable[..., Tensor], args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        self.draws.append((function, args, options))
        return function(*args, **options, generator=self.generator)


class _Replay(_Draws):
    """Hands out what was drawn beforehand, in the same order."""

    def __init__(self, generator: torch.Generator, asked: Sequence[_Draw], drawn: Sequence[Tensor]):
        super().__init__(generator)
        self.left = list(zip(asked, drawn, strict=True))

    def draw(self, function: Callable[..., Tensor], args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        if not self.left or self.left[0][0] != (function, args, options):
            raise RuntimeError(_SAME)
        return self.left.pop(0)[1]

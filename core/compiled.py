"""Whole sampling loops as one compiled program, or as one CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Program = Callable[..., Any]


class compiled:  # noqa: N801  (used as a function: fast = core.compiled(fn))
    """A function of tensors, sampling loop and all, that runs as one program without Python between its operations.

        plan = core.compiled(lambda noise, known: core.sample(
            denoiser, noise, core.DDIM(10), edits=[core.Clamp(mask, known)]).x)
        x = plan(noise, known)

    The function is recorded once for each combination of shapes, dtypes and devices it is called with, and then
    compiled by TorchInductor (which needs a C++ compiler on a CPU), or captured as a CUDA graph that is replayed, or
    both. What it computes is what the eager function computes, up to rounding. Tensors that are not arguments are taken
    as they are when it is recorded: a network's weights may change in place afterwards, other values must be arguments.
    Anything that depends on the data's values (a Python `if` on a tensor) cannot be recorded and raises.

    Args:
        fn: positional tensors -> a tensor or a tuple of tensors. Gradients are off inside, but for those a guidance
            takes itself.
        inductor: compile the recorded operations.
        cuda_graph: capture and replay; CUDA only. The result is a copy, so calls do not overwrite each other's.

    Raises (on the call):
        ValueError: an argument is no tensor, or cuda_graph was asked for on another device.
        RuntimeError: the function cannot be recorded, or there is no compiler.
    """

    def __init__(self, fn: Program, *, inductor: bool = True, cuda_graph: bool = False):
        if not (inductor or cuda_graph):
            raise ValueError(
                "compiled() needs inductor=True, cuda_graph=True or both; without, call the function itself"
            )
        self.fn = fn
        self.inductor = inductor
        self.cuda_graph = cuda_graph
        self._programs: dict[tuple[Any, ...], Program] = {}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Any:
        for place, value in enumerate(inputs):
            if not isinstance(value, Tensor):
                raise ValueError(f"a compiled function takes tensors, argument {place} is a {type(value).__name__}")
            if self.cuda_graph and value.device.type != "cuda":
                raise ValueError(
                    f"cuda_graph=True needs every argument on a CUDA device, argument {place} is on {value.device}"
                )
        inputs = tuple(value.contiguous() for value in inputs)
        key = tuple((value.shape, value.dtype, value.device) for value in inputs)
        if key not in self._programs:
            self._programs[key] = self._build(inputs)
        return self._programs[key](*inputs)

    def _build(self, inputs: tuple[Tensor, ...]) -> Program:
        self.fn(*inputs)  # grids and times are made once, outside the recording; ordinary errors surface here
        program = self._compile(inputs) if self.inductor else self.fn
        return _captured(program, inputs) if self.cuda_graph else program

    def _compile(self, inputs: tuple[Tensor, ...]) -> Program:
        import torch._inductor  # a second to import, for those who compile
        from torch.fx.experimental.proxy_tensor import make_fx

        graph = make_fx(self.fn)(*inputs)
        try:
            return torch._inductor.compile(graph, list(inputs))
        except Exception as error:
            if "compiler" not in str(error).lower():
                raise
            raise RuntimeError(
                "compiling the loop needs a C++ compiler, such as g++; without one, run it eagerly or with "
                f"inductor=False, cuda_graph=True ({str(error).splitlines()[0]})"
            ) from error


def _captured(program: Program, inputs: tuple[Tensor, ...]) -> Program:
    """Replays a CUDA graph of the program on static copies of the inputs."""
    static = tuple(value.clone() for value in inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            program(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = program(*static)

    def replay(*fresh: Tensor) -> Any:
        for buffer, value in zip(static, fresh, strict=True):
            buffer.copy_(value)
        graph.replay()
        return outputs.clone() if isinstance(outputs, Tensor) else tuple(output.clone() for output in outputs)

    return replay

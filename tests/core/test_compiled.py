"""Compiled loops equal eager ones; what cannot be recorded is refused. CUDA graphs are tested where there is CUDA."""

import pytest
import torch

import core
from core.networks import ResidualMLP, TemporalUNet


def gpu(test):
    """Run on CUDA, and reported as not run where there is none."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


def policy(device="cpu"):
    torch.manual_seed(0)
    network = ResidualMLP(3, width=16, blocks=1, condition_dim=2, time_width=8).to(device).eval()
    return core.NetworkDenoiser(network, core.VPCosine(), "x0")


def planner(device="cpu"):
    torch.manual_seed(0)
    network = TemporalUNet(3, 4, width=16, multipliers=(1, 2), groups=4, condition_dim=1).to(device).eval()
    return core.NetworkDenoiser(network, core.Flow(), "flow")


def loops(device):
    """Functions (noise, known) -> x of a few compositions, with the shape of their noise."""
    mlp, unet = policy(device), planner(device)
    cond = torch.linspace(-1, 1, 8, device=device).reshape(4, 2)
    returns = torch.ones(4, 2, 1, device=device)
    corner = torch.tensor([True, False, False], device=device)
    guided = core.ClassifierFree(unet, 1.3)
    pulled = core.Energy(mlp, lambda x0: x0.square().sum(dim=-1), 0.3)
    move = core.GradientMove(lambda x, t: -(x - 1).square().sum(dim=-1), 0.5)

    def known(values):
        return [core.Box(), core.Clamp(corner, values)]

    return {
        "ddim": ((3,), lambda z, v: core.sample(mlp, z, core.DDIM(4), cond=cond, edits=known(v)).x),
        "sde": ((3,), lambda z, v: core.sample(mlp, z, core.DPMSolver(4, sde=True), cond=cond, edits=known(v)).x),
        "heun": ((3,), lambda z, v: core.sample(mlp, z, core.Heun(3, churn=1.0), cond=cond, edits=known(v)).x),
        "energy and move": ((3,), lambda z, v: core.sample(pulled, z, core.DDPM(3), cond=cond, edits=[move]).x + v),
        "guided": ((4, 2, 3), lambda z, v: core.sample(guided, z, core.DDIM(3), cond=returns, edits=known(v)).x),
    }


@pytest.mark.parametrize("name", ["ddim", pytest.param("sde", marks=pytest.mark.slow)])
def test_compiled_loops_equal_eager_ones(name):
    compare(name, "cpu", inductor=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heun", "energy and move", "guided"])
def test_compiled_compositions_equal_eager_ones(name):
    compare(name, "cpu", inductor=True)


@gpu
@pytest.mark.parametrize("inductor", [False, True], ids=["graph", "inductor + graph"])
@pytest.mark.parametrize("name", ["ddim", "sde", "heun", "energy and move", "guided"])
def test_replayed_graphs_equal_eager_loops(name, inductor):
    compare(name, "cuda", inductor=inductor, cuda_graph=True)


def compare(name, device, **options):
    shape, loop = loops(device)[name]
    fast = core.compiled(loop, **options)
    for first in (0, 100):
        noise = core.normal(range(first, first + 4), shape).to(device)
        known = core.normal(range(first, first + 4), shape, stream=1).to(device)
        eager = loop(noise, known)
        assert torch.allclose(fast(noise, known), eager, atol=2e-5, rtol=1e-4)
    kept = fast(noise, known)
    fast(noise + 1, known)
    assert torch.allclose(kept, eager, atol=2e-5, rtol=1e-4)  # a later call leaves earlier results alone
    assert len(fast._programs) == 1


def test_weights_may_change_in_place_and_shapes_may_differ():
    denoiser = policy()

    def loop(noise):
        result = core.sample(denoiser, noise, core.DDIM(2))
        return result.x, result.faults

    fast = core.compiled(loop)
    noise = core.normal(range(3), (3,))
    before = fast(noise)[0]
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(1.5)
    after, faults = fast(noise)
    assert torch.allclose(after, loop(noise)[0], atol=1e-5)
    assert (after - before).abs().max() > 1e-2
    assert faults.tolist() == [False] * 3
    assert not after.requires_grad
    assert torch.allclose(fast(noise[:1])[0], after[:1], atol=1e-5)
    assert len(fast._programs) == 2


def test_what_cannot_be_recorded_raises():
    def choosy(noise):
        x = core.sample(policy(), noise, core.DDIM(2)).x
        return x if x.sum() > 0 else -x

    with pytest.raises(RuntimeError, match="data-dependent"):
        core.compiled(choosy)(core.normal(range(2), (3,)))
    with pytest.raises(ValueError, match="argument 1 is a float"):
        core.compiled(lambda x, y: x)(torch.zeros(1), 2.0)
    with pytest.raises(ValueError, match="needs every argument on a CUDA device, argument 0 is on cpu"):
        core.compiled(lambda x: x, cuda_graph=True)(torch.zeros(1))
    with pytest.raises(ValueError, match="inductor=True, cuda_graph=True or both"):
        core.compiled(lambda x: x, inductor=False)


def test_without_a_compiler_the_error_says_so(monkeypatch):
    import torch._inductor

    def missing(*_):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in cpp.cxx")

    monkeypatch.setattr(torch._inductor, "compile", missing)
    with pytest.raises(RuntimeError, match=r"needs a C\+\+ compiler, such as g\+\+"):
        core.compiled(lambda x: x + 1)(torch.zeros(2))

"""What a walk costs, counted: network calls, their rows, and how often the loop waits for the device (never).

On a CPU a wait is counted where it would happen: an operator whose result the host needs, or a tensor made from the
host's numbers. On a GPU, PyTorch itself raises an error.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from core.denoiser import NetworkDenoiser, wrap
from core.edits import Box, Clamp, Edit, GradientMove
from core.guidance import ClassifierFree, Energy
from core.networks import TimeEmbedding
from core.noise import normal
from core.predictions import PREDICTIONS
from core.samplers import DDIM, DDPM, Consistency, DPMSolver, Heun
from core.sampling import WarmStart, sample
from core.schedules import VE, Flow, VPCosine, VPLinear, VPSigmoid, VPTable

B = 3

#: A sampler, and how often it calls its denoiser on the way down to the data.
SAMPLERS = [
    (DDIM(5), 5),
    (DDIM(5, eta=0.5), 5),
    (DDIM(5, "leading"), 5),
    (DDPM(5), 5),
    (DDPM(5, large=True), 5),
    (DPMSolver(5, order=1), 5),
    (DPMSolver(5), 5),
    (DPMSolver(5, order=3), 5),
    (DPMSolver(5, singlestep=True), 9),  # but for the last step, two a step
    (DPMSolver(5, sde=True), 5),
    (DPMSolver(5, order=3, sde=True), 5),
    (DPMSolver(5, singlestep=True, sde=True), 9),
    (DPMSolver(5, stop=0.1, singlestep=True), 10),
    (Heun(5), 9),
    (Heun(5, frame="flow"), 9),
    (Heun(5, churn=2.0), 9),
    (Heun(5, "time", frame="flow", churn=2.0, churn_noise=1.01), 9),
    (Heun(5, stop=0.1), 10),
    (Consistency(1), 1),
    (Consistency(4), 4),
]
SCHEDULE = VPTable.cosine(20)


class Counting:
    """A denoiser of x [B, 3] with a condition of its shape, which counts the rows of every call."""

    schedule = SCHEDULE

    def __init__(self):
        self.rows, self.graphs = [], set()

    def __call__(self, x, t, cond=None):
        self.rows.append(len(x))
        self.graphs.add(x.requires_grad)
        return torch.tanh(x + t) if cond is None else torch.tanh(x + t + cond.nan_to_num(0.5))


#: Guidance, how many conditions it takes and rows of a call for each sample.
GUIDANCE = {
    "none": (lambda denoiser: denoiser, 0, 1),
    "classifier-free": (lambda denoiser: ClassifierFree(denoiser, 1.2), 1, 2),
    "composed": (lambda denoiser: ClassifierFree(denoiser, (0.5, 1.2)), 2, 3),
    "opposed": (lambda denoiser: ClassifierFree(denoiser, (1.5, -0.5)), 2, 2),
    "frozen": (lambda denoiser: Energy(denoiser, lambda x0: x0.square().sum(1), 0.1, on="frozen"), 0, 1),
    "estimate": (lambda denoiser: Energy(denoiser, lambda x0: x0.square().sum(1), 0.1), 0, 1),
    "noisy": (lambda denoiser: Energy(denoiser, lambda x, t: t * x.square().sum(1), 0.1, on="noisy"), 0, 1),
    "both": (lambda denoiser: Energy(ClassifierFree(denoiser, 1.2), lambda x0: x0.square().sum(1), 0.1), 1, 2),
}


def edits(device="cpu"):
    mask = torch.tensor([True, False, False], device=device)
    clamp = Clamp(mask, torch.zeros(3, device=device))
    value = lambda x, t: (t * torch.cos(x)).sum(1)  # noqa: E731
    moves = [
        GradientMove(value, 0.1, steps=2, stop=0.1, clip=0.5, mask=clamp.free),
        GradientMove(value, 1.0, on="mean"),
    ]
    return [[], [clamp], [Box(), Box(torch.full((3,), -0.5, device=device), 0.7)], [*moves, clamp, Box()]]


#: Operators whose result the host waits for, and `lift_fresh`, with which torch.tensor() copies the host's numbers.
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "masked_select", "lift_fresh")
METHODS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu")


class Waits(TorchDispatchMode):
    """Notes in `found` what would wait for the device: operators, indices that are masks, and methods of tensors."""

    def __init__(self, patch):
        super().__init__()
        self.found = []
        for name in METHODS:
            patch.setattr(torch.Tensor, name, self._noted(name, getattr(torch.Tensor, name)))

    def _noted(self, name, method):
        return lambda tensor, *args, **options: self.found.append(name) or method(tensor, *args, **options)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        masks = (
            name.startswith("index")
            and isinstance(args[1], (list, tuple))
            and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        )
        result = operator(*args, **(kwargs or {}))
        moves = name == "_to_copy" and result.device != args[0].device
        self.found += [name] if name in WAITS or masks or moves else []
        return result


def waits(run, monkeypatch):
    """What a second run, whose grid and times are at hand, would wait for."""
    run()
    with monkeypatch.context() as patch, Waits(patch) as counter:
        run()
    return counter.found


def walk(guidance, sampler, device="cpu"):
    """The walk of a sampler under a kind of guidance, as a function of its other options, and what counts its calls."""
    counting = Counting()
    make, conditions, _ = GUIDANCE[guidance]
    noise = normal(range(B), (3,)).to(device)
    cond = [torch.full((B, 3), 0.3 + k, device=device) for k in range(conditions)] or None
    return partial(sample, make(counting), noise, sampler, cond=cond), counting


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize(("sampler", "calls"), SAMPLERS, ids=str)
def test_network_calls_their_rows_and_no_waits(sampler, calls, guidance, monkeypatch):
    run, counting = walk(guidance, sampler)
    assert sampler.evaluations(SCHEDULE) == calls
    for chosen in edits():
        counting.rows.clear()
        run(edits=chosen)
        assert counting.rows == [GUIDANCE[guidance][2] * B] * calls
        assert counting.graphs == {guidance in ("estimate", "both")}  # nothing is differentiated but for these
        assert waits(partial(run, edits=chosen), monkeypatch) == []
    assert waits(partial(run, edits=chosen, grad=True, trace=True, temperature=0.5), monkeypatch) == []


class Plain(nn.Module):
    """A network that is told the times themselves."""

    def forward(self, x, t, cond=None):
        return torch.tanh(x + t[:, None] if cond is None else x + t[:, None] + cond)


class Embedding(nn.Module):
    """A network whose times are embedded once for the whole walk."""

    def __init__(self):
        super().__init__()
        self.time = TimeEmbedding(4)

    def forward(self, x, t, cond=None):
        return torch.tanh(x + self.time(t)[:, :3])


CONTINUOUS = [VPLinear(), VPCosine(), VPSigmoid(), VE(), Flow()]


@pytest.mark.parametrize("network", [Plain, Embedding])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", [*CONTINUOUS, VPTable.cosine(20)], ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("sampler", [DDPM(4), DPMSolver(4, singlestep=True)], ids=["ddpm", "2s"])
def test_networks_of_all_predictions_wait_for_nothing(sampler, schedule, prediction, network, monkeypatch):
    denoiser = NetworkDenoiser(network(), schedule, prediction)
    start = WarmStart(torch.zeros(B, 3), 0.9)
    run = partial(sample, denoiser, normal(range(B), (3,)), sampler, start=start)
    assert waits(run, monkeypatch) == []


@pytest.mark.parametrize("schedule", [*CONTINUOUS, VPTable.cosine(20)], ids=lambda schedule: type(schedule).__name__)
def test_what_users_compute_with_a_schedule_waits_for_nothing(schedule, monkeypatch):
    # Such as the exact energy of a noisy sample, at the time that the engine hands over.
    def energy(x, t):
        return (schedule.alpha(t) * x - schedule.sigma(t)).square().sum(1) + schedule.time(schedule.lam(t))

    guided = Energy(wrap(lambda x, t: torch.tanh(x), schedule), energy, 0.1, on="noisy")
    run = partial(sample, guided, normal(range(B), (3,)), DDIM(4), start=WarmStart(torch.zeros(B, 3), 0.9))
    assert waits(run, monkeypatch) == []


OFFENCES = {
    "item": lambda x: x * x.sum().item(),
    "float": lambda x: x * float(x[0, 0]),
    "int": lambda x: x * int(x[0, 0]),
    "index": lambda x: x + [0.0, 1.0][(x.sum() > 0).long()],
    "bool": lambda x: x if (x > 0).any() else -x,
    "tolist": lambda x: x + len(x.tolist()),
    "numpy": lambda x: x + x.numpy().mean().item(),
    "cpu": lambda x: x.cpu(),
    "equal": lambda x: x if torch.equal(x, x) else -x,
    "nonzero": lambda x: x + len(x.nonzero()),
    "mask": lambda x: x + x[x > 0].sum(),
    "place": lambda x: x[torch.zeros_like(x[0, 0], dtype=torch.long)].expand_as(x),
    "assigned": lambda x: x.clone().index_put_((x > 0,), x[0, :1]),
    "unique": lambda x: x + len(x.unique()),
    "copied": lambda x: x * torch.tensor(0.5, device=x.device),
}


@pytest.mark.parametrize("offence", OFFENCES)
def test_the_counter_can_fail(offence, monkeypatch):
    denoiser = wrap(lambda x, t: OFFENCES[offence](x), VPCosine())
    found = waits(partial(sample, denoiser, normal(range(B), (3,)), DDIM(4)), monkeypatch)
    assert len(found) >= 4  # at least once a step
    clean = wrap(lambda x, t: 0.5 * x, VPCosine())
    assert waits(partial(sample, clean, normal(range(B), (3,)), DDIM(4)), monkeypatch) == []


def test_a_wait_of_an_edit_is_counted(monkeypatch):
    class Asks(Edit):
        def after(self, x_new, x_old, step):
            return x_new if x_new.isfinite().all() else x_old

    run = partial(sample, wrap(lambda x, t: 0.5 * x, VPCosine()), normal(range(B), (3,)), DDIM(4), edits=[Asks()])
    assert waits(run, monkeypatch).count("__bool__") == 4


cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def strict():
    """Runs a function twice, the second time with an error at every wait for the device."""

    def run_strictly(run):
        run()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return run_strictly


class TestOnCUDA:
    pytestmark = cuda

    @pytest.mark.parametrize(("sampler", "calls"), SAMPLERS, ids=str)
    def test_no_waits(self, sampler, calls, strict):
        for guidance, (_, _, parts) in GUIDANCE.items():
            run, counting = walk(guidance, sampler, "cuda")
            for chosen in edits("cuda"):
                counting.rows.clear()
                strict(partial(run, edits=chosen))
                assert counting.rows == [parts * B] * 2 * calls
            strict(partial(run, edits=chosen, grad=True, trace=True, temperature=0.5))

    @pytest.mark.parametrize("network", [Plain, Embedding])
    @pytest.mark.parametrize("schedule", [*CONTINUOUS, SCHEDULE], ids=lambda schedule: type(schedule).__name__)
    def test_networks(self, schedule, network, strict):
        noise = normal(range(B), (3,)).cuda()
        for prediction in PREDICTIONS:
            denoiser = NetworkDenoiser(network().cuda(), schedule, prediction)
            strict(partial(sample, denoiser, noise, DDPM(4), start=WarmStart(torch.zeros_like(noise), 0.9)))

    @pytest.mark.parametrize("offence", OFFENCES)
    def test_the_debug_mode_can_fail(self, offence, strict):
        denoiser = wrap(lambda x, t: OFFENCES[offence](x), VPCosine())
        with pytest.raises((RuntimeError, TypeError)):
            strict(partial(sample, denoiser, normal(range(B), (3,)).cuda(), DDIM(4)))

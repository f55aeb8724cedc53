"""Consistency models: the exact one of Gaussian data, their boundary, and a distillation that works."""

import copy

import pytest
import torch

import core
from core.networks import ResidualMLP
from tests.core.gaussian import correlated

SCHEDULES = [core.VPLinear(), core.VPCosine(), core.VE(), core.Flow()]
NOISE = core.normal(range(64), (3,), dtype=torch.float64)


def student(schedule, prediction="x0", boundary=0.05):
    torch.manual_seed(0)
    network = ResidualMLP(3, width=16, blocks=1, time_width=8).double()
    return core.ConsistencyModel(core.NetworkDenoiser(network, schedule, prediction), boundary)


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_at_the_data_a_consistency_model_is_the_identity(schedule, prediction):
    model, x = student(schedule, prediction), NOISE
    sigma = 1e-6
    t = schedule.time(torch.full((64,), -torch.log(torch.tensor(sigma)).item(), dtype=torch.float64))
    assert (model(x, t) - x / schedule.alpha(t)[:, None]).abs().max() < 1e-6
    assert (model(x, torch.full((64,), 0.9, dtype=torch.float64)) - x).abs().max() > 0.1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_sampling_and_training_see_the_same_function(schedule):
    model, seen = student(schedule), []

    class Spy(core.Denoiser):
        takes_time = True

        def __init__(self):
            self.schedule = schedule

        def __call__(self, x, t, cond=None):
            seen.append((x, t.tensor, model(x, t)))
            return seen[-1][2]

    with torch.no_grad():
        core.sample(Spy(), NOISE, core.Consistency(3))
        for x, t, said in seen:
            assert (model(x, t.expand(len(x))) - said).abs().max() < 1e-9


@pytest.mark.parametrize("schedule", [core.VPLinear(), core.Flow()], ids=str)
def test_the_exact_flow_map_has_no_loss(schedule):
    # For Gaussian data the consistency function is the probability flow to t = 0 in closed form. It is consistent with
    # itself along the teacher's flow up to the solver's error, which falls with the square of the number of levels.
    data = correlated(schedule)

    class Exact(core.ConsistencyModel):
        def __init__(self):
            super().__init__(core.NetworkDenoiser(torch.nn.Identity(), schedule, "x0"))

        def forward(self, x, t, cond=None):
            return torch.cat([data.flow(x[i : i + 1], time, 0.0) for i, time in enumerate(t.tolist())])

    x0 = core.normal(range(200), (3,), stream=1, dtype=torch.float64)
    losses = [
        core.consistency_loss(
            Exact(), Exact(), data, x0, levels=levels, generator=torch.Generator().manual_seed(0)
        ).item()
        for levels in (10, 20, 40, 80)
    ]
    assert losses[3] < 0.02 * losses[0]
    wrong = core.consistency_loss(student(schedule), student(schedule), data, x0, generator=torch.Generator())
    assert wrong > 100 * losses[3]


def test_gradients_reach_the_student_alone_and_clamped_entries_do_not_count():
    schedule = core.VPLinear()
    model, target, teacher = student(schedule), student(schedule), student(schedule).denoiser
    mask = torch.tensor([True, False, False])
    x0 = NOISE.clone()
    clamp = core.Clamp(mask, x0)
    loss = core.consistency_loss(model, target, teacher, x0, clamp=clamp, generator=torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is None for module in (target, teacher) for p in module.parameters())
    assert any(p.grad.any() for p in model.parameters())
    head = model.denoiser.network.head[1]
    assert not head.weight.grad[0].any()
    assert head.weight.grad[1:].any()


@pytest.mark.parametrize("boundary", [0.0, -1.0, float("inf")])
def test_bad_boundary(boundary):
    with pytest.raises(ValueError, match="boundary is a positive noise level"):
        student(core.VPLinear(), boundary=boundary)


MODES = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])


def mixture(count, generator):
    modes = MODES[torch.randint(3, (count,), generator=generator)]
    return modes + 0.2 * torch.randn(count, 2, generator=generator)


@pytest.mark.slow
def test_distillation_makes_one_step_as_good_as_many():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    teacher = core.NetworkDenoiser(ResidualMLP(2, width=64, blocks=2, expansion=2), core.VPLinear(), "x0")

    def descend(parameters, loss, rate, steps=2000, after=lambda: None):
        optimiser = torch.optim.Adam(parameters, rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            value = loss()
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
            after()

    descend(
        list(teacher.parameters()),
        lambda: core.diffusion_loss(teacher, mixture(256, generator), generator=generator)[0],
        2e-3,
    )
    model = core.ConsistencyModel(copy.deepcopy(teacher))
    target, ema = copy.deepcopy(model), core.EMA(model, 0.99)
    descend(
        list(model.parameters()),
        lambda: core.consistency_loss(model, target, teacher, mixture(256, generator), generator=generator),
        5e-4,
        after=lambda: (ema.update(), ema.copy_to(target)),
    )
    noise = core.normal(range(2000), (2,))

    def spread(denoiser, sampler):
        """Root mean square distance from the nearest mode, per coordinate: 0.2 for the data; and the least share."""
        nearest = torch.cdist(core.sample(denoiser, noise, sampler).x, MODES).min(dim=1)
        return nearest.values.square().mean().div(2).sqrt().item(), nearest.indices.bincount(minlength=3).min() / 2000

    for steps in (1, 2, 4):
        deviation, share = spread(target, core.Consistency(steps))
        assert deviation < 0.4
        assert share > 0.25
    assert spread(teacher, core.DDIM(1))[0] > 1.0
    assert spread(teacher, core.DDIM(4))[0] > spread(target, core.Consistency(1))[0]

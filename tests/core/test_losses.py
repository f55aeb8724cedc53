import pytest
import torch
from torch import nn

from core.denoiser import PREDICTIONS, NetworkDenoiser
from core.edits import Clamp
from core.losses import diffusion_loss
from core.schedules import VPCosine, VPLinear

MASK = torch.tensor([True, False, False, True])
X0 = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)
CLAMP = Clamp(MASK, torch.tensor([0.3, 0.0, 0.0, -0.2], dtype=torch.float64))


class Offset(nn.Module):
    """Says x / 2 plus an offset, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x, t, cond):
        self.seen = (x, t, cond)
        return 0.5 * x + self.offset


def loss_of(denoiser, **options):
    return diffusion_loss(denoiser, X0, **{"clamp": CLAMP, "generator": torch.Generator().manual_seed(0)} | options)


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine()], ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_the_mean_over_free_entries(schedule, prediction):
    denoiser = NetworkDenoiser(Offset(), schedule, prediction)
    loss, estimate, t = loss_of(denoiser)
    x, times, _ = denoiser.network.seen
    assert torch.equal(times, t)
    errors = []
    for row in range(6):
        alpha, sigma = schedule.alpha(t[row]).item(), schedule.sigma(t[row]).item()
        for entry in (1, 2):
            x0 = X0[row, entry].item()
            noise = (x[row, entry].item() - alpha * x0) / sigma
            target = {"x0": x0, "noise": noise, "v": alpha * noise - sigma * x0}[prediction]
            errors.append((0.5 * x[row, entry].item() - target) ** 2)
    assert loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-9)
    assert torch.allclose(estimate, CLAMP(denoiser.to_x0(0.5 * x, x, t)))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_the_network_says_at_clamped_entries_does_not_count(prediction):
    denoiser = NetworkDenoiser(Offset(), VPCosine(), prediction)
    offset = denoiser.network.offset
    loss, _, _ = loss_of(denoiser)
    (gradient,) = torch.autograd.grad(loss, offset)
    assert (gradient[MASK] == 0).all()
    assert (gradient[~MASK] != 0).all()
    with torch.no_grad():
        offset[MASK] = 1e3
    changed, estimate, _ = loss_of(denoiser)
    assert changed.item() == loss.item()
    assert torch.equal(estimate[:, MASK], CLAMP.values[MASK].expand(6, 2))


def test_the_network_sees_clamped_entries_clean_and_the_condition():
    denoiser, cond = NetworkDenoiser(Offset(), VPCosine()), torch.ones(6, 1)
    loss_of(denoiser, cond=cond)
    x, _, seen = denoiser.network.seen
    assert torch.equal(x[:, MASK], CLAMP.values[MASK].expand(6, 2))
    assert (x[:, ~MASK] != X0[:, ~MASK]).all()
    assert seen is cond


def test_weights_are_relative():
    denoiser = NetworkDenoiser(Offset(), VPCosine())
    loss, _, _ = loss_of(denoiser)
    assert loss_of(denoiser, weights=torch.full((4,), 7.0))[0].item() == pytest.approx(loss.item())
    first, second = (loss_of(denoiser, weights=torch.eye(4, dtype=torch.float64)[i])[0].item() for i in (1, 2))
    mixed, _, _ = loss_of(denoiser, weights=torch.tensor([5.0, 3.0, 1.0, 9.0], dtype=torch.float64))
    assert loss.item() == pytest.approx((first + second) / 2)
    assert mixed.item() == pytest.approx((3 * first + second) / 4)


def test_times_are_stratified_and_the_generator_decides():
    denoiser = NetworkDenoiser(Offset(), VPCosine())
    loss, _, t = loss_of(denoiser)
    assert (t * 6).floor().tolist() == list(range(6))
    again, _, _ = loss_of(denoiser)
    other, _, other_t = loss_of(denoiser, generator=torch.Generator().manual_seed(1))
    assert again.item() == loss.item()
    assert other.item() != loss.item()
    assert not torch.equal(other_t, t)


def test_emphasis_draws_more_times_of_high_noise():
    denoiser = NetworkDenoiser(Offset(), VPCosine())
    even, emphasised = (loss_of(denoiser, noise_emphasis=emphasis)[2] for emphasis in (1.0, 2.0))
    assert torch.allclose(1 - emphasised, (1 - even) ** 2)
    assert (emphasised > even).all()

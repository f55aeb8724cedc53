"""Consistency models (Song et al. 2023): a denoiser whose estimate is a sample, distilled from any trained denoiser.

student = core.ConsistencyModel(copy.deepcopy(teacher))         # and a copy of it, averaged, as `target`
loss = core.consistency_loss(student, target, teacher, x0)      # minimise over the student; average it into target
x = core.sample(target, noise, core.Consistency(steps=2)).x
"""

import torch
from torch import Tensor, nn

from core.denoiser import AnyDenoiser, Condition, Denoiser, NetworkDenoiser, Time, alpha_sigma, as_denoiser
from core.edits import Clamp
from core.samplers.grid import LAST_TIME, levels_of
from core.schedules import per_sample


class ConsistencyModel(nn.Module, Denoiser):
    """f(x, t) = (1 - s) D(x, t) + s x / alpha with s = b^2 / ((sigma / alpha)^2 + b^2): f(x, 0) = x whatever D is.

    Args:
        denoiser: D, a copy of the teacher's network, which is trained further.
        boundary: b, the noise at which half of the sample itself is kept; ours.
    """

    takes_time = True

    def __init__(self, denoiser: NetworkDenoiser, boundary: float = 0.05):
        super().__init__()
        if not 0 < boundary < float("inf"):
            raise ValueError(f"the boundary is a positive noise level, got {boundary}")
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.boundary = boundary

    def forward(self, x: Tensor, t: Time | Tensor, cond: Tensor | None = None) -> Tensor:
        alpha, sigma = alpha_sigma(self.schedule, x, t)
        total = sigma**2 + (self.boundary * alpha) ** 2
        return sigma**2 / total * self.denoiser(x, t, cond) + self.boundary**2 * alpha / total * x


def consistency_loss(
    student: ConsistencyModel,
    target: ConsistencyModel,
    teacher: Denoiser | AnyDenoiser,
    x0: Tensor,
    *,
    clamp: Clamp | None = None,
    weights: Tensor | None = None,
    cond: Tensor | None = None,
    teacher_cond: Condition | None = None,
    levels: int = 18,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Consistency distillation (Song et al. 2023, algorithm 2): the student at a level should say what the target says
    a level below, where the teacher's probability flow leads in one second-order step.

    Args:
        student, target: the model that learns, and its moving average.
        teacher: any denoiser of the same schedule, guided or not.
        x0: clean samples [B, ...]. clamp: known entries, which do not count. weights: of the entries, at least 0,
            broadcast to x0; 0 masks an entry.
        cond: the student's condition. teacher_cond: the teacher's where it differs, as for composed guidance.
        levels: of the grid between noise and data, in Karras et al.'s spacing.

    Returns:
        The mean over samples of the pseudo-Huber distance sqrt(d^2 + c^2) - c, c = 0.00054 sqrt(entries) (Song and
        Dhariwal 2024).
    """
    teacher = as_denoiser(teacher)
    teacher_cond = cond if teacher_cond is None else teacher_cond
    schedule = student.schedule
    grid = levels_of(schedule, levels, "karras", 0.0, 1.0)
    if grid[0].alpha == 0:  # where not every prediction says something of the data
        grid = levels_of(schedule, levels, "karras", 0.0, 1 - LAST_TIME)
    table = torch.tensor([(level.t, level.alpha, level.sigma) for level in grid], dtype=torch.float64, device=x0.device)
    place = torch.randint(levels, (len(x0),), generator=generator, device=x0.device)
    (t, alpha, sigma), (t_next, alpha_next, sigma_next) = table[place].T, table[place + 1].T

    def known(x: Tensor, scale: Tensor) -> Tensor:
        return x if clamp is None else clamp.noisy(x, scale)

    with torch.no_grad():
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        x = known(per_sample(alpha, x0) * x0 + per_sample(sigma, x0) * noise, schedule.scale(t))
        keep = per_sample(sigma_next / sigma, x0)
        gain = per_sample(alpha_next - sigma_next / sigma * alpha, x0)
        first = teacher(x, t, teacher_cond)
        below = known(keep * x + gain * first, schedule.scale(t_next))
        # Levels without noise have no second estimate: the step to them is of first order.
        noisy = per_sample(sigma_next > 0, x0).bool()
        second = torch.where(noisy, teacher(below, t_next.clamp(min=1e-5), teacher_cond), first)
        below = known(keep * x + gain * (first + second) / 2, schedule.scale(t_next))
        wanted = torch.where(noisy, target(below, t_next, cond), below)
    error = student(x, t, cond) - wanted
    if clamp is not None:
        error = torch.where(clamp.free, error, 0.0)
    if weights is not None:
        error = torch.where(weights > 0, error * weights.sqrt(), 0.0)
    flat = error.reshape(len(x0), -1)
    floor = 0.00054 * flat.shape[1] ** 0.5
    return (torch.sqrt(flat.square().sum(dim=1) + floor**2) - floor).mean()

"""Every kind of schedule and of sampler, for what holds of all of them."""

from core.samplers import DDIM, DDPM, Consistency, DPMSolver, Heun
from core.schedules import VE, Flow, VPCosine, VPLinear, VPSigmoid, VPTable

SCHEDULES = [VPLinear(), VPCosine(), VPSigmoid(), VE(), Flow(), VPTable.linear(), VPTable.cosine(200)]
TABLES = SCHEDULES[-2:]


def deterministic(steps, **grid):
    return [
        DDIM(steps, **grid),
        *(DPMSolver(steps, order=order, **grid) for order in (1, 2, 3)),
        DPMSolver(steps, singlestep=True, **grid),
        Heun(steps, **grid),
        Heun(steps, frame="flow", **grid),
    ]


def stochastic(steps, **grid):
    """All that draw noise on their way, but for consistency sampling."""
    return [
        DDIM(steps, eta=0.5, **grid),
        DDPM(steps, **grid),
        DDPM(steps, large=True, **grid),
        *(DPMSolver(steps, order=order, sde=True, **grid) for order in (1, 2, 3)),
        DPMSolver(steps, sde=True, singlestep=True, **grid),
        Heun(steps, churn=0.3 * steps, **grid),
        Heun(steps, churn=0.3 * steps, churn_min=0.05, churn_max=50.0, churn_noise=1.007, **grid),
    ]


def samplers(steps, **grid):
    walks = [*deterministic(steps, **grid), *stochastic(steps, **grid)]
    return walks if grid.get("spacing") == "leading" else [*walks, Consistency(steps, **grid)]


def times_of(grid):
    return [step.start.t for step in grid] + [grid[-1].end.t]


def lambdas_of(grid):
    return [step.start.lam for step in grid] + [grid[-1].end.lam]

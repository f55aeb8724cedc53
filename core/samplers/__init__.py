"""Samplers: which noise levels to visit, and how to step from one to the next given the clean estimate.

What is equal in exact arithmetic is one class: DDIM with eta = 0 is DPM-Solver-1, DPM-Solver++1, Euler's method on
sigma / alpha and Euler's method on a flow; DDIM with eta = 1 is DDPM with its "fixed small" variance, SDE-DPM-Solver++1
and Euler-ancestral.
"""

from core.samplers.base import Denoise, Memory, Sampler
from core.samplers.config import SAMPLERS, SamplerConfig
from core.samplers.consistency import Consistency
from core.samplers.ddim import DDIM, DDPM, Euler, EulerAncestral
from core.samplers.dpm_solver import DPMSolver
from core.samplers.grid import SPACINGS, Step
from core.samplers.heun import Heun

__all__ = [
    "DDIM",
    "DDPM",
    "Consistency",
    "DPMSolver",
    "Denoise",
    "Euler",
    "EulerAncestral",
    "Heun",
    "Memory",
    "SAMPLERS",
    "SPACINGS",
    "Sampler",
    "SamplerConfig",
    "Step",
]

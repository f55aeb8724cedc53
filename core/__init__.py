"""The engine: schedules, denoisers, guidance, edits, samplers and one sampling loop; data, training, rollouts."""

import os

# Small networks on a CPU run up to ten times slower when OpenMP threads spin while they wait. It must be set before
# torch is first imported; a user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from core.denoiser import Clip, Denoiser, NetworkDenoiser, wrap
from core.edits import Clamp, Edit
from core.ema import EMA
from core.guidance import ClassifierFree
from core.losses import diffusion_loss
from core.noise import normal
from core.samplers import DDIM, DDPM, DPMSolver, Sampler, Step
from core.sampling import Sample, WarmStart, sample
from core.schedules import Schedule, VPCosine, VPLinear

__all__ = [
    "VPCosine",
    "VPLinear",
    "Schedule",
    "Clip",
    "Denoiser",
    "NetworkDenoiser",
    "wrap",
    "ClassifierFree",
    "Clamp",
    "Edit",
    "DDIM",
    "DDPM",
    "DPMSolver",
    "Sampler",
    "Step",
    "Sample",
    "WarmStart",
    "sample",
    "normal",
    "diffusion_loss",
    "EMA",
]

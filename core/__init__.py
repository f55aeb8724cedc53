"""The engine: schedules, denoisers, guidance, edits, samplers and one sampling loop; data, training, rollouts."""

import os

# Small networks on a CPU run up to ten times slower when OpenMP threads spin while they wait. It must be set before
# torch is first imported; a user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from core.compiled import compiled
from core.consistency import ConsistencyModel, consistency_loss
from core.denoiser import Denoiser, NetworkDenoiser, Time, wrap
from core.edits import Box, Clamp, Edit, GradientMove
from core.ema import EMA
from core.frames import results
from core.guidance import ClassifierFree, Energy
from core.losses import LogNormalTimes, UniformTimes, diffusion_loss
from core.noise import normal
from core.predictions import convert
from core.samplers import DDIM, DDPM, Consistency, DPMSolver, Euler, EulerAncestral, Heun, Sampler, Step
from core.sampling import Sample, WarmStart, best_of, sample
from core.schedules import VE, Flow, Level, Schedule, VPCosine, VPLinear, VPSigmoid, VPTable

__all__ = [
    # schedules
    "VE",
    "Flow",
    "Level",
    "Schedule",
    "VPCosine",
    "VPLinear",
    "VPSigmoid",
    "VPTable",
    # denoisers and guidance
    "ClassifierFree",
    "Denoiser",
    "Energy",
    "NetworkDenoiser",
    "Time",
    "convert",
    "wrap",
    # edits
    "Box",
    "Clamp",
    "Edit",
    "GradientMove",
    # samplers
    "DDIM",
    "DDPM",
    "Consistency",
    "DPMSolver",
    "Euler",
    "EulerAncestral",
    "Heun",
    "Sampler",
    "Step",
    # sampling
    "Sample",
    "WarmStart",
    "best_of",
    "compiled",
    "normal",
    "sample",
    # training
    "EMA",
    "ConsistencyModel",
    "LogNormalTimes",
    "UniformTimes",
    "consistency_loss",
    "diffusion_loss",
    # runs
    "results",
]

"""Kernels of infinitely wide nets in closed form, their limits in depth, and what such nets predict."""

from tauspan.kernel.analytic.activation import ACTIVATIONS, Activation, leaky_relu
from tauspan.kernel.analytic.batch import BatchNorm
from tauspan.kernel.analytic.conv import Convolution
from tauspan.kernel.analytic.hermite import Expansion, dual_activation, hermite_coefficients
from tauspan.kernel.analytic.independence import Gradients, mean_readout
from tauspan.kernel.analytic.joined import Recurrent, Residual
from tauspan.kernel.analytic.layers import Act, Dense, Layer, Norm, flattened, windows
from tauspan.kernel.analytic.limits import DepthLimit, depth_limit, limit_kernel, on_sphere
from tauspan.kernel.analytic.mixes import Attention, Mix, Pool, Positions
from tauspan.kernel.analytic.parametrize import NTKConv2d, NTKLinear, network
from tauspan.kernel.analytic.posterior import (
    Posterior,
    ensemble,
    ensemble_posterior,
    lr_max,
    posterior,
    response,
)
from tauspan.kernel.analytic.program import Kernels, Process, Program, ProgramNet, stacked
from tauspan.kernel.analytic.recursion import nngp, ntk
from tauspan.kernel.analytic.surrogate import scaled_erf, surrogate

__all__ = [
    "ACTIVATIONS",
    "Act",
    "Activation",
    "Attention",
    "BatchNorm",
    "Convolution",
    "Dense",
    "DepthLimit",
    "Expansion",
    "Gradients",
    "Kernels",
    "Layer",
    "Mix",
    "NTKConv2d",
    "NTKLinear",
    "Norm",
    "Pool",
    "Positions",
    "Posterior",
    "Process",
    "Program",
    "ProgramNet",
    "Recurrent",
    "Residual",
    "depth_limit",
    "dual_activation",
    "ensemble",
    "ensemble_posterior",
    "flattened",
    "hermite_coefficients",
    "leaky_relu",
    "limit_kernel",
    "lr_max",
    "mean_readout",
    "network",
    "nngp",
    "ntk",
    "on_sphere",
    "posterior",
    "response",
    "scaled_erf",
    "stacked",
    "surrogate",
    "windows",
]

"""Kernels of infinitely wide nets in closed form, their limits in depth, and what such nets predict."""

from tauspan.kernel.analytic.activation import ACTIVATIONS, Activation, leaky_relu
from tauspan.kernel.analytic.conv import Convolution
from tauspan.kernel.analytic.hermite import Expansion, dual_activation, hermite_coefficients
from tauspan.kernel.analytic.limits import DepthLimit, depth_limit, limit_kernel, on_sphere
from tauspan.kernel.analytic.parametrize import NTKConv2d, NTKLinear, network
from tauspan.kernel.analytic.posterior import (
    Posterior,
    ensemble,
    ensemble_posterior,
    lr_max,
    posterior,
    response,
)
from tauspan.kernel.analytic.recursion import nngp, ntk

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Convolution",
    "DepthLimit",
    "Expansion",
    "NTKConv2d",
    "NTKLinear",
    "Posterior",
    "depth_limit",
    "dual_activation",
    "ensemble",
    "ensemble_posterior",
    "hermite_coefficients",
    "leaky_relu",
    "limit_kernel",
    "lr_max",
    "network",
    "nngp",
    "ntk",
    "on_sphere",
    "posterior",
    "response",
]

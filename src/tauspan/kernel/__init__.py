"""The tangent kernel: the operator, its solvers, and what it says about tasks before they are merged."""

from tauspan.kernel.operator import TangentKernel
from tauspan.kernel.protocol import DenseKernel, Kernel

__all__ = ["DenseKernel", "Kernel", "TangentKernel"]

"""Tiny modules of architectures that are neither perceptrons nor transformers: spectral, spatial, geometric, of graphs.

Each takes rows of 6 numbers (12 or 16 where the shape needs it) and gives 2 for each, in float64; sizes are as small as
the architecture allows, so that J can be written out. `ARCHITECTURES` lists them, with their inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helpers.architectures_of_matrices import (
    CholeskyProcess,
    DeepEquilibrium,
    LieGroup,
    OrthogonalByCayley,
    RotationByGramSchmidt,
    RotationByQR,
    RotationBySVD,
    SPDNetwork,
    SPDNormalisation,
)
from helpers.architectures_of_sequences import (
    S4D,
    GatedRecurrence,
    HyenaFilter,
    LinearRecurrentUnit,
    LogSpaceScan,
    LongConvolution,
    SelectiveScan,
)
from helpers.architectures_of_space import (
    BSplineLayer,
    ComplexNetwork,
    DilatedReparam,
    FourierOperator,
    FourierOperator2d,
    GraphAttention,
    GraphConvolution,
    InceptionNeXt,
    NeighbourhoodAttention,
    QuantumCircuit,
    RationalLayer,
    SheafDiffusion,
    Siren,
    Spectrogram,
)
from helpers.zoo import normal


@dataclass(frozen=True)
class Architecture:
    """How to make a module, and the size of the rows that it takes."""

    make: Callable[[], nn.Module]
    size: tuple[int, ...] = (6,)

    def module(self) -> nn.Module:
        """In float64 eval mode; the same each time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make().double().eval()

    def rows(self, count: int = 3) -> Tensor:
        """Inputs."""
        return normal(count, *self.size, seed=11)


ARCHITECTURES: dict[str, Architecture] = {
    "S4D": Architecture(S4D),
    "Hyena": Architecture(HyenaFilter),
    "long convolution": Architecture(LongConvolution),
    "linear recurrent unit": Architecture(LinearRecurrentUnit),
    "gated linear recurrence": Architecture(GatedRecurrence),
    "scan in log space": Architecture(LogSpaceScan),
    "selective scan": Architecture(SelectiveScan),
    "Fourier operator": Architecture(FourierOperator),
    "Fourier operator in 2d": Architecture(FourierOperator2d, (4, 4)),
    "rational activation": Architecture(RationalLayer),
    "B-spline layer": Architecture(BSplineLayer),
    "neighbourhood attention": Architecture(NeighbourhoodAttention, (4, 4)),
    "InceptionNeXt": Architecture(InceptionNeXt, (4, 4)),
    "UniRepLKNet": Architecture(DilatedReparam, (5, 5)),
    "rotation by Gram-Schmidt": Architecture(RotationByGramSchmidt),
    "rotation by SVD": Architecture(RotationBySVD),
    "rotation by QR": Architecture(RotationByQR),
    "Lie group": Architecture(LieGroup),
    "orthogonal by Cayley": Architecture(OrthogonalByCayley),
    "SPD network": Architecture(SPDNetwork),
    "SPD normalisation": Architecture(SPDNormalisation),
    "Gaussian process layer": Architecture(CholeskyProcess),
    "deep equilibrium": Architecture(DeepEquilibrium),
    "graph convolution": Architecture(GraphConvolution, (4, 3)),
    "graph attention": Architecture(GraphAttention, (4, 3)),
    "sheaf diffusion": Architecture(SheafDiffusion, (4, 3)),
    "SIREN": Architecture(Siren),
    "complex network": Architecture(ComplexNetwork),
    "quantum circuit": Architecture(QuantumCircuit, (2,)),
    "spectrogram": Architecture(Spectrogram, (16,)),
}

"""Merging rules: pure functions, and `METHODS`, the table of them by name."""

from types import MappingProxyType

from tauspan.merge.methods import election, geometry, selective, sparse, spectral, subspace, sums
from tauspan.merge.methods.method import Method

_ROWS: tuple[Method, ...] = (
    sums.LINEAR,
    sums.TASK_ARITHMETIC,
    sums.LINES,
    sums.PASSTHROUGH,
    election.TIES,
    election.TIES_PEFT,
    sparse.TIES_MERGEKIT,
    sparse.DARE_LINEAR,
    sparse.DARE_TIES,
    sparse.DELLA,
    sparse.DELLA_LINEAR,
    sparse.BREADCRUMBS,
    sparse.BREADCRUMBS_TIES,
    election.MAGMAX,
    election.CONSENSUS,
    election.EMR,
    election.PCB,
    spectral.TSV_M,
    spectral.ISO_C,
    spectral.ISO_CTS,
    spectral.SVD,
    subspace.KNOTS,
    subspace.WUDI,
    sums.FISHER,
    sums.REGMEAN,
    geometry.SLERP,
    geometry.NUSLERP,
    geometry.NUSLERP_POINT,
    geometry.MULTISLERP,
    geometry.MULTISLERP_POINT,
    geometry.KARCHER,
    geometry.MODEL_STOCK,
    selective.NEARSWAP,
    selective.ARCEE_FUSION,
    selective.SCE,
    selective.RAM,
    selective.RAM_PLUS,
    selective.RAMPLUS_TL,
)

METHODS = MappingProxyType({method.name: method for method in _ROWS})

__all__ = ["METHODS"]

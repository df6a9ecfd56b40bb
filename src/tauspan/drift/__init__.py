"""Drift: how far a vector moves the rows of other tasks, as a penalty in fine-tuning.

D(tau; s) = E_x |J_s(x) tau|^2 over rows x of another task s: what its logits change by, squared. `Exact` computes it on
fresh rows at each step; `Factored` replaces it by curvature factors that need no rows while training (`factors`); the
others are what the literature uses; `Distilled` makes an ordinary model that behaves as a tangent one. Give one to
`tauspan.finetune(..., penalty=...)`.

A new penalty is a subclass of `Penalty`.
"""

from tauspan.drift.blocks import Block
from tauspan.drift.bound import DriftBound, drift_bound
from tauspan.drift.curvature import KINDS, factors
from tauspan.drift.distilled import Distilled
from tauspan.drift.factors import Factors, compressed, merged
from tauspan.drift.measure import exact_drift
from tauspan.drift.metric import merge_in_metric
from tauspan.drift.penalties import Factored, Orthogonal
from tauspan.drift.rows import Exact, TauJp
from tauspan.drift.sparse import least_sensitive
from tauspan.train.penalty import Penalty, Training

__all__ = [
    "KINDS",
    "Block",
    "Distilled",
    "DriftBound",
    "Exact",
    "Factored",
    "Factors",
    "Orthogonal",
    "Penalty",
    "TauJp",
    "Training",
    "compressed",
    "drift_bound",
    "exact_drift",
    "factors",
    "least_sensitive",
    "merge_in_metric",
    "merged",
]

"""The values that options take, each defined once; importing them imports nothing else."""

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

Regime: TypeAlias = Literal["standard", "linear"]  # the regime in which a vector was fine-tuned
EditRegime: TypeAlias = Literal["standard", "posthoc", "linear"]  # the regime in which a vector edits a model
Point: TypeAlias = Literal[
    "encoder", "logits"
]  # what is linearised: the encoder, or encoder and head together
SplitName: TypeAlias = Literal["train", "validation", "test"]
CacheKind: TypeAlias = Literal["none", "features", "primal", "factors"]  # what is stored of fixed batches
Precision: TypeAlias = Literal["float32", "tf32", "bfloat16"]  # of matrix products
Distance: TypeAlias = Literal[
    "argmax", "probabilities", "labels", "difference", "order", "cosine", "tokens"
]  # of two outputs, by objective
Augment: TypeAlias = Literal["none", "crop"]
DecayTarget: TypeAlias = Literal["base", "zero"]
HeadFrom: TypeAlias = Literal[
    "auto", "prompts", "prototypes", "probe", "outputs"
]  # what a frozen head is made of
Guidance: TypeAlias = Literal["tangent", "curved", "checked", "rows"]  # what chooses for an ordinary model
Transport: TypeAlias = Literal[
    "same", "shift", "sign", "procrustes", "rebasin"
]  # how a vector is made for another base

REGIMES: tuple[Regime, ...] = get_args(Regime)
EDIT_REGIMES: tuple[EditRegime, ...] = get_args(EditRegime)
TRAINED_IN: Mapping[EditRegime, Regime] = {  # whose vectors a regime edits with
    "standard": "standard", "posthoc": "standard", "linear": "linear",
}  # fmt: skip
POINTS: tuple[Point, ...] = get_args(Point)
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)
GUIDANCES: tuple[Guidance, ...] = get_args(Guidance)

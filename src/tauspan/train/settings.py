"""`Settings` of a fine-tuning run, checked when they are made."""

import dataclasses
import fnmatch
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from tauspan.core.choices import POINTS, REGIMES, Augment, CacheKind, DecayTarget, Point, Precision, Regime
from tauspan.core.computing import Check, Engine, Way, way
from tauspan.core.errors import UsageError, listed, nearest

DEFAULT_LR: dict[Regime, float] = {"standard": 2e-4, "linear": 3e-4}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that determines the task vector, besides the encoder and the task.

    Args:
        regime: `"linear"` trains tau of the tangent model, where tasks disturb each other less, and `apply` makes a model
            of it that tauspan loads; `"standard"` trains theta, and `apply` makes a model that transformers loads too.
        seed: order of the rows, and random crops; the only randomness there is.
        params: which parameters train; see `tauspan.models.select`. Several patterns are kept as a tuple.
        space: a small space in which the matrices among `params` move, such as `lora:8` or `singular:32`; see
            `tauspan.restrict`. None moves whole tensors.
        point: where the tangent model is linearised; None takes `"logits"`, and the standard regime has none.
        epochs: passes over the training split.
        max_steps: end after so many optimiser steps.
        batch_size: rows in one forward pass, over all processes together.
        accumulation: forward passes per optimiser step.
        lr: peak learning rate; None takes 2e-4 (standard) or 3e-4 (linear), measured on a small text encoder.
        warmup: linear warm-up, as a share of all steps below 1 or as a number of steps.
        weight_decay: decoupled, times the learning rate, toward `decay_toward`.
        decay_toward: `"base"` shrinks tau; `"zero"` shrinks theta0 + tau, as the paper's recipe does.
        clip: largest global gradient norm; 0 never clips.
        label_smoothing: share of the target spread over all classes.
        max_tokens: where texts are cut; None takes the task's own value.
        cache: what is kept of each batch across epochs, in the tangent regime; see `Linearized.cache`. The rows of a
            batch are then those of the first epoch, and only the order of batches changes.
        precision: of the matrix products: `"float32"`, `"tf32"` (CUDA), or `"bfloat16"` by autocast; parameters,
            gradients and the optimiser stay in float32.
        augment: `"crop"` shows a random part of each image in training, another one each epoch; see
            `tauspan.models.crop`. Not with a cache, which needs batches that stay the same.
        checkpointing: keep only each block's input for the backward and compute the rest again: less memory, one more
            forward, the same vector.
        engine: what computes tangents first; see `linearize`. None is what `tauspan.computing` says.
        check: `"auto"` compares the first batch of each kind with ordinary autograd, `"off"` trusts. None as for
            `engine`.
        lr_multipliers: what multiplies the learning rate of some parameters, by name or pattern, such as
            `{"encoder.layer.0.*": 0.1}`, or what `tauspan.kernel.diagnose.mup` finds. Weight decay stays that of `lr`.
    """

    regime: Regime = "linear"
    seed: int = 0
    params: str | Sequence[str] = "all"
    space: str | None = None
    point: Point | None = None
    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 32
    accumulation: int = 1
    lr: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.0
    decay_toward: DecayTarget = "base"
    clip: float = 1.0
    label_smoothing: float = 0.0
    max_tokens: int | None = None
    cache: CacheKind | Literal["auto"] = "none"
    precision: Precision = "float32"
    augment: Augment = "none"
    checkpointing: bool = False
    engine: Engine | None = None
    check: Check | None = None
    lr_multipliers: Mapping[str, float] | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.params, str):
            object.__setattr__(self, "params", tuple(self.params))
        if self.lr_multipliers is not None:
            if not isinstance(self.lr_multipliers, Mapping):
                raise UsageError(
                    f"lr_multipliers={self.lr_multipliers!r}: give a mapping of names or patterns to numbers, such as "
                    "{'*.bias': 2.0}."
                )
            object.__setattr__(self, "lr_multipliers", dict(self.lr_multipliers) or None)
        for name, times in (self.lr_multipliers or {}).items():
            if not (isinstance(times, int | float) and 0 < times < math.inf):
                raise UsageError(
                    f"lr_multipliers[{name!r}]={times}: it must be above 0. Parameters that should not move are left out "
                    "of `params`."
                )
        if self.regime not in REGIMES:
            hint = "posthoc reads a standard vector in the tangent model; it is not trained" \
                if str(self.regime) == "posthoc" else nearest(str(self.regime), REGIMES)  # fmt: skip
            raise UsageError(f"regime={self.regime!r} cannot be trained: {hint}")
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("accumulation", 1),
            ("max_steps", 1),
            ("max_tokens", 1),
        ):
            value = getattr(self, name)
            optional = name.startswith("max_")
            if not (optional and value is None) and not (isinstance(value, int) and value >= least):
                raise UsageError(f"{name}={value}: it must be a whole number, at least {least}.")
        for name in ("weight_decay", "clip", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name}={getattr(self, name)}: it must be 0 or more.")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing={self.label_smoothing}: it must lie in [0, 1).")
        if not 0 < self.peak_lr < math.inf:
            raise UsageError(f"lr={self.lr}: it must be above 0.")
        if self.decay_toward not in get_args(DecayTarget):
            raise UsageError(
                f"decay_toward={self.decay_toward!r}. {nearest(str(self.decay_toward), get_args(DecayTarget))}"
            )
        caches = ("auto", *get_args(CacheKind))
        if self.cache not in caches:
            raise UsageError(f"cache={self.cache!r}. {nearest(str(self.cache), caches)}")
        if self.cache != "none" and self.regime != "linear":
            raise UsageError(
                f"cache={self.cache!r}: ordinary fine-tuning moves theta, so nothing can be kept."
            )
        if self.precision not in get_args(Precision):
            raise UsageError(
                f"precision={self.precision!r}. {nearest(str(self.precision), get_args(Precision))}"
            )
        if self.augment not in get_args(Augment):
            raise UsageError(f"augment={self.augment!r}. {nearest(str(self.augment), get_args(Augment))}")
        if self.augment != "none" and self.cache != "none":
            raise UsageError(
                f"augment={self.augment!r} with cache={self.cache!r}: a cache keeps what a batch gave, and augmented "
                "batches change. Leave one of them out."
            )
        if self.space is not None:
            from tauspan.models.bases import spelt  # here, so that the program's parser needs no torch

            object.__setattr__(self, "space", spelt(self.space))
        if self.checkpointing and self.cache != "none":
            raise UsageError(
                f"checkpointing=True with cache={self.cache!r}: a cache keeps what checkpointing would drop. Leave one "
                "of them out."
            )
        way(self.engine, self.check)  # raises for an unknown word
        if self.point not in (None, *POINTS):
            raise UsageError(f"point={self.point!r}. {nearest(str(self.point), POINTS)}")

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return DEFAULT_LR[self.regime] if self.lr is None else self.lr

    def steps(self, rows: int) -> int:
        """The number of optimiser steps for a training split of `rows` rows."""
        every = self.epochs * math.ceil(rows / (self.batch_size * self.accumulation))
        return every if self.max_steps is None else min(every, self.max_steps)

    def lr_at(self, step: int, total: int) -> float:
        """The learning rate of a step (from 0): linear warm-up, then a cosine to 0."""
        warm = round(self.warmup * total) if self.warmup < 1 else round(self.warmup)
        if step < warm:
            return self.peak_lr * (step + 1) / warm
        share = (step - warm) / max(total - warm, 1)
        return self.peak_lr * 0.5 * (1 + math.cos(math.pi * share))

    def multiplier(self, name: str) -> float:
        """What multiplies the learning rate of a parameter: the entry of its name, or of the pattern that fits; else 1.

        Raises:
            UsageError: several patterns fit, with different numbers.
        """
        known = self.lr_multipliers or {}
        if name in known:
            return known[name]
        fitting = {pattern: times for pattern, times in known.items() if fnmatch.fnmatchcase(name, pattern)}
        if len(set(fitting.values())) > 1:
            raise UsageError(
                f"lr_multipliers: {listed(map(repr, fitting))} all fit {name!r}, with different numbers: give its name "
                "an entry of its own."
            )
        return next(iter(fitting.values()), 1.0)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values; `lr` is a number; what came later than other settings only where it is set."""
        plain = {**dataclasses.asdict(self), "lr": self.peak_lr}
        # so that the keys of vectors that were made before there were these stay as they are
        for name, unset in (("space", None), ("checkpointing", False), ("lr_multipliers", None)):
            if plain[name] == unset:
                del plain[name]
        chosen = vars(way(plain.pop("engine"), plain.pop("check")))
        return plain | {name: value for name, value in chosen.items() if value != getattr(Way(), name)}

    def key(self, base: str, task: str) -> str:
        """A hash of everything that determines a vector: equal keys give the same vector.

        Args:
            base: the encoder's fingerprint and its `describe()`, since weights alone do not determine pooling and heads.
            task: the task's checksum.
        """
        facts = {n: value for n, value in self.as_dict().items() if n not in ("check", "checkpointing")}
        text = json.dumps([facts, base, task], sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()

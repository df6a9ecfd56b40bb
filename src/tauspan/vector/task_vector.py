"""`TaskVector`: a displacement in weight space with the fingerprint of the point it starts from."""

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tauspan import models, store
from tauspan.core import params
from tauspan.core.arguments import checked
from tauspan.core.choices import REGIMES, Regime
from tauspan.core.errors import (
    BaseMismatchError,
    MismatchError,
    NonFiniteError,
    UsageError,
    nearest,
)
from tauspan.core.params import Params
from tauspan.core.report import Table
from tauspan.vector.card import vector_card
from tauspan.vector.compatible import on_feature_path, require_compatible
from tauspan.vector.difference import difference
from tauspan.vector.facts import common
from tauspan.vector.files import FILE, existing_file, header, parse_header, vector_file
from tauspan.vector.measures import rows_of


@checked
@dataclass(frozen=True, eq=False)
class TaskVector:
    """A displacement tau = theta - theta0 with the module's own parameter names.

    Two vectors add only if they start from the same base (by content fingerprint), hold the same tensors and
    come from the same regime. Points cannot be added, only displacements:
    `tau_c + (tau_b - tau_a)` is an analogy, `-tau` a negation.

    Args:
        deltas: the displacement, float32 unless said otherwise.
        base: content fingerprint of theta0.
        regime: `"standard"` (ordinary fine-tuning) or `"linear"` (fine-tuned in the tangent space).
        label: a short name for tables and errors.
        info: provenance: base id, linearisation point, trainable selection, seed, recipe, versions.
        space: where the deltas are the few numbers of a small space instead of whole tensors; see `tauspan.restrict`.

    Example:
        >>> tau = TaskVector({"w": torch.tensor([1.0, 2.0])}, base="b", regime="standard")
        >>> print(0.5 * tau + tau)
        TaskVector(standard, 1 tensor, 2 values, norm 3.354, base b)
    """

    deltas: Params
    base: str
    regime: Regime
    label: str = "tau"
    info: Mapping[str, Any] = field(default_factory=dict)
    space: models.Space | None = None

    def __post_init__(self) -> None:
        if self.regime not in REGIMES:
            raise UsageError(f"unknown regime {self.regime!r} of a vector. {nearest(self.regime, REGIMES)}")
        for key, value in self.info.items():
            try:
                json.dumps({key: value}, sort_keys=True)
            except (TypeError, ValueError) as error:
                raise UsageError(
                    f"info[{key!r}] of the vector {self.label!r} cannot be saved as JSON ({error}): give text, numbers, "
                    "lists or mappings of them, for example `str(value)`."
                ) from error

    def __str__(self) -> str:
        values = sum(tensor.numel() for tensor in self.deltas.values())
        plural = "" if len(self.deltas) == 1 else "s"
        where = "" if self.space is None else f"{self.space.word}, "
        return (
            f"TaskVector({self.regime}, {where}{len(self.deltas)} tensor{plural}, {values:,} values, "
            f"norm {self.norm():.4g}, base {self.base[:12]})"
        )

    __repr__ = __str__

    # -- algebra ---------------------------------------------------------------------------------------------

    def __add__(self, other: object) -> "TaskVector":
        return self._combined(other, 1.0, "+") if isinstance(other, TaskVector) else NotImplemented

    def __sub__(self, other: object) -> "TaskVector":
        return self._combined(other, -1.0, "-") if isinstance(other, TaskVector) else NotImplemented

    def __radd__(self, other: object) -> "TaskVector":
        return self if isinstance(other, int) and other == 0 else NotImplemented  # the start of `sum`

    def __mul__(self, scale: object) -> "TaskVector":
        if not isinstance(scale, int | float):
            return NotImplemented
        if not math.isfinite(scale):
            raise UsageError(f"{self.label!r} times {scale}: the factor must be a finite number.")
        scaled = {name: delta * scale for name, delta in self.deltas.items()}
        return self._finite(scaled, f"times {scale:g}", f"{scale:g} {self.label}")

    __rmul__ = __mul__

    def __truediv__(self, scale: object) -> "TaskVector":
        if not isinstance(scale, int | float):
            return NotImplemented
        if scale == 0 or not math.isfinite(scale):
            raise UsageError(
                f"{self.label!r} over {scale}: the divisor must be a finite number other than 0."
            )
        scaled = {name: delta / scale for name, delta in self.deltas.items()}
        return self._finite(scaled, f"over {scale:g}", f"{self.label}/{scale:g}")

    def __neg__(self) -> "TaskVector":
        return self._with({name: -delta for name, delta in self.deltas.items()}, f"-{self.label}")

    def _finite(self, deltas: Params, change: str, label: str) -> "TaskVector":
        """This vector with other deltas; an error if a finite value became infinite or NaN."""
        for name, delta in deltas.items():
            lost = torch.isfinite(self.deltas[name]) & ~torch.isfinite(delta)
            if bool(lost.any()):
                dtype = str(delta.dtype).removeprefix("torch.")
                raise NonFiniteError(
                    f"tensor {name!r} of {self.label!r}, {change}: {float(self.deltas[name][lost][0]):g} would become "
                    f"{float(delta[lost][0]):g}, since {dtype} ends at {torch.finfo(delta.dtype).max:g}. Take a smaller "
                    "scale, or a dtype with a wider range: bfloat16, float32 or float64."
                )
        return self._with(deltas, label)

    def _with(self, deltas: Params, label: str) -> "TaskVector":
        return replace(self, deltas=deltas, label=label)

    def _combined(self, other: "TaskVector", sign: float, symbol: str) -> "TaskVector":
        self.require_compatible(other)
        deltas = params.combine([(1.0, self.deltas), (sign, other.deltas)], [self.label, other.label])
        info = common(self.info, other.info)
        return replace(self, deltas=deltas, label=f"({self.label} {symbol} {other.label})", info=info)

    def require_compatible(self, other: "TaskVector") -> None:
        """Raise unless both have the same base, regime, linearisation point and tensors.

        Raises:
            BaseMismatchError: different bases.
            MismatchError: another difference.
        """
        require_compatible(self, other)

    # -- measures --------------------------------------------------------------------------------------------

    def norm(self) -> float:
        """The Euclidean norm |tau|."""
        return params.norm(self.deltas)

    def dot(self, other: "TaskVector") -> float:
        """The inner product <tau, tau'>."""
        self.require_compatible(other)
        return params.dot(self.deltas, other.deltas)

    def table(self) -> Table:
        """One row per tensor: shape, dtype, norm, root mean square, largest value, share of |tau|^2."""
        return Table(str(self), rows_of(self.deltas))

    # -- other views -----------------------------------------------------------------------------------------

    def as_regime(self, regime: Regime) -> "TaskVector":
        """The same displacement, declared to be of another regime; the numbers do not change."""
        return replace(self, regime=regime)

    def at_point(self, point: Literal["encoder", "logits", "output"]) -> "TaskVector":
        """The same displacement, declared to be made at another linearisation point; the numbers do not change."""
        return replace(self, info={**self.info, "point": point})

    def to(self, dtype: torch.dtype) -> "TaskVector":
        """The same vector with its deltas in another floating-point type.

        Raises:
            NonFiniteError: a value is outside the type's range.
            UsageError: not a floating-point type.
        """
        if not dtype.is_floating_point:
            raise UsageError(f"{self.label!r} as {dtype}: a vector holds floating-point numbers.")
        cast = {name: delta.to(dtype) for name, delta in self.deltas.items()}
        return self._finite(cast, f"as {str(dtype).removeprefix('torch.')}", self.label)

    def named(self, label: str) -> "TaskVector":
        """The same vector under another label."""
        return replace(self, label=label)

    def renamed(self, name: Callable[[str], str]) -> "TaskVector":
        """The same displacement with its tensors under other names; the base stays the same.

        Raises:
            UsageError: two tensors would get the same name.
        """
        deltas = {name(own): delta for own, delta in self.deltas.items()}
        if len(deltas) < len(self.deltas):
            raise UsageError(f"two tensors of {self.label!r} would get one name. Give each its own.")
        return replace(self, deltas=deltas)

    def filled_like(self, other: "TaskVector") -> "TaskVector":
        """This vector with zeros for tensors that only `other` has, so that the two can be added."""
        missing = {
            name: torch.zeros_like(delta) for name, delta in other.deltas.items() if name not in self.deltas
        }
        order = [*other.deltas, *(name for name in self.deltas if name not in other.deltas)]
        merged = {**self.deltas, **missing}
        return self._with({name: merged[name] for name in order}, self.label)

    # -- making and applying ---------------------------------------------------------------------------------

    @staticmethod
    @checked
    def from_checkpoints(
        base: "str | Path | nn.Module | Params",
        tuned: "str | Path | nn.Module | Params",
        *,
        label: str = "tau",
        dtype: torch.dtype = torch.float32,
    ) -> "TaskVector":
        """The difference tuned - base, from modules, directories, model ids, safetensors files or mappings of tensors.

        It is computed in float64 and rounded once to `dtype`, under the names that the base's files have or would have.
        From directories and files it takes every floating-point tensor, and needs neither a tokenizer nor the model's
        class. From a module it takes the parameters on the path to the features, and any other tensor that changed (a
        buffer, a text tower). A head that only one of two directories has is not part of the displacement: a warning and
        `info["beyond"]` name it, and it stays in its directory.

        Raises:
            MismatchError: names or shapes differ.
            NonFiniteError: either side holds NaN or infinity.
        """
        deltas, start, info = difference(base, tuned, dtype)
        return TaskVector(deltas, start, "standard", label, info)

    def apply(self, point: Params, scale: float = 1.0) -> dict[str, Tensor]:
        """theta0 + scale * tau as new tensors; tensors that the vector does not hold are returned unchanged.

        Sums are computed in float32 (float64 for float64 points) and rounded once to each tensor's dtype.

        Raises:
            BaseMismatchError: this vector starts from another point.
        """
        self.require_base(params.fingerprint(point))
        for name, delta in self.deltas.items():
            if name not in point or point[name].shape != delta.shape:
                params.require_same(
                    self.deltas, {n: point[n] for n in self.deltas if n in point}, self.label, "base"
                )
        return {name: self.moved(name, tensor, scale) for name, tensor in point.items()}

    def moved(self, name: str, tensor: Tensor, scale: float) -> Tensor:
        """theta0 + scale * tau for one tensor, summed in float32 or wider and rounded once to its dtype."""
        if name not in self.deltas:
            return tensor
        return params.moved(tensor, self.deltas[name], scale).to(tensor.dtype)

    def require_base(self, fingerprint: str) -> None:
        """Raise `BaseMismatchError` unless this vector starts from the model with that fingerprint."""
        if fingerprint != self.base:
            known = self.info.get("base_id")
            hint = f" It was made from {known!r}." if known else ""
            raise BaseMismatchError(
                f"{self.label!r} starts from base {self.base[:12]}, and this model is {fingerprint[:12]}.{hint} "
                "Load that model, or, if you mean it, re-label the vector: `vector.rebased(model)`."
            )

    def fitted(self, module: nn.Module, *, tangent: bool = False, base: str | None = None) -> "TaskVector":
        """This vector for one module: checked against its base, under the module's own parameter names.

        A vector has the names of files. A tensor that the module lacks and its files hold keeps its name in the files,
        so that an edited model that is saved includes it. A vector of a small space becomes whole, unless the module is
        in that space.

        Args:
            module: the module that the vector starts from, or an encoder or classifier around it.
            tangent: keep only the parameters that J(x) tau depends on.
            base: the module's fingerprint; None computes it.

        Raises:
            BaseMismatchError: the vector starts from another model.
            MismatchError: it holds a tensor that neither the module nor its files have.
            UsageError: with `tangent`, it changes a buffer, which a tangent model keeps fixed.
        """
        known = models.fingerprint_of(module) if base is None else base
        # before 0.1 the fingerprint was of the tensors in memory, by their names in memory
        if self.base != known and self.base != params.fingerprint(models.state_of(module)):
            self.require_base(known)
        own = self.suited(module)
        deltas = models.in_memory(own.deltas, module)
        if tangent:
            deltas = on_feature_path(deltas, module, self.label)
        return replace(own, deltas=deltas, base=known)

    def dense(self, module: nn.Module) -> "TaskVector":
        """This vector of a small space as an ordinary one, B delta: the same model, which adds to every vector.

        Formed in float64 and rounded once to the dtype of its numbers. A vector of whole tensors is returned unchanged.

        Args:
            module: the model that it starts from, whose weights may decide the space.

        Raises:
            BaseMismatchError: it starts from another model.
            MismatchError: the model has another space.

        Example:
            >>> encoder = models.Encoder(nn.Linear(4, 3))
            >>> small = models.restrict(encoder, "lora:2")
            >>> deltas = {"weight_delta": torch.ones(3, 2)}
            >>> tau = TaskVector(deltas, models.fingerprint_of(small), "linear", space=small.space)
            >>> tau.dense(encoder).deltas["weight"].shape
            torch.Size([3, 4])
        """
        if self.space is None:
            return self
        self.require_base(models.fingerprint_of(module))
        return self._whole(self.space, module)

    def _whole(self, space: models.Space, module: nn.Module) -> "TaskVector":
        """This vector as whole tensors; fingerprints are not compared."""
        dense = space.dense(self.deltas, module)
        info = {**self.info, "space": space.word}
        return replace(self, deltas=models.names_of(module).to_files(dense), info=info, space=None)

    def suited(self, module: nn.Module) -> "TaskVector":
        """This vector with what the module moves by: itself, or whole where the module is in no space.

        Fingerprints are not compared, as `fitted` does.

        Raises:
            MismatchError: another space than the module's.
        """
        space = models.space_of(module)
        if space is None:
            return self if self.space is None else self._whole(self.space, module)
        if self.space is None:
            raise MismatchError(
                f"{self.label!r} moves whole tensors, and this encoder only moves in the space {space.word!r}: use the "
                "encoder that it came from, which takes vectors of both kinds."
            )
        self.space.require_same(space, repr(self.label), "this encoder")
        return self

    def rebased(self, base: "nn.Module | str") -> "TaskVector":
        """The same displacement, declared to start from another model (given as a module or a fingerprint)."""
        return replace(self, base=base if isinstance(base, str) else models.fingerprint_of(base))

    # -- files -----------------------------------------------------------------------------------------------

    @checked
    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write one safetensors file with its provenance; a path without that suffix is a directory for it.

        Raises:
            NonFiniteError: the vector holds NaN or infinity.
            StoreError: the file is already there or cannot be written; nothing is left behind.
        """
        params.require_finite(self.deltas, f"the vector {self.label!r}")
        file = vector_file(path)
        space = None if self.space is None else self.space.record()
        factors = {} if self.space is None else self.space.stored()
        metadata = header(self.base, self.regime, self.label, self.info, space)
        store.write_tensors(file, {**self.deltas, **factors}, metadata, overwrite=overwrite)
        return file

    def card(self, repo: str) -> str:
        """The card of this vector in a repository of the hub: base, regime, task, settings, how to use it; Markdown."""
        return vector_card(self, repo)

    @checked
    def push_to_hub(self, repo: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload the vector's file and its card to a model repository of the hub, and return the address of the commit.

        `tauspan.editing.push_to_hub` does so for files, and for edited models and merges too.

        Raises:
            NonFiniteError: the vector holds NaN or infinity.
            MissingExtraError: `huggingface_hub` is not installed.
            StoreError: the hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            files: dict[str, Path | bytes] = {
                FILE: self.save_pretrained(Path(folder) / FILE),
                store.CARD: self.card(repo).encode(),
            }
            return store.upload(files, repo, private=private, token=token)

    @staticmethod
    @checked
    def from_pretrained(path: str | Path) -> "TaskVector":
        """Read what `save_pretrained` wrote.

        Raises:
            StoreError, PickleRefusedError: not a whole task-vector file.
            NonFiniteError: the file holds NaN or infinity.
        """
        file = existing_file(path)
        checkpoint = store.Checkpoint(file)
        facts = parse_header(checkpoint.metadata.get("tauspan"), file, small=True)
        deltas, space = checkpoint.read(), None
        params.require_finite(deltas, str(file))
        if "space" in facts:
            space, deltas = models.read_space(facts["space"], deltas, file)
        return TaskVector(deltas, facts["base"], facts["regime"], facts["label"], facts["info"], space)

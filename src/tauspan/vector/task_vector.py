"""`TaskVector`: a displacement in weight space that knows the point it starts from."""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

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
    StoreError,
    UsageError,
    listed,
    nearest,
)
from tauspan.core.params import Params
from tauspan.core.report import Table, versions

Key = TypeVar("Key")
FORMAT = "tauspan-vector/1"
FILE = "vector.safetensors"


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
        return (
            f"TaskVector({self.regime}, {len(self.deltas)} tensor{plural}, {values:,} values, "
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
        """This vector with changed deltas, unless a finite value became one that its dtype cannot hold."""
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
        differing = {key for key in ("seed", "recipe") if self.info.get(key) != other.info.get(key)}
        info = {key: value for key, value in self.info.items() if key not in differing}
        return replace(self, deltas=deltas, label=f"({self.label} {symbol} {other.label})", info=info)

    def require_compatible(self, other: "TaskVector") -> None:
        """Raise unless both start from the same base, in the same regime, over the same tensors."""
        if self.base != other.base:
            raise BaseMismatchError(
                f"{self.label!r} starts from base {self.base[:12]} and {other.label!r} from {other.base[:12]}: "
                "displacements from different points do not add. Fine-tune both from one pre-trained model."
            )
        if self.regime != other.regime:
            raise MismatchError(
                f"{self.label!r} is a {self.regime} vector and {other.label!r} a {other.regime} one; they edit "
                "different functions. Fine-tune both in one regime, or say so: `vector.as_regime(...)`."
            )
        points = (self.info.get("point"), other.info.get("point"))
        if self.regime == "linear" and None not in points and points[0] != points[1]:
            raise MismatchError(
                f"{self.label!r} was made at the linearisation point {points[0]!r} and {other.label!r} at {points[1]!r}; "
                "they edit different functions. Fine-tune both at one point, or say so: `vector.at_point(...)`."
            )
        params.require_same(self.deltas, other.deltas, repr(self.label), repr(other.label))

    # -- measures --------------------------------------------------------------------------------------------

    def norm(self) -> float:
        """The Euclidean norm |tau|."""
        return params.norm(self.deltas)

    def dot(self, other: "TaskVector") -> float:
        """The inner product <tau, tau'>."""
        self.require_compatible(other)
        return params.dot(self.deltas, other.deltas)

    def table(self) -> Table:
        """One row a tensor: shape, dtype, norm, root mean square, largest value, share of |tau|^2."""
        whole = self.norm() ** 2 or 1.0
        rows: list[dict[str, Any]] = []
        for name, delta in self.deltas.items():
            size = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
            rows.append(
                {
                    "tensor": name,
                    "shape": "x".join(map(str, delta.shape)) or "scalar",
                    "dtype": str(delta.dtype).removeprefix("torch."),
                    "norm": size,
                    "rms": size / max(delta.numel(), 1) ** 0.5,
                    "largest": float(delta.abs().max()) if delta.numel() else 0.0,
                    "share": size**2 / whole,
                }
            )
        return Table(str(self), rows)

    # -- other views -----------------------------------------------------------------------------------------

    def as_regime(self, regime: Regime) -> "TaskVector":
        """The same displacement, declared to be of another regime; the numbers do not change."""
        return replace(self, regime=regime)

    def at_point(self, point: Literal["encoder", "logits", "output"]) -> "TaskVector":
        """The same displacement, declared to be made at another linearisation point; the numbers do not change."""
        return replace(self, info={**self.info, "point": point})

    def to(self, dtype: torch.dtype) -> "TaskVector":
        """The deltas in another floating-point type.

        Raises:
            NonFiniteError: a value lies beyond the type's range.
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
        """The same displacement with its tensors under other names; the base it starts from stays what it was.

        Raises:
            UsageError: two tensors get one name.
        """
        deltas = {name(own): delta for own, delta in self.deltas.items()}
        if len(deltas) < len(self.deltas):
            raise UsageError(f"two tensors of {self.label!r} would get one name. Give each its own.")
        return replace(self, deltas=deltas)

    def filled_like(self, other: "TaskVector") -> "TaskVector":
        """This vector with zeros for the tensors that only `other` has, so that the two add."""
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

        The difference is formed in float64 and rounded once to `dtype`, under the names that the base's files have or
        would have. Of directories and files it holds every floating-point tensor, and neither a tokenizer nor the
        model's class is needed. Of a module it holds the parameters on the path to the features, and any other tensor
        that changed (a buffer, a text tower). So nothing is lost: a head that only one of two directories has is no
        displacement, is named in a warning and in `info["beyond"]`, and stays in the directory that has it.

        Raises:
            MismatchError: names or shapes differ.
            NonFiniteError: either side holds NaN or infinity.
        """
        before, after = models.point_of(base), models.point_of(tuned)
        params.require_finite(before.tensors, "the base")
        params.require_finite(after.tensors, "the fine-tuned model")
        start = params.fingerprint(before.tensors)
        whole = models.differing(before, after)
        before, after, beyond = models.aligned(before, after)
        deltas = {
            name: (new.double() - old.double()).to(dtype).detach()
            for name, old, new in params.zip_strict(
                before.tensors, after.tensors, "the base", "the fine-tuned model"
            )
        }
        named = base if isinstance(base, str | Path) else type(base).__name__
        info: dict[str, Any] = {"base_id": str(named), "versions": versions()}
        if whole:
            warnings.warn(
                f"{len(whole)} tensors of whole numbers differ ({listed(whole)}): they are no displacement and are not "
                "in the vector; an edited model has the base's.",
                stacklevel=2,
            )
        if beyond:
            info["beyond"] = {"base": list(beyond.base), "tuned": list(beyond.tuned)}
            _tell(beyond, base, tuned)
        path = before.path
        chosen = {n: d for n, d in deltas.items() if path is None or n in path or bool(d.any())}
        return TaskVector(chosen, start, "standard", label, info)

    def apply(self, point: Params, scale: float = 1.0) -> dict[str, Tensor]:
        """theta0 + scale * tau as new tensors; tensors that the vector does not hold are passed on as they are.

        Sums are formed in float32 (float64 for float64 points) and rounded once to each tensor's dtype.

        Raises:
            BaseMismatchError: the point is not the one this vector starts from.
        """
        self.require_base(params.fingerprint(point))
        for name, delta in self.deltas.items():
            if name not in point or point[name].shape != delta.shape:
                params.require_same(
                    self.deltas, {n: point[n] for n in self.deltas if n in point}, self.label, "base"
                )
        return {name: self.moved(name, tensor, scale) for name, tensor in point.items()}

    def moved(self, name: str, tensor: Tensor, scale: float) -> Tensor:
        """One tensor of the point, moved: theta0 + scale * tau, summed in float32 or wider and rounded once."""
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
        """This vector as one module can use it: checked against its base, under the names of its memory.

        A vector's own names are those of files. What the module lacks and its files hold keeps its name there, so that
        an edited model that is saved has it too.

        Args:
            module: the module that the vector starts from, or an encoder or classifier around it.
            tangent: only the parameters that J(x) tau depends on; the rest does not reach the features.
            base: the module's fingerprint, if it is known.

        Raises:
            BaseMismatchError: it starts from another model.
            MismatchError: it moves a tensor that the module and its files lack.
            UsageError: with `tangent`, it moves a buffer, which a tangent model holds fixed.
        """
        known = models.fingerprint_of(module) if base is None else base
        # until 0.1 the fingerprint was of the tensors in memory, by their names there
        if self.base != known and self.base != params.fingerprint(models.state_of(module)):
            self.require_base(known)
        deltas = models.in_memory(self.deltas, module)
        if tangent:
            deltas = self._trained(deltas, module)
        return replace(self, deltas=deltas, base=known)

    def _trained(self, deltas: Params, module: nn.Module) -> dict[str, Tensor]:
        """Of tensors by their names in memory, the parameters on the path to the features."""
        inner, _ = models.core(module)
        known = models.named_unique(inner)
        buffers = set(models.state_of(module)) - set(known)
        for name in buffers & set(deltas):
            if bool(deltas[name].any()):
                raise UsageError(
                    f"{self.label!r} moves the buffer {name!r}, and the tangent model is an expansion in parameters "
                    "alone. Edit in the standard regime, or make the vector from models with the same buffers."
                )
        return {name: d for name, d in deltas.items() if name in known and models.on_path(module, name)}

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
        metadata = header(self.base, self.regime, self.label, self.info)
        store.write_tensors(file, self.deltas, metadata, overwrite=overwrite)
        return file

    @staticmethod
    @checked
    def from_pretrained(path: str | Path) -> "TaskVector":
        """Read what `save_pretrained` wrote.

        Raises:
            StoreError, PickleRefusedError: not a whole task-vector file.
            NonFiniteError: the file holds NaN or infinity.
        """
        file = vector_file(path)
        checkpoint = store.Checkpoint(file)
        found = parse_header(checkpoint.metadata.get("tauspan"), file)
        deltas = checkpoint.read()
        params.require_finite(deltas, str(file))
        return TaskVector(deltas, found["base"], found["regime"], found["label"], found["info"])


def header(base: str, regime: Regime, label: str, info: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a task-vector file; `parse_header` reads it back."""
    content = {"format": FORMAT, "base": base, "regime": regime, "label": label, "info": info}
    return {"tauspan": json.dumps(content, sort_keys=True)}


def parse_header(text: str | None, file: Path) -> dict[str, Any]:
    """The checked header of a task-vector file."""
    if text is None:
        raise StoreError(
            f"{file} is a safetensors file without a task vector's header. If it holds a model's weights, make a "
            f"vector of it: `tauspan vector diff BASE {file} -o OUT`."
        )
    try:
        header = json.loads(text)
    except json.JSONDecodeError as error:
        raise StoreError(f"the header of {file} is not JSON: {error}.") from error
    wanted: dict[str, Callable[[Any], bool]] = {
        "format": lambda value: value == FORMAT,
        "base": lambda value: isinstance(value, str),
        "regime": lambda value: value in REGIMES,
        "label": lambda value: isinstance(value, str),
        "info": lambda value: isinstance(value, dict),
    }
    for key, fits in wanted.items():
        if not isinstance(header, dict) or key not in header or not fits(header[key]):
            found = header.get(key) if isinstance(header, dict) else header
            raise StoreError(f"the header of {file} has {key}={found!r}; this version reads {FORMAT!r}.")
    result: dict[str, Any] = header
    return result


def vector_file(path: str | Path) -> Path:
    """The file behind a vector's path: itself, or `vector.safetensors` inside a directory."""
    path = Path(path)
    store.refuse_pickle(path)
    return path if path.suffix == ".safetensors" else path / FILE


def fitted(
    vectors: Mapping[Key, TaskVector], module: nn.Module, *, tangent: bool = False
) -> dict[Key, TaskVector]:
    """`TaskVector.fitted` of several vectors, with one fingerprint of the module."""
    base = models.fingerprint_of(module)
    return {key: vector.fitted(module, tangent=tangent, base=base) for key, vector in vectors.items()}


def _tell(beyond: models.Beyond, base: object, tuned: object) -> None:
    """Warn of heads that a difference leaves where they are."""
    wayout = f" `tauspan apply BASE VECTOR OUT --head-from {tuned}` writes an edited model with this head."
    for one, other, names, more in ((base, tuned, beyond.base, ""), (tuned, base, beyond.tuned, wayout)):
        if names:
            warnings.warn(
                f"{one} has {len(names)} tensors of a head that {other} lacks or has in another shape ({listed(names)}): "
                f"they are no displacement, are not in the vector, and stay where they are.{more}",
                stacklevel=3,
            )


@checked
def cosine_matrix(vectors: Sequence[TaskVector]) -> Tensor:
    """Cosines <tau_i, tau_j> / (|tau_i| |tau_j|), shape (T, T); 0 where a vector is zero.

    Example:
        >>> a = TaskVector({"w": torch.tensor([1.0, 0.0])}, "b", "standard")
        >>> b = TaskVector({"w": torch.tensor([1.0, 1.0])}, "b", "standard")
        >>> cosine_matrix([a, b])[0, 1].item()  # doctest: +ELLIPSIS
        0.707...
    """
    norms = [vector.norm() for vector in vectors]
    matrix = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for i, first in enumerate(vectors):
        for j, second in enumerate(vectors[: i + 1]):
            scale = norms[i] * norms[j]
            matrix[i, j] = matrix[j, i] = first.dot(second) / scale if scale else 0.0
    return matrix

"""An edit from files to files: every tensor of a checkpoint, one at a time, without its class or a tokenizer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import hypot
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Size, Tensor

from tauspan import models, store
from tauspan.core import params
from tauspan.core.choices import EditRegime, Point
from tauspan.core.errors import MismatchError, ModelError, TauspanError, UsageError, listed, nearest
from tauspan.core.params import Params
from tauspan.editing.model.kinds import model_kind
from tauspan.editing.model.regime import edit_regime, point_of
from tauspan.editing.model.saved import EDITED, REFERENCE, TANGENT, Reference
from tauspan.models import Frozen
from tauspan.models.frozen import read_heads, reading, save_heads
from tauspan.models.hf import copies
from tauspan.models.home import write_checkpoint
from tauspan.vector import FILE, TaskVector

if TYPE_CHECKING:
    from tauspan.tasks import Task

DTYPES: Mapping[str, torch.dtype | None] = {
    "float32": torch.float32, "base": None, "float64": torch.float64, "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}  # fmt: skip


class Base:
    """The files of a model that vectors start from.

    Args:
        source: a directory, an id, or a file or index of safetensors.
    """

    def __init__(self, source: str | Path) -> None:
        self.source, path = str(source), Path(source)
        self.directory: Path | None
        if path.suffix in (".safetensors", ".json"):
            self.directory, self.checkpoint = None, store.Checkpoint(path)
        else:
            if (path / REFERENCE).is_file() and Reference.read(path).format == TANGENT:
                raise UsageError(f"{source} is an edited tangent model; this starts from a pre-trained one.")
            self.directory, self.checkpoint = models.checkpoint_of(source)
        self.kinds = self.checkpoint.kinds()

    @property
    def folder(self) -> Path:
        """The model's directory.

        Raises:
            UsageError: the source is a file of weights.
        """
        if self.directory is None:
            raise UsageError(
                f"{self.source} is a file of weights; an edited model is made from its directory."
            )
        return self.directory

    @cached_property
    def fingerprint(self) -> str:
        """Of all stored floating-point tensors; one SHA-256 pass, which holds no tensor whole."""
        return params.fingerprint(_lazy(store.Checkpoint(self.checkpoint.path, "mmap")))

    @property
    def tensors(self) -> Params:
        """The floating-point ones, each read when it is asked for."""
        return _lazy(self.checkpoint)

    def deltas(self, vector: TaskVector) -> dict[str, Tensor]:
        """A vector of this model, by the names of the files.

        Raises:
            BaseMismatchError: it starts from another model.
            MismatchError: it moves a tensor that the files lack, or one of another shape.
        """
        shapes = {name: shape for name, (_, shape) in self.kinds.items()}
        if vector.space is not None:
            vector.require_base(self.fingerprint)
            vector = vector.dense(models.load_model(self.source))
        names = None if set(vector.deltas) <= set(shapes) else self._names(vector, shapes)
        spelt = dict(vector.deltas) if names is None else names.to_files(vector.deltas)
        # until 0.1 the fingerprint was of the tensors in memory, by their names there
        old = names is not None and vector.base == params.fingerprint(_inside(names, self.tensors))
        if not old:
            vector.require_base(self.fingerprint)
        for name, delta in spelt.items():
            if name not in shapes or delta.shape != shapes[name]:
                there = f"has shape {tuple(shapes[name])}" if name in shapes else "is not there"
                raise MismatchError(
                    f"{vector.label!r} moves {name!r}, shape {tuple(delta.shape)}, which {there} in {self.source}. Take "
                    "the model that the vector was made from."
                )
        return spelt

    def _names(self, vector: TaskVector, shapes: Mapping[str, Size]) -> models.Names | None:
        """The names of the module that a vector was made in, if it was not made from files."""
        for part in ("backbone", "architecture"):
            try:
                names = models.directory_names(self.directory or Path(), shapes, part)
            except TauspanError:
                return None
            if set(vector.deltas) <= set(names.in_memory):
                return names
        return None


def _lazy(checkpoint: store.Checkpoint) -> "_Lazy":
    """The floating-point tensors of a checkpoint."""
    return _Lazy(
        checkpoint, [name for name, (dtype, _) in checkpoint.kinds().items() if dtype.is_floating_point]
    )


class _Lazy(Mapping[str, Tensor]):
    """Some tensors of a checkpoint, each read when it is asked for."""

    def __init__(self, checkpoint: store.Checkpoint, names: Sequence[str]) -> None:
        self._checkpoint, self._names = checkpoint, names

    def __getitem__(self, name: str) -> Tensor:
        return self._checkpoint[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _inside(names: models.Names, tensors: Params) -> Params:
    carried = set(names.carried)
    return names.to_memory({name: tensor for name, tensor in tensors.items() if name not in carried})


@dataclass
class _Written:
    """What storing in a narrower dtype took of the displacement."""

    moved: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)

    def note(self, dtype: str) -> list[str]:
        """A sentence, if anything was lost."""
        moved, lost = hypot(*self.moved), hypot(*self.lost)
        if not lost:
            return []
        return [f"storing in {dtype} took {lost / moved:.2%} of the displacement's norm"]


def apply_files(
    model: str | Path,
    vector: TaskVector,
    out: str | Path,
    scale: float = 1.0,
    *,
    regime: EditRegime | None = None,
    point: Point | None = None,
    allow: Sequence[str] = (),
    tasks: "Sequence[Task]" = (),
    head_from: str | Path | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> list[str]:
    """Write `model` + `scale` * `vector` as a directory, from files: no tensor is lost, whatever the model is.

    Args:
        model: a directory or an id, as for `tauspan.load`.
        vector: the edit.
        out: the directory to write.
        scale: the coefficient alpha.
        regime: `"standard"` writes an ordinary model: the same names, configuration and architecture, for the model's
            own library. `"linear"` and `"posthoc"` write a tangent model, which `tauspan.load` reads. None takes the
            vector's.
        point: where a head on the tangent model is linearised; None takes the vector's own.
        allow: `"regime"` takes a vector that was made for the other regime: another function than the one it was made
            for.
        tasks: whose frozen heads, made from the pre-trained model, are saved with it; needs the model's class.
        head_from: a directory of the same backbone with a head: the result has its head, configuration and
            architecture.
        dtype: of the stored floating-point tensors: `"float32"`, `"base"` (tensor by tensor) or another.
        overwrite: replace what is at `out`, unless it is or holds `model` or `head_from`.

    Returns:
        What the caller should say: leniency that was used, and what rounding took.

    Raises:
        UsageError, BaseMismatchError, MismatchError, StoreError, ModelError: each names what does not fit.
    """
    store.require_folder(out)
    store.require_apart(out, [model, head_from])
    store.require_free(Path(out), overwrite)
    chosen = edit_regime(vector, regime, allow)
    tangent = model_kind(chosen).tangent
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}. {nearest(dtype, DTYPES)}")
    if tangent and (head_from is not None or dtype != "float32"):
        raise UsageError(
            f"{'head_from (--head-from)' if head_from is not None else 'dtype (--out-dtype)'} is of the weights that the "
            f"regime 'standard' writes; {chosen!r} writes a vector and names the model. Leave it out."
        )
    base = Base(model)
    folder = base.folder
    deltas = base.deltas(vector)
    notes, edit = [], f"{scale:g} {vector.label}"
    if not tangent and vector.regime == "linear":
        notes.append(
            f"{vector.label!r} was made in the tangent space, and f(x; theta0 + tau) is another function than the "
            "tangent model that it was made for: evaluate the result before you use it"
        )
        edit += " (a linear vector in the standard regime)"
    encoder = models.load_model(model) if tasks else None
    heads = read_heads(folder) | _heads(encoder, tasks)
    with store.atomic(out, overwrite=overwrite) as temporary:
        temporary.mkdir()
        if not tangent:
            written = _Written()
            source = folder if head_from is None else models.model_directory(str(head_from))
            tensors = _moved(base, deltas, scale, DTYPES[dtype], written)
            if head_from is None:
                write_checkpoint(temporary, source, _kinds(base.kinds, deltas, DTYPES[dtype]), tensors)
            else:
                grafted = _with_head(base, dict(zip(base.kinds, tensors, strict=True)), Base(source))
                write_checkpoint(
                    temporary, source, {n: (t.dtype, t.shape) for n, t in grafted.items()}, grafted.values()
                )
            copies(source)(temporary)
            _reference(base, encoder, EDITED, None, edit).write(temporary)
            notes += written.note(dtype)
        else:
            spelt = TaskVector(deltas, base.fingerprint, vector.regime, vector.label, vector.info)
            (spelt * scale).named(vector.label).save_pretrained(temporary / FILE)
            _reference(base, encoder, TANGENT, point_of([vector], point), edit).write(temporary)
        save_heads(temporary, heads)
    return notes


def _heads(encoder: models.Encoder | None, tasks: "Sequence[Task]") -> dict[str, Frozen]:
    """The frozen heads of some tasks, made from the pre-trained encoder."""
    from tauspan.tasks import build_head

    if encoder is None:
        return {}
    for task in tasks:
        build_head(task, encoder)
    return {task.name: encoder.frozen[task.name] for task in tasks if not task.objective.headless}


def _reference(
    base: Base, encoder: models.Encoder | None, form: str, point: Point | None, edit: str
) -> Reference:
    """Where the heads come from: the model itself, or what it was edited from before."""
    if (base.folder / REFERENCE).is_file():
        was = Reference.read(base.folder)
        if form == EDITED:
            both = " + ".join(filter(None, [was.edit, edit]))
            return Reference(form, was.base, was.path, was.fingerprint, None, was.reading, both)
    said = "" if encoder is None else reading(encoder)
    return Reference(form, base.source, str(base.folder.resolve()), base.fingerprint, point, said, edit)


def _kinds(
    kinds: Mapping[str, tuple[torch.dtype, Size]], deltas: Params, dtype: torch.dtype | None
) -> dict[str, tuple[torch.dtype, Size]]:
    """Dtypes and shapes as they are written."""
    return {name: (_stored(own, dtype), shape) for name, (own, shape) in kinds.items()}


def _stored(own: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """In float64 stays float64: it holds what float32 does not."""
    if dtype is None or not own.is_floating_point or (own == torch.float64 and dtype == torch.float32):
        return own
    return dtype


def _moved(
    base: Base, deltas: Params, scale: float, dtype: torch.dtype | None, written: _Written
) -> Iterator[Tensor]:
    """theta0 + scale * tau, one tensor at a time, rounded once."""
    for name, (own, _) in base.kinds.items():
        tensor = base.checkpoint[name]
        if name in deltas:
            exact = params.moved(tensor, deltas[name], scale)
            params.require_finite({name: exact}, f"{base.source} + {scale:g} times the vector")
            rounded = exact.to(_stored(own, dtype))
            written.moved.append(
                float(torch.linalg.vector_norm(deltas[name], dtype=torch.float64)) * abs(scale)
            )
            if rounded.dtype != exact.dtype:
                gap = rounded.double() - exact.double()
                written.lost.append(float(torch.linalg.vector_norm(gap)))
            tensor = rounded
        elif tensor.is_floating_point():
            tensor = tensor.to(_stored(own, dtype))
        yield tensor


def _with_head(base: Base, moved: Params, head: Base) -> dict[str, Tensor]:
    """An edited backbone under the names of a directory that has a head, with that head."""
    ours, theirs = (
        models.directory_names(one.folder, {n: s for n, (_, s) in one.kinds.items()}, "backbone")
        for one in (base, head)
    )
    inside = {name: tensor for name, tensor in moved.items() if name not in ours.carried}
    spelt = theirs.to_files(ours.to_memory(inside))
    whole = spelt | head.checkpoint.read(theirs.carried)
    missing = [name for name in head.kinds if name not in whole]
    wrong = [name for name in whole if name not in head.kinds or whole[name].shape != head.kinds[name][1]]
    if missing or wrong:
        raise ModelError(
            f"{head.source} and {base.source} have different backbones: {listed(missing or wrong)} "
            f"{'is in the first alone' if missing else 'has no place in the first'}. Take a head of the same model."
        )
    return {name: whole[name] for name in head.kinds}

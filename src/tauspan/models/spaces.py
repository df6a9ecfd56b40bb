"""Small tangent spaces: an encoder that moves by tau = B delta alone, and the space that its vectors remember."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tauspan.core import params as named
from tauspan.core.arguments import checked
from tauspan.core.errors import MismatchError, StoreError, UsageError, listed
from tauspan.core.params import Params
from tauspan.models import bases, thin
from tauspan.models.bases import Basis, Form, Given
from tauspan.models.copying import working_copy
from tauspan.models.encoder import Classifier, Encoder
from tauspan.models.home import encoder_in
from tauspan.models.select import Selection, core, named_unique, select

OWN = "own"  # the word of a user's own bases
_STORED = "space/"  # the prefix of factors in a vector's file
_CLOSE = 1e-6  # of probes: singular vectors that another library computed differ far less, unless they are arbitrary


@dataclass(frozen=True, eq=False)
class Space:
    """The space tau = B delta of some tensors, which a task vector in it remembers.

    Args:
        word: `lora:8`, `singular:32`, ... or `own`.
        names: the tensors that move, under their names in memory.
        bases: by name; empty where a vector came from a file and its base was not there yet.
        probes: one number for each basis that a word makes, by which a basis that was made again is recognised.
    """

    word: str
    names: tuple[str, ...]
    bases: dict[str, Basis] = field(default_factory=dict)
    probes: Mapping[str, float] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Space":
        return self

    def __str__(self) -> str:
        return f"{self.word} on {len(self.names)} tensor{'' if len(self.names) == 1 else 's'}"

    @property
    def small(self) -> tuple[str, ...]:
        """The names of the small parameters in memory."""
        return tuple(name + thin.DELTA for name in self.names)

    def beside(self, inner: nn.Module) -> frozenset[str]:
        """The names of everything that a module in this space has beside its own tensors."""
        return frozenset(
            f"{owner}{extra}"
            for name in self.names
            for owner, leaf in [(name.removesuffix(name.rpartition(".")[2]), name.rpartition(".")[2])]
            for extra in thin.extra_of(inner.get_submodule(owner.removesuffix(".")), leaf)
        )

    @property
    def key(self) -> str:
        """Two spaces of one base are the same exactly if their keys are."""
        stored = self.stored()
        places = [  # which a fingerprint, of floating-point tensors, leaves out
            [name, hashlib.sha256(factor.cpu().numpy().tobytes()).hexdigest()]
            for name, factor in sorted(stored.items())
            if not factor.is_floating_point()
        ]
        whose = [self.word, sorted(self.names), named.fingerprint(stored), *([places] if places else [])]
        return hashlib.sha256(json.dumps(whose).encode()).hexdigest()

    def require_same(self, other: "Space", first: str, second: str) -> None:
        """Raise `MismatchError` unless the other space is this one."""
        if self.key != other.key:
            why = (
                "with other factors or tensors"
                if self.word == other.word
                else f"and {second} in {other.word!r}"
            )
            raise MismatchError(
                f"{first} lives in the space {self.word!r} {why}: small numbers of two spaces mean different "
                "displacements. Make both whole first: `vector.dense(encoder)`."
            )

    def at(self, module: nn.Module) -> Mapping[str, Basis]:
        """The bases, made of a module's own weights if they are not there yet, and kept.

        Raises:
            MismatchError: the module lacks a tensor, or its bases are not those that the vector was made with.
        """
        if self.bases:
            return self.bases
        known, inner = named_unique(core(module)[0]), core(module)[0]
        missing = [name for name in self.names if name not in known]
        if missing:
            raise MismatchError(
                f"the space {self.word!r} moves {listed(missing)}, which {type(inner).__name__} lacks. Take the model "
                "that the vector was made from."
            )
        made = {name: _made(self.word, inner, name, known[name]) for name in self.names}
        for name, wanted in self.probes.items():
            found = made[name].probe(name)
            if not abs(found - wanted) <= _CLOSE * max(abs(found), abs(wanted), 1.0):
                raise MismatchError(
                    f"the directions of {name!r} in the space {self.word!r} are others here ({found:.6g}) than where "
                    f"the vector was made ({wanted:.6g}): equal singular values leave them open. Make the vector whole "
                    "there: `vector.dense(encoder)`."
                )
        self.bases.update(made)
        return self.bases

    def dense(self, deltas: Params, module: nn.Module) -> dict[str, Tensor]:
        """B delta by the names of the tensors in memory, formed in float64 and rounded once to delta's dtype."""
        found = self.at(module)
        moved = {name: deltas[name + thin.DELTA] for name in self.names if name + thin.DELTA in deltas}
        return {name: found[name].wide(delta).to(delta.dtype) for name, delta in moved.items()}

    # -- files ---------------------------------------------------------------------------------------------------

    def stored(self) -> dict[str, Tensor]:
        """The factors that a file must hold: those that no word makes again."""
        if self.word != OWN:
            return {}
        return {
            f"{_STORED}{name}/{number}": factor
            for name, basis in self.bases.items()
            for number, factor in enumerate(basis.factors)
        }

    def record(self) -> dict[str, Any]:
        """The space as values of JSON, for the header of a vector's file."""
        if self.word == OWN:
            forms = {
                name: {"kind": basis.form.kind, "shape": list(basis.form.shape), "turned": basis.form.turned}
                for name, basis in self.bases.items()
            }
            return {"word": OWN, "forms": forms}
        probes = dict(self.probes) or {name: basis.probe(name) for name, basis in self.bases.items()}
        return {"word": self.word, "probes": probes}


def read_space(record: Mapping[str, Any], tensors: Params, file: object) -> tuple[Space, dict[str, Tensor]]:
    """The space that `record` and `stored` wrote, and the tensors without its factors.

    Raises:
        StoreError: not such a record.
    """
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(_STORED)}
    try:
        word = str(record["word"])
        if word != OWN:
            probes = {str(name): float(value) for name, value in record["probes"].items()}
            return Space(bases.spelt(word), tuple(probes), {}, probes), rest
        found = {}
        for name, form in record["forms"].items():
            own = Form(form["kind"], torch.Size(form["shape"]), bool(form["turned"]))
            count = 2 if own.kind == "rank-one" else 1
            factors = tuple(tensors[f"{_STORED}{name}/{n}"] for n in range(count))
            bases.require_places(name, own, factors)
            found[name] = Basis(own, factors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"the header of {file} has a space that this version does not read: {error}."
        ) from error
    return Space(OWN, tuple(found), found), rest


# -- encoders ------------------------------------------------------------------------------------------------


@checked
def restrict(
    encoder: Encoder,
    space: str | Space | Mapping[str, Given],
    params: Selection = "all",
) -> Encoder:
    """The encoder in a small space: it moves by tau = B delta alone, and delta is its only movable parameter.

    At delta = 0 it gives the outputs of the encoder that it came from, bit for bit, and it shares its weights. What takes
    an encoder takes this one: `finetune`, `fit`, `closed_form`, `TangentKernel`, `Editor`, ... A tangent model of it is
    f(x; theta0) + J(x) B delta, so its kernel is J B B^T J^T. The vectors are small, and fit the encoder that it came
    from too: there they become whole by themselves.

    Args:
        encoder: what `tauspan.load` returned.
        space: `"lora:R"` moves each matrix by delta A with a frozen random A of R orthonormal rows (`"lora:R:SEED"` for
            another A); `"singular:R"` moves it along its own R leading singular directions, U diag(delta) V^T (SVFit,
            arXiv 2409.05926). Or bases of your own by the tensor's name: a tensor (k, *shape) for sum_k delta_k E_k, a
            pair (left (m, r), right (r, n)) for left diag(delta) right, or a mask, True for each entry that moves; or
            the `space` of a vector.
        params: which tensors move, as for `Settings`; of them, a word takes the weights of linear layers, attention and
            convolutions, the kernel of a convolution as a matrix of (outputs, rest).

    Raises:
        UsageError: an unknown word, a rank larger than a matrix has, no matrix, or an encoder in a space already.
        MismatchError: a basis of another shape, or of a tensor that the encoder lacks.
        ModelError: the module keeps a tensor outside its layers.

    Cost:
        For `singular` an SVD of each matrix in float64, O(m n min(m, n)). A linear layer then costs r (m + n) products
        more for each row, and its tangent as many, where a dense one costs m n.

    Example:
        >>> encoder = Encoder(nn.Linear(4, 3).eval())
        >>> small = restrict(encoder, "lora:2")
        >>> x = torch.ones(1, 4)
        >>> select(small), bool(torch.equal(small(x), encoder(x)))
        (('weight_delta',), True)
    """
    if encoder.space is not None:
        raise UsageError(
            f"{encoder.source} is in the space {encoder.space.word!r} already: restrict the encoder that it came from."
        )
    known, inner = named_unique(encoder.backbone), encoder.backbone
    if isinstance(space, str):
        word = bases.spelt(space)
        names = _matrices(inner, select(encoder, params), space, params)
        chosen = Space(word, names, {name: _made(word, inner, name, known[name]) for name in names})
    elif isinstance(space, Space):
        chosen = space
    else:
        chosen = _own(inner, space, known)
    made = sharing(encoder)
    thin.place(made.backbone, chosen.at(encoder))
    made.space = chosen
    return made


def unrestricted(module: nn.Module) -> nn.Module:
    """An encoder or a classifier without its space: ordinary layers, which share its weights, at W + B delta."""
    encoder = encoder_in(module)
    if encoder is None or encoder.space is None:
        return module
    made = working_copy(encoder, _shared(encoder))
    thin.lift(made.backbone)
    made.space = None
    for name, parameter in made.backbone.named_parameters():
        parameter.requires_grad_(name in encoder.trainable)
    return Classifier(made, module.head) if isinstance(module, Classifier) else made


def space_of(module: nn.Module) -> Space | None:
    """The space in which an encoder, or the encoder of a classifier, moves."""
    encoder = encoder_in(module)
    return None if encoder is None else encoder.space


def _made(word: str, inner: nn.Module, name: str, theta: Tensor) -> Basis:
    return bases.made(word, name, theta, thin.is_turned(inner.get_submodule(name.rpartition(".")[0])))


def _own(inner: nn.Module, given: Mapping[str, Given], known: Mapping[str, Tensor]) -> Space:
    """The space of a user's own bases."""
    if not given:
        raise UsageError("the space has no basis: give one by a tensor's name, or a word such as 'lora:8'.")
    found = {}
    for name in select(inner, list(given)):
        if name in given:
            turned = thin.is_turned(inner.get_submodule(name.rpartition(".")[0]))
            found[name] = bases.own(name, given[name], known[name], turned)
    return Space(OWN, tuple(found), found)


def _matrices(inner: nn.Module, names: Sequence[str], space: str, params: Selection) -> tuple[str, ...]:
    """The weights of linear layers, attention and convolutions among some parameters."""
    found = []
    for name in names:
        owner, _, leaf = name.rpartition(".")
        table = isinstance(inner.get_submodule(owner), nn.Embedding | nn.EmbeddingBag)
        if (
            inner.get_parameter(name).dim() > 1
            and (leaf == "weight" or leaf.endswith("_weight"))
            and not table
        ):
            found.append(name)
    if not found:
        raise UsageError(
            f"space={space!r} moves matrices, and params={params!r} picks none ({listed(names)}): choose the weights of "
            "linear layers or convolutions, or give these tensors a basis of your own, "
            f"`tauspan.restrict(encoder, {{{names[0]!r}: BASIS}})`."
        )
    return tuple(found)


def _shared(encoder: Encoder) -> dict[int, Any]:
    """What a copy of an encoder shares with it: buffers, weights as frozen parameters, heads and inputs."""
    shared: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in encoder.parameters()
    }
    kept = (*encoder.buffers(), encoder.heads, encoder.frozen, encoder.inputs, encoder.home)
    return shared | {id(item): item for item in kept if item is not None}


def sharing(encoder: Encoder) -> Encoder:
    """A copy whose weights are those of the encoder, frozen, with layers and a configuration of its own."""
    made = working_copy(encoder, _shared(encoder))
    made.trainable = frozenset(name for name, p in encoder.backbone.named_parameters() if p.requires_grad)
    return made

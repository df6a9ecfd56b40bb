"""PEFT's LoRA adapters: read, combined exactly, and written."""

import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from tauspan import store
from tauspan.core import params
from tauspan.core.errors import StoreError, UsageError, listed
from tauspan.merge.lora.adapter_config import CONFIG, AdapterConfig, read_config, refused
from tauspan.merge.lora.lowrank import FactorLayout, LowRank, Term
from tauspan.store import Access, Header, Stored, Values, read_header

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_WRAPPED = re.compile(
    r"\.(?:base_layer|modules_to_save(?:\.default)?)\."
)  # parts that PEFT inserts into names
_FACTOR = re.compile(
    re.escape(_PREFIX) + r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?"
)


@dataclass(frozen=True, eq=False)
class Adapter:
    """What an adapter's directory holds.

    Args:
        path: the directory.
        config: the settings that the displacement depends on.
        header: of the weights' file.
        low: the displacement scale * B A, by the names of the weights it goes to.
        first: where each factor A is stored, by the same names.
        replaced: tensors that are stored whole and take the place of the base's: biases, `modules_to_save`, embeddings of
            a grown vocabulary, and the weights under some products (`base_layer`).
    """

    path: Path
    config: AdapterConfig
    header: Header
    low: LowRank
    first: Mapping[str, Stored]
    replaced: Mapping[str, Tensor]


def read_adapter(path: str | Path, *, access: Access = "pread", label: str | None = None) -> Adapter:
    """Read a directory that PEFT wrote, without PEFT.

    Args:
        path: holds `adapter_config.json` and `adapter_model.safetensors`.
        access: `mmap` leaves the factors in the file's pages, `pread` copies them.
        label: a short name; the directory's when None.

    Raises:
        ModelError: not LoRA, or more than LoRA (DoRA, a bias of B, an initialisation that changes the base, ...).
        StoreError, PickleRefusedError: a file that is missing, damaged, a pickle, or does not fit the settings.
    """
    path = Path(path)
    config = read_config(path)
    header = read_header(_weights(path))
    values = Values(access)
    factors: dict[tuple[str, bool], dict[str, Stored]] = {}
    replaced: dict[str, Tensor] = {}
    for name, stored in header.tensors.items():
        if not name.startswith(_PREFIX):
            raise StoreError(
                f"{stored.file} holds {name!r}, and PEFT's names begin with {_PREFIX!r}. Save it with PEFT."
            )
        found = _FACTOR.fullmatch(name)
        if found is not None:
            factors.setdefault((found["module"], bool(found["embedding"])), {})[found["side"]] = stored
        elif ".lora_" in name:
            raise refused(f"{stored.file} holds {name!r}", path)
        elif ".original_module." not in name:  # the base's own, which PEFT keeps beside what was trained
            own = _WRAPPED.sub(".", name.removeprefix(_PREFIX))
            whole = _read(values, stored)
            if own in replaced and not torch.equal(replaced[own], whole):
                raise StoreError(
                    f"{stored.file} holds {own!r} twice, as itself and under `modules_to_save`, and they differ. Save "
                    "the adapter again."
                )
            replaced[own] = whole
    terms, first = {}, {}
    for (module, embedding), sides in factors.items():
        weight = f"{module}.weight"
        if weight in terms or set(sides) != {"A", "B"}:
            raise StoreError(
                f"{path} holds {listed(sorted(sides))} of {module!r}, not one A and one B. Save it again."
            )
        terms[weight] = (_term(config, module, embedding, sides, values),)
        first[weight] = sides["A"]
    if not terms and not replaced:
        raise StoreError(f"{path} holds no tensors, so nothing to merge: save the adapter again.")
    return Adapter(path, config, header, LowRank(terms, label or path.resolve().name), first, replaced)


def holds_whole(path: Path) -> bool:
    """Whether a path is an adapter's directory that also holds whole tensors; reads headers only."""
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        return False
    return any(_FACTOR.fullmatch(name) is None for name in read_header(path / WEIGHTS).tensors)


def _weights(path: Path) -> Path:
    file = path / WEIGHTS
    if not file.exists():
        for other in sorted(path.glob("adapter_model.*")):
            store.refuse_pickle(other)
        raise StoreError(f"{path} has {CONFIG} and no {WEIGHTS}: copy it too, or save the adapter again.")
    return file


def _read(values: Values, stored: Stored) -> Tensor:
    return values.read(stored, 0, stored.shape.numel()).view(stored.shape)


def _term(
    config: AdapterConfig, module: str, embedding: bool, sides: Mapping[str, Stored], values: Values
) -> Term:
    """The product of one module, its factors' shapes checked."""
    a, b = sides["A"].shape, sides["B"].shape
    if len(a) > 2 and len(b) == len(a) and b[1] != a[0]:
        raise refused(f"{config.file.parent} adapts the grouped convolution {module!r}", config.file.parent)
    layout: FactorLayout = "embedding" if embedding else "transposed" if config.transposed else "linear"
    return term_of(module, sides, lambda rank: config.scale(module, rank), layout, values)


def term_of(
    module: str,
    sides: Mapping[str, Stored],
    scale: Callable[[int], float],
    layout: FactorLayout,
    values: Values,
) -> Term:
    """The product of a module's two factors.

    Args:
        module: its name.
        sides: where A and B are stored.
        scale: of the product, by its rank.
        layout: unless the factors have kernels, which makes it a convolution.
        values: reads them.

    Raises:
        StoreError: shapes that make no product, or whole numbers.
    """
    a, b = sides["A"].shape, sides["B"].shape
    kernel = len(a) - 2
    alike = kernel >= 0 and len(a) == len(b) and a[0] == b[1] and all(size == 1 for size in b[2:])
    if not alike or not a[0] or (layout == "embedding" and kernel):
        raise StoreError(
            f"{sides['A'].file}: lora_A and lora_B of {module!r} have shapes {tuple(a)} and {tuple(b)}, which make no "
            "product. The file was saved from shards that were not gathered, or is damaged: save the adapter again."
        )
    for stored in sides.values():
        if not stored.dtype.is_floating_point:
            raise StoreError(
                f"{stored.file}: {stored.name!r} is {stored.dtype}, not floating point. Save it again."
            )
    chosen: FactorLayout = "convolution" if kernel else layout
    return Term(_read(values, sides["A"]), _read(values, sides["B"]), scale(a[0]), chosen)


class Products:
    """A displacement whose factors are kept: a sum of products for each tensor, formed in pieces.

    Attributes:
        path: the file or directory.
        label: a short name.
        low: the products.
        tensors: by name, the dense tensor that the products make.
        wholes: tensors that are stored whole.
        spelt: by name, what the file calls it, where the displacement has a model's names.
        notes: what may not be meant, each as a kind of problem and a sentence.
    """

    kind: Literal["point", "delta"] = "delta"
    aliases: Mapping[str, str] = {}
    header: Header

    def __init__(self, path: Path, low: LowRank, first: Mapping[str, Stored]) -> None:
        self.path, self.low, self.label = path, low, low.label
        self.wholes: Mapping[str, Tensor] = {}
        self.spelt: Mapping[str, str] = {}
        self.notes: tuple[tuple[str, str], ...] = ()
        self.tensors = {name: self.dense(name, stored) for name, stored in first.items()}

    def dense(self, name: str, factor: Stored) -> Stored:
        """The dense tensor that the products make, at the place of their factor A in the file."""
        shape = self.low.shape(name)
        return Stored(name, torch.float32, shape, factor.file, factor.offset, shape.numel() * 4)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The path, and the weights' size and hash of the header."""
        name = self.path.name if self.path.suffix == ".safetensors" else WEIGHTS
        file = {"name": name, "bytes": self.header.nbytes, "header_sha256": self.header.sha256}
        return {"path": str(self.path), "files": [file]}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The entries `start` to `stop` of the flattened displacement, float32: products in float64, rounded once."""
        if name not in self.tensors:
            raise StoreError(f"{self.path} has no tensor {name!r}; it has {listed(self.tensors)}.")
        return self.low.block(name, start, stop)

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same displacement with other names for its weights; `spelt` keeps the file's names."""
        made = copy.copy(self)
        made.low = replace(self.low, terms={names.get(n, n): own for n, own in self.low.terms.items()})
        made.spelt = {names.get(name, name): name for name in self.low.terms}
        made.wholes = {names.get(name, name): tensor for name, tensor in self.wholes.items()}
        made.tensors = {
            names.get(n, n): replace(one, name=names.get(n, n)) for n, one in self.tensors.items()
        }
        return made

    def close(self) -> None:
        """Nothing has to be closed: the factors are freed with the source."""


class AdapterSource(Products):
    """The displacement of a LoRA adapter as merges read it: scale * B A, formed in pieces.

    Args:
        path: the adapter's directory.
        access: as for `read_adapter`.
        label: as for `read_adapter`.
        whole: the caller has the base, so whole tensors (`wholes`) beside the products are no error.

    Raises:
        UsageError: the adapter also holds whole tensors (biases, `modules_to_save`): points, whose displacement cannot be
            known without the base.
    """

    def __init__(
        self, path: str | Path, *, access: Access = "pread", label: str | None = None, whole: bool = False
    ) -> None:
        self.adapter = read_adapter(path, access=access, label=label)
        self.header, wholes = self.adapter.header, self.adapter.replaced
        if wholes and not whole:
            raise UsageError(
                f"the adapter {path} also holds whole tensors ({listed(wholes)}), and how far they moved cannot be "
                f"known without the base. Name both, 'BASE+{path}', or make a vector of it and merge that: "
                f"`tauspan vector from-adapter BASE {path} -o FILE.safetensors`, in Python "
                f"`tauspan.adapter_vector({str(path)!r}, BASE).save_pretrained(FILE)`."
            )
        super().__init__(self.adapter.path, self.adapter.low, self.adapter.first)
        self.wholes = wholes

    @property
    def identity(self) -> Mapping[str, Any]:
        """The directory, its weights' size and hash of the header, and the settings."""
        return {**super().identity, "adapter": dict(self.adapter.config.content)}


def combine_adapters(
    sources: Sequence[AdapterSource], weights: Sequence[float], rank: int | None = None
) -> LowRank:
    """Sum_t w_t scale_t B_t A_t: exact, with the factors side by side; or truncated to `rank`, with the error in `lost`.

    One adapter with weight 1 is returned as it is, bit for bit. Adapters may adapt different modules.

    Raises:
        UsageError: no adapter, or not one weight an adapter.
        MismatchError: one tensor with two shapes.
    """
    if not sources or len(sources) != len(weights):
        raise UsageError(
            f"{len(sources)} adapters and {len(weights)} weights: give one weight for each adapter."
        )
    total, *rest = (source.low * weight for source, weight in zip(sources, weights, strict=True))
    for more in rest:
        total = total + more
    return total if rank is None else total.truncated(rank)


def save_adapter(
    low: LowRank,
    path: str | Path,
    *,
    like: AdapterSource | None = None,
    spelt: Mapping[str, str] | None = None,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Write a directory that PEFT reads: `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        low: the displacement; several terms are put side by side, so the rank is the sum of theirs.
        path: the directory.
        like: an adapter over the same base, whose base id and task type are taken over. If the displacement is that
            adapter's own, its settings and factors are written as they are.
        spelt: what PEFT calls a tensor, where the displacement has the names of files: PEFT knows those in memory.
        overwrite: replace what is at `path`.
        finish: adds files to the directory before it gets its name; called with where it is made.

    Raises:
        UsageError: a tensor that is not a module's weight.
        NonFiniteError: NaN or infinity.
        StoreError: something is at `path`, or writing failed.

    Example:
        >>> import tempfile
        >>> low = LowRank({"q.weight": (Term(torch.ones(1, 3), torch.ones(2, 1), 0.5),)})
        >>> one = AdapterSource(save_adapter(low, Path(tempfile.mkdtemp()) / "one"))
        >>> twice = combine_adapters([one, one], [1.0, 3.0])
        >>> twice.rank("q.weight"), twice.dense("q.weight")[0]
        (2, tensor([2., 2., 2.]))
    """
    path = Path(path)
    joined = {(spelt or {}).get(name, name): low.joined(name) for name in low.terms}
    tensors = {key: tensor for name, term in joined.items() for key, tensor in _stored_as(name, term)}
    params.require_finite(tensors, f"the adapter {low.label!r}")
    same = like is not None and _scales(joined) == _scales(
        {n: t for n, (t,) in like.adapter.low.terms.items()}
    )
    if like is not None and same:
        text = like.adapter.config.file.read_text(encoding="utf-8")
    else:
        text = json.dumps(_settings(joined, like), indent=2) + "\n"
    with store.atomic(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        store.write_tensors(temporary / WEIGHTS, tensors, {"format": "pt"})
        (temporary / CONFIG).write_text(text, encoding="utf-8")
        if finish is not None:
            finish(temporary)
    return path


def _stored_as(name: str, term: Term) -> Iterable[tuple[str, Tensor]]:
    kind, end = ("embedding_", "") if term.layout == "embedding" else ("", ".weight")
    for side, tensor in (("A", term.a), ("B", term.b)):
        yield f"{_PREFIX}{_module(name)}.lora_{kind}{side}{end}", tensor


def _module(name: str) -> str:
    if not name.endswith(".weight"):
        raise UsageError(
            f"{name!r} is no module's weight, and an adapter changes these only: write a vector instead."
        )
    return name.removesuffix(".weight")


def _scales(terms: Mapping[str, Term]) -> dict[str, tuple[int, float, FactorLayout]]:
    return {_module(name): (term.rank, term.scale, term.layout) for name, term in terms.items()}


def _settings(terms: Mapping[str, Term], like: AdapterSource | None) -> dict[str, Any]:
    """Settings by which PEFT scales each product as its term says: alpha = scale * r, the commonest as the default."""
    made = {module: (rank, _number(scale * rank)) for module, (rank, scale, _) in _scales(terms).items()}
    rank, alpha = (
        Counter(pair[side] for pair in made.values()).most_common(1)[0][0] if made else 1 for side in (0, 1)
    )
    old = {} if like is None else like.adapter.config.content
    layouts = {term.layout for term in terms.values()}
    if {"linear", "transposed"} <= layouts:
        raise UsageError(
            "one adapter cannot hold layers that store their weights transposed and others. Write a vector."
        )
    return {
        "peft_type": "LORA",
        "task_type": old.get("task_type"),
        "base_model_name_or_path": old.get("base_model_name_or_path"),
        "revision": old.get("revision"),
        "inference_mode": True,
        "target_modules": sorted(made),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": pair[0] for name, pair in made.items() if pair[0] != rank},
        "alpha_pattern": {f"^{re.escape(name)}": pair[1] for name, pair in made.items() if pair[1] != alpha},
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": "transposed" in layouts,
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _number(value: float) -> float:
    return int(value) if value.is_integer() else value

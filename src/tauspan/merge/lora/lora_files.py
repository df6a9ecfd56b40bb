"""LoRA files of image models: the spellings of kohya and diffusers, and how such a file is told from a model."""

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Size, Tensor

from tauspan import store
from tauspan.core import params
from tauspan.core.errors import MismatchError, ModelError, StoreError, listed
from tauspan.merge.lora.adapter_config import AdapterConfig, parse_config
from tauspan.merge.lora.adapters import Products, term_of
from tauspan.merge.lora.lowrank import LowRank, Term
from tauspan.store import Access, Header, Stored, Values

WEIGHTS = "pytorch_lora_weights.safetensors"  # where diffusers looks in a directory
_SIDES = {"A": "A", "B": "B", "down": "A", "up": "B"}
_FACTORS = (
    re.compile(r"(?P<module>.+)\.lora_(?P<side>down|up)\.weight"),  # kohya
    re.compile(
        r"(?P<module>.+)\.lora_(?P<side>A|B)(?:\.default(?:_\d+)?)?\.weight"
    ),  # diffusers, as PEFT spells them
    re.compile(r"(?P<module>.+)\.lora(?:_linear_layer)?\.(?P<side>down|up)\.weight"),  # diffusers before that
    re.compile(
        r"(?P<module>.+)\.processor\.(?P<inner>to_q|to_k|to_v|to_out)_lora\.(?P<side>down|up)\.weight"
    ),
)
_ALPHA = re.compile(r"(?P<module>.+)\.alpha")
# more than a product, or another kind of it: LoHa, LoKr, a core between the factors, DoRA, whole differences
_MORE = re.compile(
    r".*\.(?:hada_|lokr_|lora_mid|oft_|boft_|dora_scale|lora_magnitude|w_norm|b_norm|diff(?:_b)?$|on_input).*"
)
_PARTS = re.compile(
    r"(?P<part>lora_unet_|lora_te[12]?_|lora_transformer_|lora_prior_unet_|lycoris_"
    r"|unet\.|transformer\.(?=\w+_blocks\.)|text_encoder(?:_\d)?\.|model\.diffusion_model\.|diffusion_model\.)"
)
# prefixes of the names of each part, in single files of whole pipelines
_OUTER = ("model.diffusion_model.", "cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors with these names are factors of products, and not the weights of a model."""
    found = [name for name in names if not _ALPHA.fullmatch(name)]
    factors = [name for name in found if _factor(name) or ".hada_" in name or ".lokr_" in name]
    return bool(factors) and all(name in factors or _MORE.fullmatch(name) for name in found)


def _factor(name: str) -> tuple[str, str] | None:
    """The module and the side of a factor, by any of the spellings."""
    for pattern in _FACTORS:
        match = pattern.fullmatch(name)
        if match:
            inner = match.groupdict().get("inner")
            last = "to_out.0" if inner == "to_out" else inner
            return (f"{match['module']}.{last}" if last else match["module"]), _SIDES[match["side"]]
    return None


class LoraFile(Products):
    """The displacement of a LoRA file as merges read it: alpha / r * B A, formed in pieces.

    Args:
        place: the file.
        header: its own.
        access: as for `open_source`.
        label: a short name; the file's when None.

    Raises:
        ModelError: more than LoRA (LoHa, LoKr, DoRA, whole differences); the message names the tensor.
        StoreError: factors that make no product.
    """

    def __init__(
        self, place: Path, header: Header, access: Access = "pread", label: str | None = None
    ) -> None:
        self.header = header
        low, first, self.kohya = _read(place, header, Values(access), label or place.stem)
        super().__init__(place, low, first)

    def on(self, stored: Mapping[str, Stored], where: Path) -> "LoraFile":
        """The displacement of one model's weights, under their names.

        A file may hold products for several models of a pipeline. The products of a part are kept if this model has all
        the weights that they change; `notes` names the parts that are left out.

        Raises:
            MismatchError: it has weights for no part of the file, or two for one name.
        """
        fits = _fitting(self.low.terms, stored, where)
        parts: dict[str, list[str]] = {}
        for name in self.low.terms:
            found = _PARTS.match(name)
            parts.setdefault(found["part"] if found else "", []).append(name)
        whole = {part: names for part, names in parts.items() if all(name in fits for name in names)}
        if not whole:
            lacking = [name for name in self.low.terms if name not in fits]
            raise MismatchError(
                f"{self.path} changes {listed(lacking)}, which {where} lacks: the file was made for another model, or "
                "for another part of the pipeline. Take that one."
            )
        made = copy.copy(self)
        kept = {name: fits[name] for names in whole.values() for name in names}
        terms = {
            kept[name]: tuple(_as(term, stored[kept[name]].shape) for term in self.low.terms[name])
            for name in kept
        }
        made.low, made.spelt = replace(self.low, terms=terms), {own: name for name, own in kept.items()}
        made.tensors = {own: made.dense(own, self.tensors[name]) for name, own in kept.items()}
        left = [part.strip("._") for part in parts if part not in whole]
        if left:
            text = (
                f"{self.path} also holds products for {listed(left)}, which {where} is not: they are left out here, and "
                "belong onto that model"
            )
            made.notes = (("extra_tensors", text),)
        return made


def _read(place: Path, header: Header, values: Values, label: str) -> tuple[LowRank, dict[str, Stored], bool]:
    """The products by the names of weights, where each factor A is stored, and whether the spelling is kohya's."""
    factors: dict[str, dict[str, Stored]] = {}
    alphas: dict[str, float] = {}
    kohya = False
    for name, stored in header.tensors.items():
        found, alpha = _factor(name), _ALPHA.fullmatch(name)
        if found is not None:
            factors.setdefault(found[0], {})[found[1]] = stored
            kohya |= ".lora_down." in name
        elif alpha is not None and stored.shape.numel() == 1:
            own = _factor(f"{alpha['module']}.down.weight")  # below an attention processor
            alphas[own[0] if own else alpha["module"]] = float(values.read(stored, 0, 1))
        else:
            raise ModelError(
                f"{place} holds {name!r}, so it is more than LoRA, or none, and its displacement is not scale * B A. "
                "Merge it into its base with the library that made it, and use that model."
            )
    terms, first = {}, {}
    config = _config(header, place)
    for module, sides in factors.items():
        if set(sides) != {"A", "B"}:
            raise StoreError(
                f"{place} holds {listed(sorted(sides))} of {module!r}, not one A and one B. Save it again."
            )
        terms[f"{module}.weight"] = (
            term_of(module, sides, _scale(module, alphas, config), "linear", values),
        )
        first[f"{module}.weight"] = sides["A"]
    unused = sorted(set(alphas) - set(factors))
    if unused:
        raise StoreError(f"{place} holds alpha of {listed(unused)} and no factors. Save it again.")
    return LowRank(terms, label), first, kohya


def _scale(module: str, alphas: Mapping[str, float], config: AdapterConfig | None) -> Callable[[int], float]:
    """Alpha over the rank: the module's own, else PEFT's settings, else 1, as both libraries have it."""
    if config is not None and module not in alphas:
        return lambda rank: config.scale(_PARTS.sub("", module, count=1), rank)
    return lambda rank: alphas.get(module, float(rank)) / rank


def _config(header: Header, place: Path) -> AdapterConfig | None:
    """PEFT's settings, which diffusers notes in the header of what it trained."""
    text = header.metadata.get("lora_adapter_metadata")
    if text is None:
        return None
    try:
        content = json.loads(text)
        flat = {key.rpartition(".")[2]: value for key, value in content.items()}
    except (ValueError, AttributeError) as error:
        raise StoreError(f"the header of {place} has settings that are no JSON object: {error}.") from error
    return parse_config({"peft_type": "LORA", **flat}, place)


def _fitting(names: Iterable[str], stored: Mapping[str, Stored], where: Path) -> dict[str, str]:
    """The model's own name of each weight of the file that the model has; kohya writes underscores for dots."""
    known: dict[str, set[str]] = {}
    for own in (name for name in stored if name.endswith(".weight")):
        inner = own
        for outer in _OUTER:
            inner = inner.removeprefix(outer)
        module = inner.removesuffix(".weight")
        for spelling in {module, module.replace(".", "_")}:
            known.setdefault(spelling, set()).add(own)
    found: dict[str, str] = {}
    for name in names:
        module = name.removesuffix(".weight")
        fitting = known.get(_PARTS.sub("", module, count=1), set()) or known.get(module, set())
        if len(fitting) > 1:
            raise MismatchError(
                f"{name!r} could be {listed(sorted(fitting))} of {where}: the file does not say which."
            )
        if fitting:
            found[name] = next(iter(fitting))
    return found


def _as(term: Term, shape: Size) -> Term:
    """The product in the weight's own shape: a linear layer may be kept as a convolution of one pixel."""
    if term.shape == shape or term.shape.numel() != shape.numel() or shape[:2] != term.shape[:2]:
        return term
    more = (1,) * (len(shape) - 2)
    a, b = term.a.reshape(*term.a.shape[:2], *more), term.b.reshape(*term.b.shape[:2], *more)
    return Term(a, b, term.scale, "convolution" if more else "linear")


def save_lora(
    low: LowRank,
    path: Path,
    like: LoraFile,
    spelt: Mapping[str, str],
    *,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Write a LoRA file in the spelling of another; a path without the suffix is a directory for it, as diffusers reads.

    Args:
        low: the displacement; several terms are put side by side.
        path: the file or directory.
        like: the file whose spelling and header are taken over.
        spelt: what the file calls a tensor, where the displacement has a model's names.
        overwrite: replace what is at `path`.
        finish: adds files to a directory before it gets its name.

    Raises:
        NonFiniteError: NaN or infinity.
        StoreError: something is at `path`, or writing failed.
    """
    tensors: dict[str, Tensor] = {}
    for name in low.terms:
        term, module = low.joined(name), spelt.get(name, name).removesuffix(".weight")
        a, b = ("lora_down", "lora_up") if like.kohya else ("lora_A", "lora_B")
        tensors[f"{module}.{a}.weight"], tensors[f"{module}.{b}.weight"] = term.a, term.b
        if like.kohya:
            tensors[f"{module}.alpha"] = torch.tensor(term.scale * term.rank)
        elif term.scale != 1:  # without settings diffusers takes alpha to be the rank
            wide = torch.promote_types(term.b.dtype, torch.float32)
            tensors[f"{module}.{b}.weight"] = (term.b.double() * term.scale).to(wide)
    params.require_finite(tensors, f"the LoRA {low.label!r}")
    metadata = {key: value for key, value in like.header.metadata.items() if key != "lora_adapter_metadata"}
    if path.suffix == ".safetensors":
        store.write_tensors(path, tensors, {"format": "pt", **metadata}, overwrite=overwrite)
        return path
    with store.atomic(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        store.write_tensors(temporary / WEIGHTS, tensors, {"format": "pt", **metadata})
        if finish is not None:
            finish(temporary)
    return path

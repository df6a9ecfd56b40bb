"""Whole models compared by what they say of themselves: configuration, base and regime."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from tauspan.core import params
from tauspan.core.errors import listed
from tauspan.merge.sources.problems import Problem, Severity, about
from tauspan.merge.sources.source import Source, config_of, found

_SPACES = {"point": "a model's weights", "delta": "a displacement"}


def spaces(base: Source | None, models: Sequence[Source]) -> Iterator[Problem]:
    """Problems of mixing weights and displacements: the base must be a model, and mixing needs a base."""
    if base is not None and base.kind != "point":
        yield about(
            base,
            "spaces",
            f"the base {base.path} is a displacement, not a model. Name the pre-trained model as the base.",
        )
    first = models[0]
    other = next((model for model in models if model.kind != first.kind), None)
    if base is None and other is not None:
        yield about(
            other, "spaces",
            f"{first.path} holds {_SPACES[first.kind]} and {other.path} {_SPACES[other.kind]}: they meet only at a base. "
            "Name it: `base_model`.",
        )  # fmt: skip


def architecture(reference: Source, model: Source) -> Iterator[Problem]:
    """Problems of configurations that name different model types or different classes."""
    ours, theirs = config_of(model.path), config_of(reference.path)
    rules: tuple[tuple[str, Severity, str], ...] = (
        ("model_type", "error", "the same names may mean other functions"),
        ("architectures", "warning", "one may have a head that the other lacks"),
    )
    for key, severity, meaning in rules:
        if ours.get(key) and theirs.get(key) and ours[key] != theirs[key]:
            yield about(
                model, "architecture",
                f"{key} is {ours[key]!r} in {model.path} and {theirs[key]!r} in {reference.path}: {meaning}. Merge "
                "models of one architecture, saved from one class.",
                severity=severity, file=model.path / "config.json" if model.path.is_dir() else model.path,
            )  # fmt: skip


def vectors(displacements: Sequence[Source]) -> Iterator[Problem]:
    """Problems between displacements: other bases, regimes or points, and tensors that only some of them hold.

    An adapter is zero for all modules that it does not name.
    """
    saved = [vector for vector in displacements if "base" in vector.identity]
    for key, kind, rule in (
        (
            "base",
            "base",
            "displacements from different points do not add. Fine-tune both from one pre-trained model",
        ),
        ("regime", "regime", "they edit different functions. Fine-tune both in one regime"),
        ("point", "regime", "they edit different functions. Fine-tune both at one linearisation point"),
    ):
        for vector in saved[1:]:
            mine, theirs = vector.identity.get(key, ""), saved[0].identity.get(key, "")
            if mine != theirs and (key != "point" or (mine and theirs)):
                yield about(
                    vector,
                    kind,
                    f"the {key} of {vector.path} is {mine[:12]} and of {saved[0].path} {theirs[:12]}: {rule}.",
                )
    names = dict.fromkeys(name for vector in saved for name in vector.tensors)
    for vector in saved:
        absent = [name for name in names if name not in vector.tensors]
        if absent:
            yield about(
                vector, "missing_tensors",
                f"{vector.path} lacks {listed(map(repr, absent))}, which other vectors have. Choose the same parameters, "
                "or say that it does not move them: `vector.filled_like(other)`.",
                tensor=absent[0],
            )  # fmt: skip


def made_for(base: Source | None, models: Sequence[Source]) -> Iterator[Problem]:
    """Warnings of adapters that were trained on another base; only warnings, since a copy of it has another name."""
    if base is None:
        return
    given = str(base.identity.get("path", base.path))
    known = {str(config_of(base.path).get("_name_or_path", "")), given.partition("@")[0], str(base.path)}
    ends = {name.rstrip("/").rpartition("/")[2] for name in known}
    for model in models:
        stated = model.identity.get("adapter", {}).get("base_model_name_or_path")
        if isinstance(stated, str) and stated and stated.rstrip("/").rpartition("/")[2] not in ends:
            yield about(
                model, "base",
                f"the adapter {model.path} was trained on {stated!r}, and the base is {given}: on other weights it is "
                "not what was trained. Name that model as the base, or go on if they are the same weights.",
                severity="warning",
            )  # fmt: skip


def tied(models: Sequence[Source]) -> Iterator[Problem]:
    """Warnings that sources bring with them: both ends of a tie are changed, or parts of a pipeline are left out."""
    for model in models:
        for kind, note in getattr(model, "notes", ()):
            yield about(model, kind, f"{note}.", severity="warning")


class _Tensors(Mapping[str, Tensor]):
    """A source's tensors, each read when it is asked for, so that one at a time is in memory."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, name: str) -> Tensor:
        shape = found(self._source, name).shape
        return self._source.read(name, 0, shape.numel()).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.tensors)

    def __len__(self) -> int:
        return len(self._source.tensors)


def fingerprint_of(source: Source) -> str:
    """The content fingerprint of the stored tensors; reads all of them."""
    return params.fingerprint(_Tensors(source))


def fingerprints(base: Source, models: Sequence[Source]) -> Iterator[Problem]:
    """Problems of vectors that start from another base, by its content; reads all of the base."""
    saved = [model for model in models if "base" in model.identity]
    own = fingerprint_of(base) if saved else ""
    for vector in saved:
        if vector.identity["base"] != own:
            yield about(
                vector, "base",
                f"{vector.path} starts from base {vector.identity['base'][:12]}, and {base.path} is {own[:12]}. Take the "
                "model that it was made from, or re-label it: `vector.rebased(model)`.",
            )  # fmt: skip


_TIES = "tie_word_embeddings"
_FIELDS = frozenset(
    (
        # heads: the same matrices cut into other pieces
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "num_heads",
        "n_head",
        "n_heads",
        "num_kv_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
        "multi_query",
        "new_decoder_architecture",
        # positions and masks
        "rope_theta",
        "rotary_emb_base",
        "rotary_pct",
        "rotary_dim",
        "partial_rotary_factor",
        "position_embedding_type",
        "alibi",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "no_rope_layers",
        "attention_layers",
        "window_size",
        "is_decoder",
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
        # activations
        "hidden_act",
        "hidden_activation",
        "activation_function",
        "activation",
        "feed_forward_proj",
        "dense_act_fn",
        # norms and factors
        "layer_norm_eps",
        "layer_norm_epsilon",
        "layernorm_epsilon",
        "rms_norm_eps",
        "norm_eps",
        "norm_epsilon",
        "pre_norm",
        "do_layer_norm_before",
        "use_parallel_residual",
        "parallel_attn",
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "scale_embedding",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "attention_multiplier",
        "embedding_multiplier",
        "residual_multiplier",
        "logits_scaling",
        # experts, patches and ties
        "num_experts_per_tok",
        "norm_topk_prob",
        "patch_size",
        "pooling_type",
        "hidden_pooling",
        _TIES,
    )
)
_ROPE = ("rope_parameters", "rope_scaling")  # of transformers from 5 on, and before


def functions(reference: Source, model: Source) -> Iterator[Problem]:
    """A problem if two configurations make different functions of the same weights.

    A setting that only one of them states is not compared.
    """
    theirs, mine = config_of(reference.path), config_of(model.path)
    told = {_TIES} if set(reference.tensors) != set(model.tensors) else set()  # names show this already
    differ = [
        f"{key} is {own!r} and {other!r}"
        for key, own, other in _differing(mine, theirs, "")
        if key not in told
    ]
    if differ:
        yield about(
            model, "config",
            f"config.json of {model.path} and of {reference.path} make different functions of the same weights: "
            f"{'; '.join(differ)}. Merge models of one configuration; the result takes that of {reference.path}.",
            file=model.path / "config.json" if model.path.is_dir() else model.path,
        )  # fmt: skip


def _differing(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], above: str
) -> Iterator[tuple[str, Any, Any]]:
    """The name and both values of each setting that differs, also in the parts of a composite model."""
    for key in mine:
        own, other = mine[key], theirs.get(key)
        if key.endswith("_config") and isinstance(own, Mapping) and isinstance(other, Mapping):
            yield from _differing(own, other, f"{above}{key}.")
        elif key in _FIELDS and key != "rope_theta" and key in theirs and own != other:
            yield f"{above}{key}", own, other
    first, second = _rope(mine), _rope(theirs)
    if first and second:
        for key in sorted({*first, *second}):
            one, two = (rope.get(key, "default" if key == "rope_type" else None) for rope in (first, second))
            if one != two and (key == "rope_type" or None not in (one, two)):
                yield f"{above}{key}", one, two


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings under one spelling; empty where the configuration states none."""
    found = {"rope_theta": config["rope_theta"]} if config.get("rope_theta") is not None else {}
    for key in _ROPE:
        stated = config.get(key)
        if isinstance(stated, Mapping):
            found |= {"rope_type" if name == "type" else str(name): value for name, value in stated.items()}
        elif key in config:
            found.setdefault("rope_type", "default")
    return found

"""`Encoder` (inputs to features), `Head` (features to logits, frozen) and `Classifier` (both)."""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauspan.core.arguments import checked
from tauspan.core.errors import MismatchError, ModelError, NonFiniteError
from tauspan.models.groups import each, grouped, is_grouped, together
from tauspan.models.inputs import Batch, Inputs, require_known

if TYPE_CHECKING:
    from tauspan.models.frozen import Frozen, Origin, Prediction
    from tauspan.models.home import Home
    from tauspan.models.language import Language
    from tauspan.models.spaces import Space

__all__ = ["OUTPUT_FIELDS", "Added", "Bare", "Batch", "Classifier", "Encoder", "Head", "Inputs", "Whole", "call",
           "positions", "single_tensor", "to_device"]  # fmt: skip
_PROMPTS = 256  # prompts per forward pass of a text tower


@dataclass(frozen=True)
class Whole:
    """The fingerprint of an encoder before it was trimmed, and `part`, the trimmed encoder's own when it was made."""

    fingerprint: str
    part: str


@dataclass(frozen=True)
class Added:
    """Parameters that an encoder got beside those of its files; while they are 0, it is the model of its files.

    Args:
        names: the parameters, as the backbone names them.
        facts: what they mean, as plain values; every vector that is made of them states it.
        words: the call that adds them.
    """

    names: tuple[str, ...]
    facts: Mapping[str, Any]
    words: str


class Encoder(nn.Module):
    """A pre-trained model as a map from a batch to features of shape (N, d), before any normalisation.

    Args:
        backbone: the model itself; task vectors carry *its* parameter names.
        features: reads the features off the backbone: `features(backbone, batch) -> (N, d)`.
        inputs: how raw task inputs become a batch.
        source: where the model came from (a directory, a hub id), for provenance.
        label_features: embeds label prompts for a zero-shot head, `label_features(backbone, batch) -> (K, d)`;
            None where there is no text tower.
        logit_scale: the factor on cosine similarities in a zero-shot head (20 for sentence encoders,
            exp(logit_scale) for CLIP).
        prefixes: name prefixes of the parameters on the path to the features; () means all.
        save_extras: writes the other files of a saved directory (tokenizer, pooling), or None.
        pooling: what a feature is, in words; None takes the description of `features`.
        home: the files that the backbone came from, with tensors that it lacks; None if it came from no files.

    Attributes:
        heads: frozen heads that took long to build, by a key of their content; filled by `tauspan.tasks.build_head`.
        references: what losses read of this model on the rows of tasks, by a key of their content.
        frozen: the frozen heads that were built, by the name of their task; `predict` uses them and `tauspan.save`
            writes them.
        origin: for an edited encoder, the pre-trained one from which its heads are made; else None.
        edit: how the encoder was edited, in words.
        whole: the whole encoder, if `trimmed` made this one; else None.
        language: the token table of a language model, if it was loaded as one; else None.
        space: the small space in which it moves, if `restrict` made it; else None.
        trainable: of an encoder in a space, which parameters of its backbone were trainable before.
        added: parameters that `with_prefix` added; else None.
    """

    @checked
    def __init__(
        self,
        backbone: nn.Module,
        features: Callable[[nn.Module, Batch], Tensor] | None = None,
        inputs: Inputs | None = None,
        *,
        source: str = "",
        label_features: Callable[[nn.Module, Batch], Tensor] | None = None,
        logit_scale: float = 20.0,
        prefixes: tuple[str, ...] = (),
        save_extras: Callable[[Any], None] | None = None,
        pooling: str | None = None,
        home: Any = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.training = backbone.training  # in the mode of the backbone
        self.features = features or call
        self.inputs = inputs or Inputs()
        self.source = source or type(backbone).__name__
        self.label_features = label_features
        self.logit_scale = logit_scale
        self.prefixes = prefixes
        self.save_extras = save_extras
        self.pooling = pooling or _said(self.features)
        self.home: Home | None = home
        self.heads: dict[str, Head] = {}
        self.references: dict[str, Tensor] = {}
        self.frozen: dict[str, Frozen] = {}
        self.origin: Origin | None = None
        self.edit = ""
        self.whole: Whole | None = None
        self.language: Language | None = None
        self.space: Space | None = None
        self.trainable: frozenset[str] = frozenset()
        self.added: Added | None = None

    def forward(self, batch: Batch) -> Tensor:
        """Features of shape (N, d); of rows that are groups of K inputs, (N, K d)."""
        if is_grouped(batch):
            return each(batch, lambda one: self.features(self.backbone, one))
        return self.features(self.backbone, batch)

    def __repr__(self) -> str:
        """One line with source, inputs and features; print `encoder.backbone` to see the layers."""
        model = type(self.backbone).__name__
        source = "" if self.source == model else f"{self.source!r}, "
        more = "" if self.added is None else f"; {self.added.words}"
        return f"Encoder({source}{model}; reads {self.inputs.told()}; features: {self.pooling}{more})"

    @property
    def facts(self) -> dict[str, Any]:
        """What a vector of this encoder states of it: where it came from, and what was added to it."""
        return {"base_id": self.source, **({} if self.added is None else self.added.facts)}

    def predict(
        self, rows: Sequence[Any], task: str | None = None, *, batch_size: int = 64
    ) -> "list[Prediction]":
        """Classes and their probabilities, with a frozen head of this encoder.

        Args:
            rows: raw texts, images or tensors.
            task: the task of the head; optional if there is only one head.
            batch_size: rows per forward pass.

        Raises:
            UsageError: no head, or several and no task named.
            NonFiniteError: NaN or infinity in the logits of a row.

        Example:
            >>> from tauspan.models.frozen import Frozen
            >>> encoder = Encoder(nn.Linear(2, 2, bias=False).eval())
            >>> encoder.frozen["sides"] = Frozen("sides", ("left", "right"), Head(torch.eye(2)))
            >>> list(encoder.predict([torch.ones(2)])[0].probabilities)
            ['left', 'right']
        """
        from tauspan.models.frozen import chosen_head, predicted

        frozen = chosen_head(self.frozen, task, self.source)
        first = next(self.backbone.parameters(), None)
        head = frozen.head if first is None else copy.deepcopy(frozen.head).to(first.device)
        return predicted(self, Classifier(self, head), rows, frozen, batch_size)

    def describe(self) -> str:
        """What determines features and heads besides weights, in one line: pooling, label tower, scale, preprocessing.

        Functions are described by their names, so that the text is equal in all processes and in a resumed run.
        """
        towers = f"{_named(self.features)}|{_named(self.label_features)}"
        return f"{towers}|{self.logit_scale!r}|{self.inputs.describe()}"

    def encode(
        self, raw: Sequence[Any], max_tokens: int | None = None, crops: Sequence[random.Random] | None = None
    ) -> Batch:
        """A batch on the backbone's device from raw texts, images or tensors; see `Inputs.encode`.

        A language model reads what the task's objective makes of its rows (`Objective.rows`).

        Floating-point tensors are converted to the backbone's dtype, since NumPy's are float64 and most models float32.
        Rows may be groups (`tauspan.models.groups`), each of as many inputs.
        """
        size = grouped(raw) if isinstance(raw, list | tuple) else None
        if size is not None:
            # a source of random numbers for each input, drawn before threads take turns
            draws = (
                None if crops is None else [random.Random(one.random()) for one in crops for _ in range(size)]
            )
            return together(self.encode([item for row in raw for item in row], max_tokens, draws), size)
        first = next(self.backbone.parameters(), None)
        batch: Batch
        words = _words(self.backbone) if self.inputs.modality == "text" else None
        if self.language is not None:
            batch = self.language.batch(raw, max_tokens)
        else:
            most = {"positions": positions(self.backbone)} if self.inputs.modality == "text" else {}
            batch = self.inputs.encode(raw, max_tokens, crops, **most)
        if words is not None and isinstance(batch, Mapping) and "input_ids" in batch:
            require_known(batch["input_ids"], words, self.inputs.tokenizer)
        if first is None:
            return batch
        floats = isinstance(batch, Tensor) and self.inputs.modality == "tensor" and batch.is_floating_point()
        if floats and first.is_floating_point():
            batch = cast(Tensor, batch).to(first.dtype)
        return to_device(batch, first.device)

    @torch.no_grad()
    def embed_labels(self, prompts: Sequence[str]) -> Tensor:
        """Unit-norm features of label prompts, shape (K, d); prompts are cut at the text tower's limit, as CLIP does."""
        if self.label_features is None:
            raise ModelError(
                f"{self.source} has no text tower to embed prompts with: take class prototypes, a linear probe "
                '(`head_from="prototypes"` or `"probe"`), or a head of your own.'
            )
        if self.whole is not None and self.label_features is not self.features:
            raise ModelError(
                f"{self.source} was trimmed and has no text tower any more, and this task's head was not built before. "
                "Call `build_head` for every task on the whole encoder, then `trimmed`."
            )
        device = next(self.backbone.parameters()).device
        parts, most = [], positions(self.backbone)
        for begin in range(0, len(prompts), _PROMPTS):
            some = [self.inputs.prompt + prompt for prompt in prompts[begin : begin + _PROMPTS]]
            batch = to_device(self.inputs.tokens(some, None, most), device)
            parts.append(F.normalize(self.label_features(self.backbone, batch).detach(), dim=-1))
        found = torch.cat(parts)
        broken = (~found.isfinite().all(-1)).nonzero().flatten().tolist()
        if broken:
            raise NonFiniteError(
                f"the features of the prompt {prompts[broken[0]]!r} hold NaN or infinity: it has no token, or the "
                f"weights of {self.source} are broken."
            )
        return found


def _words(backbone: nn.Module) -> int | None:
    """How many tokens a transformers model knows; None where it does not say."""
    try:
        table = getattr(backbone, "get_input_embeddings", lambda: None)()
    except (NotImplementedError, AttributeError):  # of a model without one
        return None
    known = getattr(table, "num_embeddings", None)
    return known if isinstance(known, int) else None


def positions(backbone: nn.Module) -> int | None:
    """The largest number of tokens that a transformers model can read; None if it has no limit or does not state it.

    RoBERTa and similar models number positions after the padding index, so fewer positions are usable than their table
    has rows.
    """
    config = getattr(backbone, "config", None)
    most = getattr(getattr(config, "text_config", None) or config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:  # XLNet says -1
        return None
    for name, layer in backbone.named_modules():
        if name.endswith("position_embeddings"):
            rows, padding = getattr(layer, "num_embeddings", None), getattr(layer, "padding_idx", None)
            if isinstance(padding, int) and rows == most:
                return most - padding - 1
    return most


def _named(function: Any) -> str:
    if is_dataclass(function):
        return repr(function)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _said(function: Any) -> str:
    """A feature function in words; a user's own function is described by its name."""
    if function is call:
        return "the module's output"
    return getattr(function, "__name__", None) or str(function)


def call(module: nn.Module, batch: Batch) -> Tensor:
    """The module applied to its batch, reduced to one tensor; see `single_tensor`."""
    return single_tensor(module(**batch) if isinstance(batch, Mapping) else module(batch))


OUTPUT_FIELDS = ("logits", "image_embeds", "text_embeds", "pooler_output", "last_hidden_state")


def single_tensor(output: Any) -> Tensor:
    """The tensor in a model's output: the output itself, or the first of `OUTPUT_FIELDS` that it has.

    Raises:
        ModelError: no such tensor, or a complex one; wrap the model so that it returns a real one.
    """
    tensors = (output, *(getattr(output, name, None) for name in OUTPUT_FIELDS))
    for found in tensors:
        if isinstance(found, Tensor):
            return _require_real(found)
    raise ModelError(
        f"the model returned {type(output).__name__}, which is no tensor and has none of "
        f"{', '.join(OUTPUT_FIELDS)}. Wrap it in a module that returns one tensor."
    )


def _require_real(output: Tensor) -> Tensor:
    if output.is_complex():
        raise ModelError(
            f"the model returned a tensor of {output.dtype} and shape {tuple(output.shape)}, and outputs are real here. "
            "Wrap it in a module that returns torch.view_as_real(output), with .flatten(1) for one vector a row."
        )
    return output


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    return {name: tensor.to(device) for name, tensor in batch.items()}


class Head(nn.Module):
    """A frozen linear map from features to logits: scale * (z / |z|) W^T + b.

    Args:
        weight: shape (K, d).
        bias: shape (K,), or None.
        scale: factor on the logits.
        normalize: divide features by their length first, as CLIP's zero-shot head does.
    """

    weight: Tensor
    bias: Tensor | None

    @checked
    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, scale: float = 1.0, normalize: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.scale = scale
        self.normalize = normalize

    def forward(self, features: Tensor) -> Tensor:
        """Logits of shape (N, K) from features of shape (N, d)."""
        if features.shape[-1] != self.weight.shape[-1]:
            raise MismatchError(
                f"the head reads {self.weight.shape[-1]} features and the encoder gives {features.shape[-1]}."
            )
        unit = F.normalize(features, dim=-1) if self.normalize else features
        bias = None if self.bias is None else self.bias.to(unit.dtype)
        return F.linear(unit * self.scale, self.weight.to(unit.dtype), bias)


class Bare(Head):
    """No head: the features are the outputs, whatever their width."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(0, 0))

    def forward(self, features: Tensor) -> Tensor:
        """The features."""
        return features


class Classifier(nn.Module):
    """An encoder with a frozen head; it can be linearised at the encoder's output or at the logits."""

    @checked
    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """Logits of shape (N, K)."""
        logits: Tensor = self.head(self.encoder(batch))
        return logits

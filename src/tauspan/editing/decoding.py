"""`Decoder`: texts from a language model in the tangent regime, whose coefficients may change from token to token."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.computing import way
from tauspan.core.errors import NonFiniteError, UsageError, listed, nearest
from tauspan.editing.model.directions import require_numbers
from tauspan.editing.model.token_tables import moving_table
from tauspan.models import Encoder
from tauspan.models.encoder import positions
from tauspan.models.home import fingerprint_of
from tauspan.tangent.cached import CachedTangents
from tauspan.vector import TaskVector, confined

Mix = Mapping[str, float]


class Decoder:
    """f(x; theta0) + sum_t a_t J(x) tau_t of a language model, token by token.

    Keys and values are cached with their tangents in each direction, so a token takes the products of about 1 + 2 T
    ordinary ones, or 1 + T and thin ones where all vectors live in one small space, and the time of more operations;
    what was read holds for any coefficients: they may change between tokens without reading the text again. Logits are
    those of whole texts to rounding; the first token after a prompt is compared with them. A sequence-to-sequence model
    reads its prompt, the source, once, and writes a text of its own.

    Args:
        encoder: from `tauspan.load(source, language=L)`.
        vectors: the directions by name, of any regime; a standard vector is taken in the tangent model (post-hoc).

    Raises:
        UsageError: no language model, or no vector.
        BaseMismatchError: a vector starts from another model.

    Example:
        Generate at one mix, and at a mix that changes on the way::

            decoder = Decoder(encoder, {"sums": tau})
            decoder.generate("7 + 1 = ", {"sums": 1.0}, tokens=8)
            decoder.generate("7 + 1 = ", lambda n: {"sums": min(1.0, n / 4)}, tokens=8)
    """

    @checked
    def __init__(self, encoder: Encoder, vectors: Mapping[str, TaskVector]) -> None:
        if encoder.language is None:
            raise UsageError(
                f"{encoder.source} was loaded for features, and texts come from a language model: "
                "`ts.load(source, language=L)`."
            )
        if not vectors:
            raise UsageError("a decoder needs at least one vector; for none, generate with transformers.")
        self._language, base = encoder.language, fingerprint_of(encoder)
        self.encoder, self.vectors = confined(encoder, vectors.values()), dict(vectors)
        moved = {
            name: vector.fitted(self.encoder, tangent=True, base=base).deltas
            for name, vector in self.vectors.items()
        }
        tables = {
            name: self._language.move(moving_table(vector, self.encoder, base))
            for name, vector in self.vectors.items()
        }
        self._tables = {name: table for name, table in tables.items() if table is not None}
        known = dict(self.encoder.backbone.named_parameters())
        every = list(dict.fromkeys(key for deltas in moved.values() for key in deltas))
        if self._language.tied in every and not self._tables:
            every.remove(self._language.tied)
        if not every:
            raise UsageError(
                f"nothing that trains is moved by {listed(self.vectors)}: give vectors of this model."
            )
        self._theta0 = {key: known[key] for key in every}
        self._taus = [
            {
                key: deltas[key].to(known[key]) if key in deltas else torch.zeros_like(known[key])
                for key in every
            }
            for deltas in moved.values()
        ]

    @checked
    def text(self, prompt: str | Sequence[Mapping[str, str]]) -> "Text":
        """A text that goes on after a prompt, or answers messages; its logits are asked for, and tokens are added.

        Raises:
            UsageError: the prompt has no token, or more than the model has positions for.
        """
        fixed, ids = self._language.begun(prompt)
        if not len(ids):
            raise UsageError("the prompt has no token: write some text, or the model's own beginning.")
        most, read = (
            positions(self.encoder.backbone),
            max(len(ids), *(one.shape[1] for one in fixed.values()), 0),
        )
        if most is not None and read > most:
            raise UsageError(f"the prompt has {read} tokens, and the model positions for {most}: shorten it.")
        return Text(self, fixed, ids)

    @checked
    def generate(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        coefficients: Mix | Callable[[int], Mix],
        *,
        tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """The text that follows a prompt, up to the model's end token.

        Args:
            prompt: the beginning; or a list of messages with role and content, which the chat template makes one of.
            coefficients: a_t by name, those that are not named 0; or a function of how many tokens were made.
            tokens: at most so many.
            temperature: 0 takes the largest logit; else tokens are drawn from softmax(logits / temperature).
            seed: of the draws.

        Raises:
            UsageError: an empty prompt, one that leaves no room, an unknown vector, or a negative temperature.
            NonFiniteError: the logits are NaN or infinite.

        Cost:
            A pass over the prompt with T tangents, then one token's pass for each token.
        """
        if tokens < 1:
            raise UsageError(f"tokens={tokens}: ask for at least 1.")
        if not 0 <= temperature < math.inf:
            raise UsageError(
                f"temperature={temperature}: a finite number, at least 0, which takes the likeliest token."
            )
        text, draw = self.text(prompt), torch.Generator().manual_seed(seed % 2**63)
        most, made = positions(self.encoder.backbone), []
        end = self._language.inputs.tokenizer.eos_token_id
        if most is not None and len(text.ids) + tokens > most:
            raise UsageError(
                f"the prompt has {len(text.ids)} tokens, and with {tokens} more it is longer than the model's {most}: "
                "shorten "
                "it, or ask for fewer."
            )
        for place in range(tokens):
            mix = coefficients(place) if callable(coefficients) else coefficients
            logits = text.logits(mix).double().cpu()
            if temperature:
                shares = ((logits - logits.max()) / temperature).softmax(-1)
                chosen = int(torch.multinomial(shares, 1, generator=draw))
            else:
                chosen = int(logits.argmax())
            if chosen == end:
                break
            made.append(chosen)
            if place + 1 < tokens:
                text.append(chosen)
        return self._language.said(made)

    @property
    def table(self) -> Any:
        """What makes logits of states."""
        return self._language.table

    def started(self, fixed: Mapping[str, Tensor]) -> CachedTangents:
        """An empty text's cache, with what stays fixed while it is written."""
        return CachedTangents(self.encoder.backbone, self._theta0, self._taus, way().check != "off", fixed)

    def logits(self, state: Tensor, tangents: Tensor, coefficients: Mix) -> Tensor:
        """W (h + sum_t a_t dh_t) + b + sum_t a_t (dW_t h + db_t), shape (V,)."""
        if not isinstance(coefficients, Mapping):
            raise UsageError(
                f"coefficients are {coefficients!r}, and numbers by name are wanted: {{name: number}}."
            )
        require_numbers(coefficients)
        for name in coefficients:
            if name not in self.vectors:
                raise UsageError(f"coefficients name no vector {name!r}. {nearest(name, list(self.vectors))}")
        mixed = state.clone()
        for name, tangent in zip(self.vectors, tangents, strict=True):
            mixed += coefficients.get(name, 0.0) * tangent
        table = self._language.table
        found = F.linear(mixed, table.weight.to(mixed), None if table.bias is None else table.bias.to(mixed))
        one = state if table.bias is None else torch.cat([state, state.new_ones(1)])
        for name, move in self._tables.items():
            if coefficients.get(name):
                found += coefficients[name] * (move.to(one) @ one)
        if not bool(found.isfinite().all()):
            raise NonFiniteError(
                f"the logits at {dict(coefficients)} hold NaN or infinity: take smaller coefficients, or check the "
                "weights (`tauspan doctor MODEL --values`)."
            )
        return found


class Text:
    """A text that is read token by token.

    Args:
        decoder: whose text.
        fixed: what the model reads besides the text: the source of a sequence-to-sequence model.
        ids: its first tokens.
    """

    def __init__(self, decoder: Decoder, fixed: Mapping[str, Tensor], ids: Tensor) -> None:
        self._decoder, self._cache = decoder, decoder.started(fixed)
        self.ids: list[int] = ids.tolist()
        self._last = self._cache.read(ids)

    def logits(self, coefficients: Mix) -> Tensor:
        """The logits of the next token at any coefficients, shape (V,); nothing is read again."""
        return self._decoder.logits(*self._last, coefficients)

    @checked
    def append(self, token: int) -> None:
        """Read one more token.

        Raises:
            UsageError: no token of the model, or more than it has positions for.
        """
        words, most = len(self._decoder.table.weight), positions(self._decoder.encoder.backbone)
        if not 0 <= token < words:
            raise UsageError(f"the token {token} is none of the model's, 0 to {words - 1}.")
        if most is not None and len(self.ids) >= most:
            raise UsageError(f"the text has {len(self.ids)} tokens, and the model positions for {most}.")
        self.ids.append(token)
        self._last = self._cache.read(torch.tensor([token]))

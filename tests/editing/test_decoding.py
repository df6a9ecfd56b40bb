"""Tangent decoding with a cache of keys, values and their tangents against passes over whole texts, in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tauspan as ts
from helpers import languages
from helpers.searches import random_vector
from tauspan.core.errors import BaseMismatchError, ModelError, UsageError
from tauspan.editing import Decoder
from tauspan.tangent import cached

PROMPT, MORE = "the cat sat", "on a mat"


@pytest.fixture(scope="module", params=[*languages.KINDS, "t5", "bart"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> ts.Encoder:
    folder = languages.write(tmp_path_factory.mktemp("decoding") / "model", request.param)
    return ts.load(folder, language=48).double()


def vectors(model: ts.Encoder, size: float = 0.3) -> dict[str, ts.TaskVector]:
    language = model.language
    assert language is not None
    found = {name: random_vector(model, seed, "linear") for seed, name in enumerate(("first", "second"))}
    return {
        name: ts.TaskVector(
            {key: size * delta for key, delta in tau.deltas.items() if not key.endswith(("embed_tokens.weight",
            "wte.weight", "shared.weight", "final_logits_bias"))}, tau.base, tau.regime, name,
        )
        for name, tau in found.items()
    }  # fmt: skip


def whole(model: ts.Encoder, taus: dict[str, ts.TaskVector], ids: list[int], mix: dict[str, float]) -> Tensor:
    """The next token's logits from a tangent pass over the whole text."""
    tangent = ts.linearize(model, list(next(iter(taus.values())).fitted(model, tangent=True).deltas))
    language = model.language
    assert language is not None
    batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    source, _ = language.begun(PROMPT)
    if source:  # which an encoder reads
        batch = {**source, "decoder_input_ids": torch.tensor([ids])}
    with torch.no_grad():
        value, moved = tangent.parts(batch, vectors=list(taus.values()))
    states = value + sum(mix.get(name, 0.0) * one for name, one in zip(taus, moved, strict=True))
    last = states.view(language.table.length, -1)[len(ids) - 1]
    found = language.table.weight.double() @ last
    return found if language.table.bias is None else found + language.table.bias


def test_each_token_is_that_of_the_whole_text(model: ts.Encoder) -> None:
    taus = vectors(model)
    text = Decoder(model, taus).text(PROMPT)
    for place, token in enumerate(MORE.encode()):
        mix = {"first": 0.5 + place, "second": -0.25 * place}  # other coefficients for each token
        wanted = whole(model, taus, text.ids, mix)
        torch.testing.assert_close(
            text.logits(mix), wanted, rtol=1e-10, atol=1e-10 * float(wanted.abs().max())
        )
        text.append(token)


def test_greedy_text_is_that_of_whole_texts_and_draws_follow_the_seed(model: ts.Encoder) -> None:
    taus, mix = vectors(model), {"first": 1.0, "second": 0.5}
    decoder = Decoder(model, taus)
    made = decoder.text(PROMPT)
    ids, wanted = list(made.ids), []
    for _ in range(6):
        wanted.append(int(whole(model, taus, ids, mix).argmax()))
        ids.append(wanted[-1])
    language = model.language
    assert language is not None
    words = language.inputs.tokenizer
    cut = wanted.index(words.eos_token_id) if words.eos_token_id in wanted else len(wanted)
    assert decoder.generate(PROMPT, mix, tokens=6) == language.said(wanted[:cut])
    drawn = [decoder.generate(PROMPT, mix, tokens=6, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert decoder.generate(PROMPT, lambda n: mix, tokens=6) == decoder.generate(PROMPT, mix, tokens=6)


def test_what_cannot_be_decoded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = languages.write(tmp_path / "model", "llama tied")
    model = ts.load(folder, language=48).double()
    taus = vectors(model)
    decoder = Decoder(model, taus)
    other = ts.TaskVector(dict(taus["first"].deltas), "0" * 64, "linear", "other")
    cases: list[tuple[Any, str, Any]] = [
        (UsageError, "language=L", lambda: Decoder(ts.load(folder).double(), taus)),
        (UsageError, "at least one vector", lambda: Decoder(model, {})),
        (BaseMismatchError, "base", lambda: Decoder(model, {"other": other})),
        (UsageError, "no token", lambda: decoder.generate("", {})),
        (UsageError, "longer than the model's 64", lambda: decoder.generate("x" * 40, {}, tokens=30)),
        (UsageError, "no vector 'frist'", lambda: decoder.generate("a", {"frist": 1.0}, tokens=2)),
        (UsageError, "finite number", lambda: decoder.generate("a", {"first": float("nan")}, tokens=2)),
        (UsageError, "numbers by name", lambda: decoder.generate("a", lambda n: None, tokens=2)),  # type: ignore[arg-type, return-value]
        (UsageError, "none of the model's", lambda: decoder.text("a").append(9999)),
        (UsageError, "temperature=-1", lambda: decoder.generate("a", {}, tokens=2, temperature=-1.0)),
    ]
    for error, said, ask in cases:
        with pytest.raises(error, match=said):
            ask()
    right = cached.CachedTangents._pass

    def forgetful(self: Any, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """A cache that loses tangents of earlier tokens."""
        value, tangents = right(self, ids, cache)
        return value, tangents * 1.01 if cache is not None else tangents

    monkeypatch.setattr(cached.CachedTangents, "_pass", forgetful)
    with pytest.raises(ModelError, match="whole text"):
        decoder.generate("a cat", {}, tokens=3)

"""A head for encoders without one: losses by hand, vectors that fit those of labels, and what is refused."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tauspan as ts
from helpers import languages
from tauspan.core.errors import ModelError, UsageError
from tauspan.models import fingerprint_of
from tauspan.objectives.passages import Cloze
from tauspan.tasks import SPLITS, Task

LENGTH = 32
TEXTS = [f"{name} likes {thing} and rain" for name in ("Ann", "Bob") for thing in ("tea", "jam", "pi")]


def labelled(name: str, texts: list[str] = TEXTS, seed: int = 0) -> Task:
    labels = torch.randint(0, 2, (len(texts),), generator=torch.Generator().manual_seed(seed))
    labels[:2] = torch.tensor([0, 1])
    return Task.from_tensors(name, ["no", "yes"], **dict.fromkeys(SPLITS, (texts, labels)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT without its head, as most encoders are published."""
    home = tmp_path_factory.mktemp("headless")
    whole = languages.write(home / "whole", "bert")
    transformers.AutoModel.from_pretrained(whole).save_pretrained(home / "model")
    languages.tokenizer(ended=True, masks=True).save_pretrained(home / "model")
    return home / "model"


def plain_loss(encoder: ts.Encoder, model: ts.Encoder, text: str, texts: list[str]) -> Tensor:
    """-log p of the hidden bytes of one text, token by token, in the dtype of the encoder."""
    table = encoder.backbone.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    s = math.sqrt(sum(float((row * row).sum()) for row in table) / len(table))  # type: ignore[union-attr]
    counts = Counter(byte for other in texts for byte in encoder.inputs.tokenizer(other)["input_ids"][:-1])
    n, kinds, words = sum(counts.values()), len(counts), len(table)  # type: ignore[arg-type]
    batch, wanted = model.language.read([Cloze(text, 0.15, 0)], None)  # type: ignore[union-attr]
    states = encoder.backbone(**batch).last_hidden_state[0]
    losses = []
    for h, y in zip(states, wanted[0].tolist(), strict=True):
        if y == -100:
            continue
        logits = table @ h / s  # type: ignore[operator]
        if texts:
            logits = logits + torch.tensor(
                [math.log((counts[v] + kinds / words) / (n + kinds)) for v in range(words)],
                dtype=torch.float64,
            )
        losses.append(torch.logsumexp(logits, 0) - logits[y])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("seen", [[], TEXTS[:3]], ids=["no texts", "texts"])
def test_losses_by_hand(folder: Path, seen: list[str]) -> None:
    encoder = ts.load(folder).double()
    model = ts.with_token_head(encoder, LENGTH, seen)
    found = ts.evaluate(model, [labelled("t").as_texts()]).tasks[0]
    with torch.no_grad():
        wanted = sum(float(plain_loss(encoder, model, text, seen)) for text in TEXTS) / len(TEXTS)
    assert found.loss == pytest.approx(wanted, rel=1e-10)
    assert found.metric == "pseudo-perplexity"


@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_an_analogy_of_labels_and_hidden_tokens(folder: Path, regime: Any) -> None:
    encoder = ts.load(folder)
    model = ts.with_token_head(encoder, LENGTH)
    assert fingerprint_of(model) == fingerprint_of(encoder)
    here, there = labelled("here"), labelled("there", [text[::-1] for text in TEXTS])
    settings = ts.Settings(regime, lr=3e-3, epochs=2, batch_size=6)
    label = ts.finetune(encoder, here, settings).task_vector
    read, other = (ts.finetune(model, task.as_texts(), settings).task_vector for task in (here, there))
    before, after = (ts.evaluate(model, [here.as_texts()], *given).tasks[0].loss for given in ((), (read,)))
    assert after < before
    assert bool(read.deltas["embeddings.word_embeddings.weight"].any())  # inputs move, the head does not
    found = label + (other - read)
    assert found.label == "(here + (there - here))"
    assert ts.evaluate(encoder, [there], found).tasks[0].rows == len(TEXTS)
    assert ts.apply(encoder, found, regime="standard" if regime == "standard" else "linear") is not None


def test_an_edit_is_saved_without_the_head(folder: Path, tmp_path: Path) -> None:
    model = ts.with_token_head(ts.load(folder), LENGTH)
    settings = ts.Settings("standard", lr=3e-3, epochs=1)
    vector = ts.finetune(model, labelled("t").as_texts(), settings).task_vector
    ts.save(ts.apply(model, vector), tmp_path / "edited")
    again: Any = ts.load(tmp_path / "edited")
    text = again.encode(["a"])
    applied: Any = ts.apply(ts.load(folder), vector)
    assert torch.equal(again(text), applied(text))


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    encoder = ts.load(folder)
    model = ts.with_token_head(encoder, LENGTH)
    unmasked = tmp_path / "unmasked"
    transformers.AutoModel.from_pretrained(folder).save_pretrained(unmasked)
    languages.tokenizer().save_pretrained(unmasked)
    config = transformers.ElectraConfig(
        vocab_size=258, embedding_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, pad_token_id=256,
    )  # fmt: skip
    transformers.ElectraModel(config).save_pretrained(tmp_path / "narrow")
    languages.tokenizer(masks=True).save_pretrained(tmp_path / "narrow")
    decoder = ts.load(languages.write(tmp_path / "decoder", "gpt2"))
    cases: list[tuple[Any, str, Any]] = [
        (UsageError, "from 2 to 512 tokens", lambda: ts.with_token_head(encoder, 1)),
        (UsageError, "from 2 to 512 tokens", lambda: ts.with_token_head(encoder, 600)),
        (UsageError, "has its head", lambda: ts.with_token_head(model, LENGTH)),
        (UsageError, "reads tensors", lambda: ts.with_token_head(ts.load(torch.nn.Linear(2, 2)), LENGTH)),
        (UsageError, "language=32", lambda: ts.with_token_head(decoder, LENGTH)),
        (UsageError, "re-initialise the encoder first", lambda: ts.reinitialised(model)),
        (ModelError, "no mask token", lambda: ts.with_token_head(ts.load(unmasked), LENGTH)),
        (ModelError, "embeddings 8", lambda: ts.with_token_head(ts.load(tmp_path / "narrow"), LENGTH)),
    ]  # fmt: skip
    for error, said, ask in cases:
        with pytest.raises(error, match=said):
            ask()
    ts.with_token_head(ts.reinitialised(encoder), LENGTH)  # as the error says


@pytest.mark.parametrize("kind", ["llama", "llama tied", "bert", "t5"])
def test_a_random_language_model_has_a_random_table(tmp_path: Path, kind: str) -> None:
    encoder = ts.load(languages.write(tmp_path / "model", kind), language=LENGTH)
    fresh, again = ts.reinitialised(encoder, 1), ts.reinitialised(encoder, 1)
    assert encoder.language is not None
    assert fresh.language is not None
    assert again.language is not None
    table, old = fresh.language.table, encoder.language.table
    assert torch.equal(table.weight, again.language.table.weight)
    assert not torch.equal(table.weight, old.weight)
    if table.bias is not None:
        assert not table.bias.any()
    tied = fresh.language.tied
    if tied is not None:
        assert table.weight.data_ptr() == dict(fresh.backbone.named_parameters())[tied].data_ptr()
    else:
        assert float(table.weight.std()) == pytest.approx(0.02, rel=0.1)


def test_the_head_of_an_edited_encoder_is_that_of_the_pre_trained_one(folder: Path) -> None:
    encoder = ts.load(folder)
    reader, hidden = ts.with_token_head(encoder, LENGTH), labelled("t").as_texts()
    settings = ts.Settings("standard", params="all", lr=3e-2, epochs=4, batch_size=3)
    vector = ts.finetune(reader, hidden, settings).task_vector
    wanted = ts.evaluate(reader, [hidden], vector).tasks[0].value
    edited = ts.with_token_head(ts.apply(encoder, vector), LENGTH)
    assert edited.origin is not None
    for one in (edited, ts.apply(reader, vector)):
        assert ts.evaluate(one, [hidden]).tasks[0].value == pytest.approx(wanted, rel=1e-5)


def test_texts_are_made_of_texts_alone() -> None:
    talk = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 2
    chat = Task.from_tensors("talk", [], objective="chat", **dict.fromkeys(SPLITS, (talk, None)))
    with pytest.raises(UsageError, match="are conversations"):
        chat.as_texts()
    with pytest.raises(UsageError, match="take 'next-token' or 'masked-token'"):
        labelled("t").as_texts("preference")
    assert labelled("t").as_texts("next-token").objective.word == "next-token"

"""Masked language models: losses are transformers' own, what is hidden stays hidden, and edits stay such models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tauspan as ts
from helpers import languages
from tauspan.core.errors import DataError, ModelError, UsageError
from tauspan.models.masked import _drawn
from tauspan.objectives import MaskedToken, NextToken
from tauspan.objectives.passages import Cloze
from tauspan.tasks import SPLITS, Task

LENGTH = 32
TEXTS = [f"{name} likes {thing} and rain" for name in ("Ann", "Bob", "Eva") for thing in ("tea", "jam", "pi")]


def task(name: str = "t", texts: list[str] = TEXTS, objective: Any = "masked-token") -> Task:
    given: Any = (texts, None)
    return Task.from_tensors(name, [], objective=objective, **dict.fromkeys(SPLITS, given))


@pytest.fixture(scope="module", params=languages.MASKED)
def home(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return languages.write(tmp_path_factory.mktemp("masked") / "model", request.param)


def own_losses(
    folder: Path, encoder: ts.Encoder, texts: list[str], dtype: torch.dtype = torch.float32
) -> Tensor:
    """The mean loss of each text's hidden tokens as transformers computes it from labels; no weight is missing."""
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    model = model.to(dtype)
    assert not info["missing_keys"]
    assert encoder.language is not None
    found = []
    for text in texts:
        batch, labels = encoder.language.read([Cloze(text, 0.15, 0)], None)
        plain = encoder.language.inputs.tokenizer(text)["input_ids"]
        hidden = labels[0] != -100
        assert labels[0, hidden].tolist() == torch.tensor(plain)[hidden].tolist()
        assert batch["input_ids"][0].tolist() == torch.tensor(plain).masked_fill(hidden, 257).tolist()
        with torch.no_grad():
            said = model.eval()(**batch, labels=labels)
            losses = torch.nn.functional.cross_entropy(said.logits[0, hidden].double(), labels[0, hidden])
            assert float(said.loss) == pytest.approx(float(losses), rel=1e-5)
            found.append(losses)
    return torch.stack(found)


def test_losses_are_those_of_transformers(home: Path) -> None:
    """In float64, by cross-entropy of the library's logits at the hidden tokens."""
    encoder = ts.load(home, language=LENGTH).double()
    found = ts.evaluate(encoder, [task()]).tasks[0]
    wanted = own_losses(home, encoder, TEXTS, torch.float64).mean()
    assert found.loss == pytest.approx(float(wanted), rel=1e-10)
    assert found.metric == "pseudo-perplexity"


@pytest.mark.thinned(3)
@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_training_lowers_the_loss_and_the_edit_is_such_a_model(
    home: Path, regime: Any, tmp_path: Path
) -> None:
    encoder, of = ts.load(home, language=LENGTH), task()
    before = ts.evaluate(encoder, [of]).tasks[0]
    vector = ts.finetune(encoder, of, ts.Settings(regime, lr=3e-3, epochs=3, batch_size=4)).task_vector
    after = ts.evaluate(encoder, [of], vector).tasks[0]
    assert after.value < before.value
    assert encoder.language is not None
    assert not {*encoder.language.names} & vector.deltas.keys()
    assert any("transform" in name or "lm_head.dense" in name for name in vector.deltas)
    ts.save(ts.apply(encoder, vector), tmp_path / "edited")
    again = ts.evaluate(ts.load(tmp_path / "edited", language=LENGTH), [of])  # type: ignore[call-overload]
    assert again.tasks[0].loss == pytest.approx(after.loss, rel=1e-6)
    if regime == "standard":
        assert after.loss == pytest.approx(
            float(own_losses(tmp_path / "edited", encoder, TEXTS).mean()), rel=1e-5
        )
        return
    solved = ts.coefficients(encoder, {of: vector})
    assert solved.certificate is not None
    assert solved.certificate <= 1e-8


def test_what_is_hidden_depends_on_seed_and_text_alone() -> None:
    row = Cloze("some text", 0.15, 0)
    assert _drawn(row, 40) == _drawn(row, 40)
    assert _drawn(row, 40) != _drawn(Cloze("some text", 0.15, 1), 40)
    assert _drawn(row, 40) != _drawn(Cloze("other text", 0.15, 0), 40)
    assert set(_drawn(row, 30)) >= {place for place in _drawn(row, 40) if place < 30}  # where a text is cut
    for count in (2, 3, 200):
        for seed in range(50):
            drawn = _drawn(Cloze("t", 0.15, seed), count)
            assert 1 <= len(drawn) < count
    shares = [len(_drawn(Cloze(f"text {n}", 0.15, 0), 200)) / 200 for n in range(100)]
    assert sum(shares) / 100 == pytest.approx(0.15, abs=0.01)
    assert len(_drawn(Cloze("t", 0.999, 0), 50)) == 49


def test_what_cannot_be_said_of_a_masked_model_is_told(tmp_path: Path) -> None:
    folder = languages.write(tmp_path / "model", "bert")
    encoder = ts.load(folder, language=LENGTH)
    language = encoder.language
    assert language is not None
    decoder = ts.load(languages.write(tmp_path / "decoder", "gpt2"), language=LENGTH)
    headless = tmp_path / "headless"
    transformers.AutoModel.from_pretrained(folder).save_pretrained(headless)
    languages.tokenizer(masks=True).save_pretrained(headless)
    unmasked = languages.write(tmp_path / "unmasked", "bert")
    languages.tokenizer().save_pretrained(unmasked)
    prompted: Any = (["ab"] * 3, [1, 0, 0])
    cases: list[tuple[Any, str, Any]] = [
        (DataError, "1 token, and one is hidden", lambda: ts.evaluate(encoder, [task("t", ["a", "bc"])])),
        (UsageError, "next-token tasks are not", lambda: ts.evaluate(encoder, [task(objective="next-token")])),
        (UsageError, "masked-token tasks are not for a causal", lambda: ts.evaluate(decoder, [task()])),
        (UsageError, "share=1.5", lambda: MaskedToken(share=1.5)),
        (UsageError, "language=L", lambda: ts.evaluate(ts.load(folder), [task()])),
        (DataError, "no prompts", lambda: Task.from_tensors("t", [], objective="masked-token", train=prompted)),
        (ModelError, "saved with its head", lambda: ts.load(headless, language=LENGTH)),
        (ModelError, "no mask token", lambda: ts.load(unmasked, language=LENGTH)),
        (UsageError, "does not write texts", lambda: language.begun("a")),
        (UsageError, "causal language model", lambda: language.head(["a", "b"])),
    ]  # fmt: skip
    for error, said, ask in cases:
        with pytest.raises(error, match=said):
            ask()


def test_a_directory_keeps_the_objective(tmp_path: Path) -> None:
    again = Task.from_directory(task().to_directory(tmp_path / "dir"))
    assert again.objective == MaskedToken()
    assert again.checksum() == task().checksum()
    assert json.loads((tmp_path / "dir" / "card.json").read_text())["objective"] == "masked-token"
    assert MaskedToken() != NextToken()
    other = task(objective="masked-token(share=0.3, seed=3)")
    assert Task.from_directory(other.to_directory(tmp_path / "other")).objective == MaskedToken(
        share=0.3, seed=3
    )
    assert other.checksum() != task().checksum()


def test_special_tokens_are_never_hidden(tmp_path: Path) -> None:
    folder = languages.write(tmp_path / "model", "bert")
    languages.tokenizer(ended=True, masks=True).save_pretrained(folder)
    language = ts.load(folder, language=LENGTH).language
    assert language is not None
    batch, wanted = language.read([Cloze("abc", 0.9, seed) for seed in range(20)], None)
    assert batch["input_ids"][:, 3].tolist() == [256] * 20
    assert (wanted[:, 3] == -100).all()
    assert ((wanted != -100).sum(1) == 2).all()

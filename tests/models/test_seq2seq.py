"""Sequence-to-sequence models: perplexities are transformers' own, and edits stay such models."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import tauspan as ts
from helpers import languages
from tauspan.core.errors import DataError, ModelError, UsageError
from tauspan.merge import merge_files
from tauspan.tasks import SPLITS, Task

LENGTH = 16
ROWS = [("say: cats", " sit"), ("turn it: é", " we sing"), ("a", " bird flew over and far away")]


def task(name: str, seed: int = 0) -> Task:
    rows = [(f"{n}+{seed}=", f"{n + seed}.") for n in range(8)]
    given: Any = ([a + b for a, b in rows], [len(a) for a, _ in rows])
    return Task.from_tensors(name, [], objective="next-token", train=given, validation=given, test=given)


@pytest.fixture(scope="module", params=languages.SEQ2SEQ)
def home(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return languages.write(tmp_path_factory.mktemp("seq2seq") / "model", request.param)


def own_losses(folder: Path, rows: list[tuple[str, str]]) -> Tensor:
    """The mean loss of each target as transformers computes it from labels; no weight is missing."""
    model, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    words = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for source, target in rows:
        made = words(source, text_target=target, return_tensors="pt", truncation=True, max_length=LENGTH)
        with torch.no_grad():
            found.append(model.eval()(
                input_ids=made["input_ids"], attention_mask=made["attention_mask"], labels=made["labels"]
            ).loss.double())  # fmt: skip
    return torch.stack(found)


def test_perplexities_are_those_of_transformers(home: Path) -> None:
    encoder = ts.load(home, language=LENGTH)
    given: Any = ([a + b for a, b in ROWS], [len(a) for a, _ in ROWS])
    of = Task.from_tensors("t", [], objective="next-token", train=given, validation=given, test=given)
    found = ts.evaluate(encoder, [of]).tasks[0]
    assert found.loss == pytest.approx(float(own_losses(home, ROWS).mean()), rel=1e-5)
    assert found.metric == "perplexity"


def rows_of(of: Task) -> list[tuple[str, str]]:
    split = of.split("train")
    return [(text[:n], text[n:]) for text, n in zip(split.inputs, split.labels.tolist(), strict=True)]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_training_lowers_perplexity_and_the_edit_is_such_a_model(
    home: Path, regime: Any, tmp_path: Path
) -> None:
    encoder, of = ts.load(home, language=LENGTH), task("t")
    before = ts.evaluate(encoder, [of], split="train").tasks[0]
    vector = ts.finetune(encoder, of, ts.Settings(regime, lr=3e-3, epochs=3, batch_size=4)).task_vector
    after = ts.evaluate(encoder, [of], vector, split="train").tasks[0]
    assert after.value < before.value
    assert any("decoder" in name for name in vector.deltas)
    assert any("encoder" in name for name in vector.deltas)
    assert encoder.language is not None
    assert not {*encoder.language.names} & vector.deltas.keys()
    ts.save(ts.apply(encoder, vector), tmp_path / "edited")
    again = ts.evaluate(ts.load(tmp_path / "edited", language=LENGTH), [of], split="train")  # type: ignore[call-overload]
    assert again.tasks[0].loss == pytest.approx(after.loss, rel=1e-6)
    if regime == "linear":
        return
    own = own_losses(tmp_path / "edited", rows_of(of))
    assert after.loss == pytest.approx(float(own.mean()), rel=1e-5)
    models = [{"model": str(tmp_path / "edited")}] * 2
    merge_files({
        "method": "task_arithmetic", "base_model": str(home), "models": models, "parameters": {"scale": 0.5},
    }, tmp_path / "merged")  # fmt: skip
    torch.testing.assert_close(own_losses(tmp_path / "merged", rows_of(of)), own, rtol=1e-5, atol=1e-6)


@pytest.mark.thinned(3)
def test_every_mix_comes_of_one_pass_with_a_certificate(home: Path) -> None:
    encoder, tasks = ts.load(home, language=LENGTH), [task("first"), task("second", 3)]
    settings = ts.Settings("linear", lr=3e-3, epochs=2, batch_size=4)
    editor = ts.Editor(encoder, {of: ts.finetune(encoder, of, settings).task_vector for of in tasks})
    solved = editor.coefficients()
    assert solved.certificate is not None
    assert solved.certificate <= 1e-8
    assert "perplexity" in str(editor.add())
    negated = editor.negate("first").negated
    assert negated.target >= editor.negate("first").pretrained.target


def test_what_is_no_source_and_target_is_told(tmp_path: Path) -> None:
    encoder = ts.load(languages.write(tmp_path / "model", "bart"), language=LENGTH)
    plain = Task.from_tensors("t", [], objective="next-token", **dict.fromkeys(SPLITS, (["ab", "cd"], None)))
    with pytest.raises(DataError, match="no source"):
        ts.evaluate(encoder, [plain])
    with pytest.raises(UsageError, match="positions for 64"):
        ts.load(tmp_path / "model", language=65)
    assert encoder.language is not None
    with pytest.raises(UsageError, match="causal language model"):
        encoder.language.head(["a", "b"])
    config = tmp_path / "model" / "config.json"
    config.write_text(
        config.read_text().replace('"decoder_start_token_id": 256', '"decoder_start_token_id": null')
    )
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        ts.load(tmp_path / "model", language=LENGTH)

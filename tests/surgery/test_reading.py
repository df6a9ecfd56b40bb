"""How two models read the same texts, against transformers."""

import json
import math
from pathlib import Path

import pytest
import torch
import transformers

import tauspan as ts
from helpers import vocabularies as made
from tauspan.cli.main import main
from tauspan.core.errors import DataError, UsageError
from tauspan.models.extras import quiet
from tauspan.surgery import Filling, compare, graft


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with its grafts, and an encoder."""
    folder = tmp_path_factory.mktemp("reading")
    with quiet(transformers):
        made.gpt(folder / "old", made.byte_level(300))
        made.bert(folder / "encoder", made.word_pieces(60), padding=4)
    made.save(folder / "tokenizer", made.byte_level(330))
    graft(folder / "old", folder / "tokenizer", folder / "new", Filling(how="mean"))
    graft(folder / "old", folder / "old", folder / "same", Filling(how="mean"))
    return folder


def written_out(folder: Path, texts: list[str]) -> tuple[float, int]:
    """exp(-log p / words) by transformers, one text at a time, and the number of tokens that were predicted."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    words, total, count = transformers.AutoTokenizer.from_pretrained(folder), 0.0, 0
    for text in texts:
        ids = torch.tensor([words(text)["input_ids"]])
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
        total -= float(log_p.gather(-1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    return math.exp(total / sum(len(text.split()) for text in texts)), count


def test_perplexity_a_word_is_that_of_transformers(place: Path) -> None:
    found = compare(place / "old", place / "new", made.TEXTS, batch_size=3)
    assert found.perplexity is not None
    for side, value, tokens in zip(("old", "new"), found.perplexity, found.tokens, strict=True):
        wanted, count = written_out(place / side, list(made.TEXTS))
        assert value == pytest.approx(wanted, rel=1e-5)
        assert tokens == count + len(made.TEXTS)  # the first of each text is not predicted
    assert found.ratio == pytest.approx(found.perplexity[1] / found.perplexity[0])
    assert "times as much" in found.verdict
    assert found.interval[0] < found.ratio < found.interval[1]
    same = compare(place / "old", place / "same", made.TEXTS)
    assert (same.ratio, same.interval) == (1.0, (1.0, 1.0))


def test_the_interval_is_that_of_resampled_texts(place: Path) -> None:
    found, log_p, words = compare(place / "old", place / "new", made.TEXTS), [], []
    for text in made.TEXTS:
        one = compare(place / "old", place / "new", [text])
        assert one.ratio is not None
        assert one.interval == pytest.approx((one.ratio, one.ratio))
        words.append(len(text.split()))
        log_p.append(math.log(one.ratio) * words[-1])
    random = torch.Generator().manual_seed(1)
    drawn = torch.randint(len(words), (20_000, len(words)), generator=random)
    ratios = (torch.tensor(log_p)[drawn].sum(1) / torch.tensor(words)[drawn].sum(1)).exp()
    for mine, level in zip(found.interval, (0.025, 0.975), strict=True):
        assert mine == pytest.approx(float(ratios.quantile(level)), rel=0.02)


def test_encoders_are_compared_by_features(place: Path) -> None:
    found = compare(place / "encoder", place / "encoder", made.TEXTS)
    assert found.cosine == pytest.approx(1.0)
    assert found.perplexity is found.ratio is None
    assert "mean cosine of 1.000 [1.000, 1.000]" in found.verdict


def test_long_texts_are_left_out_and_what_cannot_be_compared_is_refused(place: Path) -> None:
    texts = ["a b", "word " * 200]
    assert compare(place / "old", place / "new", texts, max_tokens=50).texts == 1
    with pytest.raises(
        UsageError, match="positions for 32 tokens"
    ):  # a table of positions, which must not be passed
        ts.load(place / "old", language=64)
    with pytest.raises(DataError, match="larger max_tokens"):
        compare(place / "old", place / "new", texts[1:], max_tokens=50)
    with pytest.raises(DataError, match=r"there is no text to compare .*old and .*new on: give at least one"):
        compare(place / "old", place / "new", [])
    with pytest.raises(UsageError, match="does not: compare models of one kind"):
        compare(place / "old", place / "encoder", texts)


def test_the_program_shows_the_verdict(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(made.TEXTS))
    words = [str(place / "old"), str(place / "new"), "--text", str(tmp_path / "texts.txt")]
    assert main(["vocabulary", "compare", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"].startswith("Perplexity for each word is")


def test_texts_that_an_encoder_would_cut_are_left_out(place: Path) -> None:
    encoder = ts.load(place / "encoder")
    limit = encoder.backbone.config.max_position_embeddings  # type: ignore[union-attr]
    short, long = made.TEXTS[0], " ".join(made.TEXTS * 40)
    assert len(encoder.inputs.tokenizer(long)["input_ids"]) > limit
    found = compare(place / "encoder", place / "encoder", [short, long], max_tokens=10 * limit)
    assert found.texts == 1
    assert found.tokens == (len(encoder.inputs.tokenizer(short, add_special_tokens=False)["input_ids"]),) * 2


def test_a_graft_and_a_comparison_count_the_same_tokens(place: Path, tmp_path: Path) -> None:
    for old, new in ((place / "old", place / "tokenizer"), (place / "encoder", tmp_path / "pieces")):
        if not new.exists():
            made.save(new, made.word_pieces(80))
        done = graft(old, new, tmp_path / f"of-{old.name}", Filling(how="mean"), texts=made.TEXTS)
        found = compare(old, done.out, made.TEXTS)
        assert done.kept is not None
        assert (done.kept.before, done.kept.after) == tuple(one / found.words for one in found.tokens)


def test_a_text_of_one_token_is_left_out_of_perplexity(place: Path) -> None:
    assert compare(place / "old", place / "new", [made.TEXTS[0], "a"]).texts == 1
    with pytest.raises(DataError, match="2 tokens or more"):
        compare(place / "old", place / "new", ["a"])
    for folder in ("old", "encoder"):
        with pytest.raises(UsageError, match="batch_size=0"):
            compare(place / folder, place / folder, made.TEXTS, batch_size=0)

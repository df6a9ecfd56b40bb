"""What a graft says that it keeps: copies, rows that are copied again, and rows without a token."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import vocabularies as made
from tauspan.models.extras import quiet
from tauspan.store import Checkpoint, read_json, write_json, write_tensors
from tauspan.surgery import Filling, graft, open_vocabulary, planned_graft

MEAN = Filling(how="mean")


def _bytes_and(*merges: tuple[str, str], first: bool) -> Any:
    """Every byte as a token, and some pairs, whose ids are the first ones or the last ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters, pairs = sorted(pre_tokenizers.ByteLevel.alphabet()), ["".join(pair) for pair in merges]
    names = [*pairs, *letters] if first else [*letters, *pairs]
    words = Tokenizer(models.BPE({name: place for place, name in enumerate(names)}, list(merges)))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return words


@pytest.mark.parametrize("first", [True, False])
def test_a_new_row_that_is_a_copied_one_again_is_no_copy_and_is_told(first: bool, tmp_path: Path) -> None:
    """`--` is cut into `-` and `-`, whose mean is `-`: a tie, which the smaller id wins."""
    import transformers

    with quiet(transformers):
        made.gpt(tmp_path / "old", _bytes_and(first=False), tied=False)
    made.save(tmp_path / "pairs", _bytes_and(("-", "-"), ("a", "b"), first=first))
    sides = [open_vocabulary(tmp_path / name) for name in ("old", "pairs")]
    tensors = Checkpoint(tmp_path / "old").read()
    tensors["lm_head.weight"][sides[0].ids["-"]] *= 9  # some states have it as their best token
    write_tensors(tmp_path / "old" / "model.safetensors", tensors, {"format": "pt"}, overwrite=True)
    done = graft(tmp_path / "old", tmp_path / "pairs", tmp_path / "out", MEAN)
    assert done.kept is not None
    assert (done.kept.copied, done.kept.doubled, done.kept.mixed, done.kept.lost) == (256, 1, 1, 0)
    assert (done.kept.ahead, done.kept.example) == (int(first), ("--", "-"))
    assert "but for ties: 1 other new tokens have the row of a copied one ('--' that of '-')" in done.verdict
    assert f"is theirs for {int(first)}." in done.verdict
    # every state whose best old token is copied takes that copy, but for the tie
    states = torch.randn(8, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tables = [Checkpoint(tmp_path / name)["lm_head.weight"].double() for name in ("old", "out")]
    best, now = ((table[:, :, None] * states).sum(1).argmax(0).tolist() for table in tables)
    other = {place for place in range(500) if sides[0].named[best[place]] != sides[1].named[now[place]]}
    dashes = {place for place in range(500) if sides[0].named[best[place]] == "-"}
    assert dashes
    assert other == (dashes if first else set())


def test_a_second_token_of_a_role_is_no_copy(tmp_path: Path) -> None:
    """An encoder's [SEP] gives its row to the end of a text of a tokenizer that has both."""
    import transformers

    with quiet(transformers):
        made.bert(tmp_path / "bert", made.word_pieces(60), padding=4)
    words = made.word_pieces(60)
    words.add_special_tokens(["<eos>"])
    made.save(tmp_path / "both", words)
    with planned_graft(tmp_path / "bert", tmp_path / "both", MEAN) as planned:
        kept = planned.kept
    assert (kept.copied, kept.doubled, kept.ahead, kept.example) == (60, 1, 0, ("<eos>", "[SEP]"))


def test_ids_far_sparser_than_tokens_are_told(tmp_path: Path) -> None:
    import transformers

    with quiet(transformers):
        made.gpt(tmp_path / "old", made.byte_level(300))
    content = read_json(tmp_path / "old" / "tokenizer.json")
    vocab = {token: 9 * number for token, number in content["model"]["vocab"].items()}
    added = [{**one, "id": 9 * one["id"]} for one in content["added_tokens"]]
    (tmp_path / "sparse").mkdir()
    sparse = {**content, "model": {**content["model"], "vocab": vocab}, "added_tokens": added}
    write_json(tmp_path / "sparse" / "tokenizer.json", sparse)
    done = graft(tmp_path / "old", tmp_path / "sparse", tmp_path / "out", MEAN)
    count, rows = len(vocab), 9 * (len(vocab) - 1) + 1
    told = f"has {count} tokens and ids up to {rows - 1}: the tables get {rows} rows, of which {rows - count} have no"
    assert any(told in note for note in done.warnings)
    with planned_graft(tmp_path / "old", tmp_path / "sparse", MEAN) as planned:
        assert any(told in note for note in planned.report().warnings)
    made.save(tmp_path / "new", made.byte_level(320))
    padded = Filling(how="mean", pad_to_multiple_of=1024)  # rows that were asked for
    with planned_graft(tmp_path / "old", tmp_path / "new", padded) as planned:
        assert not any("have no token" in note for note in planned.plan.warnings)

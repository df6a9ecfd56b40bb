"""Vocabularies of every kind as pieces, and what each way makes of two of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import vocabularies as made
from tauspan.core.errors import MismatchError, ModelError, UsageError
from tauspan.store import read_json, write_json
from tauspan.surgery import HOW, Filling, Pair, Vocabulary, open_vocabulary, row_map
from tauspan.surgery.options import HOWS
from tauspan.surgery.vocabularies import shared_tokens, words_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("vocabularies")
    return {
        "old": made.save(place / "old", made.word_pieces(60)),
        "new": made.save(place / "new", made.word_pieces(90)),
        "bytes": made.save(place / "bytes", made.byte_level(300)),
    }


@pytest.fixture(scope="module")
def pieces(folders: dict[str, Path]) -> dict[str, Vocabulary]:
    return {name: open_vocabulary(folder) for name, folder in folders.items()}


def pair(pieces: dict[str, Vocabulary], new: str = "new", **options: Any) -> Pair:
    table = torch.randn(len(pieces["old"].pieces), 6, generator=torch.Generator().manual_seed(1))
    return Pair(pieces["old"], pieces[new], Filling(**options), table, made.letters, made.TEXTS)


def test_kinds_of_tokenizers_spell_the_same_pieces(pieces: dict[str, Vocabulary]) -> None:
    assert pieces["old"].pieces[pieces["old"].ids["##o"]] == b"o"
    assert pieces["bytes"].pieces[pieces["bytes"].ids["o"]] == b"o"
    assert (
        pieces["bytes"].pieces[
            pieces["bytes"].ids["\u0120book" if "\u0120book" in pieces["bytes"].ids else "\u0120"]
        ][:1]
        == b" "
    )
    assert pieces["old"].pieces[pieces["old"].ids["[CLS]"]] is None
    assert pieces["old"].cut([b"o"]) == [[pieces["old"].ids["##o"]]]  # inside a word
    assert pieces["old"].cut([b"\xe2\x96", None]) == [[], []]
    assert pieces["bytes"].cut([b"\xe2\x96"]) == [
        [pieces["bytes"].known[b"\xe2"], pieces["bytes"].known[b"\x96"]]
    ]
    assert (words_of(b" film"), words_of(b"\xff"), words_of(b" ")) == ("film", None, None)


def test_sentencepiece_words_and_ends_of_words(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieced = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("\u2581film", -1.0), ("s", -2.0), ("<0x41>", -3.0)], 0)
    )
    pieced.pre_tokenizer = pre_tokenizers.Metaspace()
    words = open_vocabulary(made.save(tmp_path / "unigram", pieced))
    assert words.pieces[1:] == (b" film", b"s", b"A")
    assert words.cut([b" films", b"s"]) == [[1, 2], [2]]
    whole = Tokenizer(models.WordLevel({"[UNK]": 0, "film": 1}, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    assert open_vocabulary(made.save(tmp_path / "words", whole)).pieces[1] == b" film"
    ended = Tokenizer(models.BPE({"film</w>": 0, "fi": 1}, [], end_of_word_suffix="</w>"))
    assert open_vocabulary(made.save(tmp_path / "ended", ended)).pieces == (b"film ", b"fi")


def test_shared_tokens_are_the_same_pieces_and_roles(pieces: dict[str, Vocabulary]) -> None:
    same = shared_tokens(pieces["old"], pieces["new"])
    assert all(pieces["old"].pieces[old] == pieces["new"].pieces[new] for new, old in same.items())
    assert same[pieces["new"].ids["[MASK]"]] == pieces["old"].ids["[MASK]"]
    other = shared_tokens(pieces["old"], pieces["bytes"])  # <eos> of a decoder is [SEP] of an encoder
    assert other[pieces["bytes"].ids["<eos>"]] == pieces["old"].ids["[SEP]"]
    assert other[pieces["bytes"].ids["o"]] == pieces["old"].ids["##o"]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("new", ["new", "bytes"])
def test_every_way_makes_convex_rows_and_copies_what_is_shared(
    how: str, new: str, pieces: dict[str, Vocabulary]
) -> None:
    both = pair(pieces, new, how=how, epochs=1)
    rows = row_map(both)
    dense = rows.dense()
    assert dense.shape == (len(pieces[new].pieces), len(pieces["old"].pieces))
    assert bool((dense >= 0).all())
    torch.testing.assert_close(dense.sum(1), torch.ones(len(dense), dtype=torch.float64))
    assert all(int(rows.copies[number]) == old for number, old in both.copied.items())
    assert row_map(pair(pieces, new, how=how, epochs=1)).digest == rows.digest


@pytest.mark.parametrize("old", ["old", "bytes"])
def test_tokens_of_several_words_are_made_of_all_of_them(
    old: str, pieces: dict[str, Vocabulary], tmp_path: Path
) -> None:
    """Supertokens, as TokenAdapt has them: a tokenizer that merges over blanks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    wide = Tokenizer(models.BPE())
    wide.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    wide.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    wide.train_from_iterator(made.TEXTS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=letters))
    new, before = open_vocabulary(made.save(tmp_path / "wide", wide)), pieces[old]
    table = torch.randn(len(before.pieces), 6, generator=torch.Generator().manual_seed(1))
    both = Pair(before, new, Filling(how="hybrid"), table, made.letters)
    several = [number for number, piece in enumerate(new.pieces) if piece and b" " in piece.strip()]
    assert len(several) > 5
    rows = row_map(both).dense()
    for number in several:
        parts = both.parts[number]
        text = b"".join(before.pieces[part] or b"" for part in parts)
        assert text.strip() == (new.pieces[number] or b"").strip()
        assert len(set(parts)) > 1
        assert all(float(rows[number, part]) > 0 for part in parts)
        assert (
            int((rows[number] > 0).sum()) <= len(set(parts)) + both.filling.nearest
        )  # and not the mean of all


@pytest.mark.parametrize("how", HOWS)
def test_the_same_tokenizer_is_the_identity(how: str, pieces: dict[str, Vocabulary]) -> None:
    assert row_map(Pair(pieces["old"], pieces["old"], Filling(how=how), torch.zeros(64, 2))).is_identity


def test_formulas_by_hand(pieces: dict[str, Vocabulary]) -> None:
    old, new = pieces["old"], pieces["new"]
    mean, local, hybrid = (HOW[how].fill(pair(pieces, how=how)) for how in ("mean", "local", "hybrid"))
    far = HOW["global"].fill(pair(pieces, how="global"))
    number, parts = next((n, p) for n, p in pair(pieces).parts.items() if len(set(p)) > 1 and n in far)
    assert mean[number] == {one: pytest.approx(parts.count(one) / len(parts)) for one in parts}
    text = new.text(number) or ""
    own = torch.nn.functional.normalize(made.letters([text]), dim=1)
    theirs = torch.nn.functional.normalize(made.letters([old.text(one) or "" for one in parts]), dim=1)
    lengths = torch.tensor([len(old.text(one) or "") / len(text) for one in parts])
    weights = torch.softmax(((own @ theirs.T)[0] + lengths).double() / 2 / 0.3, 0)
    for one in set(parts):
        wanted = sum(float(w) for part, w in zip(parts, weights, strict=True) if part == one)
        assert local[number][one] == pytest.approx(wanted, rel=1e-5)
    assert len(far[number]) <= 3
    for one in {*local[number], *far[number]}:
        wanted = 0.7 * local[number].get(one, 0.0) + 0.3 * far[number].get(one, 0.0)
        assert hybrid[number][one] == pytest.approx(wanted, rel=1e-6)


def test_rows_are_learnt_towards_their_neighbours(pieces: dict[str, Vocabulary]) -> None:
    before, after = (HOW["cw2v"].fill(pair(pieces, how="cw2v", epochs=epochs, lr=0.1)) for epochs in (0, 30))
    assert before.keys() == after.keys()
    assert any(abs(before[n][one] - after[n][one]) > 0.05 for n in before for one in before[n])
    with torch.no_grad():
        assert HOW["cw2v"].fill(pair(pieces, how="cw2v", epochs=30, lr=0.1)) == after


def test_tables_may_be_padded(pieces: dict[str, Vocabulary]) -> None:
    both = pair(pieces, how="mean", pad_to_multiple_of=64)
    padded = Pair(both.old, both.new, both.filling, torch.cat([both.table, torch.zeros(4, 6)]))
    rows = row_map(padded)
    assert rows.rows % 64 == 0
    assert not bool(rows.dense()[:, -4:].any())  # no row is made of padding
    short = Pair(both.old, both.new, both.filling, both.table[:-1])
    with pytest.raises(MismatchError, match="the tokenizer is not the model's"):
        row_map(short)
    with pytest.raises(MismatchError, match="the tokenizer is not the model's"):  # with itself, too
        row_map(Pair(both.old, both.old, Filling(how="mean"), both.table[:-1]))


# -- what is refused, and its repair -------------------------------------------------------------------------------


def test_a_way_without_what_it_needs_is_refused(pieces: dict[str, Vocabulary]) -> None:
    bare = pair(pieces)
    for how in ("local", "global", "hybrid"):
        with pytest.raises(UsageError, match=r"gives no vector of a text.*--embed minilm"):
            row_map(Pair(bare.old, bare.new, Filling(how=how), bare.table))
    with pytest.raises(UsageError, match="learns rows from texts"):
        row_map(Pair(bare.old, bare.new, Filling(how="cw2v"), bare.table))
    with pytest.raises(UsageError, match="no text has two"):
        row_map(Pair(bare.old, bare.new, Filling(how="cw2v"), bare.table, texts=["a"]))
    assert row_map(
        Pair(bare.old, bare.new, Filling(how="mean"), bare.table)
    ).rows  # "or take a way that needs none"


def test_options_are_checked() -> None:
    assert tuple(HOW) == HOWS
    with pytest.raises(UsageError, match="Did you mean 'hybrid'"):
        Filling(how="hybird")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="temperature is 0, and must be"):
        Filling(temperature=0)


def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(made.SPECIAL) + "\nfilm\n")
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    with pytest.raises(ModelError, match=r"has no tokenizer\.json") as refused:
        open_vocabulary(tmp_path)
    repair = str(refused.value).partition("transformers: `")[2].partition("`)")[0]
    eval(repair, {"AutoTokenizer": AutoTokenizer, "BertTokenizer": BertTokenizer})
    assert open_vocabulary(tmp_path).ids["film"] == 5
    content = read_json(tmp_path / "tokenizer.json")
    write_json(tmp_path / "tokenizer.json", {**content, "model": {"type": "BPE"}})
    with pytest.raises(ModelError, match="holds no vocabulary of tokens"):
        open_vocabulary(tmp_path)
    write_json(tmp_path / "tokenizer.json", {**content, "pre_tokenizer": {"type": "Strange"}})
    with pytest.raises(ModelError, match="cannot be read by the library tokenizers"):
        open_vocabulary(tmp_path)

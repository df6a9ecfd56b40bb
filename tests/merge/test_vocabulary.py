"""Models with other vocabularies: rows by token, where defaults come from, and what is refused."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import tiny
from tauspan.core.errors import RecipeError, StoreError
from tauspan.merge import merge_files, parse_recipe
from tauspan.merge.sources.opening import open_source
from tauspan.merge.sources.vocabulary import Alignment, Donor, is_vocabulary, rows_of, vocabulary
from tauspan.merge.stream.opened import open_recipe
from tauspan.store import Checkpoint, write_json, write_tensors

EMB, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def rows(words: Sequence[str], offset: float, width: int = 3) -> Tensor:
    """A row that says which word and which model it is of."""
    return torch.tensor(
        [[offset + ord(word[0]) / 1000 + column for column in range(width)] for word in words]
    )


def model(
    folder: Path,
    words: Sequence[str],
    offset: float,
    more: Mapping[str, Tensor] | None = None,
    padding: int = 0,
    **config: Any,
) -> Path:
    table = torch.cat([rows(words, offset), torch.full((padding, 3), -1.0)])
    tensors = {EMB: table, HEAD: table + 100, "model.norm.weight": torch.full((3,), offset), **(more or {})}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", {"model_type": "llama", "vocab_size": len(table), **config})
    tokenizer(folder, words)
    return folder


def tokenizer(folder: Path, words: Sequence[str], special: Sequence[str] = ()) -> None:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None, "decoder": None,
        "added_tokens": [{"id": len(words) + n, "content": one, **flags} for n, one in enumerate(special)],
        "model": {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(words)}, "unk_token": words[0]},
    }  # fmt: skip
    write_json(folder / "tokenizer.json", content)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def merged(tmp_path: Path, **recipe: Any) -> Checkpoint:
    merge_files(recipe, tmp_path / "out")
    return Checkpoint(tmp_path / "out")


def expected(words: Sequence[str], offsets: Mapping[str, float]) -> Tensor:
    return torch.cat([rows([word], offsets[word]) for word in words])


def test_defaults_come_from_the_base_the_only_model_or_the_mean(tmp_path: Path) -> None:
    base = model(tmp_path / "base", "abc", 0.0)
    one, two = model(tmp_path / "one", "bdce", 1.0), model(tmp_path / "two", "ecfa", 2.0)
    out = merged(
        tmp_path, method="task_arithmetic", base_model=base, models=[one, two], tokenizer_source="union",
        parameters={"weight": 0.5},
    )  # fmt: skip
    # base + 0.5 (one - base) + 0.5 (two - base); a model without a word has the base's row, or the default
    words = "abcdef"
    offsets = {"a": 1.0, "b": 0.5, "c": 1.5, "d": 1.0, "f": 2.0}
    offsets["e"] = 1.5  # base gets the mean of one and two: 1.5 - 0.25 + 0.25
    torch.testing.assert_close(out[EMB], expected(words, offsets))
    torch.testing.assert_close(out[HEAD], expected(words, offsets) + 100)
    found = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    ids = {**found["model"]["vocab"], **{one["content"]: one["id"] for one in found["added_tokens"]}}
    assert ids == {word: number for number, word in enumerate(words)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 6


def test_without_a_base_the_mean_over_the_models_that_have_a_word_is_the_default(tmp_path: Path) -> None:
    one, two, three = (
        model(tmp_path / name, words, at)
        for name, words, at in (("1", "ab", 0.0), ("2", "bc", 3.0), ("3", "cb", 9.0))
    )
    out = merged(tmp_path, method="linear", models=[one, two, three], tokenizer_source=str(two))
    torch.testing.assert_close(out[EMB], expected("bc", {"b": 4.0, "c": (6.0 + 3.0 + 9.0) / 3}))


def test_a_displacement_is_zero_for_words_that_its_base_lacks(tmp_path: Path) -> None:
    base, tune = model(tmp_path / "base", "abc", 0.0), model(tmp_path / "tune", "cbad", 1.0)
    vector = tiny.vector(tiny.BASE, "standard", "v")
    from dataclasses import replace

    deltas = {EMB: torch.ones(3, 3), HEAD: torch.ones(3, 3), "model.norm.weight": torch.ones(3)}
    file = replace(vector, deltas=deltas).save_pretrained(tmp_path / "v.safetensors")
    out = merged(
        tmp_path, method="task_arithmetic", base_model=base, models=[tune, file], tokenizer_source=str(tune),
    )  # fmt: skip
    torch.testing.assert_close(out[EMB], expected("cbad", {"a": 2.0, "b": 2.0, "c": 2.0, "d": 1.0}))


def test_padding_rows_are_no_tokens_and_equal_vocabularies_keep_them(tmp_path: Path) -> None:
    base, tune = (
        model(tmp_path / "base", "abc", 0.0, padding=2),
        model(tmp_path / "tune", "abc", 1.0, padding=2),
    )
    recipe = {"method": "linear", "models": [base, tune], "tokenizer_source": "base"}
    assert merged(tmp_path, **recipe)[EMB].shape == (5, 3)  # nothing has to be aligned
    other = model(tmp_path / "other", "abc", 1.0, padding=5)
    merge_files({**recipe, "models": [base, other]}, tmp_path / "rows")
    assert Checkpoint(tmp_path / "rows")[EMB].shape == (3, 3)
    merge_files({**recipe, "models": [base, other], "pad_to_multiple_of": 8}, tmp_path / "pad")
    padded = Checkpoint(tmp_path / "pad")[EMB]
    assert padded.shape == (8, 3)
    torch.testing.assert_close(padded[3:], padded[:3].mean(0).expand(5, 3))


BERT = {
    "bert.embeddings.word_embeddings.weight": 3, "bert.embeddings.position_embeddings.weight": 3,
    "bert.encoder.layer.0.output.dense.weight": 3, "cls.predictions.bias": 3, "cls.predictions.decoder.weight": 3,
    "cls.predictions.transform.dense.weight": 2,
}  # fmt: skip


def test_heads_and_biases_over_words_go_with_them_and_nothing_else_does(tmp_path: Path) -> None:
    for name, words, offset in (("base", "abc", 0.0), ("tune", "cadb", 1.0)):
        count = len(words)
        tensors = {}
        for tensor, size in BERT.items():
            over = any(part in tensor for part in ("word_", "predictions.bias", "predictions.decoder"))
            value = (
                rows(words, offset, 1 if "bias" in tensor else 3) if over else torch.full((size, 3), offset)
            )
            tensors[tensor] = value.flatten() if "bias" in tensor else value
        tensors["final_logits_bias"] = rows(words, offset, 1).T.contiguous()
        write_tensors(tmp_path / name / "model.safetensors", tensors, {"format": "pt"})
        write_json(
            tmp_path / name / "config.json",
            {"model_type": "bert", "vocab_size": count, "tie_word_embeddings": False},
        )
        tokenizer(tmp_path / name, words)
    out = merged(
        tmp_path,
        method="linear",
        models=[tmp_path / "base", tmp_path / "tune"],
        tokenizer_source=str(tmp_path / "tune"),
    )
    offsets = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 1.0}
    torch.testing.assert_close(out["bert.embeddings.word_embeddings.weight"], expected("cadb", offsets))
    torch.testing.assert_close(out["cls.predictions.decoder.weight"], expected("cadb", offsets))
    torch.testing.assert_close(out["cls.predictions.bias"], expected("cadb", offsets)[:, 0])
    torch.testing.assert_close(out["final_logits_bias"], expected("cadb", offsets)[:, :1].T)
    for name in BERT:
        if not any(part in name for part in ("word_", "predictions.bias", "predictions.decoder")):
            torch.testing.assert_close(out[name], torch.full((BERT[name], 3), 0.5))


def test_words_that_were_added_are_special_in_the_union_as_well(tmp_path: Path) -> None:
    base, tune = model(tmp_path / "base", "abc", 0.0), model(tmp_path / "tune", "abc", 1.0, padding=1)
    tokenizer(tune, "abc", ["<|end|>"])
    merged(tmp_path, method="linear", models=[base, tune], tokenizer_source="union")
    (added,) = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["added_tokens"]
    assert (added["content"], added["id"], added["special"]) == ("<|end|>", 3, True)


@given(
    st.permutations("abcdefgh"), st.permutations("abcdefgh"), st.integers(1, 8), st.integers(0, 23), st.integers(0, 24),
    st.sets(st.sampled_from("abcdefgh"), max_size=3),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_part_of_an_aligned_tensor_is_that_part_of_the_whole(
    mine: list[str], theirs: list[str], count: int, start: int, length: int, forced: set[str]
) -> None:
    class Made:
        kind, label, path, aliases, identity = "point", "m", Path("m"), {}, {}

        def __init__(self, words: Sequence[str], offset: float) -> None:
            from tauspan.store import Stored

            self.table = rows(words, offset)
            self.tensors = {EMB: Stored(EMB, torch.float32, self.table.shape, Path("m"), 0, 0)}

        def read(self, _: str, first: int, stop: int) -> Tensor:
            return self.table.flatten()[first:stop]

        def close(self) -> None:
            pass

    own = [mine[:count], theirs]
    sources: Any = [Made(own[0], 0.0), Made(own[1], 5.0)]
    tokens = {word: number for number, word in enumerate(theirs)}
    known = [{word: n for n, word in enumerate(words)} for words in own]
    donors = {word: Donor(1, 0, force=True) for word in forced}
    aligned = Alignment(tokens, 8, lambda place, _: known[place], sources, True, donors).wrapped()
    stop = min(start + length, 24)
    for place, one in enumerate(aligned):
        whole = one.read(EMB, 0, 24)
        assert torch.equal(one.read(EMB, min(start, stop), stop), whole[min(start, stop) : stop])
        for word, number in tokens.items():
            row = whole.view(8, 3)[number]
            if word in forced:
                assert torch.equal(row, sources[1].table[0])
            elif word in known[place]:
                assert torch.equal(row, sources[place].table[known[place][word]])
            else:
                assert torch.equal(row, sources[1].table[known[1][word]])


def test_names_over_words() -> None:
    from tauspan.store import Stored

    def stored(name: str, *shape: int) -> Stored:
        return Stored(name, torch.float32, torch.Size(shape), Path("m"), 0, 0)

    words = [
        stored(EMB, 8, 2),
        stored("transformer.wte.weight", 8, 2),
        stored("shared.weight", 8, 2),
        stored(HEAD, 9, 2),
    ]
    assert all(is_vocabulary(one, 8) for one in words)
    others = [
        stored("model.layers.0.mlp.lm_head.weight", 8, 2), stored("embeddings.position_embeddings.weight", 8, 2),
        stored("decoder.layers.1.fc1.weight", 8, 2), stored("transformer.wpe.weight", 8, 2), stored(EMB, 7, 2),
    ]  # fmt: skip
    assert not any(is_vocabulary(one, 8) for one in others)
    assert not is_vocabulary(stored(EMB, 8, 2), None)


# the heads over tokens of transformers, with 8 tokens and width 4, or 8 where the layers before it look like tables
HEADS = {
    "roberta": (["lm_head.bias", "lm_head.decoder.weight", "lm_head.decoder.bias"], ["lm_head.dense.weight",
                "lm_head.dense.bias", "lm_head.layer_norm.weight", "lm_head.layer_norm.bias"]),
    "bert": (["cls.predictions.bias", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"],
             ["cls.predictions.transform.dense.weight", "cls.predictions.transform.LayerNorm.bias"]),
    "albert": (["predictions.bias", "predictions.decoder.weight", "predictions.decoder.bias"],
               ["predictions.dense.weight", "predictions.LayerNorm.weight"]),
    "modernbert": (["decoder.weight", "decoder.bias"], ["head.dense.weight", "head.norm.weight"]),
    "xlm": (["pred_layer.proj.weight", "pred_layer.proj.bias"], []),
    "electra": (["generator_lm_head.weight", "generator_lm_head.bias"], ["generator_predictions.dense.weight"]),
}  # fmt: skip


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("kind", HEADS)
def test_only_the_last_layer_of_a_head_is_over_words(kind: str, width: int) -> None:
    from tauspan.store import Stored

    def over(name: str, first: int) -> bool:
        shape = torch.Size([first] if name.endswith("bias") or "orm" in name else [first, width])
        return is_vocabulary(Stored(name, torch.float32, shape, Path("m"), 0, 0), 8)

    words, others = HEADS[kind]
    assert all(over(name, 8) for name in words)
    assert not any(over(name, width) for name in others)


def test_the_layers_before_a_head_are_merged_as_they_are(tmp_path: Path) -> None:
    more = {"lm_head.dense.weight": torch.eye(3), "lm_head.layer_norm.bias": torch.ones(3)}
    one, two = model(tmp_path / "one", "abc", 0.0, more), model(tmp_path / "two", "cbad", 1.0, more)
    out = merged(tmp_path, method="linear", models=[one, two], tokenizer_source="union")
    assert out[HEAD].shape == (4, 3)
    assert all(torch.equal(out[name], tensor) for name, tensor in more.items())


def adapter(folder: Path, words: Sequence[str], offset: float) -> Path:
    """An adapter whose words, tables and tokenizer are its own."""
    table = rows(words, offset)
    whole = {f"base_model.model.{name}": table + 100 * (name == HEAD) for name in (EMB, HEAD)}
    write_tensors(folder / "adapter_model.safetensors", whole, {"format": "pt"})
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": []}
    write_json(folder / "adapter_config.json", {**settings, "modules_to_save": ["embed_tokens", "lm_head"]})
    tokenizer(folder, words)
    return folder


def test_words_that_an_adapter_added_are_kept(tmp_path: Path) -> None:
    base, other = model(tmp_path / "base", "abc", 0.0), model(tmp_path / "other", "abcd", 2.0)
    grown = f"{base}+{adapter(tmp_path / 'grown', 'abcx', 1.0)}"
    out = merged(tmp_path, method="linear", models=[grown, other], tokenizer_source="union")
    assert torch.allclose(
        out[EMB], expected("abcxd", dict(zip("abcxd", (1.5, 1.5, 1.5, 1.0, 2.0), strict=True)))
    )
    words = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert [one["content"] for one in words["added_tokens"]] == ["d"]


@pytest.mark.parametrize("source", ["grown", "words"])
def test_a_tokenizer_may_come_from_an_adapter_or_a_folder_of_its_own(source: str, tmp_path: Path) -> None:
    base, grown = model(tmp_path / "base", "abc", 0.0), adapter(tmp_path / "grown", "abcx", 1.0)
    (tmp_path / "words").mkdir()
    tokenizer(tmp_path / "words", "abcx")
    told = {"method": "task_arithmetic", "base_model": base, "models": [f"{base}+{grown}"]}
    out = merged(tmp_path, **told, tokenizer_source=str(tmp_path / source))
    assert torch.allclose(out[EMB], rows("abcx", 1.0))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (grown / "tokenizer.json").read_bytes()


def test_a_line_of_words_ends_only_at_a_line_feed(tmp_path: Path) -> None:
    words = ["a", "b\x0b", "\x0c", "\u0085", "\u2028c", "d"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    assert vocabulary(tmp_path) == {word: number for number, word in enumerate(words)}


# -- what is told, and what is refused -----------------------------------------------------------------------------


def test_how_rows_were_aligned_is_told(tmp_path: Path) -> None:
    base, tune = model(tmp_path / "base", "abc", 0.0), model(tmp_path / "tune", "abcd", 1.0)
    recipe = {"method": "linear", "models": [base, tune], "tokenizer_source": "union"}
    report = merge_files(recipe, tmp_path / "out")
    assert list(report.warnings) == [
        "rows of embeddings are aligned by token with the union of all vocabularies: 4 tokens, 4 rows (before: 3, 4)."
    ]
    (base / "tokenizer.json").unlink()
    recipe["tokenizer_source"] = str(tune)
    report = merge_files(recipe, tmp_path / "again")
    assert f"{base} has no tokenizer: its rows are taken to mean" in report.warnings[0]


@pytest.mark.parametrize("allow", [[], ["vocabulary"]])
def test_without_a_tokenizer_source_nothing_is_aligned(allow: list[str], tmp_path: Path) -> None:
    base, tune = model(tmp_path / "base", "abc", 0.0), model(tmp_path / "tune", "abcd", 1.0)
    recipe = {"method": "task_arithmetic", "base_model": base, "models": [tune], "allow": allow}
    if not allow:
        with pytest.raises(Exception, match=r"has 4 rows .* and 3 .*`tokenizer_source`"):
            merge_files(recipe, tmp_path / "out")
        return
    out = merged(tmp_path, **recipe)  # the base's embeddings, and the rest merged
    assert torch.equal(out[EMB], Checkpoint(base)[EMB])
    assert out["model.norm.weight"].tolist() == [1.0] * 3


REFUSED = {
    "a tokenizer of other models": ({"tokenizer_source": "{0}/strange"}, "3 of the 4 tokens .* are in no model"),
    "a source without one": ({"tokenizer_source": "{0}/bare"}, "has no tokenizer beside it"),
    "a row of a model that is not merged": ({"tokens": {"a": {"source": "{0}/strange"}}}, "none of the models that"),
    "a row of a word that the model lacks": (
        {"tokens": {"d": "{0}/base"}, "tokenizer_source": "{0}/tune"}, "which has none for it",
    ),
    "a word that is no token": ({"tokens": {"a": {"source": "{0}/base", "token": "z"}}}, "has no token 'z'"),
    "two rows": ({"tokens": {"a": {"source": "{0}/base", "token": "b", "token_id": 1}}}, "give one of them"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_aligned_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    more, words = REFUSED[case]
    base, tune = model(tmp_path / "base", "abc", 0.0), model(tmp_path / "tune", "abcd", 1.0)
    model(tmp_path / "strange", "axyz", 0.0)
    (model(tmp_path / "bare", "abc", 0.0) / "tokenizer.json").unlink()
    placed = json.loads(json.dumps(more).replace("{0}", str(tmp_path)))
    with pytest.raises(RecipeError, match=words):
        merge_files({"method": "linear", "models": [base, tune], **placed}, tmp_path / "out")


def test_a_sentencepiece_model_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    base, tune = model(tmp_path / "base", "abc", 0.0), model(tmp_path / "tune", "abcd", 1.0)
    (tune / "tokenizer.json").unlink()
    (tune / "tokenizer.model").write_bytes(b"\0")
    recipe = {"method": "linear", "models": [base, tune], "tokenizer_source": "base"}
    with pytest.raises(RecipeError, match=r"AutoTokenizer.from_pretrained\(.*--allow tokenizer"):
        merge_files(recipe, tmp_path / "out")
    with pytest.raises(Exception, match="rows"):  # by ids, the numbers of rows have to agree
        merge_files({**recipe, "allow": ["tokenizer"]}, tmp_path / "out")
    merge_files({**recipe, "allow": ["tokenizer", "vocabulary"]}, tmp_path / "out")


def test_a_vocabulary_with_gaps_cannot_take_new_words(tmp_path: Path) -> None:
    base, tune = model(tmp_path / "base", "abc", 0.0, padding=3), model(tmp_path / "tune", "abcd", 1.0)
    content = json.loads((base / "tokenizer.json").read_text())
    content["model"]["vocab"]["c"] = 5
    (base / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match="the vocabulary has gaps"):
        merge_files(
            {"method": "linear", "models": [base, tune], "tokenizer_source": "union"}, tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_rows_of_the_embeddings_are_known_by_usual_names(tmp_path: Path) -> None:
    for name in (
        EMB,
        "transformer.wte.weight",
        "gpt_neox.embed_in.weight",
        "bert.embeddings.word_embeddings.weight",
    ):
        file = tmp_path / f"{name}.safetensors"
        write_tensors(file, {name: torch.ones(7, 2), "x.position_embeddings.weight": torch.ones(9, 2)})
        assert rows_of(open_source(file)) == 7


def test_a_model_without_embeddings_has_nothing_to_align(tmp_path: Path) -> None:
    for name in "ab":
        write_tensors(tmp_path / name / "model.safetensors", {"w": torch.ones(2)}, {"format": "pt"})
        tokenizer(tmp_path / name, "abc")
    recipe = parse_recipe(f"method: linear\nmodels: [{tmp_path}/a, {tmp_path}/b]\ntokenizer_source: union\n")
    opened = open_recipe(recipe)
    assert opened.words.alignment is None
    opened.close()

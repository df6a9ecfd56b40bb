"""Every shape of mergekit's files, its own examples among them: run, or refused by name.

`python -m benchmarks.merge_shapes --mergekit PYTHON` compares the results with mergekit's.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers
from benchmarks.merge_shapes import SHAPES, inside, run
from benchmarks.shape_models import CHAT, ROWS, make
from safetensors.torch import load_file

from tauspan.merge import parse_recipe, read_recipe
from tauspan.merge.recipe.reading import Series

EMBEDDING = "model.embed_tokens.weight"
NAMES = sorted(file.stem for file in SHAPES.glob("*.yml"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    make(folder)
    return folder


def text(name: str) -> str:
    return (SHAPES / f"{name}.yml").read_text()


def test_there_are_enough_of_them() -> None:
    assert sum(name.startswith("example_") for name in NAMES) == 6  # mergekit's own
    assert len(NAMES) >= 36


@pytest.mark.thinned(8)
@pytest.mark.parametrize("name", NAMES)
def test_a_shape_runs_or_is_refused_by_name(name: str, models: Path, tmp_path: Path) -> None:
    with inside(models):
        done = run(name, SHAPES / f"{name}.yml", tmp_path / "out")
    first = text(name).splitlines()[0]
    if first.startswith("# refused: "):
        assert done.out is None
        assert first.removeprefix("# refused: ") in done.refused
        assert f"{name}.yml" in done.refused
        return
    assert done.refused == ""
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    if "llama" in config["model_type"]:
        _, info = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert not info["mismatched_keys"]


@pytest.mark.thinned(4)
@pytest.mark.parametrize(
    "name", [name for name in NAMES if not name.startswith("refused") and name != "several"]
)
def test_a_card_of_a_shape_makes_it_again(name: str, models: Path) -> None:
    """The recipe that a shape stands for reads back as itself."""
    with inside(models):
        recipe = read_recipe(SHAPES / f"{name}.yml")
    assert parse_recipe(recipe.resolved().to_yaml()) == recipe.resolved()


WARNED = {
    "slerp_modelnorm": ["t[3]: the filter 'modelnorm' fits no tensor"],
    "unread_keys": [
        "does not read 'random_seed'", "does not read 'models.0.revision'", "write MODEL@REVISION",
        "dtype is a parameter of no method", "filter is a parameter of no method", "normalize is for all models",
        "does not read 'out_shard_size'", "does not read 'license'",
    ],
    "residual_weight": ["`residual_weight` and does nothing with it"],
    "embed_slerp": ["embed_slerp is a parameter of no method"],
    "filters_unreached": ["entry 1 fits every tensor", "does not read 'note' of an entry"],
    "example_bio": ["rope_theta is 1000000.0 and 10000.0"],
    "tokens_union": ["aligned by token with the union of all vocabularies: 66 tokens, 66 rows (before: 64, 66)"],
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
def test_what_is_left_out_is_told_in_the_report_and_the_card(name: str, models: Path, tmp_path: Path) -> None:
    with inside(models):
        done = run(name, SHAPES / f"{name}.yml", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for words in WARNED[name]:
        assert any(words in one for one in done.warned), (words, done.warned)
        assert words in card.replace("\\|", "|")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("tokens_base", 64),
        ("tokens_union", 66),
        ("tokens_model", 66),
        ("tokens_default", 72),
        ("tokens_shuffled", 64),
    ],
)
def test_the_vocabulary_is_the_tokenizers(name: str, rows: int, models: Path, tmp_path: Path) -> None:
    with inside(models):
        run(name, SHAPES / f"{name}.yml", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == rows == model.lm_head.weight.shape[0]
    assert len(tokenizer) == (66 if rows == 72 else rows)
    assert set(CHAT) <= set(tokenizer.get_vocab()) or rows == 64


def test_rows_of_the_same_word_are_merged_wherever_they_are(models: Path, tmp_path: Path) -> None:
    with inside(models):
        run("tokens_shuffled", SHAPES / "tokens_shuffled.yml", tmp_path / "out")
    merged, base, shuffled = (
        load_file(folder / "model.safetensors")[EMBEDDING]
        for folder in (tmp_path / "out", models / "base", models / "shuffled")
    )
    place = {(5 * number + 3) % ROWS: number for number in range(ROWS)}  # of a word in the shuffled model
    for word in range(ROWS):
        torch.testing.assert_close(merged[word], base[word] + 0.5 * (shuffled[place[word]] - base[word]))


def test_several_merges_run_in_the_order_in_which_they_need_each_other(models: Path, tmp_path: Path) -> None:
    with inside(models):
        run("several", SHAPES / "several.yml", tmp_path / "out")
    assert sorted(folder.name for folder in (tmp_path / "out.parts").iterdir()) == ["first", "second"]
    read = {
        name: load_file(folder / "model.safetensors")[EMBEDDING]
        for name, folder in {
            "a": models / "a", "b": models / "b", "base": models / "base",
            "first": tmp_path / "out.parts" / "first", "second": tmp_path / "out.parts" / "second",
            "out": tmp_path / "out",
        }.items()
    }  # fmt: skip
    torch.testing.assert_close(read["first"], (read["a"] + read["b"]) / 2)
    expected = (read["first"] + read["second"]) / 2
    torch.testing.assert_close(read["out"], expected)


def test_documents_are_read_in_any_order_with_their_lines(tmp_path: Path) -> None:
    parts = text("several").split("---\n")
    file = tmp_path / "m.yml"
    file.write_text("---\n".join([parts[2], parts[1], parts[0]]))
    assert list(Series.read(file).merges) == ["first", "second", None]
    file.write_text(text("several").replace("t: 0.25", "t: x"))
    line = text("several")[: text("several").index("t: 0.25")].count("\n") + 1
    with pytest.raises(Exception, match=rf"m\.yml, line {line}: t is 'x'"):
        Series.read(file)
    file.write_text(
        text("several").replace(
            "base_model: first\nmodels: [{model: first}", "base_model: second\nmodels: [{model: second}"
        )
    )
    Series.read(file)  # a merge's own name is a model of that name elsewhere
    file.write_text(parts[0].replace("model: b", "model: second") + "---\n" + parts[1])
    with pytest.raises(Exception, match="read each other in a circle"):
        Series.read(file)
    file.write_text(parts[0] + "---\n" + parts[0])
    with pytest.raises(Exception, match="two merges have the name 'first'"):
        Series.read(file)

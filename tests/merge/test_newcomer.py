"""What somebody who merges for the first time gets wrong: each mistake has its refusal, and the refusal its repair."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tauspan.cli.main import main
from tauspan.core.errors import MismatchError, RecipeError, StoreError, UsageError
from tauspan.merge import parse_recipe
from tauspan.merge.checks.checks import check, doctor
from tauspan.merge.engine.memory import merge
from tauspan.merge.engine.settings import depths
from tauspan.merge.lora.adapters import save_adapter
from tauspan.merge.lora.lowrank import LowRank, Term
from tauspan.merge.methods import METHODS
from tauspan.merge.recipe.recipe import Input, MergeRecipe
from tauspan.merge.sources.opening import open_source
from tauspan.merge.stream.card import Card
from tauspan.merge.stream.files import merge_files
from tauspan.merge.stream.reproduce import reproduce
from tauspan.store import Checkpoint, write_tensors
from tauspan.vector import TaskVector


def model(folder: Path, value: float, config: dict[str, Any] | None = None, **tensors: torch.Tensor) -> Path:
    """A directory with a model of one matrix whose entries are `value`."""
    folder.mkdir(parents=True)
    write_tensors(folder / "model.safetensors", {"h.0.w": torch.full((2, 3), value), **tensors})
    (folder / "config.json").write_text(json.dumps({"model_type": "x", **(config or {})}))
    return folder


@pytest.fixture
def three(tmp_path: Path) -> dict[str, str]:
    """A base and two models near it."""
    values = {"base": 1.0, "a": 1.25, "b": 1.5}
    return {name: str(model(tmp_path / name, value)) for name, value in values.items()}


def of(three: dict[str, str], **more: Any) -> dict[str, Any]:
    """A recipe as a mapping."""
    return {
        "method": "task_arithmetic",
        "base_model": three["base"],
        "models": [three["a"], three["b"]],
        **more,
    }


def made(three: dict[str, str], out: Path, overwrite: bool = False, **more: Any) -> Path:
    merge_files(of(three, **more), out, overwrite=overwrite)
    return out


# where a merge writes


@pytest.mark.parametrize("name", ["base", "a"])
def test_no_input_is_overwritten(three: dict[str, str], name: str) -> None:
    before = (Path(three[name]) / "model.safetensors").read_bytes()
    with pytest.raises(
        UsageError, match=f"the output {three[name]} and the input {three[name]} lie in one another"
    ):
        made(three, Path(three[name]), overwrite=True)
    assert (Path(three[name]) / "model.safetensors").read_bytes() == before


def test_no_input_is_overwritten_by_another_name(three: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(three["a"])
    for out in (tmp_path / "link", tmp_path / "b" / ".." / "a", Path(three["a"]) / "inside", tmp_path):
        for overwrite in (True, False):
            with pytest.raises(UsageError, match="lie in one another"):
                made(three, out, overwrite)
    os.link(
        Path(three["a"]) / "config.json", tmp_path / "b" / "other.json"
    )  # a file beside the weights is no matter
    made(three, tmp_path / "out")


def test_no_file_that_an_input_links_to_is_overwritten(three: dict[str, str], tmp_path: Path) -> None:
    out = made(three, tmp_path / "out")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "model.safetensors").symlink_to(out / "model.safetensors")
    with pytest.raises(UsageError, match=f"input {linked}"):
        made({**three, "a": str(linked)}, out, overwrite=True)


def test_no_part_of_an_input_is_overwritten(three: dict[str, str], tmp_path: Path) -> None:
    low = LowRank({"h.0.w": (Term(torch.ones(1, 3), torch.ones(2, 1), 0.5),)})
    adapter = save_adapter(LowRank({"h.0.weight": low.terms["h.0.w"]}), tmp_path / "adapter")
    for name in three.values():
        write_tensors(Path(name) / "model.safetensors", {"h.0.weight": torch.ones(2, 3)})
    with pytest.raises(UsageError, match="lie in one another"):
        made({**three, "a": f"{three['a']}+{adapter}"}, adapter, overwrite=True)


def test_only_what_a_merge_wrote_is_replaced(three: dict[str, str], tmp_path: Path) -> None:
    out = made(three, tmp_path / "out")
    made(three, out, overwrite=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(
        StoreError, match=r"holds files that no merge wrote there \(notes\.txt\).*another output"
    ):
        made(three, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    made(three, out, overwrite=True, output="vector")
    made(three, out, overwrite=True)


def test_a_folder_without_a_card_is_not_replaced(three: dict[str, str], tmp_path: Path) -> None:
    other = model(tmp_path / "mine", 2.0)
    with pytest.raises(StoreError, match=r"config\.json, model\.safetensors"):
        made(three, other, overwrite=True)
    (tmp_path / "empty").mkdir()
    made(three, tmp_path / "empty", overwrite=True)


def test_only_a_vectors_file_is_replaced(three: dict[str, str], tmp_path: Path) -> None:
    out = made(three, tmp_path / "v.safetensors", output="vector")
    made(three, out, overwrite=True, output="vector")
    write_tensors(out, {"w": torch.ones(2)})
    with pytest.raises(StoreError, match=r"v\.safetensors is no task vector"):
        made(three, out, overwrite=True, output="vector")


# configurations


HEADS = {"num_attention_heads": 8}


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (HEADS, {"num_attention_heads": 4}, "num_attention_heads is 4 and 8"),
        ({"hidden_act": "gelu"}, {"hidden_act": "relu"}, "hidden_act is 'relu' and 'gelu'"),
        ({"rope_theta": 1e4}, {"rope_theta": 1e6}, "rope_theta is 1000000.0 and 10000.0"),
        (
            {"rope_theta": 1e4},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            "rope_theta is 500000.0",
        ),
        (
            {"rope_scaling": None},
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type is 'linear' and 'default'",
        ),
        (
            {"text_config": HEADS},
            {"text_config": {"num_attention_heads": 2}},
            "text_config.num_attention_heads is 2 and 8",
        ),
        ({"layer_norm_eps": 1e-5}, {"layer_norm_eps": 1e-12}, "layer_norm_eps is 1e-12 and 1e-05"),
        (
            {"tie_word_embeddings": True},
            {"tie_word_embeddings": False},
            "tie_word_embeddings is False and True",
        ),
    ],
)
def test_settings_that_change_the_function_are_compared(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], said: str
) -> None:
    first, second = (open_source(model(tmp_path / n, 1.0, c)) for n, c in (("a", ours), ("b", theirs)))
    (problem,) = check(first, [second])
    assert (problem.severity, problem.kind, problem.model) == ("error", "config", "b")
    assert said in problem.message
    (eased,) = check(first, [second], allow=["config"])
    assert eased.severity == "warning"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (HEADS, {**HEADS, "_name_or_path": "elsewhere", "torch_dtype": "float16"}),
        (
            {"rope_theta": 1e4, "rope_scaling": None},
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
        ),
        (HEADS, {}),
    ],
)
def test_settings_that_change_no_function_are_not(
    tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    first, second = (open_source(model(tmp_path / n, 1.0, c)) for n, c in (("a", ours), ("b", theirs)))
    assert check(first, [second]) == ()


def test_a_merge_of_other_heads_is_refused(tmp_path: Path) -> None:
    three = {
        n: str(model(tmp_path / n, 1.0, {"num_attention_heads": h}))
        for n, h in (("base", 4), ("a", 4), ("b", 2))
    }
    with pytest.raises(MismatchError, match=r"num_attention_heads is 2 and 4(.|\n)*`--allow config`"):
        made(three, tmp_path / "out")


# spellings


def test_a_mapping_is_a_recipe(three: dict[str, str], tmp_path: Path) -> None:
    given = {
        **of(three),
        "models": (Path(three["a"]), {"model": Path(three["b"]), "parameters": {"weight": 1e-5}}),
    }
    merge_files(given, tmp_path / "out")
    expected = torch.full((2, 3), 1.25) + 1e-5 * 0.5
    torch.testing.assert_close(Checkpoint(tmp_path / "out")["h.0.w"], expected, rtol=0, atol=1e-7)
    with pytest.raises(RecipeError, match=r"the mapping, as YAML, line \d: unknown key 'modells'"):
        merge_files({"method": "linear", "modells": []}, tmp_path / "no")
    with pytest.raises(RecipeError, match="what no YAML file can"):
        merge_files({"method": "linear", "models": [torch.ones(1)]}, tmp_path / "no")
    with pytest.raises(
        UsageError, match=r"`recipe` is a list, and a MergeRecipe or a mapping .* or a path is wanted"
    ):
        merge_files([1], tmp_path / "no")  # type: ignore[arg-type]


def test_models_may_be_plain_texts() -> None:
    short = parse_recipe("method: linear\nmodels: [a, {model: b}]\n")
    assert [one.model for one in short.models] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dtype: bfloat16", "line 3: dtype is 'bfloat16'. It is the arithmetic's: float32 or float64. For the result's "
         "dtype write `out_dtype: bfloat16`"),
        ("dtype: bf16", "write `out_dtype: bfloat16`"),
        ("out_dtype: int8", "line 3: out_dtype is 'int8'. Known: bfloat16, float16, float32, float64"),
        ("out_dtype: flaot16", "Did you mean 'float16'?"),
        ("shard_size: 5", "line 3: shard_size is 5: write a text such as 5GB"),
        ("shard_size: 5XB", "line 3: shard_size is '5XB': it is a number"),
        ("parameters: {lambda: 0.5}", "line 3: mergekit's `lambda` is `scale` here"),
        ("parameters: {wieght: 0.5}", "Did you mean 'weight'?"),
        ("parameters:\n  weight:\n  - {value: 1}\n  - {filter: h, value: 2}",
         "line 4: parameters.weight[1] is never reached: the entry before it fits every tensor"),
    ],
)  # fmt: skip
def test_a_wrong_spelling_is_answered_with_the_right_one(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(f"method: task_arithmetic\nmodels: [a]\n{text}\n", "m.yaml")
    assert said in str(caught.value)
    assert "m.yaml" in str(caught.value)


def test_an_unknown_method_is_named_with_its_line() -> None:
    with pytest.raises(
        RecipeError, match=r"m\.yaml, line 2: method: no merging method 'tie'\. Did you mean 'ties'"
    ):
        parse_recipe("models: [a]\nmethod: tie\n", "m.yaml")


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("bf16", "bfloat16"),
        ("fp16", "float16"),
        ("half", "float16"),
        ("torch.float32", "float32"),
        ("fp32", "float32"),
    ],
)
def test_short_names_of_dtypes_are_read(short: str, name: str) -> None:
    assert parse_recipe(f"method: linear\nmodels: [a]\nout_dtype: {short}\n").out_dtype == name
    if short != name:
        with pytest.raises(RecipeError, match=f"out_dtype is '{short}': write '{name}'"):
            MergeRecipe("linear", (Input("a"),), out_dtype=short)  # type: ignore[arg-type]


def test_a_filter_that_fits_no_tensor_is_named(three: dict[str, str], tmp_path: Path) -> None:
    text = yaml.safe_dump(of(three)) + "parameters:\n  weight:\n  - {filter: h.0, value: 1}\n"
    merge_files(parse_recipe(text, "m.yaml"), tmp_path / "out")
    text += "  - {filter: attn, value: 2}\n"
    said = r"m\.yaml, line \d: parameters\.weight\[1\]: the filter 'attn' fits no tensor.*'h\.0\.w'"
    with pytest.raises(RecipeError, match=said):
        merge_files(parse_recipe(text, "m.yaml"), tmp_path / "no")


def test_vectors_in_memory_are_not_files() -> None:
    one = TaskVector({"w": torch.ones(2)}, "b", "standard", "one")
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((one,), r"`vectors` is a TaskVector.*write \[vector\]"),
        (([one, {"w": torch.ones(2)}],), r"`vectors\[1\]` is a dict, and a TaskVector is wanted"),
        ((["a.safetensors"],), r"`vectors\[0\]` is the text .* write tauspan\.TaskVector\.from_pretrained\("),
        (([one, one], {"density": 0.1}), "`method` is a dict"),
        (([one, one], "ties", 0.1), "`options` is the number"),
        (([],), "at least 1"),
    ]
    for given, said in cases:
        with pytest.raises(UsageError, match=said):
            merge(*given)


def test_each_stack_of_a_model_has_its_own_depths() -> None:
    names = [f"{part}.layers.{n}.w" for part, count in (("text", 2), ("image", 3)) for n in range(count)]
    assert list(depths([*names, "text.emb"]).values()) == [0.0, 1.0, 0.0, 0.5, 1.0, None]
    inside = [
        "wrapped.0.h.0.experts.0.w",
        "wrapped.0.h.0.experts.1.w",
        "wrapped.0.h.1.experts.0.w",
        "wrapped.0.emb",
    ]
    assert list(depths(inside).values()) == [0.0, 0.0, 1.0, None]
    assert depths(["only.0.w", "emb"]) == {"only.0.w": 1.0, "emb": None}


# what doctor says


def test_doctor_measures_displacements(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(2, 3, dtype=torch.float64).float()
    moves = [torch.randn(2, 3) * 0.01 for _ in range(2)]
    paths = [model(tmp_path / name, 0.0) for name in ("base", "a", "b", "same", "other")]
    others = [base + moves[0], base + moves[1], base, torch.randn(2, 3)]
    for path, values in zip(paths, [base, *others], strict=True):
        write_tensors(path / "model.safetensors", {"h.0.w": values})
    found = doctor(paths[1:], paths[0], values=True)
    (table,) = (table for table in found.report().tables if table.title == "displacements")
    theta0, tau = base.double().flatten(), [(one.double() - base.double()).flatten() for one in others]
    for row, own in zip(table.rows, tau, strict=True):
        assert float(str(row["displacement"])) == pytest.approx(float(own.norm() / theta0.norm()), rel=6e-3)
        assert row["cos base"] == pytest.approx(
            float(torch.cosine_similarity(theta0, theta0 + own, 0)), abs=1e-9
        )
    assert table.rows[0]["cos b"] == pytest.approx(
        float(torch.cosine_similarity(tau[0], tau[1], 0)), abs=1e-9
    )
    assert [(one.kind, one.model) for one in found.problems] == [("unmoved", "same"), ("unrelated", "other")]
    assert not doctor(paths[1:], paths[0]).displacements


def test_an_adapter_of_another_base_is_told(tmp_path: Path) -> None:
    base = model(tmp_path / "base", 1.0)
    write_tensors(base / "model.safetensors", {"h.0.q.weight": torch.ones(2, 3)})
    low = LowRank({"h.0.q.weight": (Term(torch.ones(1, 3), torch.ones(2, 1), 0.5),)})
    adapter = save_adapter(low, tmp_path / "adapter")
    for stated, told in ((None, 0), ("", 0), ("org/base", 0), ("/elsewhere/base/", 0), ("org/other", 1)):
        config = json.loads((adapter / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = stated
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        problems = check(open_source(base), [open_source(adapter)])
        assert [(one.severity, one.kind) for one in problems] == [("warning", "base")] * told
        assert all("'org/other'" in one.message and str(base) in one.message for one in problems)


def test_the_repair_of_a_prefix_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for first, second in (("w.a", "model.w.a"), ("model.w.a", "w.a")):
        for name, key in (("one", first), ("two", second)):
            write_tensors(tmp_path / f"{name}.safetensors", {key: torch.ones(2)})
        (problem,) = check(
            open_source(tmp_path / "one.safetensors"), [open_source(tmp_path / "two.safetensors")]
        )
        line = problem.message.partition("functions): `")[2].removesuffix("`.")
        exec(f"from safetensors.torch import load_file, save_file\n{line}")  # it is meant to be pasted
        assert list(Checkpoint(tmp_path / "renamed.safetensors")) == [first]


# cards


def test_a_card_is_reproduced_from_elsewhere(
    three: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = of({"base": "base", "a": "a", "b": "b"}, tokenizer_source="a")
    merge_files(recipe, "out")
    assert Card.read("out").recipe.base_model == "base"
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    reproduce(tmp_path / "out")
    Path(three["a"]).rename(tmp_path / "away" / "a")  # as given, from here
    reproduce(tmp_path / "out")
    Path("a").rename("moved")
    said = (
        rf"the input 'a' of {tmp_path}/out is neither at {tmp_path}/a nor at {tmp_path}/away/a\. Put it back"
    )
    with pytest.raises(StoreError, match=said):
        reproduce(tmp_path / "out")


def test_a_card_tells_an_altered_result_from_altered_inputs(three: dict[str, str], tmp_path: Path) -> None:
    out = made(three, tmp_path / "out")
    whole = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(whole[:-1] + b"\x41")
    with pytest.raises(
        MismatchError, match=f"as the card says.* h.0.w. The files of {out} were altered after the merge"
    ):
        reproduce(out)
    (out / "model.safetensors").write_bytes(whole)
    write_tensors(Path(three["a"]) / "model.safetensors", {"h.0.w": torch.full((2, 3), 7.0)})
    with pytest.raises(MismatchError, match="keeps no hash of values: an input's values changed"):
        reproduce(out)


# what the terminal shows


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words]) == 0
    return capsys.readouterr().out


def test_nothing_is_cut_at_80_columns(
    three: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(of(three)))
    text = printed(capsys, "merge", str(tmp_path / "r.yaml"), "--plan")
    assert max(map(len, text.splitlines())) <= 80
    assert "".join(three["base"].split()) in "".join(text.split())  # however it is folded
    assert "72 bytes" in text
    assert "this process now" in " ".join(text.split())
    text = printed(capsys, "doctor", three["a"], three["b"], "--base", three["base"], "--values")
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("float32 (1)") == 3
    assert "|tau| / |theta0|" in text
    assert text.endswith("no errors, 1 warning\n") is ("warning:" in text)


def test_the_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "merge", "--methods")
    assert all(name in text for name in METHODS)
    assert {
        row["name"]
        for row in json.loads(printed(capsys, "merge", "--methods", "--json"))["tables"][0]["rows"]
    } == set(METHODS)


def test_a_merge_without_base_speaks_of_weights(three: dict[str, str], tmp_path: Path) -> None:
    recipe = {"method": "linear", "models": [three["a"], three["b"]]}
    (table,) = merge_files(recipe, tmp_path / "out").report().tables
    assert [row["tensor"] for row in table.rows] == ["all"]  # nothing was lost
    assert set(table.rows[0]) == {"tensor", "entries", "norm", "loss"}
    assert ("weights" in table.note, "displacement" in table.note, "lost most" in table.note) == (
        True,
        False,
        False,
    )
    assert "displacement" not in (tmp_path / "out" / "README.md").read_text().partition("## Precision")[2]
    write_tensors(
        Path(three["a"]) / "model.safetensors",
        {"h.0.w": torch.full((2, 3), 1.001), "x": torch.full((1,), 0.3)},
    )
    write_tensors(
        Path(three["b"]) / "model.safetensors",
        {"h.0.w": torch.full((2, 3), 1.002), "x": torch.full((1,), 0.1)},
    )
    recipe["out_dtype"] = "bf16"
    (table,) = merge_files(recipe, tmp_path / "half").report().tables
    assert (len(table.rows), "The 2 tensors that lost most" in table.note) == (3, True)

"""mergekit's own YAML: what each file becomes here, and that what is not supported is named with its line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tauspan.core.errors import RecipeError
from tauspan.merge import METHODS, parse_recipe
from tauspan.merge.engine.settings import Filtered, Gradient
from tauspan.merge.recipe.mergekit_methods import DIALECT
from tauspan.merge.recipe.recipe import UNION, MergeRecipe
from tauspan.merge.sources.opening import open_source
from tauspan.merge.stream.files import merge_files
from tauspan.store import write_tensors

TWO = "models:\n- model: a\n  parameters: {weight: 0.5}\n- model: c\n  parameters: {weight: 2}\n"
BASED = "base_model: b\n"
SLERP = "merge_method: slerp\nbase_model: b\nparameters: {t: 0.5}\n"


def names(recipe: MergeRecipe) -> list[str]:
    return [one.model for one in recipe.models]


@pytest.mark.parametrize("name", DIALECT)
def test_every_row_of_the_dialect_is_a_method_with_those_options(name: str) -> None:
    row = DIALECT[name]
    for ours in (row.ours, row.without):
        if ours is not None:
            options = {option.name: option for option in METHODS[ours].options}
            used = {one.ours for one in row.parameters.values() if one.ours is not None}
            assert used | set(row.fixed) <= set(options)
            for parameter in row.parameters.values():
                if parameter.ours is not None and not row.lone:
                    assert options[parameter.ours].per_model == parameter.per_model


TRANSLATED: dict[str, tuple[str, str, list[str], dict[str, Any]]] = {
    "task arithmetic": (
        "merge_method: task_arithmetic\n" + BASED + TWO + "parameters: {lambda: 0.7}\n",
        "task_arithmetic", ["a", "c"], {"scale": 0.7, "normalize": False},
    ),
    "ties has mergekit's defaults": (
        "merge_method: ties\n" + BASED + TWO, "ties_mergekit", ["a", "c"],
        {"scale": 1.0, "normalize": True, "rescale": "none", "density": 1.0},
    ),
    "dare": (
        "merge_method: dare_ties\n" + BASED + TWO + "parameters: {density: 0.3, rescale: false, int8_mask: true}\n",
        "dare_ties", ["a", "c"], {"scale": 1.0, "normalize": False, "rescale": "none", "density": 0.3},
    ),
    "della": (
        "merge_method: della\n" + BASED + TWO, "della", ["a", "c"],
        {"scale": 1.0, "normalize": True, "rescale": "l1", "density": 1.0, "epsilon": 0.15},
    ),
    "the base among the models": (
        "merge_method: task_arithmetic\nbase_model: a\n" + TWO, "task_arithmetic", ["c"],
        {"scale": 1.0, "normalize": False},
    ),
    "linear merges the base last": (
        "merge_method: linear\n" + BASED + TWO + "parameters: {weight: 1}\n", "linear", ["a", "c", "b"],
        {"weight": 1.0, "normalize": True},
    ),
    "linear without a base": ("merge_method: linear\n" + TWO, "linear", ["a", "c"], {"normalize": True}),
    "slerp starts at the base": (
        SLERP + "models: [{model: a}, {model: b}]\n", "slerp", ["b", "a"], {"t": 0.5, "dot_threshold": 0.9995},
    ),
    "nuslerp with a base": ("merge_method: nuslerp\n" + BASED + TWO, "nuslerp", ["a", "c"], {}),
    "nuslerp without": (
        "merge_method: nuslerp\n" + TWO + "parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}\n",
        "nuslerp_point", ["a", "c"], {"along": "columns"},
    ),
    "a number that YAML reads as text": (
        "merge_method: nearswap\n" + BASED + "models: [{model: a}]\nparameters: {t: 1e-4}\n", "nearswap", ["a"],
        {"t": 1e-4},
    ),
    "a whole number": (
        "merge_method: karcher\n" + TWO + "parameters: {max_iter: 7.0}\n", "karcher", ["a", "c"],
        {"max_iter": 7, "tol": 1e-5},
    ),
    "the one model of passthrough": (
        "merge_method: passthrough\nmodels: [{model: a, parameters: {scale: [{filter: x, value: 2}]}}]\n",
        "passthrough", ["a"], {"scale": (Filtered("x", 2.0), Filtered(None, 1.0))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TRANSLATED)
def test_a_file_becomes_the_recipe_it_stands_for(case: str) -> None:
    text, method, models, parameters = TRANSLATED[case]
    recipe = parse_recipe(text)
    assert (recipe.method, names(recipe), dict(recipe.parameters)) == (method, models, parameters)
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_filters_and_gradients_hold_as_in_mergekit() -> None:
    recipe = parse_recipe(
        "merge_method: ties\n" + BASED + "models:\n- model: a\n  parameters:\n"
        "    weight: [{filter: mlp, value: [0, 1e0, '4']}, {filter: '*', value: 0.25}]\n"
        "    density: [{filter: attn, value: 0.1}]\n- model: c\nparameters: {weight: 3, density: [1, 0.5]}\n"
    )
    settings = recipe.settings()
    table = {  # name, depth: weights, densities
        ("h.0.mlp", 0.0): ((0.0, 3.0), (1.0, 1.0)),
        ("h.1.mlp", 0.25): ((0.5, 3.0), (0.875, 0.875)),
        ("h.2.mlp", 0.75): ((2.5, 3.0), (0.625, 0.625)),
        ("h.4.attn", 1.0): ((0.25, 3.0), (0.1, 0.5)),
        ("norm", None): ((0.25, 3.0), (1.0, 1.0)),
    }
    for (name, depth), (weights, densities) in table.items():
        found = settings.at(name, depth)
        assert (found["weight"], found["density"]) == (weights, densities), name


def test_dtypes_and_tokenizers() -> None:
    start = "merge_method: linear\n" + TWO
    for text, arithmetic, out in (
        ("", "float32", None),
        ("dtype: bfloat16\n", "float32", "bfloat16"),
        ("dtype: float64\nout_dtype: torch.float16\n", "float64", "float16"),
        ("dtype: float32\n", "float32", "float32"),
    ):
        recipe = parse_recipe(start + text)
        assert (recipe.dtype, recipe.out_dtype) == (arithmetic, out)
    based = start + "base_model: b\nparameters: {weight: 1}\n"
    assert parse_recipe(based + "tokenizer_source: base\n").tokenizer_source == "b"
    assert parse_recipe(based + "tokenizer_source: union\n").tokenizer_source == UNION
    assert parse_recipe(based + "tokenizer: {source: a}\n").tokenizer_source == "a"


def test_slices_take_the_base_out_where_it_is_subtracted() -> None:
    two = "[{model: b, layer_range: [0, 2]}, {model: a, layer_range: [1, 3], parameters: {weight: 1}}]"
    recipe = parse_recipe(f"merge_method: ties\nbase_model: b\nslices: [{{sources: {two}}}]\n")
    (part,) = recipe.slices
    assert part.base is not None
    assert (part.base.model, [one.model for one in part.sources]) == ("b", ["a"])
    turned = parse_recipe(
        f"{SLERP}slices: [{{sources: [{two[1:-1].split(', {')[0]}, {{model: a, layer_range: [0, 2]}}]}}]\n"
    )
    assert [one.model for one in turned.slices[0].sources] == ["b", "a"]
    assert turned.slices[0].base is None


REFUSED = {
    "an unknown method": ("merge_method: tise\n" + TWO, "line 1: no mergekit method 'tise'. Did you mean 'ties'?"),
    "an unknown key": (
        "merge_method: linear\n" + TWO + "dtpye: x\n",
        "line 7: unknown key 'dtpye'. Did you mean 'dtype'?",
    ),
    "an unknown parameter": (
        "merge_method: linear\n" + TWO + "parameters:\n  normalise: 1\n",
        "line 8: no mergekit method has a parameter 'normalise'. Did you mean 'normalize'?",
    ),
    "modules beside models": (
        "merge_method: linear\nmodules: {text: {models: [{model: a}]}}\n" + TWO,
        "exactly one of `models`, `slices` and `modules`",
    ),
    "an empty module": ("merge_method: linear\nmodules: {text: {}}\n", "line 2: exactly one of `models` and `slices`"),
    "a token without a source": (
        "merge_method: linear\n" + TWO + "tokenizer:\n  tokens: {x: {force: true}}\n",
        "line 8: x: `source` is missing",
    ),
    "a token of no token": (
        "merge_method: linear\n" + TWO + "tokenizer:\n  tokens: {x: {source: {kind: model_token, model: a}}}\n",
        "a model_token needs `model` and one of `token` and `token_id`",
    ),
    "mergekit-moe": ("base_model: a\ngate_mode: hidden\nexperts: []\n", "'experts' is a key of mergekit-moe"),
    "mergekit-evolve": ("genome: {models: [a]}\n", "'genome' is a key of mergekit-evolve"),
    "two tokenizers": (
        "merge_method: linear\n" + TWO + "tokenizer_source: a\ntokenizer: {source: a}\n",
        "line 8: `tokenizer` and `tokenizer_source` stand both",
    ),
    "a dtype": ("merge_method: linear\n" + TWO + "dtype: int64\n", "line 7: dtype is 'int64'"),
    "no base": ("merge_method: ties\n" + TWO, "the method 'ties' needs `base_model`"),
    "no base of slerp": ("merge_method: slerp\nparameters: {t: 1}\n" + TWO, "the method 'slerp' needs `base_model`"),
    "a slice without its base": (
        SLERP + "slices:\n- sources: [{model: a, layer_range: [0, 1]}, {model: c, layer_range: [0, 1]}]\n",
        "line 5: the method 'slerp' needs `base_model` among the sources of the slice; it is 'b'",
    ),
    "no weight": (
        "merge_method: task_arithmetic\n" + BASED + "models: [{model: a}]\n",
        "needs `weight` for every tensor, and 'a' has none",
    ),
    "a weight that leaves tensors out": (
        "merge_method: task_arithmetic\n" + BASED
        + "models: [{model: a, parameters: {weight: [{filter: mlp, value: 1}]}}]\n",
        "or filters that leave some out",
    ),
    "no t": ("merge_method: nearswap\n" + BASED + "models: [{model: a}]\n", "needs `t` for every tensor"),
    "a word": ("merge_method: nearswap\nbase_model: b\nmodels: [{model: a}]\nparameters: {t: x}\n", "line 4: t is 'x'"),
    "a number for a truth": (
        "merge_method: linear\n" + TWO + "parameters: {normalize: 2}\n",
        "line 7: normalize is 2, and must be true or false",
    ),
    "a value outside the range": (
        "merge_method: ties\n" + BASED + "models:\n- model: a\n  parameters:\n    density: 3\n    weight: 1\n",
        "line 6: option 'density' of 'ties_mergekit' is 3.0, outside its range",
    ),
    "a mapping for a model": (
        "merge_method: linear\nmodels:\n- model: {paht: x}\n",
        "line 3: models[0].model is {'paht': 'x'}, and must be a model",
    ),
    "an include": ("merge_method: linear\nmodels: !include x.yml\n", "'!include'"),
    "both": (
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n" + TWO,
        "exactly one of `models`, `slices` and `modules`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_named_with_its_line(case: str) -> None:
    text, words = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "m.yml")
    assert "m.yml" in str(caught.value)
    assert words in str(caught.value)


def test_a_parameter_that_mergekit_does_not_read_is_left_out_with_a_warning() -> None:
    text = "merge_method: linear\n" + TWO.replace("weight: 2", "weight: 2, density: 1, normalize: false")
    recipe = parse_recipe(text, "m.yml")
    assert recipe.models[1].parameters == {"weight": 2.0}
    ends = ": mergekit leaves it out here, and so does this merge."
    assert recipe.notes == (
        f"m.yml, line 6: density is read by other methods{ends}",
        f"m.yml, line 6: normalize is for all models, and stands at one{ends}",
    )


def test_a_file_is_merged_by_the_numbers(tmp_path: Path) -> None:
    """ties of mergekit by hand: no trim, sign of the weighted sum, weighted mean of those that agree."""
    rows = {"b": [1.0, 1.0, 1.0], "a": [3.0, 0.0, 1.0], "c": [2.0, 5.0, 1.0]}
    for name, row in rows.items():
        write_tensors(tmp_path / f"{name}.safetensors", {"w": torch.tensor(row)})
    text = "merge_method: ties\nbase_model: {0}/b.safetensors\nmodels:\n"
    text += "- {{model: {0}/a.safetensors, parameters: {{weight: 0.5}}}}\n"
    text += "- {{model: {0}/c.safetensors, parameters: {{weight: 2}}}}\n"
    file = tmp_path / "m.yml"
    file.write_text(text.format(tmp_path))
    merge_files(file, tmp_path / "out")
    source = open_source(tmp_path / "out")
    expected = [1 + (0.5 * 2 + 2 * 1) / 2.5, 1 + (2 * 4) / 2, 1.0]
    assert source.read("w", 0, 3).tolist() == pytest.approx(expected)
    source.close()


def test_gradients_are_kept_as_they_are() -> None:
    recipe = parse_recipe(SLERP.replace("0.5", "[0, 0.5, 1]") + "models: [{model: a}]\n")
    assert recipe.parameters["t"] == Gradient((0.0, 0.5, 1.0))

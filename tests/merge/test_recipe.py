"""Recipes of merges: what they accept and become, and that every refusal names the line and the repair."""

import json
from pathlib import Path

import pytest
import torch

from helpers.tiny import vector
from tauspan.core.errors import MismatchError, ModelError, RecipeError, UsageError
from tauspan.merge import METHODS, merge, parse_recipe
from tauspan.merge.engine.own import imported, own_method
from tauspan.merge.engine.settings import Filtered, Gradient
from tauspan.merge.recipe.parts import size, within
from tauspan.merge.recipe.reading import json_schema
from tauspan.merge.recipe.recipe import Input, MergeRecipe
from tauspan.merge.sources.opening import open_source
from tauspan.merge.stream.files import merge_files
from tauspan.store import write_tensors

LEAST = "method: task_arithmetic\nbase_model: b\n"
ONE = LEAST + "models: [{model: a}]\n"
SCHEMA = Path(__file__).parents[2] / "docs" / "merge.schema.json"

REFUSED = {
    "an unknown key": (ONE + "modles: 1\n", "line 4: unknown key 'modles'. Did you mean 'models'?"),
    "an unknown key of a model": (
        LEAST + "models:\n- model: a\n- model: c\n  weight: 2\n",
        "line 6: unknown key 'models[1].weight'",
    ),
    "an unknown option": (
        LEAST + "models:\n- model: a\n  parameters:\n    wieght: 2\n",
        "line 6: the method 'task_arithmetic' has no option 'wieght'. Did you mean 'weight'?",
    ),
    "an option of all at one model": (
        LEAST + "models: [{model: a, parameters: {scale: 2}}]\n",
        "line 3: option 'scale' of 'task_arithmetic' is one for all models",
    ),
    "a value outside its range": (
        "method: ties\nbase_model: b\nmodels: [{model: a}]\nparameters:\n  density: 2\n",
        "line 5: option 'density' of 'ties' is 2, outside its range from 0 to 1",
    ),
    "an unknown method": (
        "method: tise\nmodels: [{model: a}]\n",
        "no merging method 'tise'. Did you mean 'ties'?",
    ),
    "no method": ("models: [{model: a}]\n", "method is missing"),
    "no models": (LEAST, "exactly one of `models` and `slices`"),
    "a model without a name": (LEAST + "models:\n- parameters: {}\n", "line 4: models[0].model is missing"),
    "an empty gradient": (
        ONE + "parameters: {weight: []}\n",
        "line 4: parameters.weight is []: a list holds numbers",
    ),
    "a gradient of words": (
        ONE + "parameters: {weight: [a]}\n",
        "option 'weight' of 'task_arithmetic' is 'a'",
    ),
    "a gradient of several kinds": (
        ONE + "parameters: {weight: [1, a]}\n",
        "parameters.weight is [1, 'a']: a list holds",
    ),
    "a filter without a value": (
        ONE + "parameters: {weight: [{filter: x}]}\n",
        "parameters.weight[0]: `value` is missing",
    ),
    "an unknown key of a filter": (
        ONE + "parameters: {weight: [{fliter: x, value: 1}]}\n",
        "unknown key 'fliter'. Did you mean 'filter'?",
    ),
    "a filter that is no text": (ONE + "parameters: {weight: {filter: 3, value: 1}}\n", "weight.filter is 3"),
    "no value": (ONE + "parameters: {weight: }\n", "parameters.weight is null, and needs a value"),
    "a word for keys": (ONE + "parameters: 3\n", "parameters needs keys below it, not 3"),
    "a rank without an adapter": (
        ONE + "rank: 3\n",
        "rank: 3: it belongs to `output: adapter`, and output is 'model'",
    ),
    "a rank of nothing": (ONE + "output: adapter\nrank: 0\n", "rank: 0: an adapter's rank is at least 1"),
    "an unknown dtype": (ONE + "out_dtype: int8\n", "line 4: out_dtype is 'int8'"),
    "a size without unit": (
        ONE + "shard_size: '5'\n",
        "shard_size is '5': it is a number with KB, MB, GB or TB",
    ),
    "an unknown leniency": (ONE + "allow: [extra]\n", "allow: 'extra': no such leniency"),
    "a range the wrong way": (
        LEAST + "slices:\n- sources:\n  - {model: a, layer_range: [2, 1]}\n",
        "line 5: layer_range: [2, 1] of 'a'",
    ),
    "a slice of nothing": (LEAST + "slices: [{sources: []}]\n", "a slice needs at least one source"),
    "sources of two lengths": (
        LEAST + "slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 1]}]}]\n",
        "the sources of a slice have [2, 1] layers",
    ),
    "a base of one slice alone": (
        LEAST
        + "slices:\n- {sources: [{model: a, layer_range: [0, 2]}], base: {model: b, layer_range: [0, 2]}}\n"
        "- sources: [{model: a, layer_range: [0, 2]}]\n",
        "some slices have a `base`",
    ),
    "a vector of slices": (
        LEAST + "output: vector\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]\n",
        "a merge of slices makes a model",
    ),
    "one key twice, deep": (
        LEAST + "models:\n- model: a\n  parameters:\n    weight: 1\n    weight: 2\n",
        "line 7: the key 'models[0].parameters.weight' stands twice, first in line 6",
    ),
    "no YAML": ("method: [\n", "is not YAML"),
    "a tag that builds objects": ("method: !!python/object:os.system {}\n", "is not YAML"),
    "an include": (
        LEAST + "models: !include other.yaml\n",
        "could not determine a constructor for the tag '!include'",
    ),
    "brackets without end": ("[" * 300, "is not YAML"),
    "a list": ("- a\n", "holds a list, not a mapping"),
    "a list that holds itself": (LEAST + "models: &a [*a]\n", "models[0] needs keys below it"),
}


WEIGHT = "method: linear\nmodels:\n- model: a\n  parameters:\n    weight: {}\n- model: b\n"
SEED = "method: linear\nmodels: [a, b]\n\n\nseed: {}\n"
MERGEKIT = WEIGHT.replace("method", "merge_method") + "  parameters: {{weight: 1}}\n"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("!!int ''", "'' is no whole number (!!int)"),
        ("!!bool maybe", "'maybe' is no truth (!!bool)"),
        ("!!timestamp x", "'x' is no timestamp (!!timestamp)"),
        ("2024-13-45", "'2024-13-45' is no timestamp (!!timestamp)"),
        ("!!float x", "'x' is no number (!!float)"),
        ("!!null x", "'x' is not null (!!null)"),
        ("9" * 400, "beyond 1.8e308"),
        ("9" * 5000, "beyond 1.8e308"),
        ("-0x" + "f" * 300, "beyond 1.8e308"),
        ("010", "YAML 1.1 reads 010 in base 8, as 8: write 8"),
        ("1:30", "YAML 1.1 reads 1:30 in base 60, as 90: write 90"),
        ("1:30.5", "YAML 1.1 reads 1:30.5 in base 60, as 90.5"),
    ],
)
@pytest.mark.parametrize("text", [WEIGHT, SEED, MERGEKIT])
def test_a_value_that_is_not_what_yaml_says_is_refused_where_it_stands(
    text: str, value: str, words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text.format(value), "m.yaml")
    assert str(caught.value).startswith("m.yaml, line 5: ")
    assert words in str(caught.value)
    parse_recipe(text.format("0"), "m.yaml")


@pytest.mark.parametrize("text", [WEIGHT, MERGEKIT])
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1.0e+400"])
def test_a_weight_that_is_not_finite_is_told_so(text: str, value: str) -> None:
    with pytest.raises(RecipeError, match=r"must be a finite number\."):
        parse_recipe(text.format(value))


@pytest.mark.parametrize("key", ["~", "null", "yes", "off", ".nan", "1_0", "1.50"])
def test_a_key_that_yaml_reads_as_no_name_is_refused_in_its_line(key: str) -> None:
    with pytest.raises(RecipeError, match=r"m\.yaml, line 7: YAML reads the key .* in quotes"):
        parse_recipe(WEIGHT.format("1") + f"{key}: 3\n", "m.yaml")
    with pytest.raises(RecipeError, match="line 7: unknown key"):  # which is what the quotes make of it
        parse_recipe(WEIGHT.format("1") + f"'{key}': 3\n", "m.yaml")


def test_one_mapping_is_merged_into_another_once() -> None:
    text = "method: linear\nmodels:\n- &a {model: a, parameters: {weight: 1}}\n- &b {model: b}\n- {KEYS, model: c}\n"
    with pytest.raises(RecipeError, match=r"line 5: the key .* stands twice.*`<<: \[\*a, \*b\]`"):
        parse_recipe(text.replace("KEYS", "<<: *a, <<: *b"))
    assert parse_recipe(text.replace("KEYS", "<<: [*a, *b]")).models[2].parameters == {"weight": 1}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_the_line_and_the_repair(case: str) -> None:
    text, words = REFUSED[case]
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "m.yaml")
    assert "m.yaml" in str(caught.value)
    assert words in str(caught.value)


def test_a_value_of_nested_aliases_makes_a_short_message() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    with pytest.raises(RecipeError, match="line 1: unknown key 'a0'"):
        parse_recipe(bomb)
    with pytest.raises(RecipeError, match="seed is") as caught:
        parse_recipe("seed: &a [x]\n".replace("&a [x]", bomb.splitlines()[0][4:]))
    assert len(str(caught.value)) < 1000


def test_a_recipe_reads_back_as_it_was_written() -> None:
    recipe = parse_recipe(
        LEAST + "models:\n- model: a\n  parameters: {weight: [{filter: x, value: [0, 1]}, {value: 2}]}\n"
        "- {model: 'c: d'}\nparameters: {weight: {filter: '*', value: 3}, scale: 0.5}\n"
        "dtype: float64\nout_dtype: bfloat16\nrounding: stochastic\nseed: 3\nallow: [extra_tensors]\n"
    )
    assert recipe.models[0].parameters["weight"] == (Filtered("x", Gradient((0.0, 1.0))), Filtered(None, 2))
    assert recipe.parameters["weight"] == (Filtered(None, 3),)
    assert parse_recipe(recipe.to_yaml()) == recipe
    sliced = parse_recipe(
        "method: task_arithmetic\nslices:\n- sources: [{model: a, layer_range: [0, 2], parameters: {weight: 2}}]\n"
        "  base: {model: b, layer_range: [1, 3]}\n  parameters: {scale: 2}\n"
    )
    assert parse_recipe(sliced.to_yaml()) == sliced
    assert sliced.slices[0].base is not None


def test_a_resolved_recipe_has_every_option() -> None:
    recipe = parse_recipe(
        LEAST + "models: [{model: a}]\nparameters: {weight: [{filter: x, value: 2}], scale: 3}\n"
    )
    resolved = recipe.resolved()
    assert set(resolved.parameters) == {option.name for option in METHODS["task_arithmetic"].options}
    assert resolved.parameters["weight"] == (Filtered("x", 2), Filtered(None, 1.0))
    assert resolved.parameters["scale"] == 3
    assert resolved.resolved() == resolved
    for name in ("x.w", "w"):
        assert resolved.settings().at(name, None) == recipe.settings().at(name, None)


def test_an_inner_scope_holds_where_its_filters_fit() -> None:
    inner, outer = (
        {"weight": (Filtered("x", 2),), "scale": 5},
        {"weight": Gradient((0.0, 1.0)), "density": 0.5},
    )
    assert within(inner, outer) == {
        "weight": (Filtered("x", 2), Filtered(None, Gradient((0.0, 1.0)))),
        "scale": 5,
        "density": 0.5,
    }


def test_sizes() -> None:
    assert [size(text) for text in ("1KB", "20mb", "5GB")] == [1000, 20_000_000, 5_000_000_000]
    assert [size(text) for text in ("2GiB", "5B", "1.5 KiB", "3M")] == [2 << 30, 5 * 10**9, 1536, 3_000_000]
    for text in ("5", "GB", "-1GB", "0GB", "1,5GB", "5XB", "0.0001KB"):
        with pytest.raises(RecipeError, match="shard_size"):
            size(text)


# -- slices --------------------------------------------------------------------------------------------------


def stack(folder: Path, name: str, start: float, layers: int = 3) -> str:
    """A file with an embedding, numbered layers and a head, whose values say where they come from."""
    tensors = {
        "model.embed.weight": torch.tensor([float(start)]),
        "head.weight": torch.tensor([start + 90.0]),
    }
    tensors |= {f"model.layers.{n}.w": torch.tensor([start + float(n)]) for n in range(layers)}
    write_tensors(folder / f"{name}.safetensors", tensors)
    return str(folder / f"{name}.safetensors")


def values(folder: Path) -> dict[str, float]:
    source = open_source(folder)
    found = {name: float(source.read(name, 0, 1)) for name in source.tensors}
    source.close()
    return found


def test_slices_stack_layers_of_several_models(tmp_path: Path) -> None:
    a, b = stack(tmp_path, "a", 100), stack(tmp_path, "b", 200)
    recipe = parse_recipe(
        f"method: passthrough\nslices:\n- sources: [{{model: {a}, layer_range: [0, 2]}}]\n"
        f"- sources: [{{model: {b}, layer_range: [1, 3]}}]\n"
    )
    merge_files(recipe, tmp_path / "out")
    assert values(tmp_path / "out") == {
        "model.embed.weight": 100.0,
        "model.layers.0.w": 100.0,
        "model.layers.1.w": 101.0,
        "model.layers.2.w": 201.0,
        "model.layers.3.w": 202.0,
        "head.weight": 290.0,
    }


def test_each_slice_has_its_own_options_and_gradients(tmp_path: Path) -> None:
    base, a, b = (stack(tmp_path, name, 0) for name in ("base", "a", "b"))
    for name, by in (("a", 1.0), ("b", 10.0)):
        tensors = {key: torch.tensor([value + by]) for key, value in values(Path(base)).items()}
        write_tensors(tmp_path / f"{name}.safetensors", tensors)
    recipe = parse_recipe(
        f"method: task_arithmetic\nparameters: {{weight: [{{filter: embed, value: 7}}, {{value: 3}}]}}\nslices:\n"
        f"- sources: [{{model: {a}, layer_range: [0, 2], parameters: {{weight: [{{filter: layers, value: [0, 1]}}]}}}}]\n"
        f"  base: {{model: {base}, layer_range: [0, 2]}}\n"
        f"- sources: [{{model: {b}, layer_range: [2, 3]}}]\n  parameters: {{weight: [0.25, 0.5]}}\n"
        f"  base: {{model: {base}, layer_range: [2, 3]}}\n"
    )
    merge_files(recipe, tmp_path / "out")
    found = values(tmp_path / "out")
    assert found["model.embed.weight"] == 0 + 7 * 1  # no filter of the source fits: the common one
    assert found["model.layers.0.w"] == 0 + 0 * 1
    assert found["model.layers.1.w"] == 1 + 1 * 1
    assert found["model.layers.2.w"] == 2 + 0.5 * 10  # a slice of one layer is at its gradient's end
    assert found["head.weight"] == 90 + 0.25 * 10  # outside the layers a gradient is at its start


def test_slices_name_what_they_cannot_take(tmp_path: Path) -> None:
    a = stack(tmp_path, "a", 100)
    write_tensors(
        tmp_path / "two.safetensors", {"x.layers.0.w": torch.ones(1), "y.layers.0.w": torch.ones(1)}
    )
    cases = {
        (a, 4): (MismatchError, "takes layers 0 to 3 of .*, which has layers 0 to 2 under 'model.layers.'"),
        (str(tmp_path / "two.safetensors"), 1): (ModelError, "has x.layers., y.layers."),
    }
    for (model, end), (kind, words) in cases.items():
        text = f"method: passthrough\nslices: [{{sources: [{{model: {model}, layer_range: [0, {end}]}}]}}]\n"
        with pytest.raises(kind, match=words):
            merge_files(parse_recipe(text), tmp_path / "out")


# -- the user's own methods ----------------------------------------------------------------------------------


def half(
    values: torch.Tensor, base: torch.Tensor | None, *, share: tuple[float, ...] = (0.5,), flip: bool = False
) -> torch.Tensor:
    """Shares of each, summed."""
    total = sum(own * value for own, value in zip(share, values, strict=True))
    return -total if flip else total


def test_a_plain_function_is_a_method() -> None:
    method = own_method(half)
    assert (method.name, method.title) == ("half", "Shares of each, summed")
    a, b = vector(w=[2.0, 4.0], label="a"), vector(w=[6.0, 0.0], label="b")
    assert merge([a, b], method).deltas["w"].tolist() == [4.0, 2.0]
    assert merge([a, b], method, {"share": [1.0, 0.0], "flip": True}).deltas["w"].tolist() == [-2.0, -4.0]
    with pytest.raises(UsageError, match=r"'half' has no option 'shear'. Did you mean 'share'?"):
        merge([a, b], method, {"shear": 1.0})
    assert own_method(METHODS["ties"]) is METHODS["ties"]


BAD = {
    "one argument": (lambda values: values, "must start with two arguments"),
    "an option before the star": (lambda values, base, scale=1.0: values, "has the argument 'scale' before"),
    "no default": (lambda values, base, *, scale: values, "option 'scale' of .* needs a default"),
    "a text": (lambda values, base, *, way="x": values, "option 'way' of .* needs a default"),
    "no signature": (dict, "no signature|must start with two"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_function_of_another_shape_is_refused(case: str) -> None:
    function, words = BAD[case]
    with pytest.raises(UsageError, match=words):
        own_method(function)  # type: ignore[arg-type]


def test_a_function_that_returns_no_tensor_is_an_error() -> None:
    method = own_method(lambda values, base: [1.0], "mine")  # type: ignore[arg-type, return-value]
    with pytest.raises(UsageError, match="'mine' returned list"):
        merge([vector(w=[1.0])], method)


def test_code_is_imported_by_name_and_only_when_allowed(tmp_path: Path) -> None:
    (tmp_path / "mymerge_ok.py").write_text("def first(values, base):\n    return values[0]\nnothing = 3\n")
    (tmp_path / "mymerge_bad.py").write_text("1 / 0\n")
    assert imported("mymerge_ok:first", tmp_path).name == "mymerge_ok:first"
    for name, words in {
        "mymerge_ok:frist": "no function 'frist'. Did you mean 'first'?",
        "mymerge_ok:nothing": "no function 'nothing'",
        "mymerge_bad:f": "cannot be imported: ZeroDivisionError",
        "mymerge_none:f": "cannot be imported: ModuleNotFoundError",
        "mymerge_ok": "write module:function",
    }.items():
        with pytest.raises(UsageError, match=words):
            imported(name, tmp_path)
    recipe = MergeRecipe("mymerge_ok:first", (Input("a"),))
    with pytest.raises(RecipeError, match=r"which a recipe alone may not run.*--code mymerge_ok:first"):
        recipe.row()
    assert recipe.with_method(imported("mymerge_ok:first", tmp_path)).row().name == "mymerge_ok:first"


# -- the schema ----------------------------------------------------------------------------------------------


def test_the_schema_for_editors_is_current() -> None:
    """If not: tauspan merge --schema > docs/merge.schema.json."""
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(json_schema()))


def test_the_schema_knows_the_recipe() -> None:
    made = json_schema()
    assert set(made["properties"]) == set(MergeRecipe("linear", (Input("a"),)).as_dict())
    assert made["properties"]["method"]["anyOf"][0]["enum"] == sorted(METHODS)
    assert set(made["$defs"]["options"]) == {o.name for method in METHODS.values() for o in method.options}
    text, mapping = made["properties"]["models"]["items"]["anyOf"]
    assert (text["type"], mapping["required"]) == ("string", ["model"])
    assert all(entry.get("description") for entry in made["properties"].values())

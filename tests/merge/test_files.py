"""`merge_files`: adapters and vectors from recipes, statistics from files, and what fails before anything is read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import merging, tiny
from tauspan.core import params
from tauspan.core.errors import (
    BaseMismatchError,
    MismatchError,
    RecipeError,
    StoreError,
    TauspanError,
    UsageError,
)
from tauspan.merge import MergeRecipe, Statistics, merge, merge_files, own_method, parse_recipe, statistics_of
from tauspan.merge.engine.settings import depths
from tauspan.merge.lora.adapters import WEIGHTS, AdapterSource, save_adapter
from tauspan.merge.lora.lowrank import LowRank, Term
from tauspan.merge.recipe.recipe import Input
from tauspan.merge.stream.card import FILE, Card
from tauspan.merge.stream.files import planned
from tauspan.merge.stream.reproduce import reproduce
from tauspan.store import Checkpoint, write_tensors
from tauspan.vector import TaskVector

SHAPES = {
    "linear": ((2, 5), (4, 2)), "transposed": ((2, 5), (4, 2)), "embedding": ((2, 11), (3, 2)),
    "convolution": ((2, 3, 2, 2), (4, 2, 1, 1)),
}  # fmt: skip


def normal(shape: Any, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapter(folder: Path, layout: Any, seed: int) -> AdapterSource:
    a, b = SHAPES[layout]
    low = LowRank({"h.0.q.weight": (Term(normal(a, seed), normal(b, seed + 1), 0.5, layout),)})
    return AdapterSource(save_adapter(low, folder))


def files(text: str, out: Path, **options: Any) -> Any:
    return merge_files(parse_recipe(text), out, **options)


def of(paths: list[Path], method: str, more: str = "", base: Path | None = None) -> str:
    text = f"method: {method}\n" + (f"base_model: {base}\n" if base else "")
    return text + "models:\n" + "".join(f"- {{model: {path}}}\n" for path in paths) + more


# -- adapters --------------------------------------------------------------------------------------------------


@pytest.mark.thinned(3)
@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize(
    ("method", "rank"), [("task_arithmetic", None), ("task_arithmetic", 2), ("magmax", 3)]
)
def test_adapters_become_an_adapter_with_a_card(
    layout: str, method: str, rank: int | None, tmp_path: Path
) -> None:
    both = [adapter(tmp_path / name, layout, seed) for name, seed in (("a", 0), ("b", 9))]
    one, two = (source.low.dense("h.0.q.weight", torch.float64) for source in both)
    wanted = one + two if method == "task_arithmetic" else torch.where(two.abs() > one.abs(), two, one)
    more = "output: adapter\n" + (f"rank: {rank}\n" if rank else "")
    text = of([source.path for source in both], method, more)
    report = files(text, tmp_path / "out")
    got = AdapterSource(tmp_path / "out").low
    assert got.terms["h.0.q.weight"][0].layout == layout
    left = float((got.dense("h.0.q.weight", torch.float64) - wanted).norm())
    norm = float(wanted.norm())
    assert report.norm == pytest.approx(norm, rel=1e-6)
    assert report.loss == pytest.approx(left / norm, abs=1e-6)
    assert (report.loss < 1e-6) == (rank is None or (layout == "embedding" and rank == 3))
    card = Card.read(tmp_path / "out")
    assert card.digest == report.digest
    assert card.recipe.rank == rank
    assert "library_name: peft" in (tmp_path / "out" / FILE).read_text()
    assert "that the SVD cut off" in " ".join((tmp_path / "out" / FILE).read_text().split())
    reproduce(tmp_path / "out")
    files(text, tmp_path / "again", workers=3)
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "out" / WEIGHTS).read_bytes()


def test_a_change_of_an_adapter_shows_when_it_is_made_again(tmp_path: Path) -> None:
    one = adapter(tmp_path / "a", "linear", 0)
    files(of([one.path], "task_arithmetic", "output: adapter\n"), tmp_path / "out")
    adapter(tmp_path / "other", "linear", 5)
    (tmp_path / "other" / WEIGHTS).replace(tmp_path / "a" / WEIGHTS)
    with pytest.raises(MismatchError, match=r"Tensors that differ.*h\.0\.q\.weight"):
        reproduce(tmp_path / "out")


def test_an_adapters_plan_says_ranks_and_moves_nothing(tmp_path: Path) -> None:
    paths = [adapter(tmp_path / name, "linear", seed).path for name, seed in (("a", 0), ("b", 9))]
    before = sorted(tmp_path.rglob("*"))
    for more, how, rank, entries in (
        ("", "factors side by side, exactly", 4, 4 * 9),
        ("rank: 3\n", "factors side by side, cut by SVD", 3, 3 * 9),
    ):
        recipe = parse_recipe(of(paths, "task_arithmetic", "output: adapter\n" + more))
        with planned(recipe) as made:
            found = made.report().result
        assert (found["how"], found["rank at most"], found["entries to write at most"]) == (
            how,
            rank,
            entries,
        )
    with planned(parse_recipe(of(paths, "magmax", "output: adapter\nrank: 9\n"))) as made:
        assert made.report().result["rank at most"] == 4
        assert made.report().result["how"] == "displacements, cut by SVD"
    assert sorted(tmp_path.rglob("*")) == before


def test_what_an_adapter_cannot_be_is_an_error(tmp_path: Path) -> None:
    one = adapter(tmp_path / "a", "linear", 0)
    text = of([one.path], "task_arithmetic", "output: adapter\n")
    with pytest.raises(UsageError, match="nothing to resume"):
        files(text, tmp_path / "out", resume=True)
    for more in ("out_dtype: bfloat16\n", "rounding: stochastic\n"):
        with pytest.raises(RecipeError, match=r"out_dtype.*rounding.*Leave both out"):
            files(text + more, tmp_path / "out")
    paths = merging.checkpoints(tmp_path, 1)
    with pytest.raises(UsageError, match="Name the pre-trained model"):
        files(of(paths[1:], "linear", "output: adapter\nrank: 2\n"), tmp_path / "out")
    files(text, tmp_path / "out")
    with pytest.raises(StoreError):
        files(text, tmp_path / "out")
    assert not list(tmp_path.glob(".*"))


def test_a_displacement_beside_an_adapter_is_merged_whole(tmp_path: Path) -> None:
    """Tensors that only the other displacement holds are part of the result."""
    one = adapter(tmp_path / "a", "linear", 0)
    deltas = {"h.0.q.weight": normal((4, 5), 3), "h.0.k.weight": normal((3, 3), 4)}
    TaskVector(deltas, "b" * 64, "standard", "v").save_pretrained(tmp_path / "v.safetensors")
    text = of([one.path, tmp_path / "v.safetensors"], "task_arithmetic", "output: adapter\nrank: 4\n")
    files(text, tmp_path / "out")
    got = AdapterSource(tmp_path / "out").low
    assert torch.allclose(got.dense("h.0.k.weight"), deltas["h.0.k.weight"], atol=1e-5)
    wanted = deltas["h.0.q.weight"] + one.low.dense("h.0.q.weight")
    assert torch.allclose(got.dense("h.0.q.weight"), wanted, atol=1e-5)


# -- the result does not depend on ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    base, *models = merging.checkpoints(tmp_path, 2)
    (tmp_path / "m.yaml").write_text(of(models, "dare_ties", "parameters: {density: 0.5}\nseed: 3\n", base))
    code = "import sys; from tauspan.merge import merge_files; merge_files(*sys.argv[1:])"
    other = (
        "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"
    )  # this process has a random one, or the variable's
    words = [sys.executable, "-c", code, str(tmp_path / "m.yaml"), str(tmp_path / "there")]
    subprocess.run(words, check=True, env={**os.environ, "PYTHONHASHSEED": other})
    merge_files(tmp_path / "m.yaml", tmp_path / "here")
    first, second = (tmp_path / name / "model.safetensors" for name in ("here", "there"))
    assert first.read_bytes() == second.read_bytes()


def test_weights_zero_and_one_give_the_second_model_bit_for_bit(tmp_path: Path) -> None:
    base, *models = merging.checkpoints(tmp_path, 2)
    for method in ("linear", "task_arithmetic"):
        text = f"method: {method}\nbase_model: {base}\nmodels:\n"
        text += "".join(
            f"- {{model: {model}, parameters: {{weight: {weight}}}}}\n"
            for model, weight in zip(models, (0, 1), strict=True)
        )
        files(text, tmp_path / method)
        assert tiny.same_bits(merging.read(tmp_path / method), Checkpoint(models[1]).read())


@pytest.mark.parametrize(
    "method", ["linear", "ties", "magmax", "multislerp", "model_stock", "tsv_m", "emr", "pcb"]
)
def test_equal_displacements_have_an_answer(method: str, tmp_path: Path) -> None:
    """Magnitudes that tie, and Gram matrices of rank one: finite, and for means the displacement itself."""
    base, one, _ = merging.checkpoints(tmp_path, 2)
    copies = [one, tmp_path / "c2.safetensors", tmp_path / "c3.safetensors"]
    for copy in copies[1:]:
        copy.write_bytes(one.read_bytes())
    files(of(copies, method, "out_dtype: float32\n", base), tmp_path / "out")
    got, wanted, start = merging.read(tmp_path / "out"), Checkpoint(one).read(), Checkpoint(base).read()
    for name, tensor in got.items():
        assert bool(torch.isfinite(tensor).all())
        if method in ("linear", "magmax", "multislerp", "model_stock", "emr"):
            assert torch.allclose(tensor, wanted[name], atol=1e-6)
        elif method == "tsv_m":  # equal directions are counted once, decorrelated: along the displacement
            continue
        else:
            assert float(((tensor - start[name]) * (wanted[name] - start[name])).sum()) >= 0


# -- statistics ------------------------------------------------------------------------------------------------


def known(start: Path, paths: list[Path], kind: Any, **changes: Any) -> list[Statistics]:
    """Statistics of models in files, one a model."""
    fingerprint = params.fingerprint(Checkpoint(start).read())
    found = []
    for seed, path in enumerate(paths):
        tensors = {}
        for name, tensor in Checkpoint(path).read().items():
            if kind == "fisher":
                tensors[name] = normal(tensor.shape, seed).square()
            elif tensor.dim() == 2:
                inputs = normal((20, tensor.shape[1]), seed)
                tensors[name] = inputs.T @ inputs / 20
        facts = {"base": fingerprint, "regime": "standard", **changes}
        found.append(Statistics(kind, tensors, vector=path.stem, task="t", split="train", rows=20, **facts))
    return found


def with_statistics(base: Path | None, paths: list[Path], kind: str, method: str, more: str = "") -> str:
    text = f"method: {method}\n" + (f"base_model: {base}\n" if base else "") + "models:\n"
    for path in paths:
        file = path.parent / f"{path.stem}-{kind}.stats"
        text += f"- {{model: {path}, statistics: {{{kind}: {file}}}}}\n"
    return text + more


@pytest.mark.parametrize(("kind", "method"), [("fisher", "fisher"), ("gram", "regmean")])
def test_statistics_in_files_give_what_they_give_in_memory(kind: Any, method: str, tmp_path: Path) -> None:
    base, *models = merging.checkpoints(tmp_path, 2, torch.float64)
    statistics = known(base, models, kind)
    for one, path in zip(statistics, models, strict=True):
        one.save(tmp_path / f"{path.stem}-{kind}.stats")
    vectors = [TaskVector.from_checkpoints(base, p, label=p.stem, dtype=torch.float64) for p in models]
    wanted = merge(
        vectors, method, base=Checkpoint(base).read(), statistics=statistics_of(vectors, statistics)
    )
    more = "dtype: float64\noutput: vector\n"
    files(with_statistics(base, models, kind, method, more), tmp_path / "v.safetensors", block=7, workers=2)
    got = TaskVector.from_pretrained(tmp_path / "v.safetensors")
    for name, delta in wanted.deltas.items():
        torch.testing.assert_close(got.deltas[name].double(), delta, rtol=1e-6, atol=1e-6)
    plain = merge(vectors, "linear", base=Checkpoint(base).read())
    assert any(not torch.allclose(plain.deltas[name], delta) for name, delta in wanted.deltas.items())


WRONG: dict[str, tuple[type[TauspanError], str]] = {
    "kind": (MismatchError, "holds 'gram' statistics, and the method needs 'fisher'"),
    "header": (StoreError, "without the header of statistics"),
    "base": (BaseMismatchError, "the base of .*m2-fisher.stats is cccccccccccc.*Gather them anew"),
    "regime": (MismatchError, "the regime of .*m2-fisher.stats is linear"),
    "vectors": (
        BaseMismatchError,
        "the base of .*v1.safetensors is .*statistics.*gathered from dddddddddddd",
    ),
    "shape": (MismatchError, r"has 'h.0.w' with shape \(2, 2\), and \(6, 7\) is wanted"),
    "lacks": (MismatchError, "lacks 'emb.weight', which the other statistics have"),
    "other": (MismatchError, "knows 'x', which the models lack"),
}


@pytest.mark.parametrize("case", WRONG)
def test_statistics_that_do_not_belong_are_refused_by_their_headers(case: str, tmp_path: Path) -> None:
    base, *models = merging.checkpoints(tmp_path, 2)
    first, second = known(base, models, "fisher")
    if case == "kind":
        first, _ = known(base, models, "gram")
    elif case == "base":
        _, second = known(base, models, "fisher", base="c" * 64)
    elif case == "regime":
        _, second = known(base, models, "fisher", regime="linear")
    elif case == "vectors":
        first, second = known(base, models, "fisher", base="d" * 64)
    elif case in ("shape", "lacks", "other"):
        tensors: dict[str, Tensor] = dict(second.tensors)
        tensors |= {"shape": {"h.0.w": torch.ones(2, 2)}, "other": {"x": torch.ones(2)}}.get(case, {})
        if case == "lacks":
            del tensors["emb.weight"]
        second = Statistics("fisher", tensors, second.base, "standard", "m2", "t", "train", 20)
    for one, path in zip((first, second), models, strict=True):
        one.save(tmp_path / f"{path.stem}-fisher.stats")
    if case == "header":
        write_tensors(tmp_path / "m2-fisher.stats", dict(second.tensors), overwrite=True)
    text = with_statistics(base, models, "fisher", "fisher")
    if case == "vectors":
        for path in models:
            vector = TaskVector.from_checkpoints(base, path, label=path.stem)
            vector.save_pretrained(tmp_path / f"v{path.stem[1:]}.safetensors")
            text = text.replace(str(path), str(tmp_path / f"v{path.stem[1:]}.safetensors"))
    error, words = WRONG[case]
    with pytest.raises(error, match=words), planned(parse_recipe(text)):
        pass
    if case in ("base", "regime"):
        with planned(parse_recipe(text + f"allow: [{case}]\n")) as made:
            assert made.method.name == "fisher"


# -- before anything is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "more", "words"),
    [
        ("svd", "", "neither 'rank' nor 'error' for 'emb.weight'"),
        ("linear", "parameters: {weight: 0}\n", "their sum 0 cannot normalise a mean"),
        ("nuslerp", "parameters: {weight: 0}\n", "sum to 0 at the tensor 'emb.weight'"),
        ("emr", "parameters: {task: 2}\n", "'task' of 'emr' is 2, and there are 2 models"),
        ("della", "parameters: {density: 0.1, epsilon: 0.2}\n", "Choose a smaller epsilon"),
    ],
)
def test_options_that_do_not_fit_together_fail_at_planning(
    method: str, more: str, words: str, tmp_path: Path
) -> None:
    base, *models = merging.checkpoints(tmp_path, 2)
    with pytest.raises(UsageError, match=words), planned(parse_recipe(of(models, method, more, base))):
        pass


@pytest.mark.parametrize("text", ["tokenizer_source: union\n", "tokenizer: {source: union}\n"])
def test_without_embeddings_there_is_nothing_to_align(text: str, tmp_path: Path) -> None:
    for number, word in enumerate(("x", "y")):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_tensors(folder / "model.safetensors", {"w": torch.ones(2)}, {"format": "pt"})
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {word: 0}}}))
    kind = "merge_method" if "{" in text else "method"
    recipe = f"{kind}: linear\nmodels: [{{model: {tmp_path}/0}}, {{model: {tmp_path}/1}}]\n"
    recipe += f"parameters: {{weight: 1.0}}\n\n{text}"
    with pytest.raises(MismatchError, match=r"id 0 is 'y'.*(.|\n)*`--allow tokenizer`"):
        merge_files(parse_recipe(recipe, "m.yaml"), tmp_path / "out")


def test_a_vector_in_one_file_has_its_recipe_and_no_card(tmp_path: Path) -> None:
    base, *models = merging.checkpoints(tmp_path, 2)
    text = of(models, "ties", "output: vector\n", base)
    files(text, tmp_path / "v.safetensors")
    info = TaskVector.from_pretrained(tmp_path / "v.safetensors").info
    assert parse_recipe(json.dumps(info["merge"]["recipe"])) == parse_recipe(text)
    with pytest.raises(StoreError, match=r"only a directory has a card.*info\.merge\.recipe"):
        reproduce(tmp_path / "v.safetensors")
    files(text, tmp_path / "folder")
    assert Card.read(tmp_path / "folder").recipe.method == "ties"
    reproduce(tmp_path / "folder")


# -- code of one's own -------------------------------------------------------------------------------------------


def test_other_code_under_the_same_name_is_another_plan(tmp_path: Path) -> None:
    def first(values: Tensor, base: Tensor) -> Tensor:
        return values[0]

    def last(values: Tensor, base: Tensor) -> Tensor:
        return values[-1]

    paths = merging.checkpoints(tmp_path, 2)
    keys = {
        name: merging.plan(merging.recipe(paths, own_method(f, "m:f"))).key
        for name, f in (("a", first), ("b", last))
    }
    assert keys["a"] != keys["b"]
    assert keys["a"] == merging.plan(merging.recipe(paths, own_method(first, "m:f"))).key


def test_a_card_says_that_code_is_needed_and_which(tmp_path: Path) -> None:
    def first(values: Tensor, base: Tensor) -> Tensor:
        return values[0]

    base, *models = merging.checkpoints(tmp_path, 2)
    recipe = MergeRecipe("mine:first", tuple(Input(str(path)) for path in models), str(base))
    merge_files(recipe.with_method(own_method(first)), tmp_path / "out")
    text = (tmp_path / "out" / FILE).read_text()
    assert "`mine:first`, which this card does not hold" in text
    assert "--code mine:first" in text
    assert '"sha256"' in text.partition('"code"')[2]
    with pytest.raises(RecipeError, match="Allow it with `--code mine:first`"):
        reproduce(tmp_path / "out")
    reproduce(tmp_path / "out", own=own_method(first))
    with pytest.raises(RecipeError, match="'ties', a name of the table, and 'first' shall run"):
        MergeRecipe("ties", (Input("a"),), "b").with_method(own_method(first))


# -- layers ------------------------------------------------------------------------------------------------------


def test_experts_are_no_layers() -> None:
    names = [f"h.{layer}.experts.{expert}.w" for layer in range(3) for expert in range(8)]
    found = depths(["emb", *names, "h.1.norm"])
    assert found == {"emb": None, "h.1.norm": 0.5, **{name: int(name[2]) / 2 for name in names}}


def test_a_wrapper_with_one_number_hides_no_layers_and_one_layer_is_the_last() -> None:
    assert depths(["0.h.0.w", "0.h.1.w", "0.emb"]) == {"0.h.0.w": 0.0, "0.h.1.w": 1.0, "0.emb": None}
    assert depths(["h.0.w", "emb"]) == {"h.0.w": 1.0, "emb": None}

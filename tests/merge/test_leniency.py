"""Leniency: every error that can be allowed says how, that way works, and what it lets pass is told everywhere."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tauspan.cli.main import main
from tauspan.core.errors import MismatchError
from tauspan.merge import METHODS, merge_files
from tauspan.merge.checks.checks import doctor
from tauspan.merge.sources.problems import LENIENT
from tauspan.store import Checkpoint, write_json, write_tensors

Tensors = dict[str, Tensor]
PLAIN: Tensors = {
    "model.embed_tokens.weight": torch.arange(12.0).view(6, 2),
    "model.layers.0.w": torch.eye(2),
    "model.norm.weight": torch.ones(2),
}


def model(folder: Path, tensors: Tensors, config: dict[str, object] | None = None, tokens: str = "") -> Path:
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    if config is not None:
        write_json(folder / "config.json", config)
    if tokens:
        vocabulary = {token: number for number, token in enumerate(tokens)}
        write_json(
            folder / "tokenizer.json", {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}}
        )
    return folder


def moved(tensors: Tensors, by: float = 1.0) -> Tensors:
    return {name: tensor + by if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def without(name: str) -> Tensors:
    return {key: tensor for key, tensor in moved(PLAIN).items() if key != name}


CASES: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    "extra_tensors": lambda at: (model(at / "b", PLAIN), model(at / "m", moved(PLAIN) | {"head.w": torch.ones(1)})),
    "missing_tensors": lambda at: (model(at / "b", PLAIN), model(at / "m", without("model.norm.weight"))),
    "shape": lambda at: (
        model(at / "b", PLAIN | {"score.weight": torch.ones(3, 2)}),
        model(at / "m", moved(PLAIN) | {"score.weight": torch.ones(5, 2)}),
    ),
    "vocabulary": lambda at: (
        model(at / "b", PLAIN),
        model(at / "m", moved(PLAIN) | {"model.embed_tokens.weight": torch.ones(8, 2)}),
    ),
    "buffers": lambda at: (
        model(at / "b", PLAIN | {"ids": torch.arange(3)}),
        model(at / "m", moved(PLAIN) | {"ids": torch.zeros(3, dtype=torch.int64)}),
    ),
    "tied": lambda at: (
        model(at / "b", PLAIN, {"model_type": "llama", "tie_word_embeddings": True}),
        model(at / "m", moved(PLAIN) | {"lm_head.weight": torch.ones(6, 2)}, {"model_type": "llama"}),
    ),
    "tokenizer": lambda at: (model(at / "b", PLAIN, {}, "abcdef"), model(at / "m", moved(PLAIN), {}, "abcdfe")),
    "architecture": lambda at: (
        model(at / "b", PLAIN, {"model_type": "llama"}),
        model(at / "m", moved(PLAIN), {"model_type": "mistral"}),
    ),
    "config": lambda at: (
        model(at / "b", PLAIN, {"rope_theta": 1e4}),
        model(at / "m", moved(PLAIN), {"rope_theta": 1e6}),
    ),
}  # fmt: skip


def words(base: Path, *models: Path, out: Path) -> list[str]:
    return ["merge", "--method", "task_arithmetic", "--base", str(base), *map(str, models), "-o", str(out)]


@pytest.mark.thinned(5)
@pytest.mark.parametrize("kind", CASES)
def test_the_way_out_that_an_error_names_works_and_is_told(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    base, tune = CASES[kind](tmp_path)
    command = words(base, tune, out=tmp_path / "out")
    assert main([*command, "-q"]) == 4
    said = capsys.readouterr().err
    flags = re.search(r"allow it by name: `(--allow [^`]+)`", said)
    assert flags is not None
    named = re.search(r"or `(allow: \[[^`]+)` in the recipe", said)
    assert named is not None
    assert not (tmp_path / "out").exists()

    assert main([*command, *shlex.split(flags[1]), "--json"]) == 0
    assert LENIENT[kind] in caplog.text
    assert LENIENT[kind] in capsys.readouterr().out  # in the report
    assert LENIENT[kind] in (tmp_path / "out" / "README.md").read_text()  # in the card

    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"method: task_arithmetic\nbase_model: {base}\nmodels: [{tune}]\n{named[1]}\n")
    assert main(["merge", str(recipe), str(tmp_path / "again"), "-q"]) == 0
    theirs = f"merge_method: task_arithmetic\nbase_model: {base}\nparameters: {{weight: 1}}\n"
    theirs += f"models: [{{model: {tune}}}]\n"
    recipe.write_text(theirs)
    assert main(["merge", str(recipe), str(tmp_path / "theirs"), "-q", *shlex.split(flags[1])]) == 0
    recipe.write_text(theirs + named[1] + "\n")  # the key is ours; mergekit leaves it out
    assert main(["merge", str(recipe), str(tmp_path / "key"), "-q"]) == 0
    one, *others = (Checkpoint(tmp_path / name).read() for name in ("out", "again", "theirs", "key"))
    for other in others:
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_warnings_are_printed_on_stderr_even_where_nothing_else_is(tmp_path: Path) -> None:
    base, tune = CASES["config"](tmp_path)
    command = [
        sys.executable,
        "-m",
        "tauspan",
        *words(base, tune, out=tmp_path / "out"),
        "-q",
        "--allow",
        "config",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.startswith("tauspan: warning: config.json of")
    assert LENIENT["config"] in done.stderr


def test_every_leniency_has_a_case() -> None:
    assert set(CASES) | {"base", "regime"} == set(LENIENT)


@pytest.mark.parametrize("kind", ["shape", "vocabulary"])
def test_a_tensor_of_another_shape_keeps_the_bases(kind: str, tmp_path: Path) -> None:
    base, tune = CASES[kind](tmp_path)
    third = model(tmp_path / "n", moved(Checkpoint(base).read(), 3.0))
    report = merge_files(
        {"method": "task_arithmetic", "base_model": base, "models": [tune, third], "allow": [kind]}, tmp_path / "out",
        )  # fmt: skip
    name = "score.weight" if kind == "shape" else "model.embed_tokens.weight"
    out, start = Checkpoint(tmp_path / "out"), Checkpoint(base)
    assert torch.equal(out[name], start[name] + 3)  # the third alone moves it
    assert torch.equal(out["model.norm.weight"], start["model.norm.weight"] + 4)
    assert len(report.warnings) == 1


# -- a model that lacks a tensor, where there is no base ------------------------------------------------------------

POINTS = {
    "linear": {}, "slerp": {"t": 0.25}, "nuslerp_point": {}, "multislerp_point": {}, "karcher": {},
}  # fmt: skip


@pytest.mark.thinned(3)
@pytest.mark.parametrize("method", POINTS)
@pytest.mark.parametrize("lacking", [[1], [1, 2], []])
def test_without_a_base_a_tensor_is_merged_from_the_models_that_have_it(
    method: str, lacking: list[int], tmp_path: Path
) -> None:
    """As if the other models did not exist, for that tensor; their weights go to those that are left."""
    most = METHODS[method].most or 3
    draw = torch.Generator().manual_seed(0)
    every = [
        {"x": torch.randn(4, 3, generator=draw), "vae": torch.randn(5, generator=draw)} for _ in range(most)
    ]
    files, kept = [], [number for number in range(most) if number not in lacking]
    for number, tensors in enumerate(every):
        files.append(tmp_path / f"m{number}.safetensors")
        own = tensors if number in kept else {"x": tensors["x"]}
        write_tensors(files[-1], own)

    def out(name: str, chosen: list[Path], weights: list[float]) -> Tensors:
        single = {option.name for option in METHODS[method].options if option.per_model}
        models = [
            {"model": file, "parameters": {"weight": weight} if "weight" in single else {}}
            for file, weight in zip(chosen, weights, strict=True)
        ]
        recipe = {
            "method": method,
            "models": models,
            "parameters": POINTS[method],
            "allow": ["missing_tensors"],
        }
        merge_files(recipe, tmp_path / name)
        return Checkpoint(tmp_path / name).read()

    weights = [0.5, 0.3, 0.9][:most]
    got = out("all", files, weights)
    if len(kept) >= METHODS[method].fewest:
        total = sum(weights) / sum(weights[number] for number in kept)
        expected = out("few", [files[k] for k in kept], [weights[k] * total for k in kept])["vae"]
    else:
        expected = every[0]["vae"]
    torch.testing.assert_close(got["vae"], expected)


def test_a_plain_sum_keeps_the_sum_of_its_weights(tmp_path: Path) -> None:
    """theta_1 + (theta_2 - theta_3): what only the first has is its own."""
    for name, value in (("a", 2.0), ("b", 5.0), ("c", 3.0)):
        more = {"vae": torch.full((2,), 7.0)} if name == "a" else {}
        write_tensors(tmp_path / f"{name}.safetensors", {"x": torch.full((2,), value), **more})
    models = [
        {"model": tmp_path / f"{name}.safetensors", "parameters": {"weight": weight}}
        for name, weight in (("a", 1), ("b", 1), ("c", -1))
    ]
    recipe = {
        "method": "linear",
        "models": models,
        "parameters": {"normalize": False},
        "allow": ["missing_tensors"],
    }
    merge_files(recipe, tmp_path / "out")
    out = Checkpoint(tmp_path / "out")
    assert (out["x"].tolist(), out["vae"].tolist()) == ([4.0, 4.0], [7.0, 7.0])


def test_weights_that_cancel_cannot_take_over(tmp_path: Path) -> None:
    for name in "abc":
        more = {"vae": torch.ones(2)} if name != "c" else {}
        write_tensors(tmp_path / f"{name}.safetensors", {"x": torch.ones(2), **more})
    models = [
        {"model": tmp_path / f"{name}.safetensors", "parameters": {"weight": weight}}
        for name, weight in (("a", 1), ("b", -1), ("c", 1))
    ]
    with pytest.raises(
        Exception, match=r"the weights of the models that have 'vae' are \(1, -1\) and sum to 0"
    ):
        merge_files({"method": "linear", "models": models, "allow": ["missing_tensors"]}, tmp_path / "out")


# -- what is told ---------------------------------------------------------------------------------------------------


def test_old_names_of_norms_are_the_same_tensors(tmp_path: Path) -> None:
    """Checkpoints of the first years call them gamma and beta; no leniency is needed, and none is lost."""
    new = {f"bert.{n}.LayerNorm.{part}": torch.rand(3) for n in range(2) for part in ("weight", "bias")}
    old = {name.replace("weight", "gamma").replace("bias", "beta"): tensor for name, tensor in new.items()}
    base, tune = model(tmp_path / "b", old), model(tmp_path / "m", moved(new))
    for method, first in (("task_arithmetic", {"base_model": base}), ("linear", {})):
        models = [tune] if first else [base, tune]
        report = merge_files({"method": method, **first, "models": models}, tmp_path / method)
        assert not report.warnings
        out, share = Checkpoint(tmp_path / method), 1.0 if first else 0.5
        for name, tensor in old.items():
            torch.testing.assert_close(out[name], tensor + share)
    third = model(tmp_path / "n", new)
    merge_files({"method": "linear", "models": [third, base]}, tmp_path / "turned")
    assert set(Checkpoint(tmp_path / "turned")) == set(new)


def test_errors_of_one_kind_are_one_line_that_names_the_models(tmp_path: Path) -> None:
    base = model(tmp_path / "base", PLAIN)
    tunes = [model(tmp_path / f"tune{n}", without("model.norm.weight")) for n in range(4)]
    with pytest.raises(MismatchError) as caught:
        merge_files({"method": "ties", "base_model": base, "models": tunes}, tmp_path / "out")
    line, hint = str(caught.value).splitlines()
    assert "'model.norm.weight'" in line
    assert "The same holds for 3 more: tune1, tune2, tune3." in line
    assert "--allow missing_tensors" in hint


def test_warnings_of_an_adapter_are_told_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = model(tmp_path / "base", {"h.0.q.weight": torch.zeros(4, 4)})
    tune = model(tmp_path / "tune", {"h.0.q.weight": torch.eye(4).half()})
    recipe = {
        "method": "task_arithmetic",
        "base_model": base,
        "models": [tune],
        "output": "adapter",
        "rank": 4,
    }
    report = merge_files(recipe, tmp_path / "out")
    assert "float16" in report.warnings[0]
    assert "float16" in caplog.text
    assert "float16" in (tmp_path / "out" / "README.md").read_text()


def test_the_doctor_says_its_verdict_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tune = CASES["config"](tmp_path)
    assert main(["doctor", str(tune), "--base", str(base)]) == 4
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("These models cannot be merged as they are: 1 error (config in ")
    assert first.endswith("They can with --allow config.")
    assert main(["doctor", str(tune), "--base", str(base), "--allow", "config"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "These models can be merged: no errors, 1 warning."
    assert doctor([tune], base).verdict == first
    assert main(["doctor", str(tune), "--allow", "confg"]) == 2
    assert "Did you mean 'config'?" in capsys.readouterr().err

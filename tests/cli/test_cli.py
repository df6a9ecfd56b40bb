"""The program: every verb on a tiny directory, every refusal with its exit code and words, and nothing left behind."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tauspan
import tauspan.editing
from helpers import tiny
from helpers.program import World, contents, make
from tauspan.cli import models as verbs_models
from tauspan.cli.main import main, parser
from tauspan.vector import TaskVector

TUNE = ("--epochs", "1", "--max-steps", "2", "--batch-size", "4", "--max-tokens", "8", "--rows", "8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("world"))


def call(world: World, line: str) -> int:
    """The program on a line of words, in which {name} stands for a path of the world."""
    try:
        return main([word.format(**world) for word in line.split()])
    except SystemExit as stop:  # argparse's own refusals
        return int(stop.code or 0)


# -- starting ------------------------------------------------------------------------------------------------


def test_help_and_version_load_nothing_heavy() -> None:
    for words in (["--help"], ["--version"], ["edit", "add", "--help"]):
        code = (
            "import sys\nfrom tauspan.cli.main import main\n"
            f"try: main({words!r})\nexcept SystemExit as stop: assert not stop.code\n"
            "heavy = {'torch', 'transformers', 'numpy', 'rich', 'matplotlib', 'yaml', 'safetensors'}\n"
            "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "tauspan" in done.stdout


def test_the_list_of_reproductions_needs_no_torch() -> None:
    code = (
        "import sys\nfrom tauspan.cli.main import main\nassert main(['reproduce', 'list']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "addition" in done.stdout


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "tauspan", "--version"], capture_output=True, text=True)
    assert done.stdout == f"tauspan {tauspan.__version__}\n"


# -- the verbs, one after the other --------------------------------------------------------------------------


def test_a_vector_is_trained_inspected_combined_applied_and_evaluated(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = {**world, "out": str(tmp_path)}

    def told(line: str) -> str:
        assert call(here, line) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    def fact(line: str) -> Any:
        return json.loads(told(line + " --json"))

    for task in ("one", "two"):
        line = f"finetune {{model}} {{{task}}} {{out}}/{task} --regime standard " + " ".join(TUNE)
        assert fact(line)["reused"] is False
        assert fact(line + " --resume")["reused"] is True
    assert "TaskVector(standard" in told("vector inspect {out}/one {out}/two --tensors")
    assert len(fact("vector inspect {out}/one {out}/two")["result"]["info"]) == 2
    assert "whole and finite" in told("vector verify {out}/one {model}")
    assert fact("vector verify {out}/one")["ok"] is True
    told("vector add {out}/one {out}/two -o {out}/sum")
    told("vector scale {out}/one -2.5 -o {out}/scaled.safetensors")
    told("vector negate {out}/one -o {out}/minus")
    told("vector analogy {out}/one {out}/two {out}/one -o {out}/like")
    one, two = (TaskVector.from_pretrained(tmp_path / name) for name in ("one", "two"))
    wanted = {"sum": one + two, "scaled.safetensors": -2.5 * one, "minus": -one, "like": one + (two - one)}
    for name, vector in wanted.items():
        assert tiny.equal(TaskVector.from_pretrained(tmp_path / name).deltas, vector.deltas)
    assert fact("apply {model} {out}/one {out}/edited --scale 0.5")["scale"] == 0.5
    told("vector diff {model} {out}/edited -o {out}/half")
    half = TaskVector.from_pretrained(tmp_path / "half")
    torch.testing.assert_close(
        dict(half.deltas), {n: d / 2 for n, d in one.deltas.items()}, atol=1e-6, rtol=0
    )
    edited = fact("evaluate {out}/edited {two} --rows 4")
    by_vector = fact("evaluate {model} {two} --vector {out}/one --scale 0.5 --rows 4")
    assert edited["result"]["accuracy"]["two"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert set(by_vector["result"]["accuracy"]) == {"two"}
    added = fact("edit add {model} {one}={out}/one {two}={out}/two --grid 0,1 --out {out}/added")
    assert added["result"]["alpha"] in (0.0, 1.0)
    of_vector, of_model = (
        fact(f"edit add {{model}} {{one}}={{out}}/{name} --grid 0,1 --out {{out}}/of-{name}")["result"]
        for name in ("half", "edited")
    )
    assert of_model == of_vector, "a fine-tuned model in the place of its vector"
    apart = fact(
        "edit add {model} {one}={out}/one {two}={out}/two --untangle layer --regime standard --grid 0,1 --out {out}/apart"
    )
    assert apart["result"]["alpha"] in (0.0, 1.0)
    assert "of untangled vectors" in apart["tables"][0]["title"]
    assert "the sum of untangled vectors" in (tmp_path / "apart" / "report.md").read_text()
    told("edit compare {model} {one}={out}/one {two}={out}/two --first 1 --second one=1 --rows 4")
    refused = call(here, "edit compare {model} {one}={out}/one --first 1 --second one=1,one=2")
    assert refused == 2
    gone = fact("edit negate {model} {one}={out}/one {two} --grid 0,1 --out {out}/gone --regime posthoc")
    assert gone["result"]["regime"] == "posthoc"
    for name, report in (("added", added), ("gone", gone)):
        assert json.loads((tmp_path / name / "report.json").read_text()) == report
        assert (tmp_path / name / "report.md").read_text().startswith("# ")
        assert [file.read_bytes()[:4] for file in (tmp_path / name).glob("*.png")] == [b"\x89PNG"]
    assert not list(tmp_path.rglob("*.part"))


def test_a_tangent_model_is_applied_and_evaluated(world: World, tmp_path: Path) -> None:
    here = {**world, "out": str(tmp_path / "edited")}
    assert call(here, "apply {model} {vector} {out} --regime posthoc -q") == 0
    assert sorted(contents(tmp_path / "edited")) == ["tauspan.json", "vector.safetensors"]
    assert call(here, "evaluate {out} {one} --rows 4 -q") == 0


def test_a_fit_writes_its_vector_and_its_certificate(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    here = {**world, "out": str(tmp_path / "fitted.safetensors")}
    assert call(here, "fit {model} {one} {out} --rows 8 --ridge 0.1 --tolerance 0.01 --json") == 0
    found = json.loads(capfd.readouterr().out)
    assert found["converged"]
    assert found["gradient_norm"] <= 0.01
    assert call(here, "fit {model} {one} {out}b --rows 8 --ridge 0.1 --tolerance 0.01") == 0
    assert "gradient norm" in capfd.readouterr().out
    assert call(here, "vector verify {out} {model}") == 0


def test_quiet_prints_nothing(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    here = {**world, "out": str(tmp_path)}
    for line in (
        "finetune {model} {one} {out}/tuned " + " ".join(TUNE),
        "vector inspect {vector}",
        "vector verify {vector} {model}",
        "vector negate {vector} -o {out}/minus",
        "apply {model} {vector} {out}/edited",
        "evaluate {model} {one} --rows 4",
        "edit add {model} {one}={vector} --grid 0,1 --rows 4",
    ):
        assert call(here, line + " -q") == 0
    assert capfd.readouterr() == ("", "")


def test_a_warning_survives_quiet_in_one_line(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    here = {**world, "out": str(tmp_path / "fitted")}
    assert call(here, "fit {model} {one} {out} --rows 8 --max-steps 1 --tolerance 1e-9 -q") == 0
    shown = capfd.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("tauspan: warning: one: gradient norm ")


def test_chosen_combinations_are_written_as_vectors(world: World, tmp_path: Path) -> None:
    here = {**world, "out": str(tmp_path)}
    tau = TaskVector.from_pretrained(world["vector"])
    for line, factor in (
        ("edit add {model} {one}={vector} {two}={vector} --grid 0.5", 1.0),
        ("edit negate {model} {one}={vector} {two} --grid 0.5 --floor 0", -0.5),
    ):
        file = tmp_path / f"{factor}.safetensors"
        assert call(here, f"{line} --rows 4 -q --vector {file}") == 0
        found = TaskVector.from_pretrained(file)
        if factor < 0 and not found.norm():  # negating nothing was the shortest edit
            continue
        for name, delta in found.deltas.items():
            torch.testing.assert_close(delta, factor * tau.deltas[name])
        assert call(here, f"{line} --rows 4 -q --vector {file}") == 5  # it is there already


@pytest.mark.parametrize("verb", ["solve", "front"])
def test_solved_combinations_are_written_as_vectors(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    name = {"solve": "coefficients", "front": "front"}[verb]
    given, results = getattr(tauspan.editing, name), []

    def heard(*arguments: Any, **options: Any) -> Any:
        results.append(given(*arguments, **options))
        return results[-1]

    monkeypatch.setattr(tauspan.editing, name, heard)
    more = "{two}={vector} --ridge 0.1" if verb == "solve" else "{two} --prices 2 --floor 0"
    line = f"edit {verb} {{model}} {{one}}={{vector}} {more} --regime posthoc --bootstrap 2 --rows 4 -q"
    assert call(world, f"{line} --vector {tmp_path}/chosen") == 0
    found = TaskVector.from_pretrained(tmp_path / "chosen")
    assert tiny.same_bits(found.deltas, results[0].vector.deltas)


def options_of(made: argparse.ArgumentParser, name: str = "tauspan") -> Iterator[tuple[str, str, Any, str]]:
    """Every argument below a parser: its verb, its name, itself, and its help as people see it."""
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, own in action.choices.items():
                yield from options_of(own, f"{name} {verb}")
        else:
            shown = made._get_formatter()._expand_help(action) if action.help else ""
            yield name, "/".join(action.option_strings) or action.dest, action, shown


def test_every_option_has_a_sentence_with_its_default() -> None:
    for verb, name, action, shown in options_of(parser()):
        assert shown, f"{verb} {name} has no help"
        given = action.option_strings and action.nargs != 0 and not action.required
        assert not given or "default: " in shown, f"{verb} {name} does not say its default: {shown}"
        assert "None" not in shown, f"{verb} {name}: {shown}"


# -- refusals ------------------------------------------------------------------------------------------------

TUNED = "finetune {model} {one} {out}"
REFUSED: dict[str, tuple[str, int, str]] = {
    "no verb": ("", 2, "VERB"),
    "an unknown verb": ("trian", 2, "invalid choice"),
    "a shortened option": ("evaluate {model} {one} --ro 4", 2, "unrecognized arguments: --ro"),
    "another base": ("vector verify {vector} {other}", 4, "starts from base"),
    "another base to apply": ("apply {other} {vector} {out}", 4, "starts from base"),
    "another base to evaluate": ("evaluate {other} {one} --vector {vector}", 4, "starts from base"),
    "another base to search": ("edit add {other} {one}={vector}", 4, "starts from base"),
    "a sum over two bases": ("vector add {vector} {elsewhere} -o {out}", 4, "different points do not add"),
    "a sum over two regimes": ("vector add {vector} {linear} -o {out}", 4, "edit different functions"),
    "a missing tensor": ("vector diff {base_file} {fewer_file} -o {out}", 4, "lacks 1 of"),
    "an extra tensor": ("vector diff {fewer_file} {base_file} -o {out}", 4, "has 1 that"),
    "another shape": ("vector diff {base_file} {shape_file} -o {out}", 4, "(3,) in the base and (2,) in"),
    "a sum with fewer tensors": ("vector add {vector} {fewer} -o {out}", 4, "lacks"),
    "NaN in a model": ("vector diff {base_file} {nan_file} -o {out}", 7, "not finite (NaN)"),
    "infinity in a model": ("vector diff {inf_file} {base_file} -o {out}", 7, "not finite (infinite)"),
    "NaN in a vector": ("vector verify {nan_vector}", 7, "not finite (NaN)"),
    "a factor that is NaN": ("vector scale {vector} nan -o {out}", 2, "nan"),
    "a cut vector": ("vector verify {cut}", 5, "not a whole safetensors file"),
    "a header that is no JSON": ("vector verify {header}", 5, "is not JSON"),
    "a header of another version": ("vector verify {version}", 5, "has format='tauspan-vector/9'"),
    "weights without a header": ("vector verify {base_file}", 5, "without a task vector's header"),
    "a vector that is not there": ("vector inspect {out}/none", 5, "does not exist"),
    "a pickle for a vector": ("vector verify {pt}", 3, "pickle"),
    "a pickle for a model": ("vector diff {base_file} {bin} -o {out}", 3, "pickle"),
    "a directory of pickles": ("evaluate {pickles} {one}", 3, "pickle"),
    "a directory without weights": ("evaluate {weightless} {one}", 5, "no .safetensors weights"),
    "a directory without config": ("evaluate {configless} {one}", 3, "config.json"),
    "an unknown model": ("evaluate minilmm {one}", 3, "Did you mean 'minilm'?"),
    "a hub id without a network": ("evaluate nobody/nothing {one}", 3, "could not be fetched"),
    "an unknown task": ("evaluate {model} email_spma", 6, "Did you mean 'email_spam'?"),
    "a label outside the range": ("evaluate {model} {outside}", 6, "label 2 lies outside 0..1"),
    "an empty split": ("evaluate {model} {empty}", 6, "no rows in its test split"),
    "a changed file": ("evaluate {model} {changed}", 6, "it was changed"),
    "a malformed file": ("evaluate {model} {ragged}", 6, "line 2: 1 fields, the header has 2"),
    "a file without its column": ("evaluate {model} {columnless}", 6, "has no column 'text'"),
    "a card that lacks a key": ("evaluate {model} {cardless}", 6, "lacks 'splits'"),
    "no rows": ("evaluate {model} {one} --rows 0", 6, "at least one row"),
    "no tokens": ("evaluate {model} {one} --max-tokens 0", 2, "max_tokens=0"),
    "no rows a pass": ("evaluate {model} {one} --batch-size 0", 2, "batch_size=0"),
    "a recipe that is not there": ("run {out}/none.yaml", 5, "none.yaml"),
    "an unknown key": ("run {recipe} --out {out}", 2, "unknown key 'finetune.epoks'. Did you mean 'epochs'?"),
    "negative epochs in a recipe": ("run {negative} --out {out}", 2, "epochs=-1"),
    "negative epochs": (TUNED + " --epochs -1", 2, "epochs=-1"),
    "no rows a step": (TUNED + " --batch-size 0", 2, "batch_size=0"),
    "no learning rate": (TUNED + " --lr 0", 2, "lr=0.0"),
    "an unknown regime": (TUNED + " --regime posthoc", 2, "invalid choice"),
    "a pattern for no parameter": (TUNED + " --params zzz.*", 2, "zzz"),
    "more blocks than there are": (TUNED + " --params last:99", 2, "99"),
    "a device that is not there": (TUNED + " --device gpu", 2, "the device 'gpu' cannot be used"),
    "such a device of a recipe": (
        "demo --out {out} --device cuda:77",
        2,
        "the device 'cuda:77' cannot be used",
    ),
    "such a device of an evaluation": ("evaluate {model} {one} --device cuda:77", 2, "cuda:77"),
    "shards on a device": (TUNED + " --shard --device cpu", 2, "Leave --device out"),
    "a checkpoint every no steps": (TUNED + " --checkpoint-every 0", 2, "checkpoint_every=0"),
    "a vector that is already there": ("vector negate {vector} -o {vector}", 5, "already there"),
    "a model that is already there": ("apply {model} {vector} {other}", 5, "already there"),
    "a model in the way of an edit of itself": (
        "apply {model} {vector} {model} --overwrite",
        2,
        "Choose another output",
    ),
    "a cache where theta moves": (TUNED + " --regime standard --cache primal", 2, "moves theta"),
    "crops of texts": (TUNED + " --augment crop", 2, "cuts images, and {model} reads text inputs"),
    "no ridge": ("fit {model} {one} {out} --ridge 0", 2, "ridge=0.0"),
    "a fit where a vector is": ("fit {model} {one} {vector}", 5, "already there"),
    "a finished run": ("finetune {model} {one} {done}", 5, "already there"),
    "an unfinished run": ("finetune {model} {one} {half}", 5, "holds an unfinished run"),
    "training below a file": ("finetune {model} {one} {file}/out " + " ".join(TUNE), 5, "{file}"),
    "a vector below a file": ("vector negate {vector} -o {file}/out", 5, "could not be written"),
    "a model below a file": ("apply {model} {vector} {file}/out", 5, "could not be written"),
    "a report below a file": ("edit add {model} {one}={vector} --grid 0 --out {file}/out", 5, "could not be"),
    "a grid of words": ("edit add {model} {one}={vector} --grid a,b", 2, "neither paper, auto nor a list"),
    "a grid that is not finite": ("edit add {model} {one}={vector} --grid 0,inf", 2, "finite"),
    "a pair without its vector": ("edit add {model} {one}", 2, "must be TASK=VECTOR"),
    "one task twice": ("edit add {model} {one}={vector} {one}={vector}", 6, "stands twice"),
    "the target as its control": ("edit negate {model} {one}={vector} {one}", 2, "its own control"),
    "a floor above one": ("edit negate {model} {one}={vector} {two} --floor 2", 2, "floor=2.0"),
    "a regime that does not fit": ("apply {model} {vector} {out} --regime linear", 2, "as_regime('linear')"),
    "a linear vector, posthoc": ("edit add {model} {one}={linear} --regime posthoc", 2, "is a linear vector"),
    "an edited model to edit": ("edit add {tangent} {one}={vector}", 2, "is an edited tangent model"),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_has_its_code_and_words_and_leaves_nothing(
    case: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, code, words = REFUSED[case]
    here = {**world, "out": str(tmp_path / "out")}
    before = contents(Path(world["root"]))
    assert call(here, line) == code
    shown = capsys.readouterr()
    assert words.format(**here) in shown.err
    assert "Traceback" not in shown.err
    assert not shown.out
    assert contents(tmp_path) == {}
    assert contents(Path(world["root"])) == before


def test_an_interrupt_is_reported_without_a_traceback(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs_models, "evaluate", stop)
    assert call(world, "evaluate {model} {one}") == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_world_is_as_the_refusals_need_it(world: World) -> None:
    for line in (
        "vector verify {vector} {model}",
        "evaluate {model} {one} --rows 4",
        "vector verify {linear}",
    ):
        assert call(world, line + " -q") == 0

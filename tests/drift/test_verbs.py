"""`tauspan factors`, and penalties of `tauspan finetune`: they do what the functions do."""

import json
from pathlib import Path

import pytest
import torch

import tauspan as ts
from helpers import checkpoints
from helpers.program import task as write_task
from tauspan.cli.factors import KINDS as WORDS
from tauspan.cli.main import main
from tauspan.drift import KINDS, Exact, Factored, Factors, compressed, factors, least_sensitive, merged
from tauspan.tasks import Task

LATE = [("z y", 1), ("a", 0), ("z z", 1), ("b b", 0), ("x z y", 1), ("c", 0)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("world")
    return {
        "model": checkpoints.write(root / "model", "bert"), "first": write_task(root / "first"),
        "second": write_task(root / "second", LATE), "third": write_task(root / "third", LATE[:4]),
    }  # fmt: skip


def run(line: str, **places: object) -> int:
    return main([part.format(**places) for part in line.split()])


def same(found: Factors, wanted: Factors) -> None:
    assert found.base == wanted.base
    assert found.blocks.keys() == wanted.blocks.keys()
    for name, block in wanted.blocks.items():
        for field, tensor in block.tensors().items():
            torch.testing.assert_close(found.blocks[name].tensors()[field], tensor)


@pytest.mark.parametrize("kind", ["expand", "reduce"])
def test_factors_of_texts_do_not_depend_on_batches(world: dict[str, Path], kind: str) -> None:
    model, one = ts.load(world["model"]), Task.from_directory(world["second"])
    whole, single = (factors(model, one, kind, reading=ts.Reading(batch_size=size)) for size in (6, 1))
    for name, block in whole.blocks.items():
        for field, tensor in block.tensors().items():
            noise = 1e-5 * float(tensor.abs().max()) + 1e-9 if tensor.numel() else 0.0
            torch.testing.assert_close(single.blocks[name].tensors()[field], tensor, rtol=1e-3, atol=noise)


def test_the_program_knows_every_kind() -> None:
    assert set(WORDS) == set(KINDS)


def test_factors_are_made_merged_and_thinned(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, tasks = (
        ts.load(world["model"]),
        [Task.from_directory(world[name]) for name in ("second", "third")],
    )
    files = [tmp_path / f"{task.name}.safetensors" for task in tasks]
    for task, file in zip(tasks, files, strict=True):
        line = "factors make {model} {task} --params last:1 -o {file}"
        assert run(line, model=world["model"], task=world[task.name], file=file) == 0
        same(Factors.load(file), factors(encoder, task, params="last:1"))
    assert "tauspan finetune" in capsys.readouterr().out
    assert run("factors merge {a} {b} -o {out}", a=files[0], b=files[1], out=tmp_path / "both") == 0
    both = merged([factors(encoder, task, params="last:1") for task in tasks])
    same(Factors.load(tmp_path / "both"), both)
    late = Task.from_directory(write_task(tmp_path / "fourth", LATE[2:]))
    third = factors(encoder, late, params="last:1")
    third.save(tmp_path / "more")
    assert (
        run("factors merge {a} {b} -o {o}", a=tmp_path / "both", b=tmp_path / "more", o=tmp_path / "all") == 0
    )
    every = [*(factors(encoder, task, params="last:1") for task in tasks), third]
    same(Factors.load(tmp_path / "all"), merged(every))
    capsys.readouterr()
    assert run("factors merge {a} {b} -o {o}", a=files[0], b=tmp_path / "both", o=tmp_path / "no") == 2
    assert "would count as often" in capsys.readouterr().err
    assert (
        run("factors thin {both} --energy 0.9 -o {out}", both=tmp_path / "both", out=tmp_path / "thin") == 0
    )
    same(Factors.load(tmp_path / "thin"), compressed(both, 0.9))
    assert run("factors thin {both} -o {out}", both=tmp_path / "both", out=tmp_path / "thin") != 0
    assert "overwrite" in capsys.readouterr().err


def test_fine_tuning_takes_them(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, first = ts.load(world["model"]), Task.from_directory(world["first"])
    second = Task.from_directory(world["second"])
    settings = ts.Settings("linear", params="last:1", lr=1e-2, epochs=2, batch_size=4)
    options = "--params last:1 --lr 0.01 --epochs 2 --batch-size 4"
    made = tmp_path / "made.safetensors"
    factors(encoder, second, params="last:1").save(made)
    for name, extra, penalty in [
        ("rows", "--others {second} --weight 0.5", Exact([second], 0.5)),
        ("factors", "--factors {made} --weight 0.5", Factored([Factors.load(made)], 0.5)),
    ]:
        places = {**world, "made": made, "out": tmp_path / name}
        assert run(f"finetune {{model}} {{first}} {{out}} {options} {extra}", **places) == 0
        wanted = ts.finetune(encoder, first, settings, penalty=penalty).task_vector
        found = ts.TaskVector.from_pretrained(tmp_path / name)
        for tensor, delta in wanted.deltas.items():
            torch.testing.assert_close(found.deltas[tensor], delta)
        assert found.info["penalty"]["weight"] == 0.5
        told = " ".join(capsys.readouterr().out.split())
        assert "Drift on the rows of other tasks" in told
        assert ("not measured" in told) is (name == "factors")
        assert run("vector inspect {out}", **places) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert ("not measured" in told) is (name == "factors")
        assert ("--others TASK" in told) is (name == "factors")
    places = {**world, "made": made, "out": tmp_path / "both"}
    line = f"finetune {{model}} {{first}} {{out}} {options} --factors {{made}} --others {{second}}"
    assert run(f"{line} --json", **places) == 0
    facts = json.loads(capsys.readouterr().out)
    measured = ts.TaskVector.from_pretrained(tmp_path / "both").info["penalty"]
    assert (facts["drift"], facts["ratio"]) == (measured["drift"], measured["ratio"])
    assert list(facts["ratio"]) == ["second"]
    for again in (f"{line} --resume", "vector inspect {out}"):
        assert run(again, **places) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert all(f"{measured[key]['second']:.3g}" in told for key in ("drift", "ratio"))
        assert "not measured" not in told
    assert run("finetune {model} {first} {out} --others {first}", **{**world, "out": tmp_path / "no"}) == 2
    assert "'first' is trained on and is to stay at once" in " ".join(capsys.readouterr().err.split())
    assert run("finetune {model} {first} --plan --others {second}", **world) == 2
    assert "leave --others, --factors and --sparse out" in capsys.readouterr().err


def test_a_sparse_vector_from_the_program(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "model": world["model"],
        "task": world["first"],
        "file": tmp_path / "own",
        "out": tmp_path / "run",
    }
    assert run("factors make {model} {task} --kind diagonal --params last:1 -o {file}", **places) == 0
    line = "finetune {model} {task} {out} --max-steps 2 --max-tokens 8 --sparse {file}:0.1"
    assert run(line, **places) == 0
    tau = ts.TaskVector.from_pretrained(tmp_path / "run" / "vector.safetensors")
    encoder = ts.load(world["model"])
    masks = least_sensitive(encoder, Factors.load(tmp_path / "own"), 0.1)
    for name, delta in tau.dense(encoder).deltas.items():
        assert not delta[~masks[name]].any()
        assert delta[masks[name]].any()
    capsys.readouterr()
    assert run(line.replace(":0.1", ""), **places) == 2
    assert "a file of diagonal factors and a share" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "ghosts"),
    [
        ("--ghosts 4 --ghosts third=0.5", ts.Ghosts({"first": 4.0, "second": 4.0, "third": 0.5})),
        ("--ghosts 2 --ghost-rows 2 --choose pivoted", ts.Ghosts(2.0, 2, "pivoted")),
        (
            "--ghosts first=3 --reference {rows}",
            ts.Ghosts({"first": 3.0, "second": 1.0, "third": 1.0}, inputs=["a b", "z", "c x"]),
        ),
        ("--reference {third}", ts.Ghosts(inputs=[text for text, _ in LATE[:4]])),
    ],
)
def test_superposed_vectors_take_weights_by_task_and_other_rows(
    world: dict[str, Path], tmp_path: Path, line: str, ghosts: ts.Ghosts
) -> None:
    places = {**world, "rows": tmp_path / "rows.txt", "out": tmp_path / "made"}
    places["rows"].write_text("a b\nz\nc x\n")
    words = (
        "superpose {model} {first} {second} --control {third} --ridge 0.5 --params last:1 --vectors {out} "
        + line
    )
    assert run(words, **places) == 0
    first, second, third = (Task.from_directory(world[name]) for name in ("first", "second", "third"))
    encoder = ts.load(world["model"])
    wanted = ts.superpose(encoder, [first, second], ghosts, 0.5, controls=[third], params="last:1").vectors
    for task, vector in wanted.items():
        found = ts.TaskVector.from_pretrained(tmp_path / "made" / f"{task.name}.safetensors")
        assert found.info["solver"]["ghosts"] == vector.info["solver"]["ghosts"]
        for name, delta in vector.deltas.items():
            torch.testing.assert_close(found.deltas[name], delta, rtol=1e-4, atol=1e-6)


def test_ghosts_that_cannot_be_are_refused(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "superpose {model} {first} {second} --ridge 0.5 --params last:1 --vectors {out} "
    for told, more in [
        ("neither WEIGHT nor TASK=WEIGHT", "--ghosts first=much"),
        ("no task 'frist'", "--ghosts frist=2"),
        ("for the tasks' own rows", "--reference {third} --choose pivoted"),
        ("at least 1", "--reference {third} --ghost-rows 0"),
    ]:
        assert run(line + more, **{**world, "out": tmp_path / "made"}) == 2
        assert told in " ".join(capsys.readouterr().err.split())

"""After Ctrl-C the program prints a command; that command, run as it is printed, ends with the same bits."""

import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import checkpoints, merging, tiny
from helpers.program import contents, task
from tauspan import editing
from tauspan.cli.main import main, parser
from tauspan.cli.shared import interrupted
from tauspan.experiments import figures
from tauspan.experiments.sweep.driver import _Sweep
from tauspan.merge.stream import stream
from tauspan.merge.stream.blocks import Merging
from tauspan.store import Checkpoint
from tauspan.train.loop import Run
from tauspan.vector import TaskVector

SHORT = ["--regime", "standard", "--epochs", "4", "--batch-size", "4", "--max-tokens", "8", "-q"]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw", lambda *given: [])


def with_interrupt(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Send SIGINT to this process at the end of the so manyth call."""
    whole: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def interrupting(*args: Any, **options: Any) -> Any:
        found = whole(*args, **options)
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return found

    patch.setattr(owner, name, interrupting)


def stopped(
    line: list[str], capfd: pytest.CaptureFixture[str], owner: Any, name: str, call: int = 1
) -> list[str]:
    """Interrupt the program there, and return the command that it prints."""
    with pytest.MonkeyPatch.context() as patch:
        with_interrupt(patch, owner, name, call)
        assert main(line) == 130
    told = capfd.readouterr().err
    assert "Traceback" not in told
    first, command = told.strip().splitlines()[-2:]
    assert first == "tauspan: interrupted; what was finished is kept. To go on:"
    program, *words = shlex.split(command)
    assert program == "tauspan"
    return words


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("a folder")  # with a space, which the command quotes
    model = checkpoints.write(root / "model", "bert")
    recipe = root / "small.yaml"
    one, two = task(root / "one"), task(root / "two")
    recipe.write_text(
        f"model: {model}\ntasks: ['{one}', '{two}']\nmax_tokens: 8\nregimes: [linear]\ngrid: [0, 1]\n"
        "finetune: {max_steps: 1, batch_size: 4}\n"
    )
    return {"model": str(model), "one": str(one), "recipe": str(recipe)}


def test_finetune(world: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "a cut one"
    assert main(["finetune", world["model"], world["one"], str(whole), *SHORT]) == 0
    words = stopped(["finetune", world["model"], world["one"], str(cut), *SHORT], capfd, Run, "one_step", 3)
    assert words[-1] == "--resume"
    assert main(words) == 0
    ours, theirs = (TaskVector.from_pretrained(folder).deltas for folder in (whole, cut))
    assert tiny.same_bits(ours, theirs)


def test_finetune_resumed_and_stopped_again_says_resume_once(
    world: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["finetune", world["model"], world["one"], str(tmp_path / "out"), *SHORT]
    words = stopped(line, capfd, Run, "one_step", 2)
    assert stopped(words, capfd, Run, "one_step", 2) == words


def test_finetune_stopped_before_its_first_step_left_nothing(
    world: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["finetune", world["model"], world["one"], str(tmp_path / "out"), *SHORT]
    with pytest.MonkeyPatch.context() as patch:
        with_interrupt(patch, Run, "start", 1)
        assert main(line) == 130
    first, command = capfd.readouterr().err.strip().splitlines()
    assert first == "tauspan: interrupted; nothing was written. To begin anew:"
    assert shlex.split(command) == ["tauspan", *line]
    assert main(line) == 0


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_run(workers: int, world: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = ["run", world["recipe"], "--out", str(tmp_path / "out"), "--workers", str(workers), "-q"]
    where: tuple[Any, str] = (editing.Editor, "add") if workers == 1 else (_Sweep, "_settle")
    words = stopped(line, capfd, *where)
    assert words == line
    files = contents(tmp_path / "out" / "vectors")  # with workers, one vector may be half done
    done = {name.partition("/")[0] for name in files if name.endswith("vector.safetensors")}
    kept = {name: file for name, file in files.items() if name.partition("/")[0] in done}
    assert kept
    assert main(words) == 0
    assert kept.items() <= contents(tmp_path / "out" / "vectors").items()
    assert (tmp_path / "out" / "report.json").is_file()


def test_merge(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "FLUSH", 0.0)
    base, *models = map(str, merging.checkpoints(tmp_path))
    start = [
        "merge",
        "--method",
        "task_arithmetic",
        "--base",
        base,
        *models,
        "--output",
        "vector",
        "-q",
        "-o",
    ]
    assert main([*start, str(tmp_path / "whole.safetensors")]) == 0
    whole = Merging.run

    def interrupted_run(self: Merging, left: Any) -> Any:
        for place, one in enumerate(whole(self, left)):
            if place == 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield one

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Merging, "run", interrupted_run)
        assert main([*start, str(tmp_path / "cut.safetensors")]) == 130
    command = capfd.readouterr().err.strip().splitlines()[-1]
    words = shlex.split(command)[1:]
    assert words == [*start, str(tmp_path / "cut.safetensors"), "--resume"]
    assert main(words) == 0
    ours, theirs = (Checkpoint(tmp_path / f"{name}.safetensors").read() for name in ("whole", "cut"))
    assert tiny.same_bits(ours, theirs)


@pytest.mark.parametrize(
    ("line", "kept", "more"),
    [
        ("reproduce text7 --out here", True, ""),
        ("reproduce text7 --out here --plan", False, ""),
        ("reproduce list", False, ""),
        ("demo", True, ""),
        ("evaluate minilm email_spam", False, ""),
        ("merge there.yaml out", False, ""),
        ("merge begun.yaml begun", True, " --resume"),
        ("merge begun.yaml -o begun --resume", True, ""),
        ("merge --schema", False, ""),
        ("finetune minilm email_spam 'a b' --seed 3", False, ""),
    ],
)
def test_the_command_is_the_one_that_was_given(
    line: str, kept: bool, more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".begun.merging").mkdir()
    words = shlex.split(line)
    told = interrupted(words, parser().parse_args(words))
    assert ("is kept" in told) is kept
    assert told.splitlines()[1] == f"  tauspan {line}{more}"


def test_as_a_module_the_command_names_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/tauspan/__main__.py"])
    monkeypatch.setattr("sys.executable", "/usr/bin/python")
    assert "\n  /usr/bin/python -m tauspan demo\n" in interrupted(["demo"], parser().parse_args(["demo"]))

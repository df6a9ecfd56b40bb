"""What users expect of a program: the nearest name after a slip, values from the command line, completion in shells."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tauspan.cli import completion as completing
from tauspan.cli.main import main, parser
from tauspan.experiments.reproduce import names
from tauspan.experiments.run.recipe import json_schema
from tauspan.experiments.shipped import recipe_file, shipped
from tauspan.tasks.data import catalog
from tauspan.tasks.data.suite import NAMES

# -- the nearest name --------------------------------------------------------------------------------------------

SLIPS = {
    "evalute x": "argument VERB: invalid choice: 'evalute'. Did you mean 'evaluate'?",
    "zzz": "argument VERB: invalid choice: 'zzz'. Known: ",
    "vector negat x": "argument ACTION: invalid choice: 'negat'. Did you mean 'negate'?",
    "finetune minilm t o --regime linaer": "argument --regime: invalid choice: 'linaer'. Did you mean 'linear'?",
    "completion fihs": "argument shell: invalid choice: 'fihs'. Did you mean 'fish'?",
    "evaluate minilm t --row 3": "unrecognized arguments: --row 3. Did you mean --rows in place of --row?",
    "evaluate minilm t --row=3": "Did you mean --rows in place of --row?",
    "finetune minilm t o --learning_rate 1 --epoch 2": "Did you mean --epochs in place of --epoch?",
    "vector negate v --ot x": "arguments are required: -o/--out. Did you mean --out in place of --ot?",
    "evaluate minilm t --zzz": "unrecognized arguments: --zzz. `tauspan evaluate --help` lists the options.",
    "vector scale a 1 2 -o x": "unrecognized arguments: 2.",
    "--json evaluate minilm t": "Options stand after the verb, as in `tauspan VERB --json`.",
    "--json": "arguments are required: VERB. Options stand after the verb, as in `tauspan VERB --json`.",
    "edit --grid=auto add minilm a=b": "Options stand after the verb, as in `tauspan edit VERB --grid`.",
}


@pytest.mark.parametrize("line", SLIPS)
def test_a_slip_is_answered_with_the_nearest_name(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    assert SLIPS[line] in capsys.readouterr().err


def test_values_that_look_like_options_are_not_taken_for_slips() -> None:
    options = parser().parse_args(["edit", "add", "minilm", "a=b", "--grid=-1,0", "--vector", "v"])
    assert (options.grid, options.vector) == ("-1,0", "v")
    assert parser().parse_args(["vector", "scale", "v", "-2.5", "-o", "x"]).factor == -2.5


# -- a recipe by name, with other values -------------------------------------------------------------------------

REFUSED = {
    "run": (
        2,
        "run needs a recipe: a YAML file, or one that comes with the package: demo, made-to-add, text7, text7-merging.",
    ),
    "run text8": (
        5,
        "there is no recipe text8, neither a file nor one that comes with the package. Did you mean 'text7'?",
    ),
    "run out/text7.yaml": (5, "there is no recipe out/text7.yaml"),
    "run demo --set finetune.epoch=2": (
        2,
        "--set finetune.epoch=2: unknown key 'finetune.epoch'. Did you mean 'epochs'?",
    ),
    "run demo --set finetune.epochs=two": (
        2,
        "--set finetune.epochs=two: finetune.epochs is 'two', and must be a whole",
    ),
    "run demo --set finetune.epochs": (2, "--set finetune.epochs: write KEY=VALUE, each key once."),
    "run demo --set a..b=1": (2, "--set a..b=1: write KEY=VALUE, each key once."),
    "run demo --set seeds=[1] --set seeds=[2]": (2, "--set seeds=[2]: write KEY=VALUE, each key once."),
    "run demo --set seeds=[1] --seed 2": (2, "--seed 2 and --set seeds=[1]: give one of them."),
    "run demo --set tasks=[email_spam]": (2, "Changed by --set tasks=[email_spam]."),
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_recipe_is_refused_by_what_the_command_line_says(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, words = REFUSED[line]
    assert main(line.split()) == code
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_plan_of_a_recipe_that_ships_counts_what_the_command_line_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = [
        "--set",
        "tasks=[email_spam, debian_section]",
        "--set",
        "regimes=[linear]",
        "--set",
        "negate.targets=[]",
    ]
    sets += ["--set", "disentangle.pairs=[]", "--set", "finetune.lr_linear=1e-4"]
    assert main(["run", "demo", "--plan", "--json", *sets]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["result"].pop("seconds") > 0
    assert told["result"] == {"stages": 4, "done": 0}  # two vectors, their sum and the desk
    assert told["provenance"]["recipe"]["finetune"]["lr_linear"] == 1e-4


def test_a_file_comes_before_a_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_file("text7") == shipped()["text7"]
    Path("text7").mkdir()
    assert recipe_file("text7") == shipped()["text7"]  # a folder is no recipe
    Path("demo").write_text("model: minilm\n")
    assert recipe_file("demo") == Path("demo")


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(json_schema()))


# -- completion --------------------------------------------------------------------------------------------------


def arguments(of: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from arguments(inner)
        else:
            yield action


def test_every_argument_says_what_completes_it() -> None:
    free = [one for one in arguments(parser()) if one.nargs != 0 and one.choices is None and one.type is None]
    told = {one.dest: completing.kind_of(one) for one in free}
    missing = {name for name, kind in told.items() if not kind} - completing.FREE
    assert not missing, f"put {missing} into one of the sets of cli/completion.py"
    known = completing.TASKS | completing.RECIPES | completing.MODELS | completing.FILES | completing.FREE
    assert known <= set(told), "these are no arguments any more"


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "tauspan.bash"
    line = [sys.executable, "-m", "tauspan", "completion", "bash"]
    file.write_text(subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout)
    return file


COMPLETED = {
    "tauspan ev": {"evaluate"},
    "tauspan edit ": {"add", "compare", "negate", "solve", "front", "subsets"},
    "tauspan finetune mini": {"minilm"},
    "tauspan finetune minilm movie": {"movie_sentiment"},
    "tauspan evaluate minilm email_spam debian": {"debian_section"},
    "tauspan finetune minilm email_spam out --regime ": {"standard", "linear"},
    "tauspan run ": {*shipped(), "mine.yaml"},
    "tauspan run mi": {"mine.yaml"},
    "tauspan run --pl": {"--plan"},
    "tauspan reproduce ": {"list", *names(), "mine.yaml"},
    "tauspan completion ": set(completing.SHELLS),
}


@pytest.mark.parametrize("line", COMPLETED)
def test_bash_completes(line: str, bash: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    code = (
        f'source {bash}; read -r -a COMP_WORDS <<< "$1"; [[ $1 == *" " ]] && COMP_WORDS+=("")\n'
        'COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); _shtab_tauspan; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", code, "bash", line], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == COMPLETED[line]


def test_the_scripts_know_every_verb_and_name(capsys: pytest.CaptureFixture[str]) -> None:
    (verbs,) = [one for one in parser()._actions if isinstance(one, argparse._SubParsersAction)]
    for shell in completing.SHELLS:
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(verb in script for verb in verbs.choices)
        known = [*NAMES, *catalog(), *shipped(), *names()] if shell != "tcsh" else []
        assert all(name in script for name in known)
        assert main(["completion", shell, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": script}


def test_completion_needs_no_torch() -> None:
    code = (
        "import sys\nfrom tauspan.cli.main import main\nassert main(['completion', 'bash']) == 0\n"
        "sys.exit(repr({'torch', 'numpy', 'yaml'} & set(sys.modules)) if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_wrong_line_is_answered_in_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """What the verb takes, and what is wrong; its options are many, and `--help` has them."""
    for line in ("edit add minilm a=b --gird 3", "nope", "data make", "merge --output x"):
        with pytest.raises(SystemExit):
            parser().parse_args(line.split())
        assert len(capsys.readouterr().err.strip().splitlines()) == 2

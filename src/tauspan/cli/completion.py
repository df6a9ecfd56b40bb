"""The verb that prints a completion script for a shell, which shtab makes of the parser."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tauspan
from tauspan.cli.shared import Verb
from tauspan.experiments.shipped import shipped

SHELLS = ("bash", "zsh", "fish", "tcsh")
TASKS = {
    "task",
    "tasks",
    "pairs",
    "pair",
    "control",
    "pool",
    "controls",
    "others",
    "reference",
}  # arguments whose values are tasks, by their names in the code
RECIPES = {"recipe"}
MODELS = {"model", "models", "base", "embed", "inputs"}
FILES = {
    "a", "adapter", "against", "b", "c", "card", "checkpoints", "data", "factors", "grafted", "head_from", "named_out",
    "out", "output", "root", "rows", "run", "test", "tokenizer", "train", "tuned", "validation", "vector", "vectors",
}  # fmt: skip
FREE = {
    "allow", "code", "columns", "delimiter", "device", "eigenfunctions", "encoding", "first", "ghosts", "grid",
    "label", "label_names", "label_prompts", "leave_out", "map", "method", "name", "near", "objective", "params",
    "prompt", "ridge", "second", "set", "shard_size", "space", "sparse", "split", "stack", "text", "title",
}  # fmt: skip


def add(verbs: Any, verb: Verb) -> None:
    """Add the verb to a parser; `verb(into, name, does, function)` makes its parser."""
    made = verb(
        verbs, "completion", "print a script by which a shell completes verbs, options and names", completion
    )
    made.description = (
        "Print a script by which a shell completes verbs, options, names and files. For bash, write "
        "`source <(tauspan completion bash)` into ~/.bashrc; for zsh, write the script to a file `_tauspan` in a folder "
        "of $fpath; for fish, to ~/.config/fish/completions/tauspan.fish; for tcsh, to a file that "
        "~/.tcshrc sources."
    )
    made.add_argument("shell", choices=SHELLS, help="whose script")


def completion(options: argparse.Namespace) -> None:
    """Print the script of a shell."""
    import shtab

    from tauspan.cli.main import parser

    top, names = parser(), _names()
    for action in _arguments(top):
        kind = kind_of(action)
        if kind == "files":
            vars(action)["complete"] = shtab.FILE
        elif kind:
            words = " ".join(names[kind])
            vars(action)["complete"] = {
                "bash": f"_tauspan_{kind}", "zsh": f"_tauspan_{kind}", "tcsh": "f",
                "fish": f"{words} {shtab.FILE['fish']}",
            }  # fmt: skip
    script = shtab.complete(top, options.shell, preamble=_functions(names).get(options.shell, ""))
    if options.json:
        script = json.dumps({"shell": options.shell, "script": script}) + "\n"
    sys.stdout.write(script)


def kind_of(action: argparse.Action) -> str:
    """What completes an argument: `tasks`, `recipes`, `models`, `experiments`, `files`, or nothing."""
    if action.nargs == 0 or action.choices is not None or action.type is not None:
        return ""
    if action.dest == "name" and not action.option_strings:
        return "experiments"
    kinds = {"tasks": TASKS, "recipes": RECIPES, "models": MODELS, "files": FILES}
    return next((kind for kind, names in kinds.items() if action.dest in names), "")


def _arguments(of: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument below a parser."""
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _arguments(inner)
        else:
            yield action


def _names() -> dict[str, list[str]]:
    """The names that stand beside files, read off the package's folders, since a shell that starts should not wait."""
    package = Path(tauspan.__file__).parent
    data, paper = package / "tasks" / "data", package / "experiments" / "reproduce" / "recipes"
    tasks = [*(file.parent.name for file in data.glob("suite_data/*/card.json")),
             *(file.stem for file in data.glob("sets/*.yaml"))]  # fmt: skip
    experiments = ["list", *sorted(file.stem for file in paper.glob("*.yaml"))]
    return {
        "tasks": sorted(tasks),
        "recipes": list(shipped()),
        "models": ["minilm"],
        "experiments": experiments,
    }


def _functions(names: dict[str, list[str]]) -> dict[str, str]:
    """The functions of bash and zsh that complete a name or a file."""
    bash, zsh = [], []
    for kind, known in names.items():
        words = " ".join(known)
        bash.append(
            f'_tauspan_{kind}() {{\n  compgen -W \'{words}\' -- "$1"\n  _shtab_compgen_files "$1"\n}}'
        )
        zsh.append(f"_tauspan_{kind}() {{\n  _alternative 'names:{kind}:({words})' 'files:file:_files'\n}}")
    return {"bash": "\n".join(bash), "zsh": "\n".join(zsh)}

"""Templates by which a page writes its coefficients as a command line, a recipe and a program."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tauspan.core.choices import EditRegime, Point

MIX = "mix.safetensors"


def copies(
    source: str, names: Sequence[str], files: Mapping[str, str], regime: EditRegime, point: Point
) -> dict[str, Any]:
    """For each kind a text with `{split}` and `{items}`, and the item that is written for each vector.

    Names inside are quoted as the kind needs it, so a file's name is never read as anything else.

    Args:
        source: what `tauspan.load` takes.
        names: of the tasks, in the order of the vectors.
        files: of the vectors by task name.
        regime: how they edit.
        point: where the tangent model is linearised.

    Example:
        >>> made = copies("minilm", ["spam"], {"spam": "a b.safetensors"}, "linear", "logits")
        >>> made["command"]["text"].splitlines()[1]
        "tauspan merge --method task_arithmetic --output vector -o mix.safetensors {items} 'a b.safetensors'"
    """
    given = [files.get(name, f"{name}.safetensors") for name in names]
    paths = [_path(file) for file in given]
    where = "" if regime == "standard" else f" --point {point}"
    shell = (
        "# coefficients {split}\n"
        f"tauspan merge --method task_arithmetic --output vector -o {MIX} {{items}} {shlex.join(paths)}\n"
        f"tauspan apply {shlex.quote(source)} {MIX} edited --regime {regime}{where}"
    )
    recipe = "# coefficients {split}; tauspan merge RECIPE OUT\nmethod: task_arithmetic\noutput: vector\nmodels:\n{items}"
    program = (
        "# coefficients {split}\nimport tauspan as ts\n\n"
        "mix = (\n    {items}\n)\n"
        f"edited = ts.apply(ts.load({source!r}), mix, regime={regime!r}, point={point!r})"
    )
    return {
        "command": _copy(shell, "--weight={value}", " ", [shlex.quote(path) for path in paths]),
        "recipe": _copy(recipe, "  - model: {name}\n    parameters:\n      weight: {value}", "\n",
                        [_yaml(path) for path in paths]),
        "python": _copy(program, "{value} * ts.TaskVector.from_pretrained({name})", "\n    + ",
                        [repr(path) for path in paths]),
    }  # fmt: skip


def _copy(text: str, item: str, join: str, names: list[str]) -> dict[str, Any]:
    return {"text": text, "item": item, "join": join, "names": names}


def _path(file: str) -> str:
    """A path that no program reads as an option."""
    return f"./{file}" if file.startswith("-") else file


def _yaml(text: str) -> str:
    """A text in double quotes, with escapes for what YAML does not print."""
    return str(yaml.safe_dump(text, default_style='"', width=float("inf"))).strip()

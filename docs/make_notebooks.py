"""Run the notebooks and write them with what they show.

`python docs/make_notebooks.py` reads docs/notebooks/*.py, plain Python in which `# %%` and `# %% [markdown]` begin cells,
and writes the notebook of each beside it. Values, printed text and pictures are kept; no server and no kernel are needed.
"""

import ast
import base64
import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).resolve().parent / "notebooks"
ABOUT = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells(text: str) -> list[tuple[str, str]]:
    """The cells of a source: `markdown` or `code`, and what stands in it."""
    found = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        markdown = "[markdown]" in head
        body = re.sub(r"^# ?", "", body, flags=re.MULTILINE) if markdown else body
        found.append(("markdown" if markdown else "code", body.strip("\n")))
    return found


def output(code: str, here: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """What a cell shows: printed text, the value of its last expression, pictures."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    shown: list[dict[str, Any]] = []
    heard = io.StringIO()
    value = None
    with contextlib.redirect_stdout(heard):
        exec(compile(tree, "cell", "exec"), here)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), here)
    if heard.getvalue():
        shown.append({"name": "stdout", "output_type": "stream", "text": lines(heard.getvalue())})
    for figure in map(plt.figure, plt.get_fignums()):
        held = io.BytesIO()
        figure.savefig(held, format="png", dpi=70, bbox_inches="tight", metadata={"Software": None})
        picture = base64.b64encode(held.getvalue()).decode() + "\n"
        shown.append({"data": {"image/png": picture}, "metadata": {}, "output_type": "display_data"})
    plt.close("all")
    if value is not None:
        text = {"text/plain": lines(repr(value))}
        shown.append(
            {"data": text, "execution_count": number, "metadata": {}, "output_type": "execute_result"}
        )
    return shown


def lines(text: str) -> list[str]:
    """The lines of a text, as notebooks keep them."""
    return text.splitlines(keepends=True)


def notebook(source: Path) -> dict[str, Any]:
    """The notebook of a source, run."""
    here: dict[str, Any] = {"__name__": "__main__"}
    made: list[dict[str, Any]] = []
    number = 0
    plt.show = lambda *_, **__: None
    for kind, text in cells(source.read_text(encoding="utf-8")):
        cell: dict[str, Any] = {
            "cell_type": kind,
            "id": f"cell-{len(made)}",
            "metadata": {},
            "source": lines(text),
        }
        if kind == "code":
            number += 1
            cell |= {"execution_count": number, "outputs": output(text, here, number)}
        made.append(cell)
    return {"cells": made, "metadata": ABOUT, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    chosen = [FOLDER / f"{name}.py" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.py"))
    for source in chosen:
        text = json.dumps(notebook(source), indent=1, ensure_ascii=False) + "\n"
        source.with_suffix(".ipynb").write_text(text, encoding="utf-8")
        print(f"wrote {source.with_suffix('.ipynb').name}")

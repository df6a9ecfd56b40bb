"""The package's face: its names, the examples in its docstrings, and that imports only go down."""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tauspan

ROOT = Path(tauspan.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# A module may import only what stands before it.
LAYERS = (
    "errors", "params", "report", "measure", "processes", "store", "models", "vector", "linear", "tasks",
    "suite", "edit", "evaluate", "train", "search", "figures", "recipe", "run", "commands", "cli", "__main__",
)  # fmt: skip


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [module_of(file) for file in FILES]


# -- names ---------------------------------------------------------------------------------------------------


def test_the_names_are_sorted_complete_and_few() -> None:
    assert tauspan.__all__ == sorted(tauspan.__all__)
    assert tauspan.__all__ == list(tauspan._HOME)
    assert len(tauspan.__all__) <= 35
    assert set(dir(tauspan)) == {*tauspan.__all__, "__version__"}


@pytest.mark.parametrize("name", tauspan.__all__)
def test_every_name_is_the_one_in_its_module(name: str) -> None:
    home = importlib.import_module(f"tauspan.{tauspan._HOME[name]}")
    value = getattr(tauspan, name)
    assert value is getattr(home, name)
    assert callable(value)
    assert value.__doc__


@pytest.mark.parametrize("name", ["evaluate", "run", "suite"])
def test_a_function_is_not_hidden_by_the_module_of_its_name(name: str) -> None:
    for code in (
        f"import tauspan.{name}, tauspan; assert callable(tauspan.{name})",
        f"import tauspan.search, tauspan.run, tauspan; assert callable(tauspan.{name})",
        f"import tauspan; tauspan.{name}; import tauspan.search; assert callable(tauspan.{name})",
        f"from tauspan import {name}; assert callable({name})",
        f"from tauspan.{name} import {name}; assert callable({name})",
    ):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_names_for_type_checkers_are_the_names_at_run_time() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    found = {
        alias.name: str(node.module).removeprefix("tauspan.") for node in imports for alias in node.names
    }
    assert found == tauspan._HOME


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'tauspan' has no attribute 'finetun'"):
        tauspan.finetun  # noqa: B018
    assert not hasattr(tauspan, "_nothing")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, tauspan; sys.exit(int(bool({'torch', 'numpy', 'transformers'} & set(sys.modules))))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- examples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_the_examples_of_a_module_run(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0


# -- layers --------------------------------------------------------------------------------------------------


def imported(file: Path) -> set[str]:
    """The names right below `tauspan` that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("tauspan.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}, line {node.lineno}: a relative import"
            if node.module == "tauspan":
                found |= {alias.name for alias in node.names if alias.name != "__version__"}
            elif str(node.module).startswith("tauspan."):
                found.add(str(node.module).split(".")[1])
    return found


@pytest.mark.parametrize("file", [file for file in FILES if file != ROOT / "__init__.py"], ids=module_of)
def test_imports_go_only_down(file: Path) -> None:
    own = module_of(file).split(".")[1]
    below = set(LAYERS[: LAYERS.index(own)])
    inside = {own} if (ROOT / own).is_dir() else set()
    mutual = {"cli"} if own == "commands" else set()  # it prints with the program's own `show` and `say`
    assert imported(file) <= below | inside | mutual


def test_every_module_has_its_layer_and_a_docstring() -> None:
    assert {name.split(".")[1] for name in MODULES if "." in name} == set(LAYERS)
    for file in FILES:
        assert ast.get_docstring(ast.parse(file.read_text())), file

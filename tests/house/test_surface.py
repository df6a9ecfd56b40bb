"""The package's face: its names and the examples in its docstrings."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tauspan

ROOT = Path(tauspan.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [module_of(file) for file in FILES]


# -- names ---------------------------------------------------------------------------------------------------


def test_the_names_are_sorted_complete_and_few() -> None:
    # constants, then classes, then functions, as the linter orders them
    assert tauspan.__all__ == sorted(tauspan.__all__, key=lambda name: (not name.isupper(), name))
    assert tauspan.__all__ == list(tauspan._HOME)
    assert len(tauspan.__all__) <= 58
    assert set(dir(tauspan)) == {*tauspan.__all__, "__version__"}


@pytest.mark.parametrize("name", tauspan.__all__)
def test_every_name_is_the_one_in_its_module(name: str) -> None:
    home = importlib.import_module(f"tauspan.{tauspan._HOME[name]}")
    value = getattr(tauspan, name)
    assert value is getattr(home, name)
    assert callable(value) or name == "METHODS"  # the one table
    assert value.__doc__ or name == "METHODS"  # a mapping: its rows are documented on their page


ANEW = """
import sys, torch
for code in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tauspan"]:
        del sys.modules[name]  # as in a new process, without loading torch again
    exec(code, {})
"""


HOMES = {
    "computing": "core.computing", "evaluate": "editing", "merge": "merge", "run": "experiments.run",
    "suite": "tasks.data.suite",
}  # fmt: skip


@pytest.mark.slow
def test_a_function_is_not_hidden_by_the_module_of_its_name() -> None:
    codes = [
        code
        for name, home in HOMES.items()
        for code in (
            f"import tauspan.{home}, tauspan; assert callable(tauspan.{name})",
            f"import tauspan.editing, tauspan.experiments.run, tauspan; assert callable(tauspan.{name})",
            f"import tauspan; tauspan.{name}; import tauspan.editing; assert callable(tauspan.{name})",
            f"from tauspan import {name}; assert callable({name})",
            f"from tauspan.{home} import {name}; assert callable({name})",
        )
    ]
    done = subprocess.run([sys.executable, "-c", ANEW, *codes], capture_output=True, text=True)
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


class Finder(doctest.DocTestFinder):
    """Also finds functions behind the decorators that check their arguments and gather their warnings."""

    def _from_module(self, module: Any, thing: Any) -> bool:
        inner = inspect.unwrap(thing) if inspect.isfunction(thing) else thing
        return super()._from_module(module, inner)  # type: ignore[misc, no-any-return]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_the_examples_of_a_module_run(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in Finder().find(module, name):
        assert runner.run(test).failed == 0


def test_the_examples_of_decorated_functions_are_found() -> None:
    module = importlib.import_module("tauspan.tangent.linearized")
    assert any(test.name.endswith(".linearize") and test.examples for test in Finder().find(module))


def test_every_module_has_a_docstring() -> None:
    for file in FILES:
        assert ast.get_docstring(ast.parse(file.read_text())), file

"""The border of docs/architecture.md: what is public is listed and documented; what is private stays in its module."""

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "src" / "tauspan").rglob("*.py"))
BORDER = (
    (ROOT / "docs" / "architecture.md")
    .read_text("utf-8")
    .partition("**The border.**")[2]
    .partition("\n\n")[0]
)
PUBLIC = re.findall(r"`(tauspan[\w.]*)`", BORDER)


def test_the_page_lists_packages() -> None:
    assert "tauspan" in PUBLIC
    assert len(PUBLIC) == len(set(PUBLIC)) > 5


@pytest.mark.parametrize("package", PUBLIC)
def test_each_public_name_is_there_and_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert inspect.getdoc(module)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"{package}.{name} has no docstring"


# -- private names -------------------------------------------------------------------------------------------


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _named(tree: ast.AST) -> set[str]:
    """The private names that a module defines: functions, classes, constants, attributes and fields."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return set(filter(_private, names))


@functools.cache  # not while tests are collected: each worker would wait for it
def _read() -> tuple[dict[Path, ast.AST], dict[Path, set[str]], set[str]]:
    """Each module's tree, the private names that it defines, and those of all modules.

    Without torch's, which ours may override.
    """
    trees: dict[Path, ast.AST] = {file: ast.parse(file.read_text("utf-8")) for file in FILES}
    named = {file: _named(tree) for file, tree in trees.items()}
    foreign = {*dir(torch.Tensor), *vars(torch.nn.Module()), *dir(torch.nn.Module)}
    return trees, named, set().union(*named.values()) - foreign


def _trespasses(file: Path) -> Iterator[str]:
    trees, named, ours = _read()
    for node in ast.walk(trees[file]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tauspan"):
            yield from (f"line {node.lineno}: import {one.name}" for one in node.names if _private(one.name))
        elif isinstance(node, ast.Attribute) and node.attr in ours - named[file]:
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")  # inherited
            if not own and not _of_super(node.value):
                yield f"line {node.lineno}: {ast.unparse(node)}"


def _of_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def test_no_module_uses_private_names_of_another() -> None:
    found = [f"{file.relative_to(ROOT)}, {one}" for file in FILES for one in _trespasses(file)]
    assert found == []


# -- pages and examples --------------------------------------------------------------------------------------

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.py")),
]
IMPORT = re.compile(r"^\s*from (tauspan[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_and_examples_import_public_names(page: Path) -> None:
    for package, names in IMPORT.findall(page.read_text("utf-8")):
        assert package in PUBLIC, f"{page.name} imports {package}, which is not public"
        public = importlib.import_module(package).__all__
        assert set(re.findall(r"(\w+)(?: as \w+)?", re.sub(r"#.*", "", names))) <= set(public)

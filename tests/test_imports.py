"""The import rule of docs/architecture.md: a module imports only modules of a smaller level, or of its own package."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "tauspan"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LEVELS = {name: int(level) for level, name in re.findall(r"^\| (\d+) \| `(\w+)/?` \|", PAGE, re.MULTILINE)}


def _room(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "tauspan":
            found |= {alias.name for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tauspan."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("tauspan.")}
    return found


def test_every_module_has_a_level() -> None:
    rooms = {_room(file) for file in SOURCE.rglob("*.py")}
    assert {room for room in rooms if not room.startswith("__")} == set(LEVELS)


def test_imports_go_down() -> None:
    for file in SOURCE.rglob("*.py"):
        room = _room(file)
        if room.startswith("__"):
            continue
        for other in _imported(file) - {room}:
            allowed = LEVELS[other] < LEVELS[room]
            assert allowed, f"{file.relative_to(SOURCE)} imports {other}, which is not below it"

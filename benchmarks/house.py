"""`python -m benchmarks.house [SRC]`: rooms, floors, arrows, circles and lines of the package, by its imports alone.

A room is a folder or a file directly below the package (`--deep`: each folder at any depth). An arrow is an import of
one room by another, inside functions too; imports for types alone (`TYPE_CHECKING`) are counted apart. The floor of a
room is the longest way down from it; rooms in a circle share one.
"""

import argparse
import ast
import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "tauspan"
Arrows = dict[str, set[str]]


def modules(source: Path) -> dict[str, Path]:
    """Each module by its full name."""
    found = {}
    for file in sorted(source.rglob("*.py")):
        parts = file.relative_to(source.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@functools.cache
def _imports(file: Path) -> tuple[list[ast.Import | ast.ImportFrom], list[ast.Import | ast.ImportFrom]]:
    """The imports of a file: those at run time, and those for types alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    guarded = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for below in ast.walk(node)
    }
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [one for one in found if id(one) not in guarded], [one for one in found if id(one) in guarded]


def imported(file: Path, known: Mapping[str, Path], types: bool = False) -> Iterator[str]:
    """The modules of the package that a file imports: at run time, or for types alone."""
    package = next(iter(known)).split(".")[0]
    for node in _imports(file)[types]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == package)
        elif (node.module or "").split(".")[0] == package:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else str(node.module) for name in whole)


def room_of(name: str, known: Mapping[str, Path], deep: bool) -> str:
    """The room that a module lies in; the package's own face is the room `tauspan`."""
    parts = name.split(".")[1:]
    if not parts:
        return name
    if not deep:
        return parts[0]
    folder = parts if known[name].name == "__init__.py" else parts[:-1]
    return "/".join(folder) or parts[0]


def arrows(source: Path = SOURCE, deep: bool = False, types: bool = False) -> Arrows:
    """Which rooms each room imports; the package's face, which loads names on first use, is left out."""
    known = modules(source)
    found: Arrows = {}
    for name, file in known.items():
        room = room_of(name, known, deep)
        if file.parent == source and file.stem.startswith("__"):
            continue
        mine = found.setdefault(room, set())
        for other in imported(file, known, types):
            if other in known and other != next(iter(known)):
                mine |= {room_of(other, known, deep)} - {room}
    return found


def circles(found: Arrows) -> list[list[str]]:
    """Groups of rooms that reach one another."""
    reach = {room: _reached(found, room) for room in found}
    groups = {frozenset(o for o in reach[room] if room in reach.get(o, ())) | {room} for room in found}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reached(found: Arrows, room: str) -> set[str]:
    seen: set[str] = set()
    stack = list(found.get(room, ()))
    while stack:
        other = stack.pop()
        if other not in seen:
            seen.add(other)
            stack += found.get(other, ())
    return seen


def floors(found: Arrows) -> dict[str, int]:
    """The longest way down from each room, from 0; rooms in a circle count as one."""
    group = {room: room for room in found} | {r: one[0] for one in circles(found) for r in one}
    below = {
        head: {group[o] for room in found if group[room] == head for o in found[room]} - {head}
        for head in set(group.values())
    }
    known: dict[str, int] = {}

    def depth(head: str) -> int:
        if head not in known:
            known[head] = 1 + max((depth(other) for other in below[head]), default=-1)
        return known[head]

    return {room: depth(group[room]) for room in found}


def measured(source: Path = SOURCE, deep: bool = False) -> dict[str, object]:
    """What `main` prints."""
    found, loose = arrows(source, deep), arrows(source, deep, types=True)
    level = floors(found)
    files = list(source.rglob("*.py"))
    return {
        "files": len(files),
        "lines": sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files),
        "rooms": len(found),
        "floors": max(level.values()) + 1,
        "arrows": sum(map(len, found.values())),
        "circles": circles(found),
        "circles with types": circles({room: found[room] | loose.get(room, set()) for room in found}),
        "levels": {room: level[room] for room in sorted(level, key=lambda room: (level[room], room))},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the counts of the house, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__)
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE)
    parser.add_argument("--deep", action="store_true", help="each folder is a room")
    given = parser.parse_args(arguments)
    print(json.dumps(measured(given.source, given.deep), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])

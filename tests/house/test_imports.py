"""The import rule of docs/architecture.md: a room imports only rooms of a lower floor, folders never one another."""

import re
from pathlib import Path

from benchmarks.house import SOURCE, arrows, circles, modules

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
FLOORS = {
    name: int(floor)
    for floor, name in re.findall(r"^\| (\d+) \| `(\w+)", PAGE.read_text("utf-8"), re.MULTILINE)
}
FOLDERS = set(re.findall(r"^\| \d* ?\| `([\w/]+?)/?` \|", PAGE.read_text("utf-8"), re.MULTILINE))


def test_the_page_names_each_room_and_folder() -> None:
    assert set(arrows()) == set(FLOORS)
    rooms = set(arrows(deep=True)) - {"kernel", "merge"}  # which hold faces alone
    assert rooms <= FOLDERS


def test_imports_go_down() -> None:
    for room, others in arrows().items():
        for other in others:
            assert FLOORS[other] < FLOORS[room], f"{room} imports {other}, which is not below it"


def test_no_folders_import_one_another() -> None:
    assert circles(arrows(deep=True)) == []


def test_the_page_names_each_module() -> None:
    page = PAGE.read_text("utf-8")
    files = [file for file in modules(SOURCE).values() if not file.stem.startswith("__")]
    assert [
        file.stem for file in files if f"`{file.stem}`" not in page and "analytic" not in file.parts
    ] == []

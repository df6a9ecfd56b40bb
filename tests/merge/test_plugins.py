"""Methods of installed packages: a real one is installed into a folder and found by name; a broken one harms nothing."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from helpers import tiny
from tauspan.cli.main import main
from tauspan.core.errors import RecipeError, UsageError
from tauspan.merge import json_schema, merge, merge_files, parse_recipe, reproduce
from tauspan.merge.engine import plugins
from tauspan.store import Checkpoint, write_tensors

RULES = '''
import torch
from tauspan.merge import Method

def middle(values, base, *, scale=1.0):
    """The median of each number."""
    return scale * values.median(0).values

number = 17
first = Method("another name", "The first model", "nobody", "tau_1", lambda block, _: block.values[0])
'''
ENTRIES = {
    "toy_rules": {
        "toy_middle": "toy_rules:middle", "toy_first": "toy_rules:first", "toy_number": "toy_rules:number",
        "toy_lost": "toy_rules:lost", "ties": "toy_rules:middle", "toy_twice": "toy_rules:middle",
    },
    "toy_broken": {"toy_broken": "toy_broken:rule", "toy_twice": "toy_broken:rule"},
}  # fmt: skip
A, B, C = ({"w": torch.tensor([float(n), 4.0 - n])} for n in (1, 5, 2))


def wheel(folder: Path, module: str, text: str) -> Path:
    """A package of one module, as a wheel; no build tool is needed for it."""
    info = f"{module}-1.5.dist-info"
    entries = "".join(f"{name} = {value}\n" for name, value in ENTRIES[module].items())
    files = {
        f"{module}.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.5\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[tauspan.methods]\n{entries}",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{module}-1.5-py3-none-any.whl", "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return folder / f"{module}-1.5-py3-none-any.whl"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed two packages."""
    made = tmp_path_factory.mktemp("plugins")
    target, broken = made / "site", "raise RuntimeError('half installed')\n"
    wheels = [wheel(made, "toy_rules", RULES), wheel(made, "toy_broken", broken)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
               "--disable-pip-version-check", "--target", str(target), *map(str, wheels)]  # fmt: skip
    subprocess.run(command, check=True)
    return target


@pytest.fixture(autouse=True)
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(site))
    yield
    for module in ENTRIES:
        sys.modules.pop(module, None)
    plugins._loaded.cache_clear()


def vectors() -> list:  # type: ignore[type-arg]
    return [
        tiny.vector(label=label, w=one["w"].tolist()) for label, one in zip("abc", (A, B, C), strict=True)
    ]


def test_a_method_of_a_package_is_found_by_name_with_its_options() -> None:
    merged = merge(vectors(), "toy_middle", {"scale": 2.0})
    assert merged.deltas["w"].tolist() == [4.0, 4.0]
    assert merged.label == "toy_middle"
    assert merge(vectors(), "toy_first").deltas["w"].tolist() == [1.0, 3.0]
    with pytest.raises(UsageError, match=r"toy_middle.*scal"):
        merge(vectors(), "toy_middle", {"scal": 2.0})
    with pytest.raises(UsageError, match=r"no merging method 'toy_midle'. Did you mean 'toy_middle'\?"):
        merge(vectors(), "toy_midle")


def test_asking_for_names_imports_nothing() -> None:
    assert {"linear", "toy_middle", "toy_broken"} <= set(plugins.names())
    merge(vectors(), "linear")
    assert not {"toy_rules", "toy_broken"} & set(sys.modules)
    merge(vectors(), "toy_middle")
    assert "toy_broken" not in sys.modules


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "toy_broken",
            r"'toy_broken' of toy-broken 1.5 \(toy_broken:rule\) cannot be imported \(RuntimeError: half",
        ),
        ("toy_lost", r"'toy_lost' of toy-rules 1.5 \(toy_rules:lost\) cannot be imported \(AttributeError"),
        ("toy_number", r"'toy_number' of toy-rules 1.5 .* is no method: it is a int"),
        ("toy_twice", r"'toy_twice' is given by toy-broken 1.5 .* and toy-rules 1.5 .*Uninstall one"),
    ],
)
def test_a_broken_one_is_told_by_name_and_harms_no_other(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        merge(vectors(), name)
    recipe = yaml.safe_dump({"method": name, "models": ["a", "b"]})
    with pytest.raises(RecipeError, match=said):
        parse_recipe(recipe)
    assert merge(vectors(), "toy_middle").deltas["w"].tolist() == [2.0, 2.0]


def test_tauspans_own_method_of_a_name_stands() -> None:
    plain = merge(vectors(), "ties").deltas["w"]
    assert plain.tolist() != merge(vectors(), "toy_middle").deltas["w"].tolist()
    found = {entry.name: method for entry, method in plugins.installed()}
    assert "is hidden by tauspan's own" in str(found["ties"])


def test_they_are_listed_with_their_package_and_broken_ones_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["merge", "--methods", "--json"]) == 0
    shown = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(shown.out)["tables"][0]["rows"]}
    assert rows["toy_middle"]["options"] == "scale"
    assert rows["toy_middle"]["title"] == "The median of each number; from toy-rules 1.5 (toy_rules:middle)"
    assert {"linear", "ties", "toy_first"} <= set(rows)
    assert not {"toy_broken", "toy_lost", "toy_number", "toy_twice"} & set(rows)
    for name in ("toy_broken", "toy_lost", "toy_number", "toy_twice", "ties"):
        assert f"'{name}'" in shown.err


def test_a_merge_of_files_names_the_package_in_its_card_and_is_made_again_from_it(tmp_path: Path) -> None:
    for name, tensors in (("base", {"w": torch.zeros(2)}), ("a", A), ("b", B), ("c", C)):
        write_tensors(tmp_path / name / "model.safetensors", tensors)
    files = {name: str(tmp_path / name) for name in ("base", "a", "b", "c")}
    recipe = {"method": "toy_middle", "base_model": files["base"], "models": [files[name] for name in "abc"]}
    merge_files(recipe, tmp_path / "out")
    assert Checkpoint(tmp_path / "out" / "model.safetensors").read()["w"].tolist() == [2.0, 2.0]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The method is of the package toy-rules 1.5." in card
    assert '"function": "toy_rules:middle"' in card
    assert reproduce(tmp_path / "out").digest
    assert "toy_middle" in json_schema()["properties"]["method"]["anyOf"][0]["enum"]

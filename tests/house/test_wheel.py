"""The wheel, installed in an environment of its own and used outside the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from benchmarks.families.torchvision_alone import FILE as TORCHVISION

from tauspan.cli.completion import SHELLS
from tauspan.experiments.shipped import shipped

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = (
    "tasks=[email_spam, debian_section]", "rows={train: 8, validation: 8, test: 8}", "max_tokens=8", "grid=[0, 1]",
    "finetune.max_steps=1", "finetune.params=last:1", "finetune.lr_linear=1e-4",
    "disentangle={pairs: all, grid: [0, 1], rows: 4}",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", str(ROOT), "-w", str(folder)],
        check=True, timeout=250,
    )  # fmt: skip
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def env(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel; all other packages are those of this environment."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=100)
    (packages,) = folder.glob("lib/*/site-packages")
    others = [
        path for path in map(Path, sys.path) if path.is_dir() and not path.resolve().is_relative_to(ROOT)
    ]
    here = [path for path in map(Path, sys.path) if path.name == "site-packages"]
    lines = dict.fromkeys(str(path) for path in (*others, *here))
    (packages / "others.pth").write_text("\n".join(lines) + "\n")
    if TORCHVISION.exists():  # a torchvision of another build imports only with it
        shutil.copy(TORCHVISION, packages)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", "--no-deps",
         "--no-index", "--ignore-installed", "--disable-pip-version-check", str(wheel)],
        check=True, timeout=250,
    )  # fmt: skip
    return folder / "bin"


def call(env: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program, *rest = words
    line = [str(env / program), *rest]
    return subprocess.run(line, capture_output=True, text=True, cwd=folder, env=clean, timeout=600)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"tauspan"}
    assert {"tauspan/py.typed", *(f"tauspan/experiments/recipes/{name}.yaml" for name in shipped())} <= set(
        names
    )
    assert not [name for name in names if name.endswith((".pyc", ".bin", ".pt", ".pkl"))]


def test_the_program_works_outside_the_repository(env: Path, tmp_path: Path) -> None:
    found = call(env, tmp_path, "python", "-c", "import tauspan; print(tauspan.__file__)")
    assert found.stdout.startswith(str(env.parent)), found.stdout + found.stderr
    for words in (
        ["--version"],
        ["reproduce", "list"],
        ["data", "list"],
        ["run", "--schema"],
        *(["completion", shell] for shell in SHELLS),
    ):
        done = call(env, tmp_path, "tauspan", *words)
        assert (done.returncode, done.stderr) == (0, ""), words
        assert done.stdout


@pytest.mark.long
def test_a_recipe_that_ships_runs_by_its_name(env: Path, tmp_path: Path) -> None:
    small = [word for one in SMALL for word in ("--set", one)]
    planned = call(env, tmp_path, "tauspan", "run", "text7", "--plan")
    assert planned.returncode == 0, planned.stderr
    done = call(env, tmp_path, "tauspan", "run", "demo", *small, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    out = tmp_path / "out" / "demo"
    assert {"report.json", "report.md", "addition.png"} <= {file.name for file in out.iterdir()}
    vectors = sorted(map(str, out.glob("vectors/linear-*-seed0")))  # as the demo's last words say
    assert call(env, tmp_path, "tauspan", "vector", "inspect", *vectors).returncode == 0


def test_what_a_user_writes_passes_the_strictest_check_of_types(env: Path, tmp_path: Path) -> None:
    (tmp_path / "consumer.py").write_text((ROOT / "tests" / "helpers" / "consumer.py").read_text())
    words = ["--strict", "--config-file=", "--python-executable", str(env / "python"), "consumer.py"]
    line = [sys.executable, "-m", "mypy", *words]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "consumer.py").write_text("import tauspan\nn: int = tauspan.load('minilm')\n")
    wrong = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert "Incompatible types in assignment" in wrong.stdout  # and so types are seen at all


def test_the_package_page_renders(wheel: Path) -> None:
    pytest.importorskip("twine", reason="the extra `real` has it")
    line = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr

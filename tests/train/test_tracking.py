"""docs/how-to/tracking.md: every block runs with the real tracker, and the tracker holds what the log does."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "tracking.md").read_text(encoding="utf-8")
SECTIONS = dict(part.split("\n", 1) for part in PAGE.split("\n## ")[1:])
BLOCKS = {title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0] for title, text in SECTIONS.items()}
FIRST = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
LIBRARIES = {
    "TensorBoard": "tensorboard",
    "MLflow": "mlflow",
    "Weights & Biases": "wandb",
    "trackio": "trackio",
}
FOUND = "\nimport json; print(json.dumps([dict(one) for one in run.history]))\n"

# What each tracker has kept, as {name: [[step, value], ...]}, read by its own means.
READ = {
    "TensorBoard": """
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator("runs/parity"); events.Reload()
kept = {name: [[e.step, e.value] for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
""",
    "MLflow": """
client = mlflow.MlflowClient()
(one,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
kept = {name: [[m.step, m.value] for m in client.get_metric_history(one.info.run_id, name)] for name in one.data.metrics}
assert one.data.params["regime"] == "linear"
assert [a.path for a in client.list_artifacts(one.info.run_id)] == ["vector.safetensors"]
""",
    "trackio": """
from trackio.sqlite_storage import SQLiteStorage
rows = SQLiteStorage.get_logs("tauspan", "parity")
kept = {}
for row in rows:
    for name, value in row.items():
        if "/" in name:
            kept.setdefault(name, []).append([row["step"], value])
""",
}


def test_the_page_has_a_block_for_each() -> None:
    assert set(BLOCKS) == {*LIBRARIES, "Without any of them"}


def program(title: str, folder: Path) -> list[str]:
    """The run's history and what the tracker holds, after the page's first block and that of the title."""
    assert FIRST is not None
    code = FIRST[1] + BLOCKS[title] + FOUND
    code += READ.get(title, "kept = None") + "\nprint(json.dumps(kept))\n"
    env = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "TRACKIO_DIR": str(folder / "trackio"), "WANDB_SILENT": "true",
           "PYTHONPATH": ":".join(filter(None, sys.path)), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
           "GIT_PYTHON_REFRESH": "quiet"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-2:]


@pytest.mark.slow
def test_the_block_without_a_tracker(tmp_path: Path) -> None:
    history, _ = program("Without any of them", tmp_path)
    assert json.loads(history)[-1]["split"] == "validation"


@pytest.mark.slow
@pytest.mark.parametrize("title", LIBRARIES)
def test_a_tracker_holds_what_the_log_does(title: str, tmp_path: Path) -> None:
    library = LIBRARIES[title]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed; `real` holds only what its pins allow")
    history, kept = (json.loads(line) for line in program(title, tmp_path))
    if title == "Weights & Biases":
        assert list(
            tmp_path.glob("wandb/offline-run-*/run-*.wandb")
        )  # a format of its own, which `wandb sync` reads
        return
    wanted: dict[str, list[list[float]]] = {}
    for record in history:
        for key, value in record.items():
            if isinstance(value, float):
                wanted.setdefault(f"{record['split']}/{key}", []).append([record["step"], value])
    assert set(kept) == set(wanted)
    for name, points in wanted.items():
        assert [step for step, _ in kept[name]] == [step for step, _ in points]
        assert [value for _, value in kept[name]] == pytest.approx([value for _, value in points], rel=1e-6)

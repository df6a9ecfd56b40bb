"""Nothing of torch's or transformers' own stands in a first run: not on stderr, not in warnings, not in jobs' logs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification

from helpers import checkpoints
from helpers.program import task

FIRST_USE = {
    "the tangent model": (
        "with torch.inference_mode(): tangent = tauspan.linearize(net)\n"
        "tauspan.linearize(net, engine='reference')(torch.ones(1, 2))"
    ),
    "a normalising head": (
        "from tauspan.editing.search.objective import Term\n"
        "head = tauspan.Head(torch.eye(2).double(), normalize=True)\n"
        "v = torch.ones(3, 2).double()\n"
        "Term(v, torch.ones(1, 3, 2).double(), v / 2, torch.ones(3).double(), head)"
        ".value_and_gradient(torch.ones(1).double())"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("use", FIRST_USE)
def test_the_first_use_of_forward_mode_is_silent_and_raises_no_warning(use: str) -> None:
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import torch, tauspan\nnet = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())\n"
        + FIRST_USE[use]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    line = [sys.executable, "-m", "tauspan", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=250, env=environment)


@pytest.mark.slow
def test_a_first_run_of_the_program_says_nothing(tmp_path: Path) -> None:
    model, one = checkpoints.write(tmp_path / "model", "bert"), task(tmp_path / "one")
    short = ["--max-steps", "2", "--batch-size", "4", "--max-tokens", "8"]
    done = run("finetune", str(model), str(one), str(tmp_path / "out"), *short, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.long
def test_a_run_over_workers_is_silent_too(tmp_path: Path) -> None:
    model, one, two = (
        checkpoints.write(tmp_path / "model", "bert"),
        task(tmp_path / "one"),
        task(tmp_path / "two"),
    )
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {model}\ntasks: [{one}, {two}]\nmax_tokens: 8\nregimes: [linear]\ngrid: [0, 1]\n"
        "finetune: {max_steps: 1, batch_size: 4}\n"
    )
    done = run("run", str(recipe), "--out", str(tmp_path / "out"), "--workers", "2", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    logs = list((tmp_path / "out").rglob("*.log"))
    assert len(logs) >= 2
    told = [line for log in logs for line in log.read_text().splitlines()]
    assert [line for line in told if not line.startswith("[")] == []  # but for how far the work is


@pytest.mark.slow
def test_loading_applying_and_saving_in_python_is_silent(tmp_path: Path) -> None:
    sources = [str(checkpoints.write(tmp_path / kind, kind)) for kind in checkpoints.KINDS]
    with_head = BertForSequenceClassification(BertConfig(
        vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12
    ))  # fmt: skip
    for file in (tmp_path / "bert").iterdir():
        if file.name.startswith("tokenizer"):
            (tmp_path / "with_head").mkdir(exist_ok=True)
            (tmp_path / "with_head" / file.name).write_bytes(file.read_bytes())
    with_head.save_pretrained(tmp_path / "with_head")
    code = (
        "import tauspan\n"
        f"for source in {[*sources, str(tmp_path / 'with_head')]!r}:\n"
        "    model = tauspan.load(source)\n"
        "    vector = tauspan.TaskVector.from_checkpoints(source, source)\n"
        "    tauspan.save(tauspan.apply(model, vector, 0.5), source + '-edited')\n"
        "    tauspan.load(source + '-edited')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

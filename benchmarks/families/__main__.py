"""Examine every family and write docs/families.md: `python -m benchmarks.families`.

The outcomes go to a file of JSON lines as they come, so that a run can be stopped and gone on with.
"""

import argparse
import importlib
import importlib.util
import json
import os
import signal
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 300  # for one model


def import_torchvision() -> None:
    """Where its compiled operators do not load beside this torch, import it without registering them.

    timm and open_clip import it, and transformers does where it is installed; none of their models needs the operators.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("_meta_registrations")
        importlib.import_module("torchvision")


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def examined(name: str) -> dict[str, Any]:
    """What came of one model, as JSON."""
    from benchmarks.families.examine import examine
    from benchmarks.families.examples import make
    from benchmarks.families.others import OTHERS

    begun = time.perf_counter()
    try:
        with _limited(_SECONDS):
            example = OTHERS[name]() if name in OTHERS else make(name)
            found = [asdict(outcome) for outcome in examine(example)]
        size = sum(p.numel() for p in example.model.parameters())
        record: dict[str, Any] = {
            "class": example.name,
            "parameters": size,
            "single": example.single,
            "outcomes": found,
        }
    except Exception as error:  # the model itself fails, or its making does
        record = {"error": f"{type(error).__name__}: {error}"[:400]}
    return {"family": name, "with": _versions(), **record, "seconds": round(time.perf_counter() - begun, 1)}


def _versions() -> str:
    packages = [
        name
        for name in ("torch", "transformers", "timm", "open_clip_torch")
        if importlib.util.find_spec(name.removesuffix("_torch"))
    ]
    return ", ".join(f"{name} {version(name)}" for name in packages)


def main() -> None:
    """Examine, and write the page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--only", nargs="+", default=[], help="these families alone, told and not written")
    parser.add_argument("--outcomes", type=Path, default=ROOT / "out" / "families.jsonl")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "families.md")
    parser.add_argument(
        "--again", action="store_true", help="examine those that the file of outcomes holds, too"
    )
    options = parser.parse_args()
    options.outcomes.parent.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import_torchvision()
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    from benchmarks.families.examples import FAMILIES
    from benchmarks.families.others import OTHERS
    from benchmarks.families.page import page
    from benchmarks.families.special import LEFT_OUT

    names = (*FAMILIES, *OTHERS)

    if options.only:
        for name in options.only:
            _tell(examined(name))
        return
    known = {} if options.again or not options.outcomes.exists() else _read(options.outcomes)
    with options.outcomes.open("w" if options.again else "a") as file:
        for name in names:
            if name not in known:
                known[name] = examined(name)
                _tell(known[name])
                file.write(json.dumps(known[name]) + "\n")
                file.flush()
    options.page.write_text(page([known[name] for name in names], LEFT_OUT))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record["family"]: record for record in records}


def _tell(record: dict[str, Any]) -> None:
    print(
        f"{record['family']} ({record.get('class', record.get('error'))}), {record['seconds']} s", flush=True
    )
    for one in record.get("outcomes", []):
        print(
            f"  {one['verb']}: {one['state']} {one['path']} {one['error']:.1e} {one['said'][:300]}",
            flush=True,
        )


if __name__ == "__main__":
    main()

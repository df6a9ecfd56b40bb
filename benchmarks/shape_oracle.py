"""What mergekit makes of the shapes: run by the Python of an environment that has it, in the folder of the models.

Not a part of the package: it imports mergekit.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any


def merged(file: Path, out: Path) -> None:
    """One file by mergekit, as its programs do it."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(quiet=True, lora_merge_cache=str(out.parent / "loras"), write_model_card=False)
    documents = list(yaml.safe_load_all(file.read_text()))
    if len(documents) > 1:
        from mergekit.scripts.multimerge import main

        words = [
            str(file),
            "--out-path",
            str(out),
            "-I",
            str(out.parent / "parts"),
            "--quiet",
            "--no-write-model-card",
        ]
        main(words, standalone_mode=False)
        return
    run_merge(MergeConfiguration.model_validate(documents[0]), str(out), options)


def rendered(folder: Path) -> dict[str, Any]:
    """Length of the tokenizer, its vocabulary and what its chat template makes of a conversation; for both programs."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    text = getattr(config, "text_config", config)
    found: dict[str, Any] = {
        "layers": getattr(text, "num_hidden_layers", None),
        "rows": getattr(text, "vocab_size", None),
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError):
        return found
    found["tokens"] = tokenizer.get_vocab()
    if tokenizer.chat_template:
        turns = [
            {"role": role, "content": f"w{n}"} for n, role in enumerate(("user", "assistant", "user"), 3)
        ]
        found["chat"] = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return found


def main(jobs: Path) -> None:
    """All jobs: merge by mergekit, and look at both results."""
    warnings.simplefilter("ignore")
    found = {}
    for job in json.loads(jobs.read_text()):
        out = Path(job["theirs"])
        try:
            merged(Path(job["file"]), out)
            told: dict[str, Any] = {"theirs": rendered(out)}
        except (Exception, SystemExit) as error:
            told = {"failed": f"{type(error).__name__}: {error}"[:300]}
        if Path(job["ours"]).is_dir():
            told["ours"] = rendered(Path(job["ours"]))
        found[job["name"]] = told
    jobs.with_suffix(".found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

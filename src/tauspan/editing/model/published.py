"""Vectors, edited models and merges on the hub: what is written on the disk is uploaded, with a card."""

import dataclasses
import json
import tempfile
from pathlib import Path

from torch import nn

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import StoreError
from tauspan.core.notices import tell
from tauspan.core.report import Cell, Table
from tauspan.editing.model.edit import save
from tauspan.editing.model.saved import REFERENCE, TANGENT, Reference
from tauspan.vector import FILE, TaskVector
from tauspan.vector.card import front_matter

_USE = {
    "transformers": "from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained({repo!r})\n",
    "tauspan": "import tauspan as ts\nfrom huggingface_hub import snapshot_download\n\n"
    "model = ts.load(snapshot_download({repo!r}))  # with the frozen heads of its tasks\n",
}


@checked
def push_to_hub(
    what: TaskVector | nn.Module | str | Path,
    repo: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Upload a vector, an edited model or a merge to a model repository of the hub, in one commit.

    What is uploaded are the files that `TaskVector.save_pretrained`, `save` or `merge_files` write. A merge has its card
    already; a folder without `README.md` gets one that says base, regime, task, settings and how to use it. Where a base
    lies on this machine is left out. Files that are in the repository already, and have other names, stay.

    Args:
        what: a `TaskVector`; a model that `apply` made; or the file or folder of a vector, an edited model or a merge.
        repo: `owner/name`; it is made if it is not there.
        private: of a new repository; None is the owner's default.
        token: None takes what `hf auth login` or the variable HF_TOKEN gives; a message never holds it.
        revision: the branch; None is the main one.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        MissingExtraError: `huggingface_hub` is not installed.
        UsageError: a folder holds a link.
        StoreError: the path is none of the three, or the hub refuses.

    Example:
        >>> push_to_hub("no/such/folder", "me/edited")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        StoreError: no/such/folder is neither the file or folder of a task vector, nor ...
    """
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "model"
        if isinstance(what, TaskVector):
            what.save_pretrained(path)
        elif isinstance(what, nn.Module):
            save(what, path)
        else:
            path = Path(what)
        files = _files(path, repo)
        return store.upload(files, repo, private=private, token=token, revision=revision, message=message)


def _files(path: Path, repo: str) -> dict[str, Path | bytes]:
    """What is uploaded of a path, by its name in the repository."""
    if path.suffix == ".safetensors" and path.is_file():
        return {FILE: path, store.CARD: TaskVector.from_pretrained(path).card(repo).encode()}
    files: dict[str, Path | bytes] = dict(store.files_in(path)) if path.is_dir() else {}
    if REFERENCE in files:
        reference = Reference.read(path)
        here = dataclasses.replace(reference, path=None)
        files[REFERENCE] = json.dumps({k: v for k, v in vars(here).items() if v}, indent=1).encode()
        files.setdefault(store.CARD, _edited_card(path, reference, repo).encode())
    elif FILE in files:  # what else fine-tuning left there stays, but for its log
        files = {name: files[name] for name in (FILE, "log.jsonl", store.CARD) if name in files}
        files.setdefault(store.CARD, TaskVector.from_pretrained(path).card(repo).encode())
    elif store.CARD not in files or not any(name.endswith(".safetensors") for name in files):
        raise StoreError(
            f"{path} is neither the file or folder of a task vector, nor a folder that `save` or `merge_files` wrote."
        )
    else:
        _tell_places(path / store.CARD)
    return files


def _edited_card(folder: Path, reference: Reference, repo: str) -> str:
    """The card of an edited model: its base, what was done to it, how to load it."""
    tangent = reference.format == TANGENT
    vector = TaskVector.from_pretrained(folder / FILE) if tangent else None
    library = "transformers" if not tangent and (folder / "config.json").is_file() else "tauspan"
    facts = {
        "base": reference.base,
        "the base's fingerprint": reference.fingerprint[:12],
        "edit": reference.edit or None,
        "regime": "standard" if vector is None else vector.regime,
        "kind": "tangent model f(x; theta0) + J(x) tau: a vector beside a reference to its base" if tangent
        else "ordinary weights theta0 + alpha tau",
        "linearised at": reference.point,
        "tensors of the vector": None if vector is None else len(vector.deltas),
        "norm of the vector": None if vector is None else float(vector.norm()),
    }  # fmt: skip
    rows: list[dict[str, Cell]] = [
        {"what": what, "value": one} for what, one in facts.items() if one is not None
    ]
    ways = ["tauspan"] if library == "tauspan" else ["transformers", "tauspan"]
    code = "\n\n".join(f"```python\n{_USE[way].format(repo=repo)}```" for way in ways)
    parts = [
        front_matter(library, ["edited-model"], reference.base, "finetune"),
        f"# {repo.rpartition('/')[2]}",
        "A pre-trained model that tauspan edited with task vectors.",
        Table("What it is", rows).to_markdown(),
        f"## How to use it\n\n{code}\n",
    ]
    return "\n\n".join(parts)


def _tell_places(card: Path) -> None:
    """Warn where the card of a merge says where its inputs lie on this machine."""
    text = card.read_text(encoding="utf-8")
    if '"places": {\n' in text:
        tell(
            f"{card} says where the inputs of the merge lie on this machine, by which `tauspan reproduce-card` finds "
            "them. If that is nobody's business, empty its `places` first."
        )

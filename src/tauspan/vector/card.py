"""The card of a task vector on the hub: what it starts from, how it was made, how to use it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from tauspan.core.report import Table
from tauspan.store import is_hub_id
from tauspan.vector.facts import tasks_of
from tauspan.vector.files import FILE

if TYPE_CHECKING:
    from tauspan.vector.task_vector import TaskVector

_TOLD = ("task", "tasks", "recipe", "base_id", "point", "versions", "seed")  # what has a place of its own
TAGS = ("tauspan", "task-arithmetic")


def front_matter(library: str, tags: Sequence[str], base: str | None, relation: str | None = None) -> str:
    """The head of a card, which the hub reads: YAML between two lines.

    Args:
        library: what loads the files.
        tags: besides `TAGS`.
        base: the pre-trained model; only an id of the hub gets in.
        relation: what the files are to the base, a word of the hub's.
    """
    front: dict[str, Any] = {"library_name": library, "tags": [*TAGS, *tags]}
    if base is not None and is_hub_id(base):
        front["base_model"] = base.partition("@")[0]
        front |= {} if relation is None else {"base_model_relation": relation}
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---"


def vector_card(vector: "TaskVector", repo: str) -> str:
    """The text of the card, in Markdown; every fact is one of the vector's own file."""
    info = vector.info
    base = str(info.get("base_id") or "")
    tasks = tasks_of(info)
    values = sum(delta.numel() for delta in vector.deltas.values())
    facts: Mapping[str, Any] = {
        "base": base or "not stated",
        "the base's fingerprint": vector.base[:12],
        "regime": vector.regime,
        "linearised at": info.get("point"),
        "task" if len(tasks) == 1 else "tasks": ", ".join(map(str, tasks)) or None,
        "seed": info.get("seed"),
        "tensors": len(vector.deltas),
        "values": values,
        "dtypes": ", ".join(sorted({str(d.dtype).removeprefix("torch.") for d in vector.deltas.values()})),
        "norm": float(vector.norm()),
    }
    rows = [{"what": what, "value": value} for what, value in facts.items() if value is not None]
    settings = info.get("recipe") or {}
    more = {key: value for key, value in info.items() if key not in _TOLD}
    parts = [
        front_matter("tauspan", ["task-vector"], base),
        f"# {' '.join(vector.label.split())}",
        "A task vector: what fine-tuning added to the weights of a pre-trained model. It edits that model and no other.",
        Table("What it is", rows).to_markdown(),
        _fenced("Settings", settings),
        _fenced("Provenance", {**more, "versions": info.get("versions", {})}),
        f"## How to use it\n\n```python\n{_use(repo, base)}```\n",
    ]
    return "\n\n".join(part for part in parts if part)


def _fenced(title: str, content: Mapping[str, Any]) -> str:
    content = {key: value for key, value in content.items() if value not in (None, {}, [])}
    if not content:
        return ""
    return f"## {title}\n\n```yaml\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}```"


def _use(repo: str, base: str) -> str:
    return (
        "import tauspan as ts\nfrom huggingface_hub import hf_hub_download\n\n"
        f"base = ts.load({base or 'MODEL'!r})  # the pre-trained model; its fingerprint is compared\n"
        f"vector = ts.TaskVector.from_pretrained(hf_hub_download({repo!r}, {FILE!r}))\n"
        "model = ts.apply(base, vector, 1.0)  # -1.0 takes the task away\n"
    )

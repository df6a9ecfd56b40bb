"""The outcomes as a page of the documentation."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HEAD = """# Families of models

Made by `python -m benchmarks.families`{made}.

A tiny model of each family with random weights goes through every verb, and each answer is compared with all rows of J by
plain reverse-mode autograd, in float64 where the model computes in it: f and J tau; J^T g for each parameter tensor; the
kernel J J^T; the edited model; every tensor that is saved and loaded. *Right* is a relative difference below 1e-9 where
all is computed in float64, and below 3e-5 where the model goes through float32 on its way, as many norms and softmaxes do
whatever the model's own dtype (1e-3 where it does not run in float64 at all). tau is 0 in an embedding's padding row: f
depends on it, and ordinary autograd leaves it out by convention.

{summary}

- **J tau**: the engine that answers when none is named. *one pass* carries tangents beside the ordinary forward,
  *reference* is `torch.func.jvp`, *backward* takes ordinary backward passes. What fails the check goes on to the next.
- **reference**: the same with `engine="reference"` first.
- **factors**, **primal**: caches of these kinds. A model that one cannot hold trains with the other or without.
- **kernel**: *factors* if the layers' factors give it, *rows* if each row's gradient is written out, *batch* if the
  module takes the whole batch at once (its kernel is that of the batch).
- **apply**: an ordinary and a tangent edit. **save**: by the model's own `from_pretrained`, with no tensor missing or
  unexpected (*tensors*: by name from safetensors, for modules without that). **load**: both edits, into the module.
- **error**: the largest relative difference in the line. A number in brackets leads to the sentences below the table.
"""
VERBS = ("one pass", "reference", "factors", "primal", "kernel", "apply", "save", "load")
_PATHS = {
    "onepass": "one pass",
    "layers' factors": "factors",
    "rows written out": "rows",
    "rows written out of the whole batch": "batch",
    "from_pretrained": "right",
    "safetensors": "tensors",
    "factors": "right",
    "primal": "right",
    "": "right",
}


def page(records: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]) -> str:
    """The page.

    Args:
        records: what came of each model; those with an `error` could not be made or called.
        left_out: the families that were not tried, and why.
    """
    tried = [record for record in records if "outcomes" in record]
    notes: dict[str, int] = {}
    rows = [_row(record, notes) for record in tried]
    lines = [
        HEAD.format(made=_made(tried), summary=_summary(tried)),
        "| family | class | J tau | " + " | ".join(VERBS[1:]) + " | error |",
        "|---" * (len(VERBS) + 3) + "|",
        *rows,
        "",
        "## What is said",
        "",
        *(f"{number}. {note}" for note, number in notes.items()),
        "",
    ]
    missing = left_out | {record["family"]: record["error"] for record in records if "error" in record}
    if missing:
        lines += ["## Not tried", "", f"{len(missing)} families of transformers' list:", ""]
        reasons: dict[str, list[str]] = {}
        for family, reason in sorted(missing.items()):
            reasons.setdefault(reason, []).append(f"`{family}`")
        lines += [f"- {reason}: {', '.join(families)}." for reason, families in reasons.items()]
        lines.append("")
    return "\n".join(lines)


def _made(records: Iterable[Mapping[str, Any]]) -> str:
    versions = sorted({record["with"] for record in records if "with" in record})
    return f", with {' and '.join(versions)}" if versions else ""


def _summary(records: Sequence[Mapping[str, Any]]) -> str:
    outcomes = [one for record in records for one in record["outcomes"]]
    states = Counter(one["state"] for one in outcomes)
    engines = Counter(
        _PATHS.get(one["path"], one["path"]) if one["state"] == "right" else one["state"]
        for one in outcomes
        if one["verb"] == "one pass"
    )
    counted = ", ".join(f"{count} by {name}" for name, count in engines.most_common() if name != "refused")
    refused = f"; {engines['refused']} refused" if engines["refused"] else ""
    whole = sum(all(one["state"] == "right" for one in record["outcomes"]) for record in records)
    return (
        f"{len(records)} models: {whole} right in every column, the others right where they are not refused. Of "
        f"{len(outcomes)} answers {states['right']} are right, {states['refused']} refused with a sentence, "
        f"{states['wrong']} wrong and {states['raw error']} errors of another library. J tau: {counted}{refused}."
    )


def _row(record: Mapping[str, Any], notes: dict[str, int]) -> str:
    found = {one["verb"]: one for one in record["outcomes"]}
    cells = [_cell(found[verb], record["class"], notes) for verb in VERBS]
    error = max(one["error"] for one in record["outcomes"])
    single = " (float32)" if record["single"] else ""
    return f"| {record['family']} | {record['class']}{single} | {' | '.join(cells)} | {error:.0e} |"


def _cell(one: Mapping[str, Any], name: str, notes: dict[str, int]) -> str:
    text = _PATHS.get(one["path"], one["path"]) if one["state"] == "right" else f"**{one['state']}**"
    text = text.replace("**refused**", "refused")
    if one["state"] == "right" and one["verb"] not in ("one pass", "reference"):
        return text
    if not one["said"]:
        return text
    number = notes.setdefault(_said(one["said"], name), len(notes) + 1)
    return f"{text} [{number}]"


def _said(text: str, name: str) -> str:
    """A sentence without what differs from one model to the next: classes, parameters, numbers."""
    text = text.replace(f"First {name}", name).replace(name, "MODEL")
    text = re.sub(r"\b(Reader|First)\b", "MODEL", text)
    text = re.sub(r"^[A-Z]\w+Error: ", "", text)
    text = re.sub(r"'[\w.]+\.(weight|bias|[A-Za-z_]+)'", "'PARAMETER'", text)
    return re.sub(r"(?<![\w.])\d+(\.\d+)?(e[+-]?\d+)?\b", "N", text).replace("|", "/").replace("\n", " ")

"""How a benchmark ends: its table on the screen and, asked for, as JSON and Markdown."""

import json
from pathlib import Path
from typing import Any

from tauspan.core.report import Table


def told(table: Table, out: Path | None, **more: Any) -> None:
    """Print a table; write `out` with its rows, its note and what else is given, and the table beside it as Markdown."""
    text = table.to_markdown()
    print(text)
    if out:
        content = json.dumps({"rows": table.rows, "note": table.note, **more}, indent=1)
        out.write_text(f"{content}\n", encoding="utf-8")
        out.with_suffix(".md").write_text(f"{text}\n", encoding="utf-8")

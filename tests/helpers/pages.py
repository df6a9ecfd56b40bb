"""The blocks of a documentation page, and a program that runs them here: `python -m helpers.pages PAGE`.

Marks in a page, as comments that no reader sees, each before the block that it is about:

- `<!-- not run: reason -->`: the block is not run.
- `<!-- file: NAME -->`: the block is the contents of that file, and is not run either.
- `<!-- setup ... -->`: Python that makes what the page takes for granted.

A `text` block right after a block that is run is what that block prints.
"""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_PARTS = re.compile(
    r"<!-- setup\n(?P<setup>.*?)-->|<!-- (?P<mark>not run|file): (?P<what>.*?) -->"
    r"|^(?P<indent> *)```(?P<kind>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One block: `kind` is `python`, `sh`, `setup`, `file` or another word; `name` of a file; `reason` not to run it."""

    kind: str
    code: str
    line: int
    name: str = ""
    reason: str = ""
    printed: str | None = None

    @property
    def runs(self) -> bool:
        return self.kind in ("python", "sh") and not self.reason


def blocks(text: str) -> list[Block]:
    """The blocks of a page, in order."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    end = 0
    for part in _PARTS.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        if part["setup"] is not None:
            found.append(Block("setup", part["setup"], line))
        elif part["mark"]:
            marks[part["mark"]] = part["what"]
        else:
            kind, code = part["kind"], re.sub(rf"^{part['indent']}", "", part["code"], flags=re.MULTILINE)
            if "file" in marks:
                found.append(Block("file", code, line, marks["file"], marks.get("not run", "")))
            elif kind == "text" and found and found[-1].runs and not text[end : part.start()].strip():
                last = found.pop()
                found.append(Block(last.kind, last.code, last.line, printed=code))
            else:
                found.append(Block(kind, code, line, reason=marks.get("not run", "")))
            marks, end = {}, part.end()
    return found


def _command(code: str) -> None:
    """Run a shell block: lines that call only tauspan here, which starts no other Python; others in bash."""
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    if all(re.fullmatch(r"tauspan [^|<>;&$`]*", line) for line in lines):
        from tauspan.cli.main import main

        for line in lines:
            code_of = main(shlex.split(line)[1:])
            if code_of:
                raise SystemExit(f"exit code {code_of}: {line}")
        return
    shell = f'tauspan() {{ "{sys.executable}" -m tauspan "$@"; }}\nset -euo pipefail\n{code}'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    sys.stdout.write(done.stdout)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {code}\n{done.stderr}")


def run(page: Path) -> None:
    """Run the blocks of a page in the present folder; raises at the first that fails or prints something else."""
    here: dict[str, object] = {"__name__": "__main__"}
    sys.path.insert(0, str(Path.cwd()))
    for block in blocks(page.read_text(encoding="utf-8")):
        where = f"{page.name}, line {block.line}"
        if block.kind == "file":
            Path(block.name).write_text(block.code, encoding="utf-8")
        elif block.kind == "setup":
            exec(compile(block.code, where, "exec"), {})
        elif block.runs:
            heard = io.StringIO()
            with contextlib.redirect_stdout(heard):
                if block.kind == "sh":
                    _command(block.code)
                else:
                    exec(compile(block.code, where, "exec"), here)
            sys.stdout.write(f"--- {where}\n{heard.getvalue()}")
            if block.printed is not None and heard.getvalue() != block.printed:
                raise SystemExit(f"{where} prints\n{heard.getvalue()}\nand the page says\n{block.printed}")


if __name__ == "__main__":
    run(Path(sys.argv[1]))

"""`python -m benchmarks.families.torchvision_alone`: an environment whose processes can all import torchvision.

Where its compiled operators do not load beside the installed torch (a build for GPUs beside one for CPUs),
transformers cannot import its models either. A line that Python runs when it starts then leaves the operators out; no
model needs them.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

LINE = (
    "import sys, types; "
    'sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("_meta_registrations"))\n'
)
FILE = Path(sysconfig.get_paths()["purelib"]) / "torchvision_alone.pth"


def main() -> None:
    """Try it in a process of its own, and write the line if that fails and the line helps."""
    FILE.unlink(missing_ok=True)
    if _imports():
        return
    FILE.write_text(LINE, encoding="utf-8")
    if not _imports():
        FILE.unlink()
        raise SystemExit("torchvision does not import beside this torch, with and without its operators.")


def _imports() -> bool:
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False)
    return done.returncode == 0


if __name__ == "__main__":
    main()

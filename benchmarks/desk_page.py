"""How fast the mixing desk's page answers, in a headless browser, at the size that its goals are set for.

    python -m benchmarks.desk_page [--page desk.html] [--moves 200] [--out results.json]

Prints, for eight tasks of 1,000 rows and 77 classes with eight vectors: the time that one position of a slider takes to
compute, the time from the input to the picture, the time until the page is ready, and sizes.

Needs playwright and chromium.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.desk_browser import browser, missing, opened, until
from benchmarks.desk_pages import TEMPLATE, large

GOALS = {
    "compute p50, ms": 8.0,
    "input to paint p95, ms": 50.0,
    "ready, ms": 1000.0,
    "page, MB": 16.0,
    "template, kB": 80.0,
    "script, kB": 60.0,
}
# One input a frame, as a hand on a slider gives them; the picture is there when a task after the next frame runs.
_MOVES = """async (moves) => {
  const slider = document.querySelector('#a0');
  const low = Number(slider.min), high = Number(slider.max);
  const waits = [];
  const painted = () => new Promise((done) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = done;
    channel.port2.postMessage(null);
  }));
  await painted();
  performance.clearMeasures('desk-compute');
  for (let i = 0; i < moves; i++) {
    slider.value = String(low + ((high - low) * (i % 97)) / 96);
    const start = performance.now();
    slider.dispatchEvent(new InputEvent('input', { bubbles: true }));
    await painted();
    waits.push(performance.now() - start);
  }
  return { waits, computes: performance.getEntriesByName('desk-compute').map((one) => one.duration) };
}"""


def measure(html: str, moves: int) -> dict[str, float]:
    """Times in milliseconds and sizes."""
    with browser() as running, opened(running, html, viewport={"width": 1280, "height": 900}) as page:
        ready = page.evaluate("performance.getEntriesByName('desk-ready')[0].startTime")
        until(page, "document.querySelector('#xi .bar')?.textContent.includes('.')")
        page.wait_for_timeout(500)
        found: dict[str, Any] = page.evaluate(_MOVES, moves)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        before = _spent(session)
        page.evaluate(_MOVES, moves)
        spent = (_spent(session) - before) / moves
    template = TEMPLATE.read_text(encoding="utf-8")
    script = template.rsplit("<script>", 1)[1].split("</script>", 1)[0]
    computes, waits = np.array(found["computes"]), np.array(found["waits"])
    return {
        "compute p50, ms": float(np.quantile(computes, 0.5)),
        "compute p95, ms": float(np.quantile(computes, 0.95)),
        "input to paint p50, ms": float(np.quantile(waits, 0.5)),
        "input to paint p95, ms": float(np.quantile(waits, 0.95)),
        "CPU time a move, ms": 1000 * spent,
        "ready, ms": float(ready),
        "page, MB": len(html.encode()) / 1e6,
        "template, kB": len(template.encode()) / 1e3,
        "script, kB": len(script.encode()) / 1e3,
    }


def _spent(session: Any) -> float:
    """Seconds of CPU time that the page's thread has used, which other work on the machine does not lengthen."""
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return float(metrics["TaskDuration"])


def main() -> None:
    """Print a table of what was measured, with the goals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--page", type=Path, help="a page made by `tauspan desk`, in place of made-up numbers"
    )
    parser.add_argument("--moves", type=int, default=200, help="positions of the slider (default: 200)")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON too")
    options = parser.parse_args()
    reason = missing()
    if reason:
        raise SystemExit(reason)
    found = measure(options.page.read_text(encoding="utf-8") if options.page else large().html, options.moves)
    for name, value in found.items():
        goal = GOALS.get(name)
        print(f"{name:26}{value:10.2f}" + ("" if goal is None else f"   at most {goal:g}"))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

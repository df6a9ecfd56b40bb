/** The state in the address: `#a=0.35,0.2&task=name&split=validation`, read on loading and written as it changes. */

import { batch, effect } from "@preact/signals";

import { exactly } from "./format";
import { choose, chosenOnTest, coefficients, COUNT, desk, HAS_TEST, revealed, selected, split } from "./state";

/** Takes what is well formed of a fragment and ignores the rest. */
export function read(fragment: string): void {
  const asked = new URLSearchParams(fragment.replace(/^#/, ""));
  batch(() => {
    const values = numbers(asked.get("a"));
    const place = desk.tasks.findIndex((task) => task.name === asked.get("task"));
    if (place >= 0) selected.value = place;
    if (asked.get("split") === "test" && HAS_TEST) {
      revealed.value = true;
      split.value = "test";
    } else if (asked.get("split") === "validation" && desk.tasks.some((task) => task.splits.validation)) {
      split.value = "validation";
    }
    if (values) choose(values, asked.get("chosen") === "test");
  });
}

function numbers(text: string | null): number[] | null {
  const words = text ? text.split(",") : [];
  if (words.length !== COUNT || !words.every((word) => /^-?\d+(\.\d+)?(e-?\d+)?$/i.test(word))) return null;
  const values = words.map(Number);
  return values.every(Number.isFinite) ? values : null;
}

function written(): string {
  const task = desk.tasks[selected.value]?.name ?? "";
  const words = [`a=${coefficients.value.map(exactly).join(",")}`];
  if (task.length <= 200) words.push(String(new URLSearchParams({ task })));
  words.push(`split=${split.value}`);
  if (chosenOnTest.value) words.push("chosen=test");
  return `#${words.join("&")}`;
}

/** Keeps the address and the state together. */
export function bind(): void {
  read(location.hash);
  // not `location.hash`: what is written below may have replaced it before the event comes
  window.addEventListener("hashchange", (event) => read(new URL(event.newURL).hash));
  let waiting = 0;
  effect(() => {
    const now = written();
    clearTimeout(waiting);
    waiting = window.setTimeout(() => {
      try {
        history.replaceState(null, "", now);
      } catch {
        // a sandboxed frame has no history to write to
      }
    }, 150);
  });
}

/** The present mix as a command, a recipe or Python; what is copied says which split chose it. */

import { useState } from "preact/hooks";

import type { CopyKind } from "../data";
import { cut, exactly, visible } from "../format";
import { chosenOnTest, desk, point } from "../state";
import { Card, Switch } from "../ui";

const KINDS = [["command", "Command line"], ["recipe", "Recipe"], ["python", "Python"]] as const;

/** A template with the mix filled in. */
export function filled(kind: CopyKind, values: readonly number[], onTest: boolean): string {
  const { text, item, join, names } = desk.copy[kind];
  const items = values.map((a, k) => item.replace(/\{(name|value)\}/g, (_, what) => (what === "name" ? names[k] : exactly(a))));
  return text.replace(/\{(items|split)\}/g, (_, what) => (what === "items" ? items.join(join) : chosen(onTest)));
}

export function Copies() {
  const [kind, setKind] = useState<CopyKind>("command");
  const [said, setSaid] = useState("");
  const text = filled(kind, point.value, chosenOnTest.value);
  const copy = async () => {
    setSaid((await toClipboard(text)) ? "Copied." : "The browser refused; select the text and copy it.");
    window.setTimeout(() => setSaid(""), 4000);
  };
  return (
    <Card id="take" title="Take it along" wide aside={<Switch label="Form" options={KINDS} value={kind} onChange={setKind} />}>
      <pre tabIndex={0} aria-label="What is copied">
        <bdi>{visible(cut(text, 5000))}</bdi>
      </pre>
      <p class="row">
        <button type="button" id="copy" onClick={() => void copy()}>
          Copy
        </button>
        <span class="hint" role="status">
          {said || `The mix was ${chosen(chosenOnTest.value)}.`}
        </span>
      </p>
    </Card>
  );
}

function chosen(onTest: boolean): string {
  return onTest ? "chosen on test (revealed)" : "chosen on validation";
}

async function toClipboard(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return byHand(text);
  }
}

/** The old way, for frames that may not use the clipboard. */
function byHand(text: string): boolean {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  try {
    return document.execCommand("copy");
  } catch {
    return false;
  } finally {
    area.remove();
    document.getElementById("copy")?.focus();
  }
}

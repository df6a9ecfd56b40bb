/** The mixing desk: one page that recomputes every accuracy of a mix of task vectors while a slider moves. */

import { render } from "preact";

import { App } from "./app";
import { readTexts } from "./data";
import { bind } from "./fragment";
import { texts } from "./state";

const root = document.getElementById("desk");
if (root) {
  bind();
  render(<App />, root);
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("desk-ready")));
  void readTexts().then((found) => (texts.value = found));
}

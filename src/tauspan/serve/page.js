"use strict";
// The page of `tauspan serve`. The token is in the fragment, which a browser never sends; every text is set as text.
const token = location.hash.slice(1);
const at = (id) => document.getElementById(id);
const made = (name, text) => Object.assign(document.createElement(name), { textContent: text });

async function asked(path, body) {
  const headers = { Authorization: `Bearer ${token}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const options = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  const text = await answer.text();
  let found;
  try { found = JSON.parse(text); } catch { found = { error: text }; }
  if (!answer.ok) throw new Error(found.error);
  return found;
}

function fail(error) {
  at("failure").textContent = error ? error.message : "";
  at("failure").hidden = !error;
}

function fill(select, values) {
  for (const value of values) select.append(made("option", String(value)));
}

function slider(task, largest) {
  const row = made("div", "");
  row.className = "slider";
  const id = `slider-${document.querySelectorAll(".slider").length}`;
  const label = Object.assign(made("label", task), { htmlFor: id, title: task });
  const range = Object.assign(made("input", ""), { type: "range", id, min: "-1", max: "1", step: "0.05", value: "0" });
  const box = Object.assign(made("input", ""), { type: "number", min: String(-largest), max: String(largest), step: "0.05", value: "0" });
  box.setAttribute("aria-label", `${task}, exact`);
  box.dataset.task = task;
  range.addEventListener("input", () => { box.value = range.value; });
  range.addEventListener("change", evaluate);
  box.addEventListener("change", () => { range.value = box.value; evaluate(); });
  row.append(label, range, box);
  return row;
}

function mix() {
  const boxes = [...document.querySelectorAll("[data-task]")];
  const coefficients = Object.fromEntries(boxes.map((box) => [box.dataset.task, Number(box.value)]));
  return { regime: at("regime").value, seed: Number(at("seed").value), coefficients };
}

let latest = 0;
async function evaluate() {
  const mine = ++latest, split = at("split").value;
  at("evaluate").disabled = true;
  at("about").textContent = "Evaluating …";
  try {
    const found = await asked("/api/evaluate", { ...mix(), split });
    if (mine !== latest) return; // a later question will answer
    at("rows").replaceChildren(...found.rows.map((row) => {
      const line = made("tr", "");
      line.append(made("td", row.task), made("td", row.accuracy.toFixed(3)), made("td", row.loss.toFixed(3)), made("td", String(row.rows)));
      return line;
    }));
    document.querySelector("table").hidden = false;
    at("about").textContent = `On the ${found.split} rows${found.split === "test" ? ": choose on validation rows, and read these once" : ""}.`;
    fail(null);
  } catch (error) {
    if (mine === latest) { at("about").textContent = "Not evaluated."; fail(error); }
  } finally {
    if (mine === latest) at("evaluate").disabled = false;
  }
}

async function write() {
  at("write").disabled = true;
  try {
    const found = await asked("/api/write", { ...mix(), kind: at("kind").value, name: at("name").value });
    at("written").textContent = `Written: mixes/${found.written} in the run's folder.`;
    fail(null);
  } catch (error) {
    at("written").textContent = "";
    fail(error);
  } finally {
    at("write").disabled = false;
  }
}

async function watch() {
  // fetch, because an EventSource cannot send the token
  const answer = await fetch("/api/progress", { headers: { Authorization: `Bearer ${token}` } });
  if (!answer.ok) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const now = JSON.parse(event.slice("data: ".length));
      at("progress").textContent = now.done < now.stages ? `The run is in progress: ${now.done} of ${now.stages} stages are done.` : `All ${now.stages} stages of the run are done.`;
    }
  }
}

async function begin() {
  try {
    const run = await asked("/api/run");
    document.title = run.title;
    at("title").textContent = run.title;
    at("model").textContent = run.model;
    fill(at("regime"), run.regimes);
    fill(at("seed"), run.seeds);
    fill(at("split"), run.splits);
    at("sliders").replaceChildren();
    for (const task of run.tasks) at("sliders").append(slider(task, run.largest));
    for (const id of ["regime", "seed", "split"]) at(id).addEventListener("change", evaluate);
    at("evaluate").addEventListener("click", evaluate);
    at("write").addEventListener("click", write);
    at("writing").hidden = !run.write;
    watch().catch(() => {});
  } catch (error) {
    fail(error);
  }
}

begin();

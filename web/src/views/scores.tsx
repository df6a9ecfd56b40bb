/** The live table: how good each task is at the present mix, and what that is compared with. */

import { computed } from "@preact/signals";

import type { Interval, Task } from "../data";
import { number, plain, plural } from "../format";
import { point, score, type Scored, scores, selected, settled, snapshots, split, desk } from "../state";
import { mean, over, paired, share } from "../stats";
import { Limits, Name, Value } from "../ui";

export interface Line {
  task: Task;
  place: number;
  now: Interval | null;
  gain: Interval | null;
  scored: Scored | null;
  normalised: Interval | null;
  zero: Interval | null;
  single: Interval | null;
  /** The least accuracy that a control may have. */
  floor: number | null;
}

function lineOf(task: Task, place: number, scored: Scored | null): Line {
  const stored = task.splits[split.value];
  const now = scored && share(scored.correct, scored.rows);
  const single = stored?.single ?? null;
  return {
    task,
    place,
    now,
    scored,
    gain: scored && paired(scored.fixed, scored.broken, scored.rows),
    normalised: now && single ? over(now, single.value) : null,
    zero: stored?.zeroShot ?? null,
    single,
    floor: stored && task.floor !== null ? task.floor * stored.zeroShot.value : null,
  };
}

export const lines = computed(() => scores.value.map((scored, place) => lineOf(desk.tasks[place], place, scored)));

/** Controls below their floor. */
export const fallen = computed(() =>
  lines.value.filter((line) => line.floor !== null && line.now !== null && line.now.value < line.floor - 1e-12),
);

export const within = computed(() => {
  let turned = 0;
  let rows = 0;
  for (const one of scores.value) {
    turned += one?.within ?? 0;
    rows += one?.rows ?? 0;
  }
  return { turned, rows };
});

/** The mean over tasks that have a vector; null where one of them has no number here. */
export function average(all: readonly Line[], of: (line: Line) => Interval | null): Interval | null {
  const parts = all.filter((line) => line.task.vector !== null).map(of);
  return parts.every((one) => one !== null) ? mean(parts as Interval[]) : null;
}

const marks = computed(() => {
  const on = split.value;
  const kept = snapshots.value;
  return { A: kept.A && score(kept.A, on), B: kept.B && score(kept.B, on) };
});

function markOf(name: "A" | "B", place: number): number | null {
  const found = marks.value[name]?.[place];
  return found ? found.correct / found.rows : null;
}

export function Scores() {
  const all = lines.value;
  const some = all.some((line) => line.task.vector !== null);
  return (
    <div class="scores">
      <table role="table" aria-label={`Accuracy on ${split.value}`}>
        <thead role="rowgroup">
          <tr role="row">
            <th scope="col" role="columnheader">Task</th>
            <th scope="col" role="columnheader">Accuracy</th>
            <th scope="col" role="columnheader">To zero-shot</th>
            <th scope="col" role="columnheader">Normalised</th>
            <th scope="col" role="columnheader">Zero-shot</th>
            <th scope="col" role="columnheader">Single task</th>
            <th scope="col" role="columnheader" class="plot">
              <Key />
            </th>
          </tr>
        </thead>
        <tbody role="rowgroup">
          {all.map((line) => (
            <Row key={line.place} line={line} />
          ))}
        </tbody>
        {some && <Mean all={all} />}
      </table>
    </div>
  );
}

function Row({ line }: { line: Line }) {
  const { task, place, now, gain, normalised, zero, single, scored } = line;
  const low = line.floor !== null && now !== null && now.value < line.floor - 1e-12;
  const chosen = selected.value === place;
  return (
    <tr role="row" class={`${chosen ? "chosen" : ""}${low ? " low" : ""}`} data-task={place}>
      <th scope="row" role="rowheader">
        <button type="button" class="pick" aria-pressed={chosen} onClick={() => (selected.value = place)}>
          <Name text={task.name} most={32} />
        </button>
        <span class="limits">
          {scored ? plural(scored.rows, "row") : "no such split"}
          {task.floor !== null && ", control"}
        </span>
        {low && <span class="warning">below {number(task.floor, 2)} of zero-shot</span>}
      </th>
      <Cell name="now" label="Accuracy" of={now} strong />
      <Cell name="gain" label="To zero-shot" of={gain} sign />
      <Cell name="normalised" label="Normalised" of={normalised} />
      <Cell name="zero" label="Zero-shot" of={zero} />
      <Cell name="single" label="Single task" of={single} />
      <td role="cell" class="plot">
        <Dots now={now} zero={zero} single={single} floor={line.floor} A={markOf("A", place)} B={markOf("B", place)} />
      </td>
    </tr>
  );
}

function Mean({ all }: { all: readonly Line[] }) {
  const now = average(all, (line) => line.now);
  const zero = average(all, (line) => line.zero);
  const single = average(all, (line) => line.single);
  return (
    <tfoot role="rowgroup">
      <tr role="row" data-task="mean">
        <th scope="row" role="rowheader">
          Mean
          <span class="limits">of tasks with a vector</span>
        </th>
        <Cell name="now" label="Accuracy" of={now} strong />
        <Cell name="gain" label="To zero-shot" of={average(all, (line) => line.gain)} sign />
        <Cell name="normalised" label="Normalised" of={average(all, (line) => line.normalised)} />
        <Cell name="zero" label="Zero-shot" of={zero} />
        <Cell name="single" label="Single task" of={single} />
        <td role="cell" class="plot">
          <Dots now={now} zero={zero} single={single} floor={null} A={null} B={null} />
        </td>
      </tr>
    </tfoot>
  );
}

function Cell(props: { name: string; label: string; of: Interval | null; sign?: boolean; strong?: boolean }) {
  const sign = props.sign ?? false;
  return (
    <td role="cell" data-cell={props.name} data-label={props.label} class={props.strong ? "strong" : undefined}>
      <Value of={props.of ? props.of.value : null} sign={sign} />
      <Limits of={props.of} sign={sign} />
    </td>
  );
}

interface Marks {
  now: Interval | null;
  zero: Interval | null;
  single: Interval | null;
  floor: number | null;
  A: number | null;
  B: number | null;
}

const WIDE = 200;
const at = (x: number) => 6 + (WIDE - 12) * Math.min(1, Math.max(0, x));

/** Accuracy from 0 to 1: the present one with its interval, between zero-shot and single-task accuracy. */
function Dots({ now, zero, single, floor, A, B }: Marks) {
  return (
    <svg class="dots" viewBox={`0 0 ${WIDE} 30`} preserveAspectRatio="xMinYMid" aria-hidden="true">
      <line class="track" x1={at(0)} x2={at(1)} y1="15" y2="15" />
      {floor !== null && <path class="floor" d={`M${at(floor)} 22l4 6h-8z`} />}
      {zero && <line class="zero" x1={at(zero.value)} x2={at(zero.value)} y1="8" y2="22" />}
      {single && <line class="single" x1={at(single.value)} x2={at(single.value)} y1="8" y2="22" />}
      {[A, B].map((x, i) => x !== null && (
        <text key={i} class="snap" x={at(x)} y="6" text-anchor="middle">{i ? "B" : "A"}</text>
      ))}
      {now && <line class="interval" x1={at(now.low)} x2={at(now.high)} y1="15" y2="15" />}
      {now && <circle class="now" cx={at(now.value)} cy="15" r="5" />}
    </svg>
  );
}

function Key() {
  return (
    <span class="key">
      <i class="key-zero" /> zero-shot <i class="key-now" /> now <i class="key-single" /> single
    </span>
  );
}

/** What a screen reader is told once the sliders stand still, and the warnings that everybody sees. */
export function Warnings() {
  const low = fallen.value;
  if (low.length === 0) return null;
  return (
    <p class="banner" role="status">
      <strong>{low.length === 1 ? "A control falls under its floor: " : "Controls fall under their floors: "}</strong>
      {low.map((line, i) => (
        <span key={line.place}>
          {i > 0 && ", "}
          <Name text={line.task.name} /> {number(line.now?.value)} under {number(line.floor)}
        </span>
      ))}
    </p>
  );
}

export function Spoken() {
  void settled.value;
  const all = lines.peek();
  const now = average(all, (line) => line.now);
  const normalised = average(all, (line) => line.normalised);
  const task = all[selected.value];
  return (
    <p class="unseen" role="status" aria-live="polite">
      {now && `Mean accuracy ${number(now.value)}`}
      {normalised && `, normalised ${number(normalised.value)}`}
      {task?.now && `; ${plain(task.task.name)} ${number(task.now.value)}`}
    </p>
  );
}

/** Whether the numbers are those of float64 arithmetic on the stored values, or how many rows rounding could turn. */
export function Certificate() {
  const { turned, rows } = within.value;
  void point.value;
  const text = turned === 0 ? "exact" : `${plural(turned, "row")} of ${rows.toLocaleString("en-GB")} within rounding`;
  const why = desk.exact
    ? "Every row has its numbers in float32."
    : "Rows are stored in 16 bits with a scale each. Where the two largest logits are further apart than rounding can move " +
      "them, the class is certain; the others are counted here.";
  return (
    <span class={turned === 0 ? "certificate" : "certificate some"} title={why}>
      {text}
    </span>
  );
}

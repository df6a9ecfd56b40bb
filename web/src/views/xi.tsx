/** The disentanglement error of a pair of vectors over their coefficients, with the present point on it. */

import { computed, signal } from "@preact/signals";
import { useMemo } from "preact/hooks";

import { differing, disturbed } from "../compute/outcome";
import { coefficient, number, plain } from "../format";
import { Bar, Heat } from "../heat";
import { useJob } from "../job";
import { coefficients, COUNT, desk, HIGH, LOW, mix, rows, SAMPLED, split } from "../state";
import { Card, Menu, Name, Value } from "../ui";
import type { Task } from "../data";

const POINTS = 21;
const AXIS = Array.from({ length: POINTS }, (_, i) => Number((LOW + ((HIGH - LOW) * i) / (POINTS - 1)).toFixed(9)));

const OWN: readonly Task[] = desk.tasks.filter((task) => task.vector !== null);
export const HAS_XI = !SAMPLED && OWN.length > 1;
const pair = signal<readonly [number, number]>([0, 1]);

function single(vector: number | null, value: number): number[] {
  return Array.from({ length: COUNT }, (_, k) => (k === vector ? value : 0));
}

/** Both tasks' shares along one line of the map: coefficients of the first vector fixed, of the second along the axis. */
function shareAt(own: Task, ownValue: number, other: Task, values: readonly number[]): Float64Array | null {
  const data = rows(own, split.value);
  return data && disturbed(data, single(own.vector, ownValue), single(other.vector, 1), values);
}

/** The error at the present coefficients of the pair, all others at 0. */
const here = computed(() => {
  const tasks = pair.value.map((place) => OWN[place]);
  const both = coefficients.value.map((a, k) => (tasks.some((task) => task.vector === k) ? a : 0));
  let total = 0;
  for (const task of tasks) {
    const data = rows(task, split.value);
    const found = data && differing(data, both.map((a, k) => (k === task.vector ? a : 0)), both);
    if (found === null) return null;
    total += found;
  }
  return total;
});

export function Xi() {
  if (!HAS_XI) return null;
  const names = OWN.map((task) => task.name);
  const [first, second] = pair.value;
  return (
    <Card id="xi" title="Disentanglement error of a pair">
      <div class="row controls">
        <Menu label="Across" names={names} value={first} onChange={(place) => (pair.value = [place, place === second ? first : second])} />
        <Menu label="Up" names={names} value={second} onChange={(place) => (pair.value = [place === first ? second : first, place])} />
      </div>
      <Map first={OWN[first]} second={OWN[second]} />
    </Card>
  );
}

function Map({ first, second }: { first: Task; second: Task }) {
  const on = split.value;
  const { result, busy } = useJob<Float64Array>(`${on} ${pair.value.join(" ")}`, function* () {
    const found = new Float64Array(POINTS * POINTS).fill(NaN);
    const parts = new Float64Array(POINTS * POINTS);
    for (let i = 0; i < POINTS; i++) {
      const shares = shareAt(first, AXIS[i], second, AXIS);
      if (!shares) return;
      for (let j = 0; j < POINTS; j++) parts[j * POINTS + i] = shares[j];
      yield found.slice();
    }
    for (let j = 0; j < POINTS; j++) {
      const shares = shareAt(second, AXIS[j], first, AXIS);
      if (!shares) return;
      for (let i = 0; i < POINTS; i++) found[(POINTS - 1 - j) * POINTS + i] = parts[j * POINTS + i] + shares[i];
      yield found.slice();
    }
  });
  const values = Array.from(result ?? new Float64Array(POINTS * POINTS).fill(NaN));
  const top = Math.max(0, ...values.filter(Number.isFinite));
  const shares = useMemo(() => values.map((value) => value / (top || 1)), [result]);
  return (
    <>
      <div class="map">
        <span class="up"><Name text={second.name} most={24} /></span>
        <div class="ends left" aria-hidden="true"><span>{coefficient(HIGH)}</span><span>{coefficient(LOW)}</span></div>
        <Field first={first} second={second} shares={shares} />
        <div class="ends below" aria-hidden="true">
          <span>{coefficient(LOW)}</span><Name text={first.name} most={24} /><span>{coefficient(HIGH)}</span>
        </div>
      </div>
      <Bar top={busy ? "\u2026" : number(top)} label="share of rows whose class the other vector changes, both tasks" />
      <Here />
    </>
  );
}

function Here() {
  return (
    <p class="readout">
      At the present coefficients of the two: <strong id="xi-here"><Value of={here.value} /></strong>
    </p>
  );
}

/** The map itself; a press or the arrow keys move the two coefficients. */
function Field({ first, second, shares }: { first: Task; second: Task; shares: readonly number[] }) {
  const across = first.vector ?? 0;
  const up = second.vector ?? 0;
  const now = coefficients.value;
  const to = (a: number, b: number) => {
    const snap = (value: number) => Number(Math.min(HIGH, Math.max(LOW, value)).toFixed(4));
    mix(now.map((old, k) => (k === across ? snap(a) : k === up ? snap(b) : old)));
  };
  const press = (event: PointerEvent) => {
    if (event.type === "pointermove" && !(event.buttons & 1)) return;
    const box = (event.currentTarget as HTMLElement).getBoundingClientRect();
    const part = (HIGH - LOW) / desk.step;
    const round = (share: number) => LOW + Math.round(Math.min(1, Math.max(0, share)) * part) * desk.step;
    to(round((event.clientX - box.left) / box.width), round(1 - (event.clientY - box.top) / box.height));
  };
  const key = (event: KeyboardEvent) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const size = (event.shiftKey ? 10 : 1) * desk.step;
    to(now[across] + step[0] * size, now[up] + step[1] * size);
  };
  const place = (a: number) => (100 * (a - LOW)) / (HIGH - LOW);
  return (
    <div
      class="field" role="application" tabIndex={0} onPointerDown={press} onPointerMove={press} onKeyDown={key}
      aria-label={`Map of ${plain(first.name)} across and ${plain(second.name)} up; arrow keys move the two coefficients, now ${coefficient(now[across])} and ${coefficient(now[up])}`}
    >
      <Heat rows={POINTS} columns={POINTS} shares={shares} />
      <svg class="over" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">
        <g class="cross">
          <line x1={place(now[across])} x2={place(now[across])} y1="0" y2="100" />
          <line x1="0" x2="100" y1={100 - place(now[up])} y2={100 - place(now[up])} />
        </g>
      </svg>
      <span class="dot" style={{ left: `${place(now[across])}%`, top: `${100 - place(now[up])}%` }} />
    </div>
  );
}

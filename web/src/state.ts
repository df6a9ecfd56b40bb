/** The state of the page, as signals: what is set, and what follows from it. */

import { batch, computed, effect, signal } from "@preact/signals";

import { type Changes, changes, outcome, type Outcome } from "./compute/outcome";
import { type Line, type Rows, rowsOf } from "./compute/rows";
import { readDesk, readNumbers, type SplitName, type Task, type Texts } from "./data";

export const desk = readDesk();
const blob = readNumbers();

export const [LOW, HIGH] = desk.range;
export const COUNT = desk.vectors.length;
export const SAMPLED = desk.tasks.some((task) => task.kind === "sampled");

const kept = new Map<string, Rows | null>();

/** The rows of a task's split, opened once. */
export function rows(task: Task, split: SplitName): Rows | null {
  const key = `${split} ${desk.tasks.indexOf(task)}`;
  let found = kept.get(key);
  if (found === undefined) {
    const stored = task.splits[split];
    found = stored ? rowsOf(task, stored, COUNT, desk.exact, blob) : null;
    kept.set(key, found);
  }
  return found;
}

/** The sampled points (standard regime), the same for every task and split. */
export const GRID: readonly (readonly number[])[] =
  desk.tasks.flatMap((task) => [task.splits.validation?.grid, task.splits.test?.grid]).find((grid) => grid) ?? [];

const start = desk.choices.find((one) => one.split === "validation") ?? desk.choices[0];

export const coefficients = signal<readonly number[]>(start ? [...start.coefficients] : Array<number>(COUNT).fill(0));
export const split = signal<SplitName>(desk.tasks.some((one) => one.splits.validation) ? "validation" : "test");
export const revealed = signal(split.value === "test");
/** Whether the present coefficients were set by somebody who saw test. */
export const chosenOnTest = signal(revealed.value);
export const selected = signal(0);
export const snapshots = signal<{ A: readonly number[] | null; B: readonly number[] | null }>({ A: null, B: null });
export const texts = signal<Texts | null>(null);
/** What is scaled when the whole mix is: the mix as it was last set by anything else. */
export const direction = signal(coefficients.value);

export const HAS_TEST = desk.tasks.some((one) => one.splits.test);
export const HAS_VALIDATION = desk.tasks.some((one) => one.splits.validation);

function clamp(x: number): number {
  return Math.min(HIGH, Math.max(LOW, x));
}

/** Sets the mix by hand. */
export function mix(values: readonly number[], keepDirection = false): void {
  batch(() => {
    coefficients.value = values.map(clamp);
    chosenOnTest.value = revealed.value;
    if (!keepDirection) direction.value = coefficients.value;
  });
}

/** Sets the mix to one that Python chose on validation, whoever looks at test by now. */
export function choose(values: readonly number[], onTest = false): void {
  batch(() => {
    coefficients.value = values.map(clamp);
    chosenOnTest.value = onTest;
    direction.value = coefficients.value;
  });
}

/** The line that the last slider moves the mix along. */
let moving: Line | null = null;

/** Sets the mix by a slider: to at(value), which is affine in the value. */
export function slide(at: (value: number) => readonly number[], value: number): void {
  const from = at(0);
  moving = { from, along: at(1).map((a, k) => a - from[k]) };
  mix(at(value));
}

export function reveal(): void {
  batch(() => {
    revealed.value = true;
    split.value = "test";
  });
}

/** The point that is shown: the mix itself, or the nearest sampled one. */
export const point = computed<readonly number[]>(() => (SAMPLED ? nearest(coefficients.value) : coefficients.value));

function nearest(values: readonly number[]): readonly number[] {
  let best = GRID[0] ?? values;
  let least = Infinity;
  for (const one of GRID) {
    const distance = one.reduce((total, a, k) => total + (a - values[k]) ** 2, 0);
    if (distance < least - 1e-12) {
      least = distance;
      best = one;
    }
  }
  return best;
}

export interface Scored extends Outcome, Changes {}

/** Each task's outcome on a split; null where there is none. */
export function score(values: readonly number[], on: SplitName, along?: Line | null): (Scored | null)[] {
  const before = zero(on);
  return desk.tasks.map((task, t) => {
    const data = rows(task, on);
    const found = data && outcome(data, values, along);
    if (!data || !found) return null;
    const base = before[t];
    return { ...found, ...(base ? changes(base.predicted, found.predicted, data.labels) : { fixed: 0, broken: 0 }) };
  });
}

const zeros = new Map<SplitName, (Outcome | null)[]>();

/** Outcomes without any edit. */
export function zero(on: SplitName): (Outcome | null)[] {
  let found = zeros.get(on);
  if (!found) {
    const none = Array<number>(COUNT).fill(0);
    found = desk.tasks.map((task) => {
      const data = rows(task, on);
      return data && outcome(data, none);
    });
    zeros.set(on, found);
  }
  return found;
}

export const scores = computed(() => {
  const values = point.value;
  const on = split.value;
  zero(on);
  performance.mark("desk-compute-start");
  const found = score(values, on, moving);
  performance.measure("desk-compute", "desk-compute-start");
  return found;
});

/** The mix once it has stood still for a moment: what costs more than a frame follows it. */
export const settled = signal({ point: point.value, direction: direction.value });

let waiting = 0;
effect(() => {
  const now = { point: point.value, direction: direction.value };
  clearTimeout(waiting);
  waiting = window.setTimeout(() => {
    settled.value = now;
  }, 150);
});

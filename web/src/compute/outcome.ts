/** What predictions mean: how many are right, which changed, which classes are taken for which. */

import type { Line, Rows } from "./rows";

export interface Outcome {
  readonly predicted: Uint16Array;
  readonly correct: number;
  readonly rows: number;
  /** Rows whose class rounding could have turned. */
  readonly within: number;
}

/** Null where the rows have no numbers at these coefficients. */
export function outcome(rows: Rows, coefficients: readonly number[], moving?: Line | null): Outcome | null {
  const predicted = new Uint16Array(rows.count);
  const within = rows.predict(coefficients, predicted, moving);
  if (within === null) return null;
  return { predicted, correct: right(predicted, rows.labels), rows: rows.count, within };
}

function right(predicted: Uint16Array, labels: Uint16Array): number {
  let correct = 0;
  for (let n = 0; n < labels.length; n++) if (predicted[n] === labels[n]) correct++;
  return correct;
}

export interface Changes {
  /** Wrong before, right now. */
  readonly fixed: number;
  /** Right before, wrong now. */
  readonly broken: number;
}

export function changes(before: Uint16Array, now: Uint16Array, labels: Uint16Array): Changes {
  let fixed = 0;
  let broken = 0;
  for (let n = 0; n < labels.length; n++) {
    const was = before[n] === labels[n];
    const is = now[n] === labels[n];
    if (is && !was) fixed++;
    else if (was && !is) broken++;
  }
  return { fixed, broken };
}

export type ChangeKind = "all" | "fixed" | "broken";

/** Places of the rows whose class changed; of a kind, or all, among which a wrong class may have become another wrong one. */
export function changedRows(before: Uint16Array, now: Uint16Array, labels: Uint16Array, kind: ChangeKind): number[] {
  const found: number[] = [];
  for (let n = 0; n < labels.length; n++) {
    if (before[n] === now[n]) continue;
    if (kind === "fixed" && now[n] !== labels[n]) continue;
    if (kind === "broken" && before[n] !== labels[n]) continue;
    found.push(n);
  }
  return found;
}

/** Rows of each class (down) that were given each class (across), C * C numbers. */
export function confusion(predicted: Uint16Array, labels: Uint16Array, classes: number): Uint32Array {
  const counts = new Uint32Array(classes * classes);
  for (let n = 0; n < labels.length; n++) counts[labels[n] * classes + predicted[n]]++;
  return counts;
}

/** Right predictions at each step of a line; null where nothing lies between stored points. */
export function sweep(
  rows: Rows,
  from: readonly number[],
  along: readonly number[],
  steps: readonly number[],
): Uint32Array | null {
  const correct = new Uint32Array(steps.length);
  const { labels } = rows;
  const known = rows.line(from, along, steps, (step, row, predicted) => {
    if (predicted === labels[row]) correct[step]++;
  });
  return known ? correct : null;
}

/** The share of rows whose class the other vector changes, for each of its coefficients. */
export function disturbed(
  rows: Rows,
  own: readonly number[],
  other: readonly number[],
  steps: readonly number[],
): Float64Array | null {
  const alone = new Uint16Array(rows.count);
  const found = new Float64Array(steps.length);
  if (rows.predict(own, alone) === null) return null;
  const known = rows.line(own, other, steps, (step, row, predicted) => {
    if (predicted !== alone[row]) found[step] += 1 / rows.count;
  });
  return known ? found : null;
}

/** The share of rows whose class is another one at two mixes. */
export function differing(rows: Rows, one: readonly number[], other: readonly number[]): number | null {
  const first = new Uint16Array(rows.count);
  const second = new Uint16Array(rows.count);
  if (rows.predict(one, first) === null || rows.predict(other, second) === null) return null;
  let found = 0;
  for (let n = 0; n < rows.count; n++) if (first[n] !== second[n]) found++;
  return found / rows.count;
}

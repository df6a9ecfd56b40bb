/** Predictions of one split's rows at any coefficients, from what Python stored of each row. */

import type { Split, Task } from "../data";

/** What every view asks: the class of each row at some coefficients. */
export interface Rows {
  readonly count: number;
  readonly labels: Uint16Array;
  /**
   * Writes each row's class; gives the number of rows that rounding could have turned, or null where no such point is stored.
   * Where the coefficients move along a line, the sums of the line are made once, and a step costs one product a class.
   */
  predict(coefficients: readonly number[], into: Uint16Array, moving?: Line | null): number | null;
  /** Classes at from + step * along for each step, a call for each row and step; false where nothing lies between stored points. */
  line(from: readonly number[], along: readonly number[], steps: readonly number[], visit: Visit): boolean;
}

/** Coefficients from + s * along. */
export interface Line {
  readonly from: readonly number[];
  readonly along: readonly number[];
}

/** The s of coefficients on a line, or null. */
function stepOn({ from, along }: Line, coefficients: readonly number[]): number | null {
  const k = along.findIndex((d) => d);
  const s = (coefficients[k] - from[k]) / along[k];
  return coefficients.every((a, i) => Math.abs(from[i] + s * along[i] - a) < 1e-12) ? s : null;
}

export type Visit = (step: number, row: number, predicted: number) => void;

type Numbers = Int16Array | Float32Array;

/** Rows of one split; `vectors` is the number of vectors. */
export function rowsOf(task: Task, split: Split, vectors: number, exact: boolean, blob: ArrayBuffer): Rows {
  const labels = new Uint16Array(blob, split.labels, split.rows);
  if (task.kind === "sampled") return sampledRows(split, labels, blob);
  const shape = shapeOf(task, split, blob);
  const length = shape.starts[split.rows] * (vectors + 1);
  const numbers = exact ? new Float32Array(blob, split.numbers, length) : new Int16Array(blob, split.numbers, length);
  return affineRows(labels, numbers, shape, vectors + 1, exact, shiftOf(task, split, vectors + 1, blob));
}

/** Which classes each row has numbers of: row n those at starts[n] to starts[n + 1], or, without names, all. */
interface Shape {
  readonly starts: Uint32Array;
  readonly names: Uint16Array | null;
  /** The most classes of a row. */
  readonly most: number;
}

function shapeOf(task: Task, { kept, rows }: Split, blob: ArrayBuffer): Shape {
  const most = task.classes.length;
  if (!kept) return { starts: Uint32Array.from({ length: rows + 1 }, (_, n) => n * most), names: null, most };
  const starts = new Uint32Array(blob, kept.starts, rows + 1);
  return { starts, names: new Uint16Array(blob, kept.classes, starts[rows]), most };
}

/** The class of the largest v_0 + sum_k a_k v_k, k over the vectors; with a `Shift`, a bias is added first. */
function affineRows(
  labels: Uint16Array,
  numbers: Numbers,
  { starts, names, most }: Shape,
  parts: number,
  exact: boolean,
  shift: Shift | null,
): Rows {
  const count = labels.length;
  const first = new Float64Array(most);
  let held = "";
  let base = first;
  let slope = first;

  /** Makes `base` and `slope` the sums of a line, for each class of each row. */
  function hold({ from, along }: Line): void {
    const key = `${from} ${along}`;
    if (key === held) return;
    held = key;
    [base, slope] = [from, along].map((coefficients, i) => {
      const sum = weighted(coefficients);
      const into = new Float64Array(starts[count]);
      for (let n = 0; n < count; n++) {
        const start = starts[n];
        combine(numbers, parts * start, starts[n + 1] - start, 1 - i, sum, into.subarray(start));
      }
      return into;
    });
  }

  function predict(coefficients: readonly number[], into: Uint16Array, moving?: Line | null): number {
    const sum = weighted(coefficients);
    const step = moving && stepOn(moving, coefficients);
    if (moving && step != null) hold(moving);
    const slack = exact ? -1 : 1 + coefficients.reduce((total, a) => total + Math.abs(a), 0);
    const weights = [1, ...coefficients];
    let within = 0;
    for (let n = 0; n < count; n++) {
      const start = starts[n];
      const classes = starts[n + 1] - start;
      if (step == null) combine(numbers, parts * start, classes, 1, sum, first);
      else for (let c = 0; c < classes; c++) first[c] = base[start + c] + step * slope[start + c];
      const more = shift ? shift(n, weights, first) : 0;
      let best = -Infinity;
      let next = -Infinity;
      let winner = 0;
      for (let c = 0; c < classes; c++) {
        const value = first[c];
        if (value > best) {
          next = best;
          best = value;
          winner = c;
        } else if (value > next) next = value;
      }
      if (best - next <= slack + more) within++;
      into[n] = names ? names[start + winner] : winner;
    }
    return within;
  }

  function line(from: readonly number[], along: readonly number[], steps: readonly number[], visit: Visit): boolean {
    hold({ from, along });
    const points = shift ? steps.map((s) => [1, ...from.map((a, k) => a + s * along[k])]) : [];
    for (let n = 0; n < count; n++) {
      const start = starts[n];
      const end = starts[n + 1];
      for (let i = 0; i < steps.length; i++) {
        const s = steps[i];
        let winner = start;
        let best = -Infinity;
        if (shift) {
          for (let c = start; c < end; c++) first[c - start] = base[c] + s * slope[c];
          shift(n, points[i], first);
        }
        for (let c = start; c < end; c++) {
          const value = shift ? first[c - start] : base[c] + s * slope[c];
          if (value > best) {
            best = value;
            winner = c;
          }
        }
        visit(i, n, names ? names[winner] : winner - start);
      }
    }
    return true;
  }

  return { count, labels, predict, line };
}

interface Weighted {
  readonly weights: Float64Array;
  readonly places: Int32Array;
}

/** The vectors' parts of a row that count, with their weights, filled up to a multiple of eight by parts of weight 0. */
function weighted(coefficients: readonly number[]): Weighted {
  const parts: [number, number][] = [];
  coefficients.forEach((a, k) => {
    if (a !== 0) parts.push([a, k + 1]);
  });
  while (parts.length % 8) parts.push([0, 0]);
  return { weights: Float64Array.from(parts, (one) => one[0]), places: Int32Array.from(parts, (one) => one[1]) };
}

/** The weighted sum of a row's parts, eight vectors in one turn; sums run in the order of the parts. */
function combine(
  numbers: Numbers,
  row: number,
  classes: number,
  base: number,
  { weights, places }: Weighted,
  into: Float64Array,
): void {
  for (let c = 0; c < classes; c++) into[c] = base * numbers[row + c];
  for (let j = 0; j < weights.length; j += 8) {
    const w0 = weights[j];
    const w1 = weights[j + 1];
    const w2 = weights[j + 2];
    const w3 = weights[j + 3];
    const w4 = weights[j + 4];
    const w5 = weights[j + 5];
    const w6 = weights[j + 6];
    const w7 = weights[j + 7];
    const p0 = row + places[j] * classes;
    const p1 = row + places[j + 1] * classes;
    const p2 = row + places[j + 2] * classes;
    const p3 = row + places[j + 3] * classes;
    const p4 = row + places[j + 4] * classes;
    const p5 = row + places[j + 5] * classes;
    const p6 = row + places[j + 6] * classes;
    const p7 = row + places[j + 7] * classes;
    for (let c = 0; c < classes; c++) {
      into[c] =
        into[c] + w0 * numbers[p0 + c] + w1 * numbers[p1 + c] + w2 * numbers[p2 + c] + w3 * numbers[p3 + c] +
        w4 * numbers[p4 + c] + w5 * numbers[p5 + c] + w6 * numbers[p6 + c] + w7 * numbers[p7 + c];
    }
  }
}

/** Adds a bias to the values of row n, in units of its scale; gives how far float32 can have moved a difference. */
type Shift = (n: number, weights: readonly number[], values: Float64Array) => number;

/** For a head that divides features by their length: W z + b |z| / s is ordered as its logits are; |z| is from z_k . z_l. */
function shiftOf(task: Task, split: Split, parts: number, blob: ArrayBuffer): Shift | null {
  if (task.kind !== "gram" || split.gram === undefined || split.bias === null || split.bias === undefined) return null;
  const pairs = (parts * (parts + 1)) / 2;
  const gram = new Float32Array(blob, split.gram, split.rows * pairs);
  const bias = new Float32Array(blob, split.bias, task.classes.length);
  const scales = split.scales === null ? null : new Float32Array(blob, split.scales, split.rows);
  const spread = Math.max(...bias) - Math.min(...bias);
  return (n, weights, values) => {
    let place = n * pairs;
    let square = 0;
    let size = 0;
    for (let i = 0; i < parts; i++) {
      size += Math.abs(weights[i]) * Math.sqrt(gram[place]);
      for (let j = i; j < parts; j++, place++) square += weights[i] * weights[j] * gram[place] * (i === j ? 1 : 2);
    }
    const unit = (split.logitScale ?? 1) * (scales ? scales[n] : 1);
    if (unit === 0) return Infinity; // W z is 0 for every class, and nothing is known of what rounding took
    const norm = Math.sqrt(Math.max(square, 0));
    for (let c = 0; c < values.length; c++) values[c] += (bias[c] * norm) / unit;
    const error = 2 ** -22 * size * size;
    return (spread * Math.min(Math.sqrt(error), norm > 0 ? error / norm : Infinity)) / unit;
  };
}

/** Predictions at stored coefficients alone; nothing lies between them. */
function sampledRows({ rows, numbers, grid = [] }: Split, labels: Uint16Array, blob: ArrayBuffer): Rows {
  const predicted = new Uint16Array(blob, numbers, rows * grid.length);
  return {
    count: rows,
    labels,
    predict(coefficients, into) {
      const at = grid.findIndex((point) => same(point, coefficients));
      if (at < 0) return null;
      into.set(predicted.subarray(at * rows, (at + 1) * rows));
      return 0;
    },
    line: () => false,
  };
}

export function same(one: readonly number[], other: readonly number[]): boolean {
  return one.length === other.length && one.every((a, k) => Math.abs(a - other[k]) < 1e-9);
}

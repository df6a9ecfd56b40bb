/** Predictions of one split's rows at any coefficients, from what Python stored of each row. */

import type { Split, Task } from "../data";

/** What every view asks: the class of each row at some coefficients. */
export interface Rows {
  readonly count: number;
  readonly labels: Uint16Array;
  /** Writes each row's class; gives the number of rows that rounding could have turned, or null where no such point is stored. */
  predict(coefficients: readonly number[], into: Uint16Array): number | null;
  /** Classes at from + step * along for each step, a call for each row and step; false where nothing lies between stored points. */
  line(from: readonly number[], along: readonly number[], steps: readonly number[], visit: Visit): boolean;
}

export type Visit = (step: number, row: number, predicted: number) => void;

type Numbers = Int16Array | Float32Array;

/** Rows of one split; `vectors` is the number of vectors. */
export function rowsOf(task: Task, split: Split, vectors: number, exact: boolean, blob: ArrayBuffer): Rows {
  if (task.kind === "sampled") return new SampledRows(split, blob);
  const shape = shapeOf(task, split, blob);
  const length = shape.starts[split.rows] * (vectors + 1);
  const numbers = exact ? new Float32Array(blob, split.numbers, length) : new Int16Array(blob, split.numbers, length);
  const labels = new Uint16Array(blob, split.labels, split.rows);
  return new AffineRows(labels, numbers, shape, vectors, exact, normOf(task, split, vectors, blob));
}

/** Which classes each row has numbers of: row n those at starts[n] to starts[n + 1], or, without names, all. */
interface Shape {
  readonly starts: Uint32Array;
  readonly names: Uint16Array | null;
  /** The most classes of a row. */
  readonly most: number;
}

function shapeOf(task: Task, split: Split, blob: ArrayBuffer): Shape {
  const classes = task.classes.length;
  if (!split.kept) {
    return { starts: Uint32Array.from({ length: split.rows + 1 }, (_, n) => n * classes), names: null, most: classes };
  }
  const starts = new Uint32Array(blob, split.kept.starts, split.rows + 1);
  return { starts, names: new Uint16Array(blob, split.kept.classes, starts[split.rows]), most: classes };
}

function normOf(task: Task, split: Split, vectors: number, blob: ArrayBuffer): Norm | null {
  if (task.kind !== "gram" || split.gram === undefined || split.bias === null || split.bias === undefined) return null;
  const pairs = ((vectors + 1) * (vectors + 2)) / 2;
  const gram = new Float32Array(blob, split.gram, split.rows * pairs);
  const bias = new Float32Array(blob, split.bias, task.classes.length);
  const scales = split.scales === null ? null : new Float32Array(blob, split.scales, split.rows);
  return new Norm(gram, bias, scales, split.logitScale ?? 1, vectors + 1);
}

/** The class of the largest v_0 + sum_k a_k v_k, k over the vectors; with a `Norm`, a bias is added first. */
class AffineRows implements Rows {
  readonly count: number;
  private readonly first: Float64Array;
  private readonly second: Float64Array;

  constructor(
    readonly labels: Uint16Array,
    private readonly numbers: Numbers,
    private readonly shape: Shape,
    private readonly vectors: number,
    private readonly exact: boolean,
    private readonly norm: Norm | null,
  ) {
    this.count = labels.length;
    this.first = new Float64Array(shape.most);
    this.second = new Float64Array(shape.most);
  }

  predict(coefficients: readonly number[], into: Uint16Array): number {
    const { numbers, first, norm } = this;
    const { starts, names } = this.shape;
    const parts = this.vectors + 1;
    const sum = weighted(coefficients, 1);
    const slack = this.exact ? -1 : 1 + coefficients.reduce((total, a) => total + Math.abs(a), 0);
    const weights = [1, ...coefficients];
    let within = 0;
    for (let n = 0; n < this.count; n++) {
      const start = starts[n];
      const classes = starts[n + 1] - start;
      combine(numbers, parts * start, classes, sum, first);
      const more = norm ? norm.shift(n, weights, first) : 0;
      let best = first[0];
      let next = -Infinity;
      let winner = 0;
      for (let c = 1; c < classes; c++) {
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

  line(from: readonly number[], along: readonly number[], steps: readonly number[], visit: Visit): boolean {
    const { numbers, first, second, norm } = this;
    const { starts, names, most } = this.shape;
    const parts = this.vectors + 1;
    const base = weighted(from, 1);
    const slope = weighted(along, 0);
    const points = norm ? steps.map((s) => [1, ...from.map((a, k) => a + s * along[k])]) : [];
    const shifted = new Float64Array(norm ? most : 0);
    for (let n = 0; n < this.count; n++) {
      const start = starts[n];
      const classes = starts[n + 1] - start;
      combine(numbers, parts * start, classes, base, first);
      combine(numbers, parts * start, classes, slope, second);
      for (let i = 0; i < steps.length; i++) {
        const s = steps[i];
        let winner = 0;
        if (norm) {
          for (let c = 0; c < classes; c++) shifted[c] = first[c] + s * second[c];
          norm.shift(n, points[i], shifted);
          winner = largest(shifted);
        } else {
          let best = first[0] + s * second[0];
          for (let c = 1; c < classes; c++) {
            const value = first[c] + s * second[c];
            if (value > best) {
              best = value;
              winner = c;
            }
          }
        }
        visit(i, n, names ? names[start + winner] : winner);
      }
    }
    return true;
  }
}

interface Weighted {
  readonly weights: Float64Array;
  readonly places: Int32Array;
}

/** The parts of a row that count, with their weights, padded to a multiple of four by parts of weight 0. */
function weighted(coefficients: readonly number[], base: number): Weighted {
  const parts: [number, number][] = [[base, 0]];
  coefficients.forEach((a, k) => {
    if (a !== 0) parts.push([a, k + 1]);
  });
  while (parts.length % 4) parts.push([0, 0]);
  return { weights: Float64Array.from(parts, (one) => one[0]), places: Int32Array.from(parts, (one) => one[1]) };
}

/** The weighted sum of a row's parts, four in one turn; sums run in the order of the parts. */
function combine(numbers: Numbers, start: number, classes: number, sum: Weighted, into: Float64Array): void {
  const { weights, places } = sum;
  for (let j = 0; j < weights.length; j += 4) {
    const w0 = weights[j];
    const w1 = weights[j + 1];
    const w2 = weights[j + 2];
    const w3 = weights[j + 3];
    const p0 = start + places[j] * classes;
    const p1 = start + places[j + 1] * classes;
    const p2 = start + places[j + 2] * classes;
    const p3 = start + places[j + 3] * classes;
    if (j === 0) {
      for (let c = 0; c < classes; c++) {
        into[c] = w0 * numbers[p0 + c] + w1 * numbers[p1 + c] + w2 * numbers[p2 + c] + w3 * numbers[p3 + c];
      }
    } else {
      for (let c = 0; c < classes; c++) {
        into[c] = into[c] + w0 * numbers[p0 + c] + w1 * numbers[p1 + c] + w2 * numbers[p2 + c] + w3 * numbers[p3 + c];
      }
    }
  }
}

function largest(values: Float64Array): number {
  let winner = 0;
  for (let c = 1; c < values.length; c++) if (values[c] > values[winner]) winner = c;
  return winner;
}

/** The bias of a head that divides features by their length: (W z + b |z| / s) is ordered as its logits are. */
class Norm {
  private readonly spread: number;

  constructor(
    private readonly gram: Float32Array,
    private readonly bias: Float32Array,
    private readonly scales: Float32Array | null,
    private readonly logitScale: number,
    private readonly parts: number,
  ) {
    this.spread = Math.max(...bias) - Math.min(...bias);
  }

  /** Adds b |z| / s to the values of row n, in units of its scale; gives how far float32 can have moved a difference. */
  shift(n: number, weights: readonly number[], values: Float64Array): number {
    const { gram, bias, parts } = this;
    let place = n * ((parts * (parts + 1)) / 2);
    let square = 0;
    let size = 0;
    for (let i = 0; i < parts; i++) {
      size += Math.abs(weights[i]) * Math.sqrt(gram[place]);
      for (let j = i; j < parts; j++, place++) square += weights[i] * weights[j] * gram[place] * (i === j ? 1 : 2);
    }
    const unit = this.logitScale * (this.scales ? this.scales[n] : 1);
    if (unit === 0) return Infinity; // W z is 0 for every class, and nothing is known of what rounding took
    const norm = Math.sqrt(Math.max(square, 0));
    for (let c = 0; c < values.length; c++) values[c] += (bias[c] * norm) / unit;
    const error = 2 ** -22 * size * size;
    return (this.spread * Math.min(Math.sqrt(error), norm > 0 ? error / norm : Infinity)) / unit;
  }
}

/** Predictions at stored coefficients alone; nothing lies between them. */
export class SampledRows implements Rows {
  readonly count: number;
  readonly labels: Uint16Array;
  readonly grid: readonly (readonly number[])[];
  private readonly predicted: Uint16Array;

  constructor(split: Split, blob: ArrayBuffer) {
    this.count = split.rows;
    this.labels = new Uint16Array(blob, split.labels, split.rows);
    this.grid = split.grid ?? [];
    this.predicted = new Uint16Array(blob, split.numbers, split.rows * this.grid.length);
  }

  predict(coefficients: readonly number[], into: Uint16Array): number | null {
    const at = this.grid.findIndex((point) => same(point, coefficients));
    if (at < 0) return null;
    into.set(this.predicted.subarray(at * this.count, (at + 1) * this.count));
    return 0;
  }

  line(): boolean {
    return false;
  }
}

export function same(one: readonly number[], other: readonly number[]): boolean {
  return one.length === other.length && one.every((a, k) => Math.abs(a - other[k]) < 1e-9);
}

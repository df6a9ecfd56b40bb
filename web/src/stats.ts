/** Intervals at 95 %: of a share (Clopper and Pearson), of a paired difference (Bonett and Price), of a mean (MOVER). */

import type { Interval } from "./data";

const Z = 1.959963984540054;
const factorials: number[] = [0];

function logFactorial(n: number): number {
  for (let i = factorials.length; i <= n; i++) factorials.push(factorials[i - 1] + Math.log(i));
  return factorials[n];
}

/** The continued fraction of the incomplete beta function, by Lentz's method. */
function fraction(x: number, a: number, b: number): number {
  const tiny = 1e-300;
  let c = 1;
  let d = 1 / nonzero(1 - ((a + b) * x) / (a + 1), tiny);
  let h = d;
  for (let m = 1; m < 1000; m++) {
    const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / nonzero(1 + even * d, tiny);
    c = nonzero(1 + even / c, tiny);
    h *= d * c;
    const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / nonzero(1 + odd * d, tiny);
    c = nonzero(1 + odd / c, tiny);
    h *= d * c;
    if (Math.abs(d * c - 1) < 1e-15) break;
  }
  return h;
}

function nonzero(x: number, tiny: number): number {
  return Math.abs(x) < tiny ? tiny : x;
}

/** The distribution function of Beta(a, b) at x, for whole numbers a and b. */
function beta(x: number, a: number, b: number): number {
  const weight = logFactorial(a + b - 1) - logFactorial(a - 1) - logFactorial(b - 1);
  const front = Math.exp(weight + a * Math.log(x) + b * Math.log1p(-x));
  return x < (a + 1) / (a + b + 2) ? (front * fraction(x, a, b)) / a : 1 - (front * fraction(1 - x, b, a)) / b;
}

function quantile(p: number, a: number, b: number): number {
  let low = 0;
  let high = 1;
  for (let i = 0; i < 60 && high - low > 1e-13; i++) {
    const middle = (low + high) / 2;
    if (beta(middle, a, b) < p) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

const known = new Map<number, Interval>();

/** The exact interval of a share of k in n. Costs a few thousand operations the first time, a look-up afterwards. */
export function share(k: number, n: number): Interval {
  const key = n * 1048576 + k;
  let found = known.get(key);
  if (!found) {
    const low = k === 0 ? 0 : quantile(0.025, k, n - k + 1);
    const high = k === n ? 1 : quantile(0.975, k + 1, n - k);
    found = { value: k / n, low, high };
    known.set(key, found);
  }
  return found;
}

/** The difference of two shares of the same rows, of which `fixed` became right and `broken` became wrong. */
export function paired(fixed: number, broken: number, n: number): Interval {
  const up = (fixed + 1) / (n + 2);
  const down = (broken + 1) / (n + 2);
  const half = Z * Math.sqrt((up + down - (up - down) ** 2) / (n + 2));
  return { value: (fixed - broken) / n, low: Math.max(-1, up - down - half), high: Math.min(1, up - down + half) };
}

/** The mean of independent estimates, its limits from theirs: squares of the distances to the limits add up. */
export function mean(parts: readonly Interval[]): Interval | null {
  if (parts.length === 0) return null;
  let value = 0;
  let below = 0;
  let above = 0;
  for (const part of parts) {
    value += part.value;
    below += (part.value - part.low) ** 2;
    above += (part.high - part.value) ** 2;
  }
  const n = parts.length;
  return { value: value / n, low: (value - Math.sqrt(below)) / n, high: (value + Math.sqrt(above)) / n };
}

/** An interval in units of a number that is taken as known. */
export function over(one: Interval, unit: number): Interval | null {
  return unit > 0 ? { value: one.value / unit, low: one.low / unit, high: one.high / unit } : null;
}

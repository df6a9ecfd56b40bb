/** Numbers and names as people read them. */

const MINUS = "\u2212";
const DASH = "\u2013";

/** A share with three decimals; a dash where there is none. */
export function number(x: number | null | undefined, digits = 3): string {
  if (x === null || x === undefined || !Number.isFinite(x)) return DASH;
  const text = Math.abs(x).toFixed(digits);
  return x < 0 && Number(text) !== 0 ? MINUS + text : text;
}

/** A difference, always with its sign. */
export function signed(x: number | null | undefined, digits = 3): string {
  const text = number(x, digits);
  return x !== null && x !== undefined && x > 0 && Number(text) !== 0 ? `+${text}` : text;
}

/** A coefficient with all its digits, so that whoever takes it elsewhere gets the same rows right. */
export function exactly(x: number): string {
  return String(x + 0);
}

/** A coefficient as it is shown. */
export function coefficient(x: number): string {
  return String(Number(x.toFixed(4)) + 0);
}

export function cut(text: string, most: number): string {
  if (text.length <= most) return text;
  const end = /[\ud800-\udbff]$/.test(text.slice(0, most)) ? most - 1 : most;
  return `${text.slice(0, end)}\u2026`;
}

const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

/** A name for attributes and menus, where marks that turn the direction of text cannot be isolated. */
export function plain(text: string, most = 60): string {
  return cut(cut(text, 4 * most).replace(UNSEEN, ""), most);
}

/** Text with the characters that nobody sees written out. */
export function visible(text: string): string {
  return text.replace(UNSEEN, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString("en-GB")} ${n === 1 ? one : many}`;
}

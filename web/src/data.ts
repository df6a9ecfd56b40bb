/** What Python writes into the page: the types of its JSON, and how the three places are read. */

export interface Interval {
  value: number;
  low: number;
  high: number;
}

export interface Split {
  rows: number;
  labels: number;
  zeroShot: Interval;
  single: Interval | null;
  numbers: number;
  scales: number | null;
  kept: { starts: number; classes: number } | null;
  gram?: number;
  logitScale?: number;
  bias?: number | null;
  grid?: number[][];
}

export type SplitName = "validation" | "test";

export interface Task {
  name: string;
  classes: string[];
  vector: number | null;
  kind: "affine" | "gram" | "sampled";
  floor: number | null;
  splits: Record<SplitName, Split | null>;
}

export interface Vector {
  name: string;
  norm: number;
  file: string | null;
}

export interface Choice {
  name: string;
  split: "validation" | null;
  coefficients: number[];
  note: string;
}

export interface Matrix {
  title: string;
  note: string;
  rows: string[];
  columns: string[];
  values: (number | null)[][];
}

export interface Front {
  target: string;
  controls?: string[];
  note: string;
  points: { coefficients: number[]; target: number; control: number }[];
}

export interface Copy {
  text: string;
  item: string;
  join: string;
  names: string[];
}

export type CopyKind = "command" | "recipe" | "python";

export interface Desk {
  format: string;
  title: string;
  model: string;
  regime: "linear" | "posthoc" | "standard";
  point: "logits" | "encoder";
  version: string;
  exact: boolean;
  range: [number, number];
  step: number;
  vectors: Vector[];
  tasks: Task[];
  choices: Choice[];
  interference: Matrix | null;
  front: Front | null;
  copy: Record<CopyKind, Copy>;
  notes: string[];
}

export const FORMAT = "tauspan desk 1";

function content(id: string): string {
  return document.getElementById(id)?.textContent?.trim() ?? "";
}

/** The bytes of base64 text; the newer browsers' own decoder is several times faster. */
export function bytes(base64: string): Uint8Array<ArrayBuffer> {
  const native = Uint8Array as unknown as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> };
  if (native.fromBase64) return native.fromBase64(base64);
  const binary = atob(base64);
  const found = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) found[i] = binary.charCodeAt(i);
  return found;
}

/** The page's JSON; an error where it is another format's. */
export function readDesk(): Desk {
  const desk = JSON.parse(content("desk-data")) as Desk;
  if (desk.format !== FORMAT) {
    throw new Error(`this page reads "${FORMAT}", and its data are "${String(desk.format)}"`);
  }
  return desk;
}

/** The numbers that offsets in the JSON point into. */
export function readNumbers(): ArrayBuffer {
  return bytes(content("desk-numbers")).buffer;
}

export type Texts = Record<string, Partial<Record<SplitName, string[]>>>;

/** Texts and thumbnails of the rows; an empty record where the page was made without examples. */
export async function readTexts(): Promise<Texts> {
  const packed = content("desk-texts");
  if (!packed) return {};
  const stream = new Blob([bytes(packed)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text()) as Texts;
}

/** A matrix as colours on a canvas, a pixel a cell, scaled up without blur. */

import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

const query = window.matchMedia("(prefers-color-scheme: dark)");
export const dark = signal(query.matches);
query.addEventListener("change", (event) => (dark.value = event.matches));

type Colour = readonly [number, number, number];

// From little to much, each step darker (on light) or lighter (on dark), so that it reads without colour too.
const LIGHT: readonly Colour[] = [[247, 247, 240], [205, 230, 194], [104, 190, 196], [38, 112, 178], [14, 36, 94]];
const DARK: readonly Colour[] = [[35, 39, 46], [26, 66, 104], [32, 122, 152], [104, 192, 172], [244, 244, 196]];

/** The colour of a share in [0, 1]. */
export function colour(share: number): Colour {
  const stops = dark.value ? DARK : LIGHT;
  const place = Math.min(1, Math.max(0, share)) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const part = place - low;
  const mixed = (i: 0 | 1 | 2) => Math.round(stops[low][i] + part * (stops[low + 1][i] - stops[low][i]));
  return [mixed(0), mixed(1), mixed(2)];
}

export function css([r, g, b]: Colour): string {
  return `rgb(${r} ${g} ${b})`;
}

/** Black or white, whichever is read better on a colour. */
export function onColour([r, g, b]: Colour): string {
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#14161a" : "#ffffff";
}

const palettes = new Map<boolean, Uint32Array>();
const GREY = 0x28808080;

/** 256 colours as the canvas keeps them, made once for each scheme. */
function palette(): Uint32Array {
  let found = palettes.get(dark.value);
  if (!found) {
    found = Uint32Array.from({ length: 256 }, (_, i) => {
      const [r, g, b] = colour(i / 255);
      return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    });
    palettes.set(dark.value, found);
  }
  return found;
}

/** `shares` has rows * columns values in [0, 1], or NaN where there is none. */
export function Heat(props: { rows: number; columns: number; shares: ArrayLike<number> }) {
  const ref = useRef<HTMLCanvasElement>(null);
  const colours = palette();
  useEffect(() => {
    const context = ref.current?.getContext("2d");
    if (!context) return;
    const image = context.createImageData(props.columns, props.rows);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i++) {
      const share = props.shares[i];
      pixels[i] = Number.isNaN(share) ? GREY : colours[Math.round(255 * share)];
    }
    context.putImageData(image, 0, 0);
  }, [props.shares, props.rows, props.columns, colours]);
  return <canvas ref={ref} class="heat" width={props.columns} height={props.rows} aria-hidden="true" />;
}

const RAMP = Float64Array.from({ length: 32 }, (_, i) => i / 31);

/** The colours from 0 to the largest value, with their numbers. */
export function Bar({ top, label }: { top: string; label: string }) {
  return (
    <div class="bar">
      <span>0</span>
      <Heat rows={1} columns={32} shares={RAMP} />
      <span>{top}</span>
      <span class="of">{label}</span>
    </div>
  );
}

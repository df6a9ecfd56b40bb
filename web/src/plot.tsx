/** Axes of a plot as SVG, drawn at the width that the page has for it. */

import type { ComponentChildren, RefObject } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { coefficient } from "./format";

export interface Scale {
  (value: number): number;
}

export type Domain = readonly [number, number];

/** The width of an element, followed. */
function useWidth(first: number): [RefObject<HTMLDivElement | null>, number] {
  const ref = useRef<HTMLDivElement | null>(null);
  const [width, setWidth] = useState(first);
  useEffect(() => {
    const element = ref.current;
    if (!element) return undefined;
    const follow = () => setWidth(Math.max(220, Math.floor(element.clientWidth)));
    follow();
    const watch = new ResizeObserver(follow);
    watch.observe(element);
    return () => watch.disconnect();
  }, []);
  return [ref, width];
}

/** Round numbers in a domain, about `most` of them. */
export function ticks([low, high]: Domain, most: number): number[] {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((one) => one * power >= rough - 1e-12) ?? 10);
  const found: number[] = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * span; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** A domain with a margin, cut to [0, 1]. */
export function around(values: readonly number[], margin = 0.06): Domain {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = Math.max((high - low) * margin, 0.01);
  return [Math.max(0, low - room), Math.min(1.005, high + room)];
}

interface Props {
  label: string;
  height: number;
  x: Domain;
  y: Domain;
  across: string;
  up: string;
  children: (x: Scale, y: Scale, width: number) => ComponentChildren;
}

const MARGIN = { left: 54, right: 12, top: 10, bottom: 40 };
/** Where the axis begins and ends, for what lies below it. */
export const INSET = { left: MARGIN.left, right: MARGIN.right };

export function Plot(props: Props) {
  const [ref, width] = useWidth(420);
  const { height } = props;
  const left = MARGIN.left;
  const right = width - MARGIN.right;
  const bottom = height - MARGIN.bottom;
  const x: Scale = (value) => left + ((right - left) * (value - props.x[0])) / (props.x[1] - props.x[0] || 1);
  const y: Scale = (value) => bottom - ((bottom - MARGIN.top) * (value - props.y[0])) / (props.y[1] - props.y[0] || 1);
  return (
    <div class="drawing" ref={ref}>
      <svg width={width} height={height} viewBox={`0 0 ${width} ${height}`} role="group" aria-label={props.label}>
        <g class="axes" aria-hidden="true">
          {ticks(props.y, 6).map((value) => (
            <g key={value}>
              <line class="grid" x1={left} x2={right} y1={y(value)} y2={y(value)} />
              <text x={left - 8} y={y(value) + 4} text-anchor="end">{coefficient(value)}</text>
            </g>
          ))}
          {ticks(props.x, Math.max(3, Math.floor(width / 90))).map((value) => (
            <g key={value}>
              <line class="tick" x1={x(value)} x2={x(value)} y1={bottom} y2={bottom + 4} />
              <text x={x(value)} y={bottom + 17} text-anchor="middle">{coefficient(value)}</text>
            </g>
          ))}
          <line class="base" x1={left} x2={right} y1={bottom} y2={bottom} />
          <text class="axis" x={(left + right) / 2} y={height - 5} text-anchor="middle">{props.across}</text>
          <text class="axis" transform={`translate(11 ${(bottom + MARGIN.top) / 2}) rotate(-90)`} text-anchor="middle">{props.up}</text>
        </g>
        {props.children(x, y, width)}
      </svg>
    </div>
  );
}

/** The path of a curve. */
export function path(points: readonly (readonly [number, number])[]): string {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

/** Small parts that every view is made of. */

import type { ComponentChildren } from "preact";

import { cut, number, plain, signed } from "./format";
import type { Interval } from "./data";

/** A name from outside: isolated, so that its characters turn nothing around it, and cut; lines break after underscores. */
export function Name({ text, most = 48 }: { text: string; most?: number }) {
  return (
    <bdi class="name" title={text.length > most ? plain(text, 300) : undefined}>
      {cut(text, most)
        .split(/(?<=_)/)
        .flatMap((part, i) => (i ? [<wbr />, part] : part))}
    </bdi>
  );
}

/** A number, with all its digits for machines that read the page. */
export function Value({ of, digits = 3, sign = false }: { of: number | null; digits?: number; sign?: boolean }) {
  if (of === null) return <span class="none">{number(of)}</span>;
  return <data value={String(of)}>{sign ? signed(of, digits) : number(of, digits)}</data>;
}

/** The limits of an interval at 95 %. */
export function Limits({ of, sign = false }: { of: Interval | null; sign?: boolean }) {
  if (!of) return null;
  const text = sign ? signed : number;
  return (
    <span class="limits">
      {text(of.low)} to {text(of.high)}
    </span>
  );
}

export function Card(props: { id: string; title: string; aside?: ComponentChildren; children: ComponentChildren; wide?: boolean }) {
  return (
    <section class={props.wide ? "card wide" : "card"} aria-labelledby={`${props.id}-title`} id={props.id}>
      <header>
        <h2 id={`${props.id}-title`}>{props.title}</h2>
        {props.aside}
      </header>
      {props.children}
    </section>
  );
}

/** One of a few, as a row of buttons. */
export function Switch<T extends string>(props: {
  label: string;
  options: readonly (readonly [T, string])[];
  value: T;
  onChange: (value: T) => void;
}) {
  return (
    <div class="switch" role="group" aria-label={props.label}>
      {props.options.map(([value, text]) => (
        <button type="button" key={value} aria-pressed={value === props.value} onClick={() => props.onChange(value)}>
          {text}
        </button>
      ))}
    </div>
  );
}

/** A menu of names. */
export function Menu(props: { label: string; names: readonly string[]; value: number; onChange: (place: number) => void }) {
  return (
    <label class="menu">
      <span>{props.label}</span>
      <select value={String(props.value)} onChange={(event) => props.onChange(Number(event.currentTarget.value))}>
        {props.names.map((name, place) => (
          <option key={place} value={String(place)}>
            {plain(name, 40)}
          </option>
        ))}
      </select>
    </label>
  );
}

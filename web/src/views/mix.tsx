/** Where coefficients are set: a slider and a box for each vector, all at once, choices, snapshots. */

import { coefficient, cut, number, plain } from "../format";
import { same } from "../compute/rows";
import { choose, coefficients, COUNT, desk, GRID, HIGH, LOW, mix, point, SAMPLED, slide, snapshots } from "../state";
import { Name } from "../ui";

export function Mix() {
  return (
    <section class="mix" aria-labelledby="mix-title">
      <h2 id="mix-title">Mix</h2>
      <div class="sliders">
        {desk.vectors.map((vector, k) => (
          <Slider key={k} place={k} name={vector.name} norm={vector.norm} />
        ))}
        {COUNT > 1 && <Master />}
      </div>
      {SAMPLED && <Nearest />}
      <Choices />
      <Snapshots />
    </section>
  );
}

interface Control {
  id: string;
  label: string;
  value: number;
  onInput: (value: number) => void;
}

/** A native slider and a number box of the same value; both answer to the keyboard by themselves. */
function Pair({ id, label, value, onInput }: Control) {
  const take = (event: { currentTarget: HTMLInputElement }) => {
    const typed = event.currentTarget.valueAsNumber;
    if (Number.isFinite(typed)) onInput(typed);
    else event.currentTarget.value = coefficient(value);
  };
  const share = (100 * (value - LOW)) / (HIGH - LOW);
  return (
    <>
      <input
        type="range" id={id} min={LOW} max={HIGH} step={desk.step} value={value} aria-label={label}
        aria-valuetext={coefficient(value)} style={{ "--share": `${share}%` }}
        onInput={(event) => onInput(event.currentTarget.valueAsNumber)}
      />
      <input
        type="number" min={LOW} max={HIGH} step={desk.step} value={coefficient(value)} aria-label={`${label}, as a number`}
        onChange={take}
      />
    </>
  );
}

function Slider({ place, name, norm }: { place: number; name: string; norm: number }) {
  const label = `Coefficient of ${plain(name)}`;
  const mixed = (a: number) => coefficients.value.map((old, k) => (k === place ? a : old));
  return (
    <div class="slider">
      <span class="of" title={`norm of this vector: ${number(norm)}`}>
        <Name text={name} most={32} />
      </span>
      <Pair id={`a${place}`} label={label} value={coefficients.value[place]} onInput={(a) => slide(mixed, a)} />
      {SAMPLED && <Stops place={place} />}
    </div>
  );
}

/** Where this vector's coefficient was sampled. */
function Stops({ place }: { place: number }) {
  const stops = [...new Set(GRID.map((one) => one[place]))];
  return (
    <svg class="stops" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">
      {stops.map((a) => (
        <line key={a} x1={(100 * (a - LOW)) / (HIGH - LOW)} x2={(100 * (a - LOW)) / (HIGH - LOW)} y1="0" y2="4" />
      ))}
    </svg>
  );
}

/** Sets every coefficient to one value. */
function Master() {
  const values = coefficients.value;
  const mean = values.reduce((total, a) => total + a, 0) / COUNT;
  const equal = values.every((a) => Math.abs(a - values[0]) < 1e-12);
  return (
    <div class="slider master">
      <span class="of">{equal ? "All vectors" : "All vectors (mean)"}</span>
      <Pair id="master" label="Coefficient of all vectors" value={mean} onInput={(a) => slide((b) => Array<number>(COUNT).fill(b), a)} />
    </div>
  );
}

function Nearest() {
  const at = point.value;
  const exact = same(at, coefficients.value);
  return (
    <div class="nearest">
      <p>
        Standard regime: only sampled points are known and nothing is interpolated.{" "}
        {exact ? "This mix was sampled." : "Shown is the nearest sampled point:"}
      </p>
      {!exact && (
        <p>
          <span class="numbers">{at.map(coefficient).join(" \u00b7 ")}</span>
          <button type="button" onClick={() => mix(at)}>
            Move there
          </button>
        </p>
      )}
    </div>
  );
}

function Choices() {
  const now = desk.choices.find((one) => same(one.coefficients, coefficients.value));
  return (
    <div class="choices">
      <h3>Chosen by tauspan</h3>
      <div class="chips" role="group" aria-label="Choices made on validation">
        {desk.choices.map((one, place) => (
          <button
            type="button" key={place} aria-pressed={one === now} onClick={() => choose(one.coefficients)}
          >
            <Name text={one.name} most={28} />
          </button>
        ))}
      </div>
      <p class="hint" aria-live="polite">
        {now ? cut(now.note, 300) || (now.split ? `chosen on ${now.split}` : "") : "Set by hand."}
      </p>
    </div>
  );
}

function Snapshots() {
  const kept = snapshots.value;
  return (
    <div class="snapshots">
      <h3>Compare</h3>
      {(["A", "B"] as const).map((name) => {
        const values = kept[name];
        return (
          <div class="snapshot" key={name}>
            <span class={`mark ${name}`} aria-hidden="true">{name}</span>
            <button type="button" onClick={() => (snapshots.value = { ...snapshots.value, [name]: coefficients.value })}>
              {values ? "Replace" : "Keep this mix"}
              <span class="unseen"> as snapshot {name}</span>
            </button>
            <button type="button" disabled={!values} onClick={() => values && mix(values)}>
              Go to {name}
            </button>
          </div>
        );
      })}
    </div>
  );
}

/** Accuracy as the whole mix is scaled: one curve a task, and their mean. */

import { computed } from "@preact/signals";

import { sweep } from "../compute/outcome";
import type { Interval } from "../data";
import { coefficient, number, plain } from "../format";
import { useJob } from "../job";
import { around, INSET, path, Plot, type Scale } from "../plot";
import { coefficients, COUNT, desk, GRID, HIGH, LOW, mix, rows, SAMPLED, score, scores, selected, settled, split } from "../state";
import { share } from "../stats";
import { Card, Name } from "../ui";
import { HAS_XI } from "./xi";

const STEPS = 41;
const MOST = 4; // times the mix, however small it is

const along = computed<readonly number[]>(() => {
  const mixed = SAMPLED ? settled.value.point : settled.value.direction;
  return mixed.some((a) => a !== 0) ? mixed : Array<number>(COUNT).fill(Math.min(1, HIGH));
});

/** How far the mix can be scaled before a coefficient leaves the range. */
const reach = computed(() => {
  let most = MOST;
  for (const a of along.value) if (a !== 0) most = Math.min(most, (a > 0 ? HIGH : LOW) / a);
  return Math.max(0, Math.floor(most * 1000 + 1e-9) / 1000);
});

/** The present mix in units of the direction. */
const scale = computed(() => {
  const toward = along.value;
  const k = toward.reduce((best, a, i) => (Math.abs(a) > Math.abs(toward[best]) ? i : best), 0);
  return coefficients.value[k] / toward[k];
});

interface Curve {
  place: number;
  name: string;
  points: (readonly [number, number])[];
}

/** Cards stand in pairs; this one takes a whole row where one would stand alone. */
const LEFT_OVER = [true, HAS_XI, desk.interference, desk.front].filter(Boolean).length % 2 > 0;

export function Sweep() {
  return (
    <Card id="sweep" title="Scale the whole mix" wide={LEFT_OVER}>
      {SAMPLED ? <Sampled /> : <Curves />}
    </Card>
  );
}

function Curves() {
  const on = split.value;
  const toward = along.value;
  const most = reach.value;
  const key = `${on} ${toward.join(" ")}`;
  const { result, busy } = useJob<Curve[]>(key, function* () {
    const steps = Array.from({ length: STEPS }, (_, i) => (most * i) / (STEPS - 1));
    const found: Curve[] = [];
    for (const [place, task] of desk.tasks.entries()) {
      const data = rows(task, on);
      const correct = data && sweep(data, Array<number>(COUNT).fill(0), toward, steps);
      if (data && correct) {
        found.push({ place, name: task.name, points: steps.map((s, i) => [s, correct[i] / data.count] as const) });
      }
      yield [...found];
    }
  });
  const curves = result ?? [];
  return (
    <div class={busy ? "busy" : undefined}>
      <Drawing curves={curves} most={most} />
      <Handle most={most} />
      <Legend />
    </div>
  );
}

/** The scale as a native slider under the axis. */
function Handle({ most }: { most: number }) {
  const now = scale.value;
  const toward = along.value;
  const take = (s: number) => mix(toward.map((a) => Number((s * a).toFixed(6))), true);
  return (
    <label class="handle controls" style={{ "margin-left": `${INSET.left - 9}px`, "margin-right": `${INSET.right - 9}px` }}>
      <span class="unseen">Scale of the whole mix</span>
      <input
        type="range" id="scale" min={0} max={most} step={most > 0 ? most / 200 : 1} value={now} aria-valuetext={`times ${number(now, 2)}`}
        style={{ "--share": `${most > 0 ? (100 * now) / most : 0}%` }}
        onInput={(event) => take(event.currentTarget.valueAsNumber)}
      />
    </label>
  );
}

function Drawing({ curves, most }: { curves: readonly Curve[]; most: number }) {
  const chosen = curves.find((one) => one.place === selected.value);
  const mean = meanOf(curves);
  const limits = chosen ? limitsOf(chosen) : [];
  const ends = limits.flatMap(([, one]) => [one.low, one.high]);
  const domain = around(curves.flatMap((one) => one.points.map((point) => point[1])).concat(curves.length ? ends : [0, 1]));
  return (
    <Plot
      label={`Accuracy on ${split.value} against the scale of the mix`} height={340} x={[0, most || 1]} y={domain}
      across="times the present mix" up="accuracy"
    >
      {(x, y) => (
        <>
          {curves.map((one) => one !== chosen && <path key={one.place} class="curve other" d={drawn(one, x, y)}><title>{plain(one.name)}</title></path>)}
          {chosen && <Band limits={limits} x={x} y={y} />}
          {mean && <path class="curve mean" d={drawn(mean, x, y)} />}
          {chosen && <path class="curve chosen" d={drawn(chosen, x, y)} />}
          <Now most={most} x={x} y={y} domain={domain} />
        </>
      )}
    </Plot>
  );
}

function drawn(curve: Curve, x: Scale, y: Scale): string {
  return path(curve.points.map(([s, value]) => [x(s), y(value)] as const));
}

function meanOf(curves: readonly Curve[]): Curve | null {
  const counted = curves.filter((one) => desk.tasks[one.place].vector !== null);
  if (counted.length < 2) return null;
  const points = counted[0].points.map(
    ([s], i) => [s, counted.reduce((total, one) => total + one.points[i][1], 0) / counted.length] as const,
  );
  return { place: -1, name: "mean", points };
}

/** The exact interval of a task's accuracy at each step. */
function limitsOf(curve: Curve): (readonly [number, Interval])[] {
  const count = rows(desk.tasks[curve.place], split.value)?.count ?? 1;
  return curve.points.map(([s, value]) => [s, share(Math.round(value * count), count)] as const);
}

function Band({ limits, x, y }: { limits: readonly (readonly [number, Interval])[]; x: Scale; y: Scale }) {
  const up = limits.map(([s, one]) => [x(s), y(one.high)] as const);
  const down = limits.map(([s, one]) => [x(s), y(one.low)] as const).reverse();
  return <path class="band" d={`${path(up)}${path(down).replace("M", "L")}Z`} />;
}

function Now({ most, x, y, domain }: { most: number; x: Scale; y: Scale; domain: readonly [number, number] }) {
  const at = scale.value;
  const found = scores.value[selected.value];
  if (!(at >= 0 && at <= most + 1e-9)) return null;
  const value = found && found.correct / found.rows;
  return (
    <g class="present">
      <line x1={x(at)} x2={x(at)} y1={y(domain[0])} y2={y(domain[1])} />
      {value !== null && value >= domain[0] && <circle cx={x(at)} cy={y(value)} r="5" />}
    </g>
  );
}

function Legend() {
  const counted = desk.tasks.filter((task) => task.vector !== null).length;
  return (
    <p class="legend">
      <span class="chosen"><Name text={desk.tasks[selected.value].name} most={24} /> with its interval</span>
      {counted > 1 && <span class="mean">mean</span>}
      {desk.tasks.length > 1 && <span class="other">other tasks</span>}
    </p>
  );
}

/** Sampled points on the ray through the present one, as points. */
function Sampled() {
  const on = split.value;
  const toward = along.value;
  const size = Math.sqrt(toward.reduce((total, a) => total + a * a, 0));
  const points = GRID.flatMap((one) => {
    const dot = one.reduce((total, a, k) => total + a * toward[k], 0) / size;
    const off = one.reduce((total, a, k) => total + (a - (dot * toward[k]) / size) ** 2, 0);
    return off < 1e-9 && dot >= 0 ? [{ s: dot / size, values: one }] : [];
  });
  const found = points.map(({ s, values }) => ({ s, scored: score(values, on) }));
  const most = Math.max(...points.map((one) => one.s), 1);
  const shares = found.flatMap((one) => one.scored.map((each) => (each ? each.correct / each.rows : NaN))).filter(Number.isFinite);
  return (
    <>
      <Plot label="Sampled points along the mix" height={340} x={[0, most]} y={around(shares.length ? shares : [0, 1])} across="times the present mix" up="accuracy">
        {(x, y) =>
          found.flatMap(({ s, scored }) =>
            scored.map((one, t) => one && (
              <circle key={`${t} ${s}`} class={t === selected.value ? "sample chosen" : "sample"} cx={x(s)} cy={y(one.correct / one.rows)} r={t === selected.value ? 4 : 3}>
                <title>{`${plain(desk.tasks[t].name)} at ${coefficient(s)}: ${number(one.correct / one.rows)}`}</title>
              </circle>
            )),
          )
        }
      </Plot>
      <p class="note">Only sampled points are drawn; nothing lies between them.</p>
    </>
  );
}

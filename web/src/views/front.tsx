/** Forgetting a task against keeping the controls, with the present mix beside the solved points. */

import { computed } from "@preact/signals";

import type { Front } from "../data";
import { cut, number, plain } from "../format";
import { around, Plot } from "../plot";
import { desk, mix, point, score } from "../state";
import { Card, Name } from "../ui";

const front = desk.front;

function controlsOf({ target, controls }: Front): string[] {
  return controls ?? desk.tasks.filter((task) => task.name !== target && task.floor !== null).map((task) => task.name);
}

/** Target's and mean control accuracy of the present mix, on validation as the front's own points. */
const here = computed(() => {
  if (!front) return null;
  const all = score(point.value, "validation");
  const of = (name: string) => {
    const found = all[desk.tasks.findIndex((task) => task.name === name)];
    return found ? found.correct / found.rows : NaN;
  };
  const names = controlsOf(front);
  const control = names.reduce((total, name) => total + of(name), 0) / names.length;
  const target = of(front.target);
  return Number.isFinite(target + control) ? { target, control } : null;
});

export function FrontView() {
  if (!front || front.points.length === 0) return null;
  const now = here.value;
  const all = now ? [...front.points, now] : front.points;
  return (
    <Card id="front" title="Forgetting against keeping">
      <Plot
        label={`Accuracy of the target against that of the controls, ${front.points.length} points on validation`} height={320}
        x={around(all.map((one) => one.control))} y={around(all.map((one) => one.target))}
        across={`mean accuracy of the controls`} up={`accuracy of ${plain(front.target, 24)}`}
      >
        {(x, y) => (
          <>
            {front.points.map((one, i) => (
              <g
                key={i} class="spot" role="button" tabindex={0} onClick={() => mix(one.coefficients)}
                onKeyDown={(event) => {
                  if (event.key !== "Enter" && event.key !== " ") return;
                  event.preventDefault();
                  mix(one.coefficients);
                }}
                aria-label={`Go to the point with target ${number(one.target)} and controls ${number(one.control)}`}
              >
                <circle class="aim" cx={x(one.control)} cy={y(one.target)} r="12" />
                <circle class="sample" cx={x(one.control)} cy={y(one.target)} r="4" />
              </g>
            ))}
            {now && <circle class="now" cx={x(now.control)} cy={y(now.target)} r="6" />}
          </>
        )}
      </Plot>
      <p class="legend">
        <span class="chosen">present mix: <Name text={front.target} most={20} /> {number(now?.target)}, controls {number(now?.control)}</span>
        <span class="sampled">solved points, on validation; press one to go there</span>
      </p>
      {front.note && <p class="note">{cut(front.note, 500)}</p>}
    </Card>
  );
}

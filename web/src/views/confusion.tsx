/** Which classes of the selected task are taken for which. */

import { useMemo, useState } from "preact/hooks";

import { confusion } from "../compute/outcome";
import { number, plain, plural } from "../format";
import { colour, Heat, onColour } from "../heat";
import { desk, rows, scores, selected, split } from "../state";
import { Name } from "../ui";

const FEW = 12; // classes whose names and counts fit

interface Cell {
  row: number;
  column: number;
}

export function Confusion() {
  const task = desk.tasks[selected.value];
  const data = rows(task, split.value);
  const found = scores.value[selected.value];
  const [cell, setCell] = useState<Cell | null>(null);
  const size = task.classes.length;
  const counts = useMemo(() => (data && found ? confusion(found.predicted, data.labels, size) : null), [found, data, size]);
  const shares = useMemo(() => (counts ? byRow(counts, size) : null), [counts, size]);
  if (!counts || !shares) return <p class="note">No predictions of this task here.</p>;
  const shown = cell && cell.row < size && cell.column < size ? cell : null;
  const move = (event: KeyboardEvent) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const from = shown ?? { row: 0, column: 0 };
    setCell(shown ? { row: held(from.row + step[0], size), column: held(from.column + step[1], size) } : from);
  };
  const point = (event: PointerEvent) => {
    const box = (event.currentTarget as HTMLElement).getBoundingClientRect();
    setCell({
      row: held(Math.floor(((event.clientY - box.top) / box.height) * size), size),
      column: held(Math.floor(((event.clientX - box.left) / box.width) * size), size),
    });
  };
  return (
    <figure class={size <= FEW ? "confusion few" : "confusion"}>
      <figcaption>
        True class down, predicted class across; colour: share of the true class
      </figcaption>
      {size <= FEW && <ClassNames names={task.classes} />}
      <div
        class="matrix" role="img" tabIndex={0} style={{ "max-width": `${Math.min(400, 60 + 60 * size)}px` }} onKeyDown={move} onPointerMove={point} onPointerLeave={() => setCell(null)}
        aria-label={`Confusion matrix of ${plain(task.name)}; arrow keys read its cells`}
      >
        <Heat rows={size} columns={size} shares={shares} />
        {size <= FEW && <Counts counts={counts} shares={shares} size={size} />}
        {shown && <Frame cell={shown} size={size} />}
      </div>
      <p class="readout" aria-live="polite">
        {shown ? <Read cell={shown} counts={counts} classes={task.classes} /> : <Worst counts={counts} classes={task.classes} />}
      </p>
    </figure>
  );
}

const STEPS: Record<string, readonly [number, number]> = {
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
};

function held(place: number, size: number): number {
  return Math.min(size - 1, Math.max(0, place));
}

function byRow(counts: Uint32Array, size: number): Float64Array {
  const shares = new Float64Array(counts.length);
  for (let row = 0; row < size; row++) {
    let total = 0;
    for (let c = 0; c < size; c++) total += counts[row * size + c];
    for (let c = 0; c < size; c++) shares[row * size + c] = total ? counts[row * size + c] / total : NaN;
  }
  return shares;
}

function ClassNames({ names }: { names: readonly string[] }) {
  return (
    <ol class="classes" aria-hidden="true">
      {names.map((name, i) => (
        <li key={i}>
          <Name text={name} most={16} />
        </li>
      ))}
    </ol>
  );
}

function Counts({ counts, shares, size }: { counts: Uint32Array; shares: Float64Array; size: number }) {
  return (
    <svg class="over" viewBox={`0 0 ${size} ${size}`} aria-hidden="true">
      {Array.from(counts, (count, i) =>
        count ? (
          <text
            key={i} x={(i % size) + 0.5} y={Math.floor(i / size) + 0.5} fill={onColour(colour(shares[i]))}
            font-size={size > 6 ? 0.32 : 0.22} text-anchor="middle" dominant-baseline="central"
          >
            {count}
          </text>
        ) : null,
      )}
    </svg>
  );
}

function Frame({ cell, size }: { cell: Cell; size: number }) {
  return (
    <svg class="over" viewBox={`0 0 ${size} ${size}`} aria-hidden="true">
      <rect class="frame" x={cell.column} y={cell.row} width="1" height="1" />
    </svg>
  );
}

function Read({ cell, counts, classes }: { cell: Cell; counts: Uint32Array; classes: readonly string[] }) {
  const size = classes.length;
  let total = 0;
  for (let c = 0; c < size; c++) total += counts[cell.row * size + c];
  const count = counts[cell.row * size + cell.column];
  return (
    <>
      <Name text={classes[cell.row]} most={30} />
      {cell.row === cell.column ? " recognised: " : " taken for "}
      {cell.row !== cell.column && (
        <>
          <Name text={classes[cell.column]} most={30} />:{" "}
        </>
      )}
      {count} of {plural(total, "row")}
      {total > 0 && ` (${number(count / total, 2)})`}
    </>
  );
}

/** The most frequent confusion. */
function Worst({ counts, classes }: { counts: Uint32Array; classes: readonly string[] }) {
  const size = classes.length;
  let worst = -1;
  for (let i = 0; i < counts.length; i++) {
    if (i % (size + 1) !== 0 && counts[i] > 0 && (worst < 0 || counts[i] > counts[worst])) worst = i;
  }
  if (worst < 0) return <>No row is taken for another class.</>;
  return (
    <>
      Most often: <Name text={classes[Math.floor(worst / size)]} most={30} /> taken for{" "}
      <Name text={classes[worst % size]} most={30} />, {plural(counts[worst], "row")}
    </>
  );
}

/** Rows of the selected task whose class the mix changes, before and after. */

import { useEffect, useMemo, useState } from "preact/hooks";

import { type ChangeKind, changedRows } from "../compute/outcome";
import { cut, plural, visible } from "../format";
import { desk, rows, scores, selected, settled, split, texts, zero } from "../state";
import { Name, Switch } from "../ui";

const PAGE = 5;
const PICTURE = /^data:image\/png;base64,[A-Za-z0-9+/]+={0,2}$/;

export function Examples() {
  void settled.value; // the list follows once the sliders stand still
  const task = desk.tasks[selected.value];
  const on = split.value;
  const data = rows(task, on);
  const now = scores.peek()[selected.value]?.predicted;
  const before = zero(on)[selected.value]?.predicted;
  const [kind, setKind] = useState<ChangeKind>("all");
  const [shown, setShown] = useState(PAGE);
  useEffect(() => setShown(PAGE), [kind, task, on]);
  const found = useMemo(
    () => (data && now && before ? changedRows(before, now, data.labels, kind) : []),
    [data, now, before, kind],
  );
  const contents = texts.value?.[task.name]?.[on];
  return (
    <div class="examples">
      <div class="examples-head">
        <h3>Changed by this mix: {plural(found.length, "row")}</h3>
        <Switch
          label="Which changed rows" value={kind} onChange={setKind}
          options={[["all", "All"], ["fixed", "Fixed"], ["broken", "Broken"]]}
        />
      </div>
      {data && now && before && (
        <ul>
          {found.slice(0, shown).map((n) => (
            <Example
              key={n} content={contents?.[n]} row={n} truth={task.classes[data.labels[n]]}
              before={task.classes[before[n]]} after={task.classes[now[n]]}
            />
          ))}
        </ul>
      )}
      {found.length === 0 && <p class="note">No row is {kind === "all" ? "classified otherwise" : kind} than without an edit.</p>}
      {found.length > shown && (
        <button type="button" onClick={() => setShown(shown + 4 * PAGE)}>
          Show more ({(found.length - shown).toLocaleString("en-GB")} left)
        </button>
      )}
    </div>
  );
}

interface ExampleProps {
  content: string | undefined;
  row: number;
  truth: string;
  before: string;
  after: string;
}

function Example({ content, row, truth, before, after }: ExampleProps) {
  const kind = after === truth ? "fixed" : before === truth ? "broken" : "other";
  const word = { fixed: "Fixed", broken: "Broken", other: "Still wrong" }[kind];
  return (
    <li class={kind}>
      <Content content={content} row={row} />
      <p class="change">
        <span class={`tag ${kind}`}>{word}</span>
        <Name text={before} most={30} /> <span aria-label="became">{"\u2192"}</span> <Name text={after} most={30} />
        {kind === "other" && (
          <span class="truth">
            right: <Name text={truth} most={30} />
          </span>
        )}
      </p>
    </li>
  );
}

function Content({ content, row }: { content: string | undefined; row: number }) {
  if (content === undefined) return <p class="hint">row {row}</p>;
  if (PICTURE.test(content)) return <img src={content} alt={`row ${row}`} />;
  return (
    <p class="text">
      <bdi>{visible(cut(content, 280))}</bdi>
    </p>
  );
}

/** How far each vector moves each task's logits, as a table with colours. */

import { cut, number } from "../format";
import { colour, css, dark, onColour } from "../heat";
import { desk } from "../state";
import { Card, Name } from "../ui";

export function Interference() {
  const matrix = desk.interference;
  if (!matrix) return null;
  void dark.value;
  const top = Math.max(1e-12, ...matrix.values.flat().filter((value): value is number => value !== null));
  return (
    <Card id="interference" title={cut(matrix.title, 100)}>
      <div class="scroll" tabIndex={0} role="region" aria-label="Interference matrix">
        <table class="grid">
          <thead>
            <tr>
              <td />
              {matrix.columns.map((name, c) => (
                <th scope="col" key={c}>
                  <Name text={name} most={24} />
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {matrix.rows.map((name, r) => (
              <tr key={r}>
                <th scope="row">
                  <Name text={name} most={24} />
                </th>
                {matrix.values[r].map((value, c) => {
                  const shade = colour(value === null ? 0 : value / top);
                  return (
                    <td key={c} style={{ background: css(shade), color: onColour(shade) }}>
                      {number(value, 2)}
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p class="note">{cut(matrix.note, 500)}</p>
    </Card>
  );
}

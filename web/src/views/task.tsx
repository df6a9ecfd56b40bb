/** One task from near: its confusions, and the rows that the mix changes. */

import { desk, selected } from "../state";
import { Card, Menu } from "../ui";
import { Confusion } from "./confusion";
import { Examples } from "./examples";

export function TaskView() {
  const names = desk.tasks.map((task) => task.name);
  return (
    <Card
      id="task" title="One task" wide
      aside={<Menu label="Task" names={names} value={selected.value} onChange={(place) => (selected.value = place)} />}
    >
      <div class="pair">
        <Confusion />
        <Examples />
      </div>
    </Card>
  );
}

/** The page's layout. */

import { cut } from "./format";
import { desk } from "./state";
import { Copies } from "./views/copy";
import { FrontView } from "./views/front";
import { Head } from "./views/head";
import { Interference } from "./views/interference";
import { Mix } from "./views/mix";
import { Scores, Spoken, Warnings } from "./views/scores";
import { Sweep } from "./views/sweep";
import { TaskView } from "./views/task";
import { Xi } from "./views/xi";

export function App() {
  return (
    <>
      <Head />
      <main>
        <Mix />
        <div class="views">
          <Warnings />
          <Scores />
          <Spoken />
          <TaskView />
          <Sweep />
          <Xi />
          <Interference />
          <FrontView />
          <Copies />
        </div>
      </main>
      <footer>
        {desk.notes.map((note, i) => (
          <p key={i}>{cut(note, 1000)}</p>
        ))}
        <p>Made by tauspan {desk.version}.</p>
      </footer>
    </>
  );
}

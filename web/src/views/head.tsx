/** The head of the page: what is edited, and which split is looked at. */

import { desk, HAS_TEST, HAS_VALIDATION, reveal, revealed, split } from "../state";
import { Name, Switch } from "../ui";
import { Certificate } from "./scores";

const REGIMES = { linear: "linear regime", posthoc: "post-hoc linearised", standard: "standard regime" };

export function Head() {
  return (
    <header class="head">
      <div>
        <h1>
          <Name text={desk.title} most={90} />
        </h1>
        <p class="facts">
          <Name text={desk.model} most={60} />
          <span>{REGIMES[desk.regime]}</span>
          {desk.regime !== "standard" && <span>linearised at the {desk.point}</span>}
          <Certificate />
        </p>
      </div>
      <Splits />
    </header>
  );
}

function Splits() {
  if (!revealed.value) {
    return (
      <div class="splits">
        <span class="on">Validation</span>
        {HAS_TEST && (
          <button type="button" id="reveal" onClick={reveal} title="Choose on validation first: what is chosen after this counts as chosen on test.">
            Reveal test
          </button>
        )}
      </div>
    );
  }
  return (
    <div class="splits">
      {HAS_VALIDATION ? (
        <Switch
          label="Split" value={split.value} onChange={(value) => (split.value = value)}
          options={[["validation", "Validation"], ["test", "Test"]]}
        />
      ) : (
        <span class="on">Test</span>
      )}
      <p class="hint">Test is revealed: a mix set from now on is chosen on test.</p>
    </div>
  );
}

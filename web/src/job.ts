/** Work of more than a frame: done in slices between frames, given up when it is asked for anew. */

import { useEffect, useState } from "preact/hooks";

const SLICE = 7; // milliseconds

/**
 * The latest result of a generator that yields results as they grow; null before the first.
 * `key` says what is computed: while it stays, nothing is done twice.
 */
export function useJob<T>(key: string, work: () => Generator<T, void>): { result: T | null; busy: boolean } {
  const [state, setState] = useState<{ key: string; result: T | null; busy: boolean }>({ key: "", result: null, busy: true });
  useEffect(() => {
    const steps = work();
    let timer = 0;
    const turn = () => {
      const end = performance.now() + SLICE;
      let step = steps.next();
      let latest = step.done ? undefined : step.value;
      while (!step.done && performance.now() < end) {
        step = steps.next();
        if (!step.done) latest = step.value;
      }
      const busy = !step.done;
      setState((old) => ({ key, result: latest ?? (old.key === key ? old.result : null), busy }));
      if (busy) timer = window.setTimeout(turn, 0);
    };
    timer = window.setTimeout(turn, 0);
    return () => clearTimeout(timer);
  }, [key]);
  return { result: state.result, busy: state.busy || state.key !== key };
}

/** A clock that moves only when a test says so; timers fire in order of their time. */
import type { Clock, Timer } from "../../src/core/clock.ts";

export interface FakeClock extends Clock {
  /** Moves time forward and fires every timer that falls due, letting promises settle between them. */
  advance(ms: number): Promise<void>;
  readonly pendingTimers: number;
}

interface Pending {
  dueMs: number;
  readonly periodMs: number | null;
  readonly callback: () => void;
}

export const createFakeClock = (startMs = 1_700_000_000_000): FakeClock => {
  let elapsedMs = 0;
  const pending = new Set<Pending>();
  const add = (entry: Pending): Timer => {
    pending.add(entry);
    return { cancel: () => void pending.delete(entry) };
  };
  const settle = async (): Promise<void> => {
    for (let round = 0; round < 20; round += 1) await Promise.resolve();
  };
  return {
    nowMs: () => startMs + elapsedMs,
    monotonicMs: () => elapsedMs,
    after: (delayMs, callback) => add({ dueMs: elapsedMs + Math.max(0, delayMs), periodMs: null, callback }),
    every: (periodMs, callback) => add({ dueMs: elapsedMs + periodMs, periodMs, callback }),
    get pendingTimers() {
      return pending.size;
    },
    async advance(ms) {
      const untilMs = elapsedMs + ms;
      for (;;) {
        const next = [...pending].filter((entry) => entry.dueMs <= untilMs).sort((a, b) => a.dueMs - b.dueMs)[0];
        if (next === undefined) break;
        elapsedMs = next.dueMs;
        if (next.periodMs === null) pending.delete(next);
        else next.dueMs += next.periodMs;
        next.callback();
        await settle();
      }
      elapsedMs = untilMs;
      await settle();
    },
  };
};

/** Requests that wait for room on a provider, first come, first served. Bounded: an endless queue turns overload into timeouts for everyone. */
import type { Clock } from "../../core/clock.ts";
import { Fault } from "../../core/fault.ts";

const WAITING_MAX = 256;

interface Waiting {
  wake: (() => void) | null;
}

export class WaitingRoom {
  readonly #clock: Pick<Clock, "after" | "monotonicMs">;
  readonly #waiting = new Set<Waiting>();

  constructor(clock: Pick<Clock, "after" | "monotonicMs">) {
    this.#clock = clock;
  }

  get size(): number {
    return this.#waiting.size;
  }

  /** Something changed that may make room: every waiting request looks again, in order. */
  notify(): void {
    for (const waiting of this.#waiting) waiting.wake?.();
  }

  /**
   * Calls `attempt` at every change until it answers with something, keeping the place in the line. Answers null when
   * `deadlineMs` (monotonic) passes or the room is full; throws `cancelled` once the signal aborts.
   */
  async wait<T>(
    input: { readonly deadlineMs: number; readonly signal: AbortSignal },
    attempt: () => T | null,
  ): Promise<T | null> {
    if (this.#waiting.size >= WAITING_MAX) return null;
    const waiting: Waiting = { wake: null };
    const wake = (): void => waiting.wake?.();
    this.#waiting.add(waiting);
    // The timer decides, not the clock: a timer may fire a fraction of a millisecond early.
    let late = false;
    const timer = this.#clock.after(input.deadlineMs - this.#clock.monotonicMs(), () => {
      late = true;
      wake();
    });
    input.signal.addEventListener("abort", wake);
    try {
      for (;;) {
        if (input.signal.aborted) throw new Fault("cancelled", "the client went away");
        const result = attempt();
        if (result !== null) return result;
        if (late) return null;
        await new Promise<void>((resolve) => {
          waiting.wake = resolve;
        });
      }
    } finally {
      timer.cancel();
      input.signal.removeEventListener("abort", wake);
      this.#waiting.delete(waiting);
    }
  }
}

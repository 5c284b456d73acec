/** Counts requests in flight and turns new ones away once the coordinator drains. */
import { Fault } from "../core/fault.ts";

const RETRY_AFTER_MS = 3_000;

export class DrainGate {
  #inFlight = 0;
  #draining = false;
  #idle: (() => void)[] = [];

  get inFlight(): number {
    return this.#inFlight;
  }

  get draining(): boolean {
    return this.#draining;
  }

  /**
   * Admits one request and answers with its release, which may be called twice. Throws `draining`.
   * Counts first and reads the flag after, so that no request slips through between the two (api-billing-store §10.6).
   */
  enter(): () => void {
    this.#inFlight += 1;
    let released = false;
    const release = (): void => {
      if (released) return;
      released = true;
      this.#inFlight -= 1;
      if (this.#inFlight === 0) for (const wake of this.#idle.splice(0)) wake();
    };
    if (!this.#draining) return release;
    release();
    throw new Fault("draining", "draining rate limit exceeded — retry after 3s", { retryAfterMs: RETRY_AFTER_MS });
  }

  close(): void {
    this.#draining = true;
  }

  /** Resolves once nothing is in flight. */
  idle(): Promise<void> {
    if (this.#inFlight === 0) return Promise.resolve();
    return new Promise((resolve) => this.#idle.push(resolve));
  }
}

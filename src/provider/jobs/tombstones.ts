/** Ids that were cancelled before their request arrived, remembered for a while. */
import type { Clock } from "../../core/clock.ts";
import { CANCEL_TOMBSTONE_MS } from "../../core/limits.ts";

/** A cancel follows every attempt's end, so most entries are never asked for; the oldest give way. */
const TOMBSTONES_MAX = 10_000;

export class Tombstones {
  readonly #clock: Pick<Clock, "monotonicMs">;
  /** Insertion order is age. */
  readonly #diedAtMs = new Map<string, number>();

  constructor(clock: Pick<Clock, "monotonicMs">) {
    this.#clock = clock;
  }

  get size(): number {
    return this.#diedAtMs.size;
  }

  add(id: string): void {
    this.#sweep();
    // The first cancel counts: repeating it does not prolong it.
    if (this.#diedAtMs.has(id)) return;
    if (this.#diedAtMs.size >= TOMBSTONES_MAX) {
      const [oldest] = this.#diedAtMs.keys();
      if (oldest !== undefined) this.#diedAtMs.delete(oldest);
    }
    this.#diedAtMs.set(id, this.#clock.monotonicMs());
  }

  has(id: string): boolean {
    this.#sweep();
    return this.#diedAtMs.has(id);
  }

  #sweep(): void {
    const aliveSinceMs = this.#clock.monotonicMs() - CANCEL_TOMBSTONE_MS;
    for (const [id, diedAtMs] of this.#diedAtMs) {
      if (diedAtMs > aliveSinceMs) return;
      this.#diedAtMs.delete(id);
    }
  }
}

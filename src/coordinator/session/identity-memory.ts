/** What is remembered about a provider's identity beyond its connection: resume tokens and quarantine. Bounded, in memory only. */
import type { Clock } from "../../core/clock.ts";
import { hashSecret } from "../../trust/tokens.ts";

const ENTRIES_MAX = 10_000;

/** Oldest out first, so that a flood of identities cannot grow it. */
class BoundedMap<V> {
  readonly #entries = new Map<string, V>();

  get(key: string): V | undefined {
    return this.#entries.get(key);
  }

  set(key: string, value: V): void {
    this.#entries.delete(key);
    this.#entries.set(key, value);
    if (this.#entries.size <= ENTRIES_MAX) return;
    const oldest = this.#entries.keys().next();
    if (!oldest.done) this.#entries.delete(oldest.value);
  }

  delete(key: string): void {
    this.#entries.delete(key);
  }
}

interface Resume {
  readonly identityKey: string;
  /** Monotonic; null while the connection it belongs to is open. */
  expiresAtMs: number | null;
}

export class IdentityMemory {
  readonly #clock: Pick<Clock, "monotonicMs">;
  readonly #quarantine = new BoundedMap<number>();
  readonly #resume = new BoundedMap<Resume>();

  constructor(clock: Pick<Clock, "monotonicMs">) {
    this.#clock = clock;
  }

  quarantine(identityKey: string, ms: number): void {
    this.#quarantine.set(identityKey, this.#clock.monotonicMs() + ms);
  }

  /** Milliseconds of quarantine left; 0 = none. */
  quarantineLeftMs(identityKey: string): number {
    return Math.max(0, (this.#quarantine.get(identityKey) ?? 0) - this.#clock.monotonicMs());
  }

  /** A token is bound to the identity that it was made for, and only its digest is kept. */
  keepResumeToken(token: string, identityKey: string): void {
    this.#resume.set(hashSecret(token), { identityKey, expiresAtMs: null });
  }

  /** The connection is gone: its token holds for `ms` more. */
  startResumeTime(token: string, ms: number): void {
    const entry = this.#resume.get(hashSecret(token));
    if (entry !== undefined) entry.expiresAtMs = this.#clock.monotonicMs() + ms;
  }

  /** Spends a token; true when it was this identity's and still held. */
  resume(token: string, identityKey: string): boolean {
    const digest = hashSecret(token);
    const entry = this.#resume.get(digest);
    if (entry === undefined || entry.identityKey !== identityKey) return false;
    this.#resume.delete(digest);
    return entry.expiresAtMs === null || this.#clock.monotonicMs() < entry.expiresAtMs;
  }
}

/** Reading one completion on behalf of one HTTP response: read in one place, left once, its end reported once. */
import type { CompletionOutput, CompletionStream, CompletionTerminal } from "../core/completion.ts";
import { Fault, toFault } from "../core/fault.ts";

/** Exactly one of the two is set: how the answer ended for its consumer. */
export interface RespondEnd {
  readonly fault: Fault | null;
  readonly terminal: CompletionTerminal | null;
}

export type Step = IteratorResult<CompletionOutput, unknown>;

export const consumerGone = (signal: AbortSignal): Fault =>
  signal.reason instanceof Fault ? signal.reason : new Fault("cancelled", "the consumer closed the connection");

export const endedEarly = (): Fault => new Fault("provider_failed", "provider ended without completion");

export class Outputs {
  readonly #iterator: AsyncIterator<CompletionOutput>;
  readonly #onEnd: ((end: RespondEnd) => void) | undefined;
  #ended = false;

  constructor(stream: CompletionStream, onEnd: ((end: RespondEnd) => void) | undefined) {
    this.#iterator = stream[Symbol.asyncIterator]();
    this.#onEnd = onEnd;
  }

  get ended(): boolean {
    return this.#ended;
  }

  next(): Promise<Step> {
    return this.#iterator.next();
  }

  /** Leaves the iteration (an async generator notices at its next yield) and reports; later ends are ignored. */
  end(end: RespondEnd): void {
    if (this.#ended) return;
    this.#ended = true;
    // The end is decided: what the producer still meets while it is left (its own abort, mostly) is its own to report.
    this.#iterator.return?.()?.catch(() => undefined);
    this.#onEnd?.(end);
  }

  /** Ends with what was thrown and gives it back as a Fault. */
  fail(thrown: unknown): Fault {
    const fault = toFault(thrown);
    this.end({ fault, terminal: null });
    return fault;
  }
}

/** Rejects when the consumer goes. For the few waits before commit only: every race on it leaves a reaction behind. */
export const untilGone = (signal: AbortSignal): { readonly gone: Promise<never>; readonly stop: () => void } => {
  const { promise, reject } = Promise.withResolvers<never>();
  promise.catch(() => undefined); // whoever races it sees the rejection; nobody may be racing
  const onAbort = (): void => reject(consumerGone(signal));
  if (signal.aborted) onAbort();
  else signal.addEventListener("abort", onAbort, { once: true });
  return { gone: promise, stop: () => signal.removeEventListener("abort", onAbort) };
};

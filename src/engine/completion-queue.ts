/** The bounded queue between whoever produces a completion and whoever reads it; every engine's iterator is this one. */
import type { CompletionEvent, CompletionOutput, CompletionStream } from "../core/completion.ts";
import { Fault } from "../core/fault.ts";
import { CONSUMER_BUFFER_BYTES_MAX } from "../core/limits.ts";

/** Where a producer puts its output; everything after an end is ignored. */
export interface CompletionSink {
  push(output: CompletionOutput): void;
  /** What is queued is still read first. */
  fail(fault: Fault): void;
}

export interface CompletionSource {
  /** Called at the first read. A thrown fault becomes the completion's. */
  start(sink: CompletionSink): void;
  /** Called at most once, when nobody reads on although no end was pushed: abort, early return, too slow a reader. */
  cancel(): void;
}

/** Weight of one event beside its text. */
const EVENT_OVERHEAD = 16;

const weightOf = (event: CompletionEvent): number =>
  EVENT_OVERHEAD + (event.type === "tool_call" ? (event.arguments?.length ?? 0) : event.text.length);

interface Waiter {
  resolve(result: IteratorResult<CompletionOutput>): void;
  reject(error: Error): void;
}

const DONE: IteratorReturnResult<undefined> = { done: true, value: undefined };

/** One completion as an iterator: started by the first read, cancelled by the signal, an early return or a full queue. */
class CompletionQueue implements AsyncIterableIterator<CompletionOutput>, CompletionSink {
  readonly #source: CompletionSource;
  readonly #signal: AbortSignal;
  readonly #weightMax: number;
  readonly #items: CompletionOutput[] = [];
  /** Events of the last queued item while it may still grow. */
  #tail: CompletionEvent[] | null = null;
  #weight = 0;
  #phase: "new" | "open" | "ended" = "new";
  #fault: Fault | null = null;
  #waiter: Waiter | null = null;

  constructor(source: CompletionSource, signal: AbortSignal, weightMax: number) {
    this.#source = source;
    this.#signal = signal;
    this.#weightMax = weightMax;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<CompletionOutput>> {
    if (this.#phase === "new") this.#start();
    const item = this.#items.shift();
    if (item !== undefined) {
      if (item.type === "events") {
        this.#tail = null;
        this.#weight = 0;
      }
      return Promise.resolve({ done: false, value: item });
    }
    if (this.#fault !== null) {
      const fault = this.#fault;
      this.#fault = null;
      return Promise.reject(fault);
    }
    if (this.#phase === "ended") return Promise.resolve(DONE);
    if (this.#waiter !== null) return Promise.reject(new Error("a completion has one reader"));
    return new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject };
    });
  }

  return(): Promise<IteratorResult<CompletionOutput>> {
    this.#abandon(null);
    return Promise.resolve(DONE);
  }

  push(output: CompletionOutput): void {
    if (this.#phase !== "open") return;
    if (output.type === "terminal") this.#close();
    if (this.#waiter !== null) {
      const waiter = this.#waiter;
      this.#waiter = null;
      waiter.resolve({ done: false, value: output });
      return;
    }
    if (output.type === "events") this.#queueEvents(output.events);
    else this.#items.push(output);
  }

  fail(fault: Fault): void {
    if (this.#phase !== "open") return;
    this.#close();
    this.#fault = fault;
    this.#settleWaiter();
  }

  #start(): void {
    if (this.#signal.aborted) {
      this.#phase = "ended";
      this.#fault = cancelled();
      return;
    }
    this.#phase = "open";
    this.#signal.addEventListener("abort", this.#onAbort, { once: true });
    try {
      this.#source.start(this);
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      this.fail(error);
    }
  }

  #queueEvents(events: readonly CompletionEvent[]): void {
    this.#weight += totalWeight(events);
    if (this.#weight > this.#weightMax) {
      this.#abandon(new Fault("consumer_too_slow", "the reader of this completion is too slow"));
      return;
    }
    if (this.#tail === null) {
      this.#tail = [...events];
      this.#items.push({ type: "events", events: this.#tail });
    } else appendJoined(this.#tail, events);
  }

  readonly #onAbort = (): void => this.#abandon(cancelled());

  /** Nobody reads on: drop what is queued and tell the producer, unless it has ended already. */
  #abandon(fault: Fault | null): void {
    const wasOpen = this.#phase === "open";
    this.#close();
    this.#items.length = 0;
    this.#tail = null;
    this.#fault = fault;
    this.#settleWaiter();
    if (wasOpen) this.#source.cancel();
  }

  #close(): void {
    this.#phase = "ended";
    this.#signal.removeEventListener("abort", this.#onAbort);
  }

  #settleWaiter(): void {
    const waiter = this.#waiter;
    if (waiter === null) return;
    this.#waiter = null;
    const fault = this.#fault;
    this.#fault = null;
    if (fault === null) waiter.resolve(DONE);
    else waiter.reject(fault);
  }
}

const cancelled = (): Fault => new Fault("cancelled", "the request was cancelled");

const totalWeight = (events: readonly CompletionEvent[]): number => {
  let weight = 0;
  for (const event of events) weight += weightOf(event);
  return weight;
};

/** Neighbouring text becomes one event: a slow reader costs memory for its text, not for the number of tokens. */
const appendJoined = (queued: CompletionEvent[], events: readonly CompletionEvent[]): void => {
  for (const event of events) {
    const last = queued.at(-1);
    if (last === undefined || last.type === "tool_call" || last.type !== event.type) queued.push(event);
    else queued[queued.length - 1] = { type: last.type, text: last.text + event.text };
  }
};

/** @param weightMax characters (plus a little per event) that may wait for the reader before it counts as too slow */
export const completionStream = (
  source: CompletionSource,
  signal: AbortSignal,
  weightMax: number = CONSUMER_BUFFER_BYTES_MAX,
): CompletionStream => new CompletionQueue(source, signal, weightMax);

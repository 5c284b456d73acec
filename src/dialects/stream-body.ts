/** The body of a streamed answer after its commit: server-sent events made only as fast as the consumer reads. */
import type { Clock, Timer } from "../core/clock.ts";
import type { CompletionEvent, CompletionTerminal } from "../core/completion.ts";
import { Fault, toFault } from "../core/fault.ts";
import { consumerGone, endedEarly, type Outputs, type Step } from "./outputs.ts";

/** What a dialect makes of a running completion; an empty text means that there is nothing to send. */
export interface StreamRenderer {
  chunk(events: readonly CompletionEvent[]): string;
  finish(terminal: CompletionTerminal): string;
  error(fault: Fault): string;
}

/** What the wait for first content ended with: something to write first, and the read that is still under way. */
export interface Opening {
  readonly events: readonly CompletionEvent[];
  readonly terminal: CompletionTerminal | null;
  readonly pending: Promise<Step> | null;
}

export interface StreamOptions {
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** 0 = no comments. */
  readonly keepAliveMs: number;
  readonly render: StreamRenderer;
  readonly opening: Opening;
}

const KEEP_ALIVE = ": keep-alive\n\n";
const encoder = new TextEncoder();

/** An underlying source for `new ReadableStream`: reads only while there is room, so a consumer that does not read stops the reading upstream. */
export class StreamBody {
  readonly #options: StreamOptions;
  readonly #outputs: Outputs;
  readonly #render: StreamRenderer;
  #pending: Promise<Step> | null;
  #opening: Opening | null;
  #keepAlive: Timer | null = null;
  #quiet = false;
  #reading = false;
  #controller: ReadableStreamDefaultController<Uint8Array> | null = null;

  constructor(options: StreamOptions, outputs: Outputs) {
    this.#options = options;
    this.#outputs = outputs;
    this.#render = options.render;
    this.#opening = options.opening;
    this.#pending = options.opening.pending;
  }

  start(controller: ReadableStreamDefaultController<Uint8Array>): void {
    this.#controller = controller;
    const { signal, clock, keepAliveMs } = this.#options;
    if (signal.aborted) this.#leave();
    else signal.addEventListener("abort", this.#leave, { once: true });
    const opening = this.#opening;
    this.#opening = null;
    if (opening === null || this.#outputs.ended) return;
    if (opening.terminal !== null) this.#finish(opening.terminal);
    // A server sends headers with the first bytes of a body: a commit without content needs some of its own.
    else this.#write(this.#render.chunk(opening.events) || KEEP_ALIVE);
    // A comment is no content: the silence that it broke goes on, and the next tick says so again.
    this.#quiet = opening.pending !== null;
    if (keepAliveMs > 0 && !this.#outputs.ended) this.#keepAlive = clock.every(keepAliveMs, this.#tick);
  }

  /** Answers at once: a promise per pull would cost the stream three more for every token. */
  pull(): void {
    if (!this.#reading) void this.#read();
  }

  /** Never rejects; goes on until the consumer is behind, and then waits for the next pull. */
  async #read(): Promise<void> {
    this.#reading = true;
    try {
      do {
        const { done, value } = await (this.#pending ?? this.#outputs.next());
        this.#pending = null;
        if (this.#outputs.ended) return;
        if (done === true) throw endedEarly();
        if (value.type === "terminal") this.#finish(value.terminal);
        else if (value.type === "events") this.#write(this.#render.chunk(value.events));
      } while (!this.#outputs.ended && (this.#controller?.desiredSize ?? 0) > 0);
    } catch (thrown) {
      if (this.#outputs.ended) return;
      this.#write(this.#render.error(toFault(thrown)));
      this.#close(() => this.#outputs.fail(thrown));
    } finally {
      this.#reading = false;
    }
  }

  /** Called by the stream, which is closed already. */
  cancel(): void {
    this.#controller = null;
    this.#leave();
  }

  /** An abort with a Fault is this side's own (a drain, too slow a reader): the consumer may still be there and is told. */
  readonly #leave = (): void => {
    const { signal } = this.#options;
    const fault = consumerGone(signal);
    if (signal.reason instanceof Fault) this.#write(this.#render.error(fault));
    this.#close(() => this.#outputs.fail(fault));
  };

  /** A comment when nothing was written since the last tick, unless the consumer is behind on what there is. */
  readonly #tick = (): void => {
    if (this.#quiet && (this.#controller?.desiredSize ?? 0) > 0) this.#write(KEEP_ALIVE);
    this.#quiet = true;
  };

  #write(text: string): boolean {
    if (text === "" || this.#outputs.ended) return false;
    this.#quiet = false;
    this.#controller?.enqueue(encoder.encode(text));
    return true;
  }

  #finish(terminal: CompletionTerminal): void {
    this.#write(this.#render.finish(terminal));
    this.#close(() => this.#outputs.end({ fault: null, terminal }));
  }

  /** Timers and listeners go first, so that nothing fires into a closed stream. */
  #close(end: () => void): void {
    if (this.#outputs.ended) return;
    this.#keepAlive?.cancel();
    this.#options.signal.removeEventListener("abort", this.#leave);
    end();
    this.#controller?.close();
  }
}

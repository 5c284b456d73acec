/** One attempt at work: opens its data frames, holds what the consumer has not read yet, and keeps its deadlines. */
import type { Clock, Timer } from "../../core/clock.ts";
import type { CompletionEvent, CompletionOutput, CompletionTerminal } from "../../core/completion.ts";
import { assert, Fault } from "../../core/fault.ts";
import { CONSUMER_BUFFER_BYTES_MAX } from "../../core/limits.ts";
import { FRAME_KIND, openFrame, type Frame, type FrameCipher } from "../../protocol/frames.ts";
import { decodeEvents, decodeTerminal } from "../../protocol/payloads.ts";
import { isOver, reserveAttempt, stepAttempt, type Attempt, type AttemptEvent, type AttemptPhase } from "./attempt.ts";

/** Both directions' keys of one attempt, from the coordinator's side. */
export interface AttemptKeys {
  readonly request: FrameCipher;
  readonly response: FrameCipher;
  wipe(): void;
}

export interface RunningAttemptDeps {
  readonly clock: Clock;
  /** Tells the provider to stop; called at most once. */
  readonly sendCancel: () => void;
  /** The attempt has ended, with its Fault or null when it is done; called exactly once. */
  readonly onEnd: (fault: Fault | null) => void;
}

interface Waiter {
  readonly resolve: (output: CompletionOutput) => void;
  readonly reject: (fault: Fault) => void;
}

/** Events that arrive while the consumer is busy travel on together, so that a slow reader costs less, not more. */
interface Buffered {
  announced: boolean;
  events: CompletionEvent[];
  bytes: number;
}

export class RunningAttempt {
  readonly id: string;
  readonly #deps: RunningAttemptDeps;
  readonly #keys: AttemptKeys;
  readonly #buffered: Buffered = { announced: false, events: [], bytes: 0 };
  #state: Attempt;
  #timer: Timer | null = null;
  #waiter: Waiter | null = null;
  #terminal: CompletionTerminal | null = null;
  #fault: Fault | null = null;

  /** `deadlineMs` (monotonic) holds until the provider has accepted, `silenceMs` from then on. */
  constructor(
    deps: RunningAttemptDeps,
    input: {
      readonly id: string;
      readonly keys: AttemptKeys;
      readonly deadlineMs: number;
      readonly silenceMs: number;
    },
  ) {
    this.id = input.id;
    this.#deps = deps;
    this.#keys = input.keys;
    this.#state = reserveAttempt(input.deadlineMs, input.silenceMs);
    this.#arm();
  }

  get phase(): AttemptPhase {
    return this.#state.phase;
  }

  get over(): boolean {
    return isOver(this.#state);
  }

  /** Frames and messages dropped because they came after the end. */
  get late(): number {
    return this.#state.late;
  }

  get bufferedBytes(): number {
    return this.#buffered.bytes;
  }

  /** The request is on the wire. */
  onSent(): void {
    this.#take({ type: "sent" });
  }

  onAccepted(): void {
    this.#take({ type: "accepted", nowMs: this.#deps.clock.monotonicMs() });
  }

  /** A data frame of this attempt. Throws `encryption_failed` or `protocol_error` when it breaks the data channel's rules. */
  onFrame(frame: Frame): void {
    if (this.over) return this.#take({ type: "chunk", nowMs: this.#deps.clock.monotonicMs() });
    const plaintext = openFrame(this.#keys.response, frame);
    if (frame.kind === FRAME_KIND.chunk) {
      const events = decodeEvents(plaintext);
      this.#take({ type: "chunk", nowMs: this.#deps.clock.monotonicMs() }, events, plaintext.length);
      return;
    }
    if (frame.kind !== FRAME_KIND.terminal) throw new Fault("protocol_error", "a request frame came from a provider");
    const { chunks, ...terminal } = decodeTerminal(plaintext);
    this.#terminal = terminal;
    this.#take({ type: "terminal", chunks });
  }

  /** The provider, its connection or its data failed. */
  fail(fault: Fault): void {
    this.#take({ type: "failed", fault });
  }

  /** Given up from this side: the provider is told, and what it sent is not handed on any more. */
  cancel(fault: Fault): void {
    this.#take({ type: "cancelled", fault });
  }

  /** The next thing to hand on; one call at a time. Throws the Fault that ended the attempt. */
  next(): Promise<CompletionOutput> {
    assert(this.#waiter === null, "one reader at a time");
    const ready = this.#shift();
    if (ready !== null) return Promise.resolve(ready);
    if (this.#fault !== null) return Promise.reject(this.#fault);
    return new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject };
    });
  }

  #take(event: AttemptEvent, events: readonly CompletionEvent[] = [], bytes = 0): void {
    const [next, effects] = stepAttempt(this.#state, event);
    const ended = isOver(next) && !this.over;
    this.#state = next;
    for (const effect of effects) {
      if (effect.type === "deliver") this.#buffer(events, bytes);
      else if (effect.type === "announce") this.#buffered.announced = true;
      else if (effect.type === "send_cancel") this.#deps.sendCancel();
      else if (effect.type === "fail") this.#fault = effect.fault;
    }
    if (ended) this.#end();
    if (effects.length > 0) this.#wake();
    if (this.#buffered.bytes > CONSUMER_BUFFER_BYTES_MAX && !this.over)
      this.cancel(new Fault("consumer_too_slow", "the client reads slower than the model writes"));
  }

  #buffer(events: readonly CompletionEvent[], bytes: number): void {
    for (const event of events) this.#buffered.events.push(event);
    this.#buffered.bytes += bytes;
  }

  #shift(): CompletionOutput | null {
    const buffered = this.#buffered;
    // A fault overtakes what is buffered only when the consumer is the cause; what a provider did send is delivered.
    if (buffered.announced) {
      buffered.announced = false;
      return { type: "accepted" };
    }
    if (buffered.events.length > 0) {
      const { events } = buffered;
      buffered.events = [];
      buffered.bytes = 0;
      return { type: "events", events };
    }
    if (this.#state.phase !== "done" || this.#terminal === null) return null;
    const terminal = this.#terminal;
    this.#terminal = null;
    return { type: "terminal", terminal };
  }

  #wake(): void {
    const waiter = this.#waiter;
    if (waiter === null) return;
    const ready = this.#shift();
    if (ready === null && this.#fault === null) return;
    this.#waiter = null;
    if (ready !== null) waiter.resolve(ready);
    else if (this.#fault !== null) waiter.reject(this.#fault);
  }

  #end(): void {
    this.#timer?.cancel();
    this.#timer = null;
    this.#keys.wipe();
    if (this.#state.phase === "cancelled") {
      this.#buffered.events = [];
      this.#buffered.bytes = 0;
    }
    this.#deps.onEnd(this.#fault);
  }

  /** One timer that re-arms itself when it finds the deadline moved, instead of one per token. */
  #arm(): void {
    const { deadlineMs } = this.#state;
    if (deadlineMs === null) return;
    // The deadline only moves later, but for a huge prompt whose first one lies beyond the silence limit.
    const delayMs = Math.min(deadlineMs - this.#deps.clock.monotonicMs(), this.#state.silenceMs);
    this.#timer = this.#deps.clock.after(delayMs, () => {
      this.#take({ type: "tick", nowMs: this.#deps.clock.monotonicMs() });
      this.#arm();
    });
  }
}

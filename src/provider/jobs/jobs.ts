/** All attempts of this provider: takes requests, parts and cancels from a connection, bounds them, and drains. */
import type { Clock } from "../../core/clock.ts";
import { Fault } from "../../core/fault.ts";
import { toWireError } from "../../core/fault-render.ts";
import { REQUEST_BYTES_MAX } from "../../core/limits.ts";
import type { Log } from "../../core/log.ts";
import { FRAME_KIND, type Frame } from "../../protocol/frames.ts";
import type { ProviderKeys } from "../../trust/seal.ts";
import { Attempt, drainingFault, type AttemptEnd, type InferenceRequest } from "./attempt.ts";
import { FlushTurn } from "./chunk-writer.ts";
import type { Connection } from "../link/connection.ts";
import type { Slots } from "../slots.ts";
import { Tombstones } from "./tombstones.ts";

export interface JobsDeps {
  readonly clock: Pick<Clock, "monotonicMs" | "after">;
  readonly log: Log;
  readonly keys: Pick<ProviderKeys, "open">;
  readonly slots: Pick<Slots, "acquire">;
  /** The number of attempts changed. */
  readonly onChange: () => void;
}

/** Cumulative per process (protocol-trust §2.3). */
export interface JobCounters {
  requestsServed: number;
  tokensGenerated: number;
  cancellationsReceived: number;
  cancellationsBeforeOutput: number;
  cancellationsPartial: number;
  errorsAfterOutput: number;
  encryptionErrors: number;
  framesDropped: number;
  requestsRefused: number;
}

/** Attempts at once, waiting ones included; the engine's own queue refuses earlier. */
const ATTEMPTS_MAX = 512;
/** Request bytes that may be under way at once. */
const RECEIVING_BYTES_MAX = 4 * REQUEST_BYTES_MAX;

export class Jobs {
  readonly counters: JobCounters = {
    requestsServed: 0,
    tokensGenerated: 0,
    cancellationsReceived: 0,
    cancellationsBeforeOutput: 0,
    cancellationsPartial: 0,
    errorsAfterOutput: 0,
    encryptionErrors: 0,
    framesDropped: 0,
    requestsRefused: 0,
  };
  readonly #deps: JobsDeps;
  readonly #turn = new FlushTurn();
  readonly #attempts = new Map<string, Attempt>();
  readonly #tombstones: Tombstones;
  readonly #idleWaiters = new Set<() => void>();
  #draining = false;

  constructor(deps: JobsDeps) {
    this.#deps = deps;
    this.#tombstones = new Tombstones(deps.clock);
  }

  get running(): number {
    return this.#attempts.size;
  }

  get draining(): boolean {
    return this.#draining;
  }

  /** An `inference_request`; its parts follow as frames. */
  request(connection: Connection, message: InferenceRequest): void {
    const id = message.request_id;
    if (this.#attempts.has(id)) {
      // The attempt that runs answers for the id; a second answer would be a second terminal.
      this.#deps.log.warn("attempt_repeated", { attempt: id });
      return;
    }
    const refusal = this.#refusalOf(message);
    if (refusal !== null) {
      this.counters.requestsRefused += 1;
      connection.sendControl({ type: "inference_error", request_id: id, ...toWireError(refusal) });
      return;
    }
    const deps = { ...this.#deps, turn: this.#turn, isDraining: () => this.#draining };
    this.#attempts.set(id, new Attempt(deps, connection, message, (end) => this.#onEnd(id, end)));
    this.#deps.onChange();
  }

  /** A data frame. What belongs to no attempt (refused, cancelled, ended) is counted and dropped. */
  frame(connection: Connection, frame: Frame): void {
    const attempt = this.#attempts.get(frame.attemptId);
    const taken = attempt?.connection === connection && frame.kind === FRAME_KIND.request && attempt.add(frame);
    if (!taken) this.counters.framesDropped += 1;
  }

  /** Idempotent; an id not seen yet is remembered, because its request may still be on the way. */
  cancel(id: string): void {
    this.counters.cancellationsReceived += 1;
    const attempt = this.#attempts.get(id);
    if (attempt === undefined) this.#tombstones.add(id);
    else attempt.abort(cancelledFault());
  }

  /** The connection is gone and with it its attempts: nobody can hear their terminals. */
  dropConnection(connection: Connection): void {
    for (const attempt of this.#attempts.values())
      if (attempt.connection === connection) attempt.abort(new Fault("cancelled", "the connection was lost"));
  }

  /** Refuses new work from now on; resolves when nothing runs any more. */
  drain(): Promise<void> {
    this.#draining = true;
    return this.idle();
  }

  idle(): Promise<void> {
    if (this.#attempts.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#idleWaiters.add(resolve);
    });
  }

  /** Ends everything that runs; each attempt still sends its terminal. */
  abortAll(fault: Fault): void {
    for (const attempt of this.#attempts.values()) attempt.abort(fault);
  }

  #refusalOf(message: InferenceRequest): Fault | null {
    if (this.#draining) return drainingFault();
    if (this.#tombstones.has(message.request_id)) return cancelledFault();
    let receivingBytes = message.bytes;
    for (const attempt of this.#attempts.values()) receivingBytes += attempt.declaredBytes;
    if (this.#attempts.size >= ATTEMPTS_MAX || receivingBytes > RECEIVING_BYTES_MAX)
      return new Fault("queue_full", "too many requests at this provider", { reason: "queue_full" });
    return null;
  }

  #onEnd(id: string, end: AttemptEnd): void {
    this.#attempts.delete(id);
    this.#count(end);
    this.#deps.log.info("attempt_ended", {
      attempt: id,
      outcome: end.outcome,
      fault: end.fault?.code,
      reason: end.fault?.reason,
      tokens: end.completionTokens,
    });
    this.#deps.onChange();
    if (this.#attempts.size > 0) return;
    for (const resolve of this.#idleWaiters) resolve();
    this.#idleWaiters.clear();
  }

  #count(end: AttemptEnd): void {
    const { counters } = this;
    counters.tokensGenerated += end.completionTokens;
    if (end.outcome === "done") counters.requestsServed += 1;
    else if (end.outcome === "cancelled") {
      if (end.hadOutput) counters.cancellationsPartial += 1;
      else counters.cancellationsBeforeOutput += 1;
    } else if (end.hadOutput) counters.errorsAfterOutput += 1;
    if (end.fault?.code === "encryption_failed") counters.encryptionErrors += 1;
  }
}

const cancelledFault = (): Fault => new Fault("cancelled", "the request was cancelled", { reason: "cancelled" });

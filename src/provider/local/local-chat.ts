/** `POST /v1/chat/completions` of the local endpoint: body, request, model, engine, answer; counted, bounded and drained. */
import { readBody } from "../../core/http.ts";
import type { Clock } from "../../core/clock.ts";
import type { CompletionStream } from "../../core/completion.ts";
import { Fault } from "../../core/fault.ts";
import type { Ids } from "../../core/ids.ts";
import { INFERENCE_BODY_BYTES_MAX } from "../../core/limits.ts";
import type { Log } from "../../core/log.ts";
import { decodeChatRequest, type ChatRequest } from "../../dialects/chat/request.ts";
import { respondChat } from "../../dialects/respond-chat.ts";
import type { SlotLease, Slots } from "../slots.ts";
import { toGenerateRequest } from "../jobs/to-generate-request.ts";

export interface LocalChatDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly ids: Ids;
  readonly slots: Pick<Slots, "acquire" | "views" | "isServing">;
}

export interface LocalChatCall {
  readonly request: Request;
  readonly server: Pick<Bun.Server<undefined>, "timeout">;
  readonly headers: Readonly<Record<string, string>>;
}

/** Requests under way at once, bodies included: 16 MiB each at worst. */
const REQUESTS_MAX = 128;
/** For the whole body, so that a client that drips cannot hold its place. */
const BODY_MS = 120_000;
const DRAIN_RETRY_MS = 3_000;
/** After the grace, for cancelled streams to write their end. */
const CANCEL_MS = 500;

/** Durations of `X-Timing`, in whole microseconds; what a single machine does not do is 0. */
interface Timing {
  startMs: number;
  parsedMs: number;
  acceptedMs: number;
}

export class LocalChat {
  readonly #deps: LocalChatDeps;
  readonly #keepAliveMs: number;
  readonly #running = new Set<AbortController>();
  readonly #idleWaiters = new Set<() => void>();
  #draining = false;

  constructor(deps: LocalChatDeps, options: { readonly keepAliveMs: number }) {
    this.#deps = deps;
    this.#keepAliveMs = options.keepAliveMs;
  }

  get running(): number {
    return this.#running.size;
  }

  get draining(): boolean {
    return this.#draining;
  }

  refuseWhenDraining(): void {
    if (this.#draining)
      throw new Fault("draining", "the server is shutting down, retry later", { retryAfterMs: DRAIN_RETRY_MS });
  }

  /** Refuses new work; resolves when all has ended, cancelling what is left after the grace. */
  async drain(graceMs: number): Promise<void> {
    this.#draining = true;
    await this.#idleWithin(graceMs);
    for (const abort of this.#running) abort.abort(new Fault("cancelled", "the server stopped"));
    await this.#idleWithin(CANCEL_MS);
  }

  async answer(call: LocalChatCall): Promise<Response> {
    if (this.#running.size >= REQUESTS_MAX)
      throw new Fault("queue_full", "too many requests at once, retry later", { retryAfterMs: 1_000 });
    const abort = new AbortController();
    const leave = this.#enter(abort, call.request);
    try {
      return await this.#answer(call, abort.signal, leave);
    } catch (error) {
      leave();
      throw error;
    }
  }

  async #answer(call: LocalChatCall, signal: AbortSignal, leave: () => void): Promise<Response> {
    const { clock, ids } = this.#deps;
    const timing: Timing = { startMs: clock.monotonicMs(), parsedMs: 0, acceptedMs: 0 };
    const request = await this.#decode(call, signal);
    timing.parsedMs = clock.monotonicMs();
    const lease = this.#acquire(request);
    // The next await is in respondChat, which takes over the lease's end; before it nothing can fail but these two.
    try {
      this.refuseWhenDraining();
      const jobId = ids.uuid();
      const outputs = lease.engine.generate(toGenerateRequest(jobId, request), signal);
      const end = onceOf(() => {
        lease[Symbol.dispose]();
        leave();
      });
      return await respondChat({
        clock,
        request,
        jobId,
        outputs: noteAccepted(outputs, () => {
          timing.acceptedMs = clock.monotonicMs();
        }),
        keepAliveMs: this.#keepAliveMs,
        headers: () => ({
          ...call.headers,
          "x-inference-job-id": jobId,
          "x-timing": JSON.stringify(renderTiming(timing, clock.monotonicMs())),
        }),
        signal,
        onEnd: end,
      });
    } catch (error) {
      lease[Symbol.dispose]();
      throw error;
    }
  }

  async #decode(call: LocalChatCall, signal: AbortSignal): Promise<ChatRequest> {
    const deadline = new AbortController();
    const timer = this.#deps.clock.after(BODY_MS, () =>
      deadline.abort(new Fault("timeout", "the request body took too long to arrive")),
    );
    const waiting = AbortSignal.any([signal, deadline.signal]);
    let body: Uint8Array;
    try {
      body = await readBody(call.request, INFERENCE_BODY_BYTES_MAX, waiting);
    } finally {
      timer.cancel();
    }
    // Bun ends an answer that has sent nothing for 10 s; the first token may take longer.
    call.server.timeout(call.request, 0);
    try {
      return decodeChatRequest(body);
    } finally {
      body.fill(0);
    }
  }

  #acquire(request: ChatRequest): SlotLease {
    const known = this.#deps.slots.views().some((view) => view.modelId === request.model);
    if (!known)
      throw new Fault(
        "model_not_found",
        `model "${request.model}" is not available — see /v1/models for supported models`,
        { param: "model" },
      );
    if (!this.#deps.slots.isServing(request.model))
      throw new Fault("model_unavailable", `model "${request.model}" is not loaded right now`, { param: "model" });
    return this.#deps.slots.acquire(request.model);
  }

  /** Counts the request until the returned function is called; a client that goes away aborts it. */
  #enter(abort: AbortController, request: Request): () => void {
    this.#running.add(abort);
    const onGone = (): void => abort.abort(new Fault("cancelled", "the client closed the connection"));
    if (request.signal.aborted) onGone();
    else request.signal.addEventListener("abort", onGone, { once: true });
    return onceOf(() => {
      request.signal.removeEventListener("abort", onGone);
      this.#running.delete(abort);
      if (this.#running.size > 0) return;
      for (const resolve of this.#idleWaiters) resolve();
      this.#idleWaiters.clear();
    });
  }

  #idleWithin(waitMs: number): Promise<void> {
    if (this.#running.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = this.#deps.clock.after(waitMs, resolve);
      this.#idleWaiters.add(() => {
        timer.cancel();
        resolve();
      });
    });
  }
}

const onceOf = (act: () => void): (() => void) => {
  let done = false;
  return () => {
    if (done) return;
    done = true;
    act();
  };
};

const microseconds = (fromMs: number, untilMs: number): number => Math.max(0, Math.round((untilMs - fromMs) * 1000));

const renderTiming = (timing: Timing, committedMs: number) => {
  const acceptedMs = timing.acceptedMs === 0 ? committedMs : timing.acceptedMs;
  return {
    parse_us: microseconds(timing.startMs, timing.parsedMs),
    route_us: 0,
    queue_us: microseconds(timing.parsedMs, acceptedMs),
    encrypt_us: 0,
    dispatch_us: 0,
    provider_us: microseconds(acceptedMs, committedMs),
  };
};

/** Tells when the row is held; adds nothing to the outputs after it. */
const noteAccepted = (stream: CompletionStream, onAccepted: () => void): CompletionStream => ({
  [Symbol.asyncIterator]() {
    const iterator = stream[Symbol.asyncIterator]();
    let waiting = true;
    return {
      async next() {
        // Awaited even when there is nothing to note: a rejection nobody listens to yet would end the process.
        const step = await iterator.next();
        if (waiting && step.done !== true && step.value.type === "accepted") {
          waiting = false;
          onAccepted();
        }
        return step;
      },
      return: () => iterator.return?.() ?? Promise.resolve({ done: true, value: undefined }),
    };
  },
});

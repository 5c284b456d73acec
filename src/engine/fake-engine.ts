/** A deterministic engine without a model: real queueing, rows, stops and ends; words instead of weights. For tests. */
import { systemClock, type Clock, type Timer } from "../core/clock.ts";
import type { CompletionEvent, CompletionTerminal, FinishReason } from "../core/completion.ts";
import { Fault } from "../core/fault.ts";
import { TOKENS_DEFAULT_MAX } from "../core/limits.ts";
import { completionStream, type CompletionSink } from "./completion-queue.ts";
import type { Engine, EngineModel, EngineStats, GenerateRequest } from "./engine.ts";
import { defaultPlan, fakePromptTokens, type FakePlan } from "./fake-plan.ts";
import { StopMatcher } from "./stop-matcher.ts";

export interface FakeEngineOptions {
  readonly model?: Partial<EngineModel>;
  readonly rows?: number;
  readonly contextTokens?: number;
  /** What to answer; undefined = the default plan. */
  readonly script?: (request: GenerateRequest) => FakePlan | undefined;
  readonly clock?: Clock;
  /** Requests that may wait for a row; more are refused. Absent = rows × 8, at least 32. */
  readonly waitingMax?: number;
}

export interface FakeEngine extends Engine {
  /** Ends the engine as a native crash would. */
  crash(fault?: Fault): void;
  /** Every request given to the engine so far, in order of its start. */
  readonly requests: readonly GenerateRequest[];
}

interface Row {
  readonly request: GenerateRequest;
  readonly sink: CompletionSink;
  readonly plan: FakePlan;
  readonly stop: StopMatcher;
  readonly promptTokens: number;
  readonly tokensMax: number;
  readonly submittedMs: number;
  heldMs: number;
  firstTokenMs: number;
  lastTokenMs: number;
  tokens: number;
  reasoningTokens: number;
  sawToolCall: boolean;
  /** Set while the plan's silence lasts. */
  timer: Timer | null;
  silenceDone: boolean;
}

const DEFAULT_MODEL = {
  id: "fake",
  sizeBytes: 1_000_000,
  quantization: null,
  architecture: "fake",
  parameters: null,
  templateRenderOk: true,
  toolsSupported: true,
};

class FakeEngineImpl implements FakeEngine {
  readonly model: EngineModel;
  readonly requests: GenerateRequest[] = [];
  readonly ended: Promise<Error | null>;
  readonly #clock: Clock;
  readonly #script: (request: GenerateRequest) => FakePlan | undefined;
  readonly #waitingMax: number;
  readonly #running = new Set<Row>();
  readonly #waiting: Row[] = [];
  #end: Fault | null = null;
  #resolveEnded: (fault: Error | null) => void = () => undefined;
  #stepPending = false;
  #stepsExecuted = 0;
  #tokensGenerated = 0;
  #requestsServed = 0;
  #lastStepMs: number | null = null;

  constructor(options: FakeEngineOptions) {
    const rows = options.rows ?? 4;
    this.model = { ...DEFAULT_MODEL, ...options.model, rows, contextTokens: options.contextTokens ?? 8192 };
    this.#clock = options.clock ?? systemClock();
    this.#script = options.script ?? (() => undefined);
    this.#waitingMax = options.waitingMax ?? Math.max(32, rows * 8);
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
  }

  generate(request: GenerateRequest, signal: AbortSignal): ReturnType<Engine["generate"]> {
    let row: Row | null = null;
    return completionStream(
      {
        start: (sink) => {
          row = this.#submit(request, sink);
        },
        cancel: () => {
          if (row !== null) this.#release(row);
        },
      },
      signal,
    );
  }

  countPromptTokens(request: Parameters<Engine["countPromptTokens"]>[0]): Promise<number> {
    if (this.#end !== null) return Promise.reject(this.#end);
    return Promise.resolve(fakePromptTokens(request.messages));
  }

  stats(): EngineStats {
    const rows = [...this.#running];
    return {
      rowsRunning: rows.length,
      requestsWaiting: this.#waiting.length,
      activeTokens: rows.reduce((sum, row) => sum + row.promptTokens + row.tokens, 0),
      tokensPotentialMax: rows.reduce((sum, row) => sum + row.promptTokens + row.tokensMax, 0),
      decodeTps: this.#tokensGenerated === 0 ? null : 1000,
      prefillTps: this.#tokensGenerated === 0 ? null : 10_000,
      stepsExecuted: this.#stepsExecuted,
      tokensGenerated: this.#tokensGenerated,
      requestsServed: this.#requestsServed,
      msSinceLastStep: this.#lastStepMs === null ? null : this.#clock.monotonicMs() - this.#lastStepMs,
    };
  }

  crash(fault = new Fault("engine_failed", "the engine failed", { reason: "crashed" })): void {
    this.#finish(fault, fault, fault);
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#finish(new Fault("cancelled", "the engine was closed"), new Fault("disposed", "the engine is closed"), null);
    return Promise.resolve();
  }

  #finish(forRunning: Fault, forLater: Fault, ended: Fault | null): void {
    if (this.#end !== null) return;
    this.#end = forLater;
    for (const row of [...this.#running, ...this.#waiting.splice(0)]) {
      row.sink.fail(forRunning);
      this.#release(row);
    }
    this.#resolveEnded(ended);
  }

  #submit(request: GenerateRequest, sink: CompletionSink): Row {
    if (this.#end !== null) throw this.#end;
    const promptTokens = fakePromptTokens(request.messages);
    const room = this.model.contextTokens - promptTokens;
    if (room < 1)
      throw new Fault("bad_request", `the prompt exceeds the context of ${this.model.contextTokens} tokens`, {
        reason: "request_exceeds_context",
        param: "messages",
      });
    if (this.#running.size >= this.model.rows && this.#waiting.length >= this.#waitingMax)
      throw new Fault("queue_full", "too many requests wait for this model", { retryAfterMs: 1000 });
    const row: Row = {
      request,
      sink,
      plan: this.#script(request) ?? defaultPlan(request),
      stop: new StopMatcher(request.stop),
      promptTokens,
      tokensMax: Math.min(request.tokensMax ?? TOKENS_DEFAULT_MAX, room),
      submittedMs: this.#clock.monotonicMs(),
      heldMs: 0,
      firstTokenMs: 0,
      lastTokenMs: 0,
      tokens: 0,
      reasoningTokens: 0,
      sawToolCall: false,
      timer: null,
      silenceDone: false,
    };
    this.requests.push(request);
    this.#waiting.push(row);
    this.#wake();
    return row;
  }

  #release(row: Row): void {
    row.timer?.cancel();
    this.#running.delete(row);
    const at = this.#waiting.indexOf(row);
    if (at !== -1) this.#waiting.splice(at, 1);
    if (this.#waiting.length > 0) this.#wake();
  }

  #wake(): void {
    if (this.#stepPending) return;
    this.#stepPending = true;
    setImmediate(() => {
      this.#stepPending = false;
      this.#step();
    });
  }

  /** As the real loop: admit by arrival, then one token for every row that is not silent. */
  #step(): void {
    while (this.#running.size < this.model.rows) {
      const row = this.#waiting.shift();
      if (row === undefined) break;
      this.#running.add(row);
      row.heldMs = this.#clock.monotonicMs();
      row.sink.push({ type: "accepted" });
      this.#pause(row, row.plan.delayFirstMs);
    }
    let advanced = 0;
    for (const row of this.#running)
      if (row.timer === null) {
        this.#advance(row);
        advanced += 1;
      }
    if (advanced === 0) return;
    this.#stepsExecuted += 1;
    this.#lastStepMs = this.#clock.monotonicMs();
    if (this.#waiting.length > 0 || [...this.#running].some((row) => row.timer === null)) this.#wake();
  }

  #pause(row: Row, delayMs: number | undefined): void {
    if (delayMs === undefined || delayMs <= 0) return;
    row.timer = this.#clock.after(delayMs, () => {
      row.timer = null;
      this.#wake();
    });
  }

  #advance(row: Row): void {
    const { plan } = row;
    if (plan.failure?.afterTokens === row.tokens) {
      row.sink.fail(plan.failure.fault);
      this.#release(row);
      return;
    }
    if (plan.silence?.afterTokens === row.tokens && !row.silenceDone) {
      row.silenceDone = true;
      this.#pause(row, plan.silence.ms);
      if (row.timer !== null) return;
    }
    const event = eventAt(row);
    if (event === null) {
      this.#complete(row, row.sawToolCall ? "tool_calls" : (plan.finishReason ?? "stop"));
      return;
    }
    row.lastTokenMs = this.#clock.monotonicMs();
    if (row.tokens === 0) row.firstTokenMs = row.lastTokenMs;
    row.tokens += 1;
    this.#tokensGenerated += 1;
    const stopped = publish(row, event);
    if (stopped) this.#complete(row, "stop");
    else if (row.tokens >= row.tokensMax) this.#complete(row, "length");
    else this.#pause(row, plan.delayBetweenMs);
  }

  #complete(row: Row, finishReason: FinishReason): void {
    const held = row.stop.flush();
    if (held !== "") row.sink.push({ type: "events", events: [{ type: "text", text: held }] });
    const terminal: CompletionTerminal = {
      finishReason,
      usage: {
        promptTokens: row.promptTokens,
        completionTokens: row.tokens,
        reasoningTokens: row.reasoningTokens,
        cachedTokens: 0,
      },
      timings: {
        queueMs: row.heldMs - row.submittedMs,
        prefillMs: Math.max(0, row.firstTokenMs - row.heldMs),
        decodeMs: row.lastTokenMs - row.firstTokenMs,
      },
    };
    this.#requestsServed += 1;
    row.sink.push({ type: "terminal", terminal });
    this.#release(row);
  }
}

/** The plan's next token; an endless plan and `ignoreEos` start over, null at the end otherwise. */
const eventAt = (row: Row): CompletionEvent | null => {
  const { events } = row.plan;
  const goesOn = row.plan.endless === true || row.request.ignoreEos === true;
  return (goesOn && events.length > 0 ? events[row.tokens % events.length] : events[row.tokens]) ?? null;
};

/** Returns whether a stop string was met. */
const publish = (row: Row, event: CompletionEvent): boolean => {
  if (event.type === "tool_call") row.sawToolCall = true;
  if (event.type === "reasoning") row.reasoningTokens += 1;
  if (event.type !== "text") {
    row.sink.push({ type: "events", events: [event] });
    return false;
  }
  const match = row.stop.push(event.text);
  if (match.text !== "") row.sink.push({ type: "events", events: [{ type: "text", text: match.text }] });
  return match.stopped;
};

export const createFakeEngine = (options: FakeEngineOptions = {}): FakeEngine => new FakeEngineImpl(options);

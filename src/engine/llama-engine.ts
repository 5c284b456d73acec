/** The real engine, seen from the main thread: a worker that owns the model, tickets for what runs in it, and a watch over it. */
import type { NativeLocation } from "../../ffi/location.ts";
import type { Clock, Timer } from "../core/clock.ts";
import type { CompletionStream } from "../core/completion.ts";
import { assert, Fault } from "../core/fault.ts";
import type { Log } from "../core/log.ts";
import { isCompiled } from "../core/spawn-self.ts";
import { completionStream, type CompletionSink } from "./completion-queue.ts";
import type { Engine, EngineModel, EngineStats, GenerateRequest } from "./engine.ts";
import {
  fromWireFault,
  type FromWorker,
  type OpenSpec,
  type PromptRequest,
  type ReadyMessage,
  type TicketOutput,
  type ToWorker,
  type WorkerStats,
} from "./worker-protocol.ts";

export interface LlamaEngineOptions {
  readonly location: NativeLocation;
  readonly modelPath: string;
  readonly id: string;
  /** Tokens one request may use; null = what the model was trained for, 8192 at most. */
  readonly contextTokens: number | null;
  readonly rows: number;
  readonly threads: number;
  /** Layers kept on a GPU; null = all. */
  readonly gpuLayers: number | null;
  readonly clock: Clock;
  readonly log: Log;
  /** Called with 0 to 1 while the weights load. */
  readonly onProgress?: (fraction: number) => void;
  /** A step that has not returned for this long is a wedge; default 120 s. */
  readonly wedgeMs?: number;
  /** Absent = a real worker. */
  readonly spawnWorker?: () => EngineWorker;
}

/** The part of a Worker that an engine uses. */
export type EngineWorker = Pick<Worker, "addEventListener" | "postMessage" | "terminate">;

const WEDGE_MS = 120_000;
/** Between two signs of progress of a load; a slow disk reports its first hundredth within this. */
const LOAD_SILENCE_MS = 600_000;
/** A silence is counted in ticks, so that a machine waking from sleep does not take the night for a wedge. */
const WEDGE_TICKS = 8;
/** How long a closing worker may take to free its model; the contract says 5 s in all. */
const CLOSE_MS = 4_500;

const NO_STATS: WorkerStats = {
  rowsRunning: 0,
  requestsWaiting: 0,
  activeTokens: 0,
  tokensPotentialMax: 0,
  decodeTps: null,
  prefillTps: null,
  stepsExecuted: 0,
  tokensGenerated: 0,
  requestsServed: 0,
};

interface CountWaiter {
  resolve(tokens: number): void;
  reject(fault: Fault): void;
}

class LlamaEngine implements Engine {
  readonly model: EngineModel;
  readonly ended: Promise<Error | null>;
  readonly #options: LlamaEngineOptions;
  readonly #worker: EngineWorker;
  readonly #abortFlag: Int32Array;
  readonly #sinks = new Map<number, CompletionSink>();
  readonly #counts = new Map<number, CountWaiter>();
  #resolveEnded: (fault: Error | null) => void = () => undefined;
  /** What later use gets; null while the engine works. */
  #end: Fault | null = null;
  #closing: Promise<void> | null = null;
  #onClosed: () => void = () => undefined;
  #nextTicket = 1;
  #stats = NO_STATS;
  #lastStepMs: number | null = null;
  #watch: Timer | null = null;
  #silentTicks = 0;

  constructor(options: LlamaEngineOptions, worker: EngineWorker, ready: ReadyMessage) {
    this.#options = options;
    this.#worker = worker;
    this.model = ready.model;
    this.#abortFlag = ready.abortFlag;
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
    worker.addEventListener("message", ({ data }: MessageEvent<string>) =>
      this.#receive(JSON.parse(data) as FromWorker),
    );
    worker.addEventListener("error", () => this.#crashed());
    worker.addEventListener("close", () => this.#crashed());
  }

  generate(request: GenerateRequest, signal: AbortSignal): CompletionStream {
    let ticket = 0;
    return completionStream(
      {
        start: (sink) => {
          if (this.#end !== null) throw this.#end;
          ticket = this.#nextTicket++;
          this.#sinks.set(ticket, sink);
          this.#send({ type: "submit", ticket, request });
        },
        cancel: () => {
          if (this.#sinks.delete(ticket)) this.#send({ type: "cancel", ticket });
        },
      },
      signal,
    );
  }

  countPromptTokens(request: PromptRequest): Promise<number> {
    if (this.#end !== null) return Promise.reject(this.#end);
    const { messages, tools, toolChoice } = request;
    const ticket = this.#nextTicket++;
    return new Promise((resolve, reject) => {
      this.#counts.set(ticket, { resolve, reject });
      this.#send({
        type: "count",
        ticket,
        request: {
          messages,
          ...(tools === undefined ? {} : { tools }),
          ...(toolChoice === undefined ? {} : { toolChoice }),
        },
      });
    });
  }

  stats(): EngineStats {
    const now = this.#options.clock.monotonicMs();
    return { ...this.#stats, msSinceLastStep: this.#lastStepMs === null ? null : now - this.#lastStepMs };
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  // ---- towards the worker

  #send(message: ToWorker): void {
    // oxlint-disable-next-line unicorn/require-post-message-target-origin -- this is a worker's port, not a window
    this.#worker.postMessage(message);
    this.#watchWhileBusy();
  }

  async #close(): Promise<void> {
    if (this.#end !== null) {
      // It failed before: nothing to end, but a worker that still stands is let go.
      this.#worker.terminate();
      return;
    }
    this.#finish(new Fault("cancelled", "the engine was closed"), new Fault("disposed", "the engine is closed"));
    const closed = new Promise<boolean>((resolve) => {
      const timer = this.#options.clock.after(CLOSE_MS, () => resolve(false));
      this.#onClosed = () => {
        timer.cancel();
        resolve(true);
      };
    });
    Atomics.store(this.#abortFlag, 0, 1);
    this.#send({ type: "close" });
    if (!(await closed)) this.#options.log.warn("engine_close_timed_out", { model: this.model.id });
    this.#watch?.cancel();
    this.#worker.terminate();
    this.#resolveEnded(null);
  }

  // ---- from the worker

  #receive(message: FromWorker): void {
    this.#silentTicks = 0;
    switch (message.type) {
      case "step":
        if (message.stats.stepsExecuted > this.#stats.stepsExecuted)
          this.#lastStepMs = this.#options.clock.monotonicMs();
        this.#stats = message.stats;
        for (const output of message.outputs) this.#deliver(output);
        this.#watchWhileBusy();
        break;
      case "counted":
        this.#settleCount(message);
        break;
      case "log":
        this.#options.log[message.level](message.event, { model: this.model.id, ...message.fields });
        break;
      case "failed":
        this.#fail(
          new Fault("engine_failed", "the engine failed", { reason: "crashed", cause: fromWireFault(message.fault) }),
        );
        break;
      case "closed":
        this.#onClosed();
        break;
      case "progress":
        break;
    }
  }

  #deliver(output: TicketOutput): void {
    const sink = this.#sinks.get(output.ticket);
    if (sink === undefined) return; // cancelled while this was on its way
    if (output.terminal !== undefined || output.fault !== undefined) this.#sinks.delete(output.ticket);
    if (output.accepted === true) sink.push({ type: "accepted" });
    if (output.events !== undefined) sink.push({ type: "events", events: output.events });
    if (output.terminal !== undefined) sink.push({ type: "terminal", terminal: output.terminal });
    if (output.fault !== undefined) sink.fail(fromWireFault(output.fault));
  }

  #settleCount({ ticket, tokens }: Extract<FromWorker, { type: "counted" }>): void {
    const waiter = this.#counts.get(ticket);
    this.#counts.delete(ticket);
    if (typeof tokens === "number") waiter?.resolve(tokens);
    else waiter?.reject(fromWireFault(tokens));
  }

  // ---- ends

  #crashed(): void {
    if (this.#end === null) this.#fail(new Fault("engine_failed", "the engine's worker ended", { reason: "crashed" }));
    this.#onClosed();
  }

  #fail(fault: Fault): void {
    if (this.#end !== null) return;
    this.#options.log.error("engine_ended", { model: this.model.id, reason: fault.reason });
    this.#finish(fault, fault);
    this.#resolveEnded(fault);
  }

  #finish(forRunning: Fault, forLater: Fault): void {
    assert(this.#end === null, "an engine ends once");
    this.#end = forLater;
    const sinks = [...this.#sinks.values()];
    const counts = [...this.#counts.values()];
    this.#sinks.clear();
    this.#counts.clear();
    for (const sink of sinks) sink.fail(forRunning);
    for (const waiter of counts) waiter.reject(forRunning);
    this.#stats = { ...this.#stats, rowsRunning: 0, requestsWaiting: 0, activeTokens: 0, tokensPotentialMax: 0 };
    this.#watch?.cancel();
    this.#watch = null;
  }

  /** A working engine reports every step, so silence while something runs is a step that does not return. */
  #watchWhileBusy(): void {
    const { rowsRunning, requestsWaiting } = this.#stats;
    const busy = this.#end === null && this.#sinks.size + this.#counts.size + rowsRunning + requestsWaiting > 0;
    if (!busy) {
      this.#watch?.cancel();
      this.#watch = null;
      return;
    }
    if (this.#watch !== null) return;
    this.#silentTicks = 0;
    this.#watch = this.#options.clock.every((this.#options.wedgeMs ?? WEDGE_MS) / WEDGE_TICKS, () => {
      this.#silentTicks += 1;
      if (this.#silentTicks < WEDGE_TICKS) return;
      this.#fail(new Fault("engine_failed", "the engine no longer answers", { reason: "wedged" }));
    });
  }
}

/** Waits for the worker's first word, as long as it reports progress. */
const awaitReady = (options: LlamaEngineOptions, worker: EngineWorker): Promise<ReadyMessage> =>
  new Promise((resolve, reject) => {
    const listening = new AbortController();
    let timer: Timer = { cancel: () => undefined };
    const settle = (): void => {
      timer.cancel();
      listening.abort();
    };
    const fail = (fault: Fault): void => {
      settle();
      reject(fault);
    };
    const rearm = (): void => {
      timer.cancel();
      timer = options.clock.after(LOAD_SILENCE_MS, () =>
        fail(new Fault("engine_failed", "loading the model made no progress", { reason: "load_timeout" })),
      );
    };
    const onMessage = ({ data }: MessageEvent<string | ReadyMessage>): void => {
      if (typeof data !== "string") {
        settle();
        resolve(data);
        return;
      }
      const message = JSON.parse(data) as FromWorker;
      if (message.type === "failed") fail(fromWireFault(message.fault));
      else rearm();
      if (message.type === "progress") options.onProgress?.(message.fraction);
    };
    const onEnd = (): void => fail(new Fault("engine_failed", "the engine's worker ended", { reason: "crashed" }));
    worker.addEventListener("message", onMessage, { signal: listening.signal });
    worker.addEventListener("error", onEnd, { signal: listening.signal });
    worker.addEventListener("close", onEnd, { signal: listening.signal });
    rearm();
  });

/** Inside an executable every module has the executable's own address, and worker entries lie beside it by their path in the tree. */
const workerUrl = (): URL =>
  new URL(isCompiled() ? "./src/engine/engine-worker.ts" : "./engine-worker.ts", import.meta.url);

/**
 * Loads a model into a worker of its own. Throws `memory_short`, `model_invalid`, `native_missing`, `native_failed` or
 * `engine_failed`. The file should have passed `checkGguf` and a trial: see `load-model.ts`.
 */
export const openLlamaEngine = async (options: LlamaEngineOptions): Promise<Engine> => {
  const { location, modelPath, id, contextTokens, rows, threads, gpuLayers } = options;
  const spec: OpenSpec = { location, modelPath, id, contextTokens, rows, threads, gpuLayers };
  const worker = options.spawnWorker?.() ?? new Worker(workerUrl());
  const ready = awaitReady(options, worker);
  const message: ToWorker = { type: "open", spec };
  // oxlint-disable-next-line unicorn/require-post-message-target-origin -- this is a worker's port, not a window
  worker.postMessage(message);
  try {
    return new LlamaEngine(options, worker, await ready);
  } catch (error) {
    worker.terminate();
    throw error;
  }
};

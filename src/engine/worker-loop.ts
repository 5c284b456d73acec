/** The engine's step loop inside its worker: admit, compute one batch, publish; between steps the inbox is read. */
import { Batch, StepRows } from "../../ffi/batch.ts";
import { SamplerChain } from "../../ffi/sampler.ts";
import type { ChatParser } from "../../ffi/chat-parser.ts";
import type { Clock } from "../core/clock.ts";
import type { CompletionEvent, CompletionTerminal } from "../core/completion.ts";
import { assert, Fault, toFault } from "../core/fault.ts";
import type { Ids } from "../core/ids.ts";
import { errorFields } from "../core/log.ts";
import { TOKENS_DEFAULT_MAX } from "../core/limits.ts";
import type { GenerateRequest } from "./engine.ts";
import { ewma } from "./ewma.ts";
import { Generation } from "./generation.ts";
import { exceedsContext, type LoadedModel, type RenderedPrompt } from "./loaded-model.ts";
import { BatchScheduler, type Row, type Share } from "./scheduler.ts";
import { toWireFault, type FromWorker, type TicketOutput, type ToWorker, type WorkerStats } from "./worker-protocol.ts";

export interface WorkerLoopDeps {
  readonly loaded: LoadedModel;
  readonly post: (message: FromWorker) => void;
  readonly clock: Pick<Clock, "monotonicMs">;
  readonly ids: Pick<Ids, "entityId">;
}

/** A request in this worker. What belongs to its row is there once a row is held. */
interface Job {
  readonly ticket: number;
  readonly request: GenerateRequest;
  readonly submittedMs: number;
  held: Held | null;
}

interface Held {
  readonly prompt: Int32Array;
  readonly sampler: SamplerChain;
  readonly parser: ChatParser | null;
  readonly generation: Generation;
  readonly tokensMax: number;
  readonly heldMs: number;
  firstTokenMs: number;
  lastTokenMs: number;
  lastToken: number;
}

/** Failed steps in a row after which the engine is given up. */
const FAILED_STEPS_MAX = 3;
/** Weight of one finished request in the rates of a heartbeat (routing: α = 0.3). */
const RATE_WEIGHT = 0.3;

export class WorkerLoop {
  readonly #deps: WorkerLoopDeps;
  readonly #scheduler: BatchScheduler<Job>;
  readonly #jobs = new Map<number, Job>();
  readonly #batch: Batch;
  readonly #stepRows: StepRows;
  readonly #sampled: Int32Array;
  #outputs: TicketOutput[] = [];
  #stepPending = false;
  #statsChanged = false;
  #closed = false;
  #failedSteps = 0;
  #stepsExecuted = 0;
  #tokensGenerated = 0;
  #requestsServed = 0;
  #decodeTps: number | null = null;
  #prefillTps: number | null = null;

  constructor(deps: WorkerLoopDeps) {
    this.#deps = deps;
    const { context, facts } = deps.loaded;
    this.#scheduler = new BatchScheduler({ rows: facts.rows, batchTokens: context.batchTokens });
    this.#batch = new Batch(context.batchTokens);
    this.#stepRows = new StepRows(facts.rows);
    this.#sampled = new Int32Array(facts.rows);
  }

  handle(message: Exclude<ToWorker, { type: "open" }>): void {
    if (this.#closed) return;
    this.#guard(() => {
      switch (message.type) {
        case "submit":
          this.#submit(message.ticket, message.request);
          break;
        case "cancel":
          this.#drop(message.ticket);
          break;
        case "count":
          this.#count(message);
          break;
        case "close":
          this.#close();
          break;
      }
    });
  }

  /** Nothing thrown in here may vanish with the worker: it ends the engine, in words. */
  #guard(action: () => void): void {
    try {
      action();
    } catch (error) {
      this.#closed = true;
      this.#deps.post({ type: "log", level: "error", event: "engine_failed", fields: errorFields(error) });
      this.#deps.post({ type: "failed", fault: toWireFault(toFault(error)) });
    }
  }

  #submit(ticket: number, request: GenerateRequest): void {
    const job: Job = { ticket, request, submittedMs: this.#deps.clock.monotonicMs(), held: null };
    try {
      this.#scheduler.submit(job);
      this.#jobs.set(ticket, job);
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      this.#outputs.push({ ticket, fault: toWireFault(error) });
    }
    this.#wake();
  }

  #count(message: Extract<ToWorker, { type: "count" }>): void {
    const { ticket, request } = message;
    try {
      const { tokens } = this.#deps.loaded.render(request);
      this.#deps.post({ type: "counted", ticket, tokens: tokens.length });
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      this.#deps.post({ type: "counted", ticket, tokens: toWireFault(error) });
    }
  }

  #drop(ticket: number): void {
    const job = this.#jobs.get(ticket);
    if (job === undefined) return;
    this.#release(job);
    this.#wake();
  }

  /** Frees everything a request holds, wherever it is. */
  #release(job: Job): void {
    this.#jobs.delete(job.ticket);
    const row = this.#scheduler.release(job);
    if (row !== null) this.#deps.loaded.context.removeSequence(row.slot, 0, -1);
    job.held?.sampler[Symbol.dispose]();
    job.held?.parser?.[Symbol.dispose]();
    job.held = null;
  }

  #close(): void {
    this.#closed = true;
    for (const job of this.#jobs.values()) this.#release(job);
    this.#deps.loaded[Symbol.dispose]();
    this.#deps.post({ type: "closed" });
  }

  #wake(): void {
    this.#statsChanged = true;
    if (this.#stepPending) return;
    this.#stepPending = true;
    // Unlike a promise, an immediate lets messages in first: a cancel takes effect before the next step.
    setImmediate(() => {
      this.#stepPending = false;
      if (!this.#closed) this.#guard(() => this.#step());
    });
  }

  #step(): void {
    this.#admit();
    const shares = this.#scheduler.plan();
    if (shares.length > 0) {
      this.#compute(shares);
      this.#wake();
    }
    if (this.#outputs.length > 0 || this.#statsChanged) this.#flush();
  }

  #flush(): void {
    this.#deps.post({ type: "step", outputs: this.#outputs, stats: this.#stats() });
    this.#outputs = [];
    this.#statsChanged = this.#stepPending;
  }

  // ---- admission

  /** Rendering a prompt costs milliseconds, so that beside running rows only one is rendered per step. */
  #admit(): void {
    const limit = this.#scheduler.rows.length > 0 ? 1 : this.#scheduler.rowsMax;
    for (let admitted = 0; admitted < limit; admitted += 1) {
      const job = this.#scheduler.takeNext();
      if (job === null) return;
      try {
        this.#hold(job);
        this.#outputs.push({ ticket: job.ticket, accepted: true });
      } catch (error) {
        // Nothing of the request has reached the batch yet: even a bug of ours ends it alone.
        const fault = toFault(error);
        if (fault.code === "internal")
          this.#deps.post({ type: "log", level: "error", event: "request_broke", fields: errorFields(error) });
        this.#fail(job, fault);
      }
    }
  }

  #hold(job: Job): void {
    const { loaded, clock } = this.#deps;
    const rendered = loaded.render(job.request);
    const { contextTokens } = loaded.facts;
    const promptTokens = rendered.tokens.length;
    if (promptTokens < 1) throw new Fault("bad_request", "the prompt is empty", { param: "messages" });
    if (promptTokens >= contextTokens) throw exceedsContext(loaded.facts);
    const tokensMax = Math.min(Math.max(1, job.request.tokensMax ?? TOKENS_DEFAULT_MAX), contextTokens - promptTokens);
    const sampler = this.#openSampler(job.request, rendered);
    const parser = this.#openParser(rendered, sampler);
    const generation = new Generation({
      promptTokens,
      tokensMax,
      stops: [...job.request.stop, ...rendered.chat.additionalStops],
      ignoreEos: job.request.ignoreEos === true,
      preservedTokens: rendered.chat.preservedTokens,
      parser,
      pieces: loaded.pieces,
      isEog: (token) => loaded.model.isEog(token),
    });
    job.held = {
      prompt: rendered.tokens,
      sampler,
      parser,
      generation,
      tokensMax,
      heldMs: clock.monotonicMs(),
      firstTokenMs: 0,
      lastTokenMs: 0,
      lastToken: -1,
    };
    this.#scheduler.hold(job, promptTokens);
  }

  /** What the request leaves open is as the model file recommends, else the model's plain distribution. */
  #openSampler({ sampling, ignoreEos }: GenerateRequest, { chat }: RenderedPrompt): SamplerChain {
    const { model, recommended } = this.#deps.loaded;
    return SamplerChain.open(model, {
      temperature: sampling.temperature ?? recommended.temperature ?? 1,
      topK: sampling.topK ?? recommended.topK ?? 0,
      topP: sampling.topP ?? recommended.topP ?? 1,
      minP: sampling.minP ?? recommended.minP ?? 0,
      seed: sampling.seed ?? null,
      ignoreEos: ignoreEos === true,
      grammar: chat.grammar,
    });
  }

  #openParser({ chat }: RenderedPrompt, sampler: SamplerChain): ChatParser {
    try {
      return chat.openParser(() => this.#deps.ids.entityId("call"));
    } catch (error) {
      sampler[Symbol.dispose]();
      throw error;
    }
  }

  // ---- one step

  #compute(shares: readonly Share<Job>[]): void {
    const { loaded, clock } = this.#deps;
    this.#fillBatch(shares);
    const startMs = clock.monotonicMs();
    try {
      loaded.context.step(this.#batch, this.#stepRows, this.#sampled);
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      // Aborted means that the engine is closing: the message that says so comes next.
      if (error.code !== "cancelled") this.#failStep(error);
      return;
    }
    this.#failedSteps = 0;
    const nowMs = clock.monotonicMs();
    this.#stepsExecuted += 1;
    this.#scheduler.commit(nowMs - startMs);
    let index = 0;
    for (const share of shares)
      if (share.sample) {
        this.#publish(share.row, this.#sampled[index] ?? -1, nowMs);
        index += 1;
      }
  }

  #fillBatch(shares: readonly Share<Job>[]): void {
    const batch = this.#batch;
    const stepRows = this.#stepRows;
    batch.clear();
    stepRows.clear();
    for (const { row, decoding, start, count, sample } of shares) {
      const { held } = row.job;
      assert(held !== null, "a running row is held");
      let index = -1;
      if (decoding) index = batch.add(held.lastToken, row.position, row.slot, true);
      else
        for (let at = start; at < start + count; at += 1)
          index = batch.add(held.prompt[at] ?? 0, at, row.slot, sample && at === start + count - 1);
      if (sample) stepRows.add(index, held.sampler);
    }
  }

  #publish(row: Row<Job>, token: number, nowMs: number): void {
    const { job } = row;
    const { held } = job;
    assert(held !== null, "a sampled row is held");
    if (token < 0) {
      this.#fail(job, new Fault("engine_failed", "the tool grammar left no way to go on", { reason: "grammar" }));
      return;
    }
    if (held.lastToken === -1) held.firstTokenMs = nowMs;
    held.lastTokenMs = nowMs;
    held.lastToken = token;
    this.#tokensGenerated += 1;
    try {
      const { events, finishReason } = held.generation.accept(token);
      if (finishReason !== null) this.#complete(job, events, toTerminal(job.submittedMs, held, finishReason));
      else if (events.length > 0) this.#outputs.push({ ticket: job.ticket, events });
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      this.#fail(job, error);
    }
  }

  #complete(job: Job, events: readonly CompletionEvent[], terminal: CompletionTerminal): void {
    const { usage, timings } = terminal;
    this.#requestsServed += 1;
    const prefillSeconds = timings.prefillMs / 1000;
    if (prefillSeconds > 0) this.#prefillTps = ewma(this.#prefillTps, usage.promptTokens / prefillSeconds, RATE_WEIGHT);
    const decodeSeconds = timings.decodeMs / 1000;
    if (decodeSeconds > 0)
      this.#decodeTps = ewma(this.#decodeTps, (usage.completionTokens - 1) / decodeSeconds, RATE_WEIGHT);
    this.#outputs.push({ ticket: job.ticket, ...(events.length === 0 ? {} : { events }), terminal });
    this.#release(job);
  }

  #fail(job: Job, fault: Fault): void {
    this.#outputs.push({ ticket: job.ticket, fault: toWireFault(fault) });
    this.#release(job);
  }

  /** No row knows any more what its cache holds: all running ones fail, waiting ones may still succeed. */
  #failStep(fault: Fault): void {
    const { loaded, post } = this.#deps;
    this.#failedSteps += 1;
    const shown = new Fault("engine_failed", "the model could not compute a step", {
      reason: fault.reason ?? fault.code,
    });
    post({
      type: "log",
      level: "error",
      event: "engine_step_failed",
      fields: { fault: fault.code, reason: fault.reason },
    });
    for (const row of this.#scheduler.rows.slice()) this.#fail(row.job, shown);
    loaded.context.clear();
    if (this.#failedSteps >= FAILED_STEPS_MAX) throw shown;
  }

  #stats(): WorkerStats {
    let [activeTokens, tokensPotentialMax] = [0, 0];
    for (const { job, promptTokens } of this.#scheduler.rows) {
      activeTokens += promptTokens + (job.held?.generation.tokens ?? 0);
      tokensPotentialMax += promptTokens + (job.held?.tokensMax ?? 0);
    }
    return {
      rowsRunning: this.#scheduler.rows.length,
      requestsWaiting: this.#scheduler.waiting.length,
      activeTokens,
      tokensPotentialMax,
      decodeTps: this.#decodeTps,
      prefillTps: this.#prefillTps,
      stepsExecuted: this.#stepsExecuted,
      tokensGenerated: this.#tokensGenerated,
      requestsServed: this.#requestsServed,
    };
  }
}

const toTerminal = (
  submittedMs: number,
  held: Held,
  finishReason: CompletionTerminal["finishReason"],
): CompletionTerminal => ({
  finishReason,
  usage: held.generation.usage,
  timings: {
    queueMs: held.heldMs - submittedMs,
    prefillMs: held.firstTokenMs - held.heldMs,
    decodeMs: held.lastTokenMs - held.firstTokenMs,
  },
});

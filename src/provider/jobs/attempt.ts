/**
 * One attempt: parts arrive, the request is opened, parsed and admitted, the engine runs it, chunks and one terminal go back.
 *
 *   receiving ─all parts─► running ─terminal─► ended
 *       └────── cancel, deadline, fault ─────────┘   (`inference_error` is then the one terminal)
 */
import type { Clock, Timer } from "../../core/clock.ts";
import type { CompletionStream, CompletionTerminal, Usage } from "../../core/completion.ts";
import { Fault, toFault } from "../../core/fault.ts";
import { toWireError } from "../../core/fault-render.ts";
import { SOCKET_BUDGET_BYTES_MAX } from "../../core/limits.ts";
import { errorFields, type Log } from "../../core/log.ts";
import { Sealed } from "../../core/sealed.ts";
import { decodeCanonicalChat, type ChatRequest } from "../../dialects/chat/request.ts";
import type { GenerateRequest } from "../../engine/engine.ts";
import { openFrame, type Frame } from "../../protocol/frames.ts";
import type { CoordinatorMessage } from "../../protocol/messages.ts";
import { RequestAssembler } from "../../protocol/payloads.ts";
import type { AttemptCiphers, ProviderKeys } from "../../trust/seal.ts";
import { ChunkWriter, type FlushTurn } from "./chunk-writer.ts";
import type { Connection } from "../link/connection.ts";
import type { SlotLease, Slots } from "../slots.ts";
import { toGenerateRequest } from "./to-generate-request.ts";

export type InferenceRequest = Extract<CoordinatorMessage, { type: "inference_request" }>;

export interface AttemptDeps {
  readonly clock: Pick<Clock, "monotonicMs" | "after">;
  readonly log: Log;
  readonly keys: Pick<ProviderKeys, "open">;
  readonly slots: Pick<Slots, "acquire">;
  readonly turn: FlushTurn;
  /** The provider takes no new work: checked when an attempt arrives and again right before it runs. */
  readonly isDraining: () => boolean;
}

export type AttemptOutcome = "done" | "failed" | "cancelled";

export interface AttemptEnd {
  readonly outcome: AttemptOutcome;
  readonly fault: Fault | null;
  readonly hadOutput: boolean;
  readonly completionTokens: number;
}

/** From the request's control message to its last part; 32 MiB over a slow line. */
const ASSEMBLY_MS = 60_000;
/** AEAD tag of each part. */
const TAG_BYTES = 16;
/** How long the prompt of a cancelled attempt may take to be counted for its usage. */
const USAGE_MS = 1_000;

export const drainingFault = (): Fault =>
  new Fault("draining", "the provider is draining", { reason: "draining", status: 503 });

export class Attempt {
  readonly connection: Connection;
  readonly #deps: AttemptDeps;
  readonly #message: InferenceRequest;
  readonly #onEnd: (end: AttemptEnd) => void;
  readonly #abort = new AbortController();
  readonly #frames: Frame[] = [];
  #framesBytes = 0;
  readonly #startedMs: number;
  #phase: "receiving" | "running" | "ended" = "receiving";
  #timer: Timer;
  /** Why it was aborted; wins over the engine's `cancelled`. */
  #abortFault: Fault | null = null;
  #writer: ChunkWriter | null = null;
  /** Outputs that carried something visible: the floor of what was generated. */
  #steps = 0;

  constructor(deps: AttemptDeps, connection: Connection, message: InferenceRequest, onEnd: (end: AttemptEnd) => void) {
    this.#deps = deps;
    this.connection = connection;
    this.#message = message;
    this.#onEnd = onEnd;
    const waitMs = Math.min(ASSEMBLY_MS, message.first_content_budget_ms);
    this.#timer = deps.clock.after(waitMs, () => this.abort(lateFault()));
    this.#startedMs = deps.clock.monotonicMs();
  }

  get id(): string {
    return this.#message.request_id;
  }

  /** Plaintext bytes it may still make us hold. */
  get declaredBytes(): number {
    return this.#phase === "receiving" ? this.#message.bytes : 0;
  }

  /** One part of the request; the last one starts the run. Returns false for a frame that does not belong here. */
  add(frame: Frame): boolean {
    if (this.#phase !== "receiving") return false;
    this.#framesBytes += frame.sealed.length;
    if (this.#framesBytes > this.#message.bytes + this.#message.parts * TAG_BYTES) {
      this.abort(new Fault("encryption_failed", "more request bytes than declared"));
      return true;
    }
    this.#frames.push(frame);
    if (this.#frames.length === this.#message.parts) void this.#run();
    return true;
  }

  /** Ends it with this fault: at once while parts arrive, within one decode step while it runs. Idempotent. */
  abort(fault: Fault): void {
    if (this.#phase === "ended" || this.#abortFault !== null) return;
    this.#abortFault = fault;
    this.#abort.abort(fault);
    if (this.#phase === "receiving") this.#fail(fault, undefined);
  }

  /** Never rejects: every failure becomes the attempt's terminal. */
  async #run(): Promise<void> {
    this.#phase = "running";
    this.#armAcceptance();
    let ciphers: AttemptCiphers | null = null;
    let lease: SlotLease | null = null;
    let request: GenerateRequest | null = null;
    try {
      const { request_id: attemptId, enc, model } = this.#message;
      ciphers = await this.#deps.keys.open({ enc, attemptId, modelBuild: model });
      const opened = this.#openRequest(ciphers);
      lease = this.#deps.slots.acquire(model);
      if (this.#deps.isDraining()) throw drainingFault();
      request = toGenerateRequest(attemptId, opened.open(), { tokensMax: this.#message.max_tokens });
      this.#writer = this.#openWriter(ciphers);
      await this.#pump(lease.engine.generate(request, this.#abort.signal), this.#writer);
    } catch (error) {
      const fault = this.#abortFault ?? toFault(error);
      if (fault.code === "internal") this.#deps.log.error("attempt_broke", { attempt: this.id, ...errorFields(error) });
      const usage = lease !== null && request !== null ? await this.#partialUsage(lease, request) : undefined;
      this.#fail(fault, usage);
    } finally {
      lease?.[Symbol.dispose]();
      ciphers?.wipe();
    }
  }

  /** Opens and parses; the plaintext bytes are overwritten before anything else happens. */
  #openRequest(ciphers: AttemptCiphers): Sealed<ChatRequest> {
    const assembler = new RequestAssembler(this.#message);
    const parts: Uint8Array[] = [];
    try {
      for (const frame of this.#frames.splice(0)) {
        const part = openFrame(ciphers.request, frame);
        parts.push(part);
        assembler.add(part);
      }
      const body = assembler.body();
      parts.push(body);
      return new Sealed(decodeCanonicalChat(body));
    } finally {
      for (const part of parts) part.fill(0);
    }
  }

  #openWriter(ciphers: AttemptCiphers): ChunkWriter {
    return new ChunkWriter({
      clock: this.#deps.clock,
      turn: this.#deps.turn,
      cipher: ciphers.response,
      attemptId: this.id,
      send: (frame) => {
        if (this.connection.bufferedBytes > SOCKET_BUDGET_BYTES_MAX)
          throw new Fault("consumer_too_slow", "the coordinator reads too slowly", { reason: "cancelled" });
        this.connection.sendFrame(frame);
      },
      onFault: (thrown) => {
        const fault =
          thrown instanceof Fault ? thrown : new Fault("encryption_failed", "cannot seal", { cause: thrown });
        this.abort(fault);
      },
    });
  }

  async #pump(stream: CompletionStream, writer: ChunkWriter): Promise<void> {
    for await (const output of stream) {
      if (this.#abortFault !== null) throw this.#abortFault;
      if (output.type === "accepted") {
        // From the lease on only the coordinator's silence limit counts: a long prompt may take longer than the budget.
        this.#timer.cancel();
        this.connection.sendControl({ type: "inference_accepted", request_id: this.id });
      } else if (output.type === "events") {
        this.#steps += 1;
        writer.push(output.events);
      } else {
        if (!writer.finish(output.terminal)) throw this.#abortFault ?? new Fault("encryption_failed", "cannot seal");
        this.#done(output.terminal);
        return;
      }
    }
    throw new Fault("engine_failed", "the engine ended a request without its terminal");
  }

  #armAcceptance(): void {
    this.#timer.cancel();
    const leftMs = this.#message.first_content_budget_ms - (this.#deps.clock.monotonicMs() - this.#startedMs);
    this.#timer = this.#deps.clock.after(leftMs, () => this.abort(lateFault()));
  }

  /** What was generated before a failure, when anything was. Tokens are counted by visible outputs: a floor. */
  async #partialUsage(lease: SlotLease, request: GenerateRequest): Promise<Usage | undefined> {
    if (this.#steps === 0 || !this.connection.isOpen) return undefined;
    const promptTokens = await this.#within(lease.engine.countPromptTokens(request));
    return { promptTokens, completionTokens: this.#steps, reasoningTokens: 0, cachedTokens: 0 };
  }

  /** 0 when the engine cannot tell in time, such as after its crash. */
  #within(count: Promise<number>): Promise<number> {
    return new Promise((resolve) => {
      const timer = this.#deps.clock.after(USAGE_MS, () => resolve(0));
      count.then(resolve, () => resolve(0)).finally(() => timer.cancel());
    });
  }

  #done(terminal: CompletionTerminal): void {
    this.#end({
      outcome: "done",
      fault: null,
      hadOutput: this.#steps > 0,
      completionTokens: terminal.usage.completionTokens,
    });
  }

  #fail(fault: Fault, usage: Usage | undefined): void {
    if (this.#phase === "ended") return;
    this.#writer?.flush();
    this.#writer?.close();
    this.connection.sendControl({
      type: "inference_error",
      request_id: this.id,
      ...toWireError(fault),
      ...(usage === undefined ? {} : { usage: toWireUsage(usage) }),
      ...(fault.retryAfterMs === undefined ? {} : { feasible_after_ms: Math.ceil(fault.retryAfterMs) }),
    });
    this.#end({
      outcome: fault.status === 499 ? "cancelled" : "failed",
      fault,
      hadOutput: this.#steps > 0,
      completionTokens: this.#steps,
    });
  }

  #end(end: AttemptEnd): void {
    if (this.#phase === "ended") return;
    this.#phase = "ended";
    this.#timer.cancel();
    this.#frames.length = 0;
    this.#onEnd(end);
  }
}

const lateFault = (): Fault =>
  new Fault("capacity", "no first content within the time allowed", { reason: "deadline_unreachable" });

const toWireUsage = (usage: Usage) => ({
  prompt_tokens: usage.promptTokens,
  completion_tokens: usage.completionTokens,
  reasoning_tokens: usage.reasoningTokens,
  cached_tokens: usage.cachedTokens,
});

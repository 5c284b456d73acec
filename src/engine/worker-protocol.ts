/** What crosses between the main thread and an engine's worker. */
import type { NativeLocation } from "../../ffi/location.ts";
import type { CompletionEvent, CompletionTerminal } from "../core/completion.ts";
import { Fault, type FaultCode } from "../core/fault.ts";
import type { LogFields, LogLevel } from "../core/log.ts";
import type { EngineModel, EngineStats, GenerateRequest } from "./engine.ts";

/** Context per row when nobody asks for another; less when the model was trained for less. */
const CONTEXT_TOKENS_DEFAULT = 8192;

/** Tokens per request when none are asked for: what the model was trained for (0 = unknown), up to the default. */
export const defaultContextTokens = (trainedTokens: number): number =>
  trainedTokens > 0 ? Math.min(trainedTokens, CONTEXT_TOKENS_DEFAULT) : CONTEXT_TOKENS_DEFAULT;

export interface OpenSpec {
  readonly location: NativeLocation;
  readonly modelPath: string;
  readonly id: string;
  /** Tokens per row; null = what the model was trained for, 8192 at most. */
  readonly contextTokens: number | null;
  readonly rows: number;
  readonly threads: number;
  /** null = all. */
  readonly gpuLayers: number | null;
}

/** A ticket names one request between the two threads. */
export type ToWorker =
  | { readonly type: "open"; readonly spec: OpenSpec }
  | { readonly type: "submit"; readonly ticket: number; readonly request: GenerateRequest }
  | { readonly type: "count"; readonly ticket: number; readonly request: PromptRequest }
  | { readonly type: "cancel"; readonly ticket: number }
  | { readonly type: "close" };

export type PromptRequest = Pick<GenerateRequest, "messages" | "tools" | "toolChoice">;

/** A Fault as data; its cause stays in the worker. */
export interface WireFault {
  readonly code: FaultCode;
  readonly message: string;
  readonly hint?: string;
  readonly param?: string;
  readonly reason?: string;
  readonly retryAfterMs?: number;
}

/** What one request got in one step. */
export interface TicketOutput {
  readonly ticket: number;
  readonly accepted?: true;
  readonly events?: readonly CompletionEvent[];
  readonly terminal?: CompletionTerminal;
  readonly fault?: WireFault;
}

export type WorkerStats = Omit<EngineStats, "msSinceLastStep">;

/**
 * Sent as JSON text: one string crosses threads in a third of the time of the same objects. `ready` alone goes as it is, for
 * its shared memory.
 */
export type FromWorker =
  | { readonly type: "progress"; readonly fraction: number }
  | { readonly type: "step"; readonly outputs: readonly TicketOutput[]; readonly stats: WorkerStats }
  | { readonly type: "counted"; readonly ticket: number; readonly tokens: number | WireFault }
  | { readonly type: "log"; readonly level: LogLevel; readonly event: string; readonly fields: LogFields }
  /** The engine cannot go on; while opening, why it could not open. */
  | { readonly type: "failed"; readonly fault: WireFault }
  | { readonly type: "closed" };

export interface ReadyMessage {
  readonly type: "ready";
  readonly model: EngineModel;
  /** Shared word that ends a running step when set to 1. */
  readonly abortFlag: Int32Array;
}

/** Drops what is undefined, so that the data equals what arrives. */
export const toWireFault = (fault: Fault): WireFault => ({
  code: fault.code,
  message: fault.message,
  ...(fault.hint === undefined ? {} : { hint: fault.hint }),
  ...(fault.param === undefined ? {} : { param: fault.param }),
  ...(fault.reason === undefined ? {} : { reason: fault.reason }),
  ...(fault.retryAfterMs === undefined ? {} : { retryAfterMs: fault.retryAfterMs }),
});

export const fromWireFault = ({ code, message, ...options }: WireFault): Fault => new Fault(code, message, options);

/** The only way to run a model: what every engine, real or fake, offers. */
import type { CompletionStream } from "../core/completion.ts";

/** Any JSON value; messages and tools stay in OpenAI's shape because the model's own template reads that shape. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

export interface SamplingOptions {
  /** Absent = the model file's own recommendation, else 1. 0 = greedy. */
  readonly temperature?: number;
  readonly topP?: number;
  readonly topK?: number;
  readonly minP?: number;
  /** Absent = random. The same seed, model and request alone in the batch give the same tokens. */
  readonly seed?: number;
}

export interface GenerateRequest {
  /** Attempt or job id, for stats and logs. */
  readonly id: string;
  readonly messages: readonly Json[];
  readonly tools?: readonly Json[];
  /** Absent = `auto` when tools are present. */
  readonly toolChoice?: "auto" | "none";
  readonly sampling: SamplingOptions;
  /** Up to 16 texts that end the answer; they are not part of it. */
  readonly stop: readonly string[];
  /** Absent = min(8192, context − prompt). */
  readonly tokensMax?: number;
  /** Generate to the bound even past an end-of-turn token. */
  readonly ignoreEos?: boolean;
}

/** What is known about a loaded model. */
export interface EngineModel {
  readonly id: string;
  /** Tokens one request may use, prompt and answer together. */
  readonly contextTokens: number;
  /** Requests that decode side by side. */
  readonly rows: number;
  readonly sizeBytes: number;
  /** e.g. `Q8_0`; null when the file does not say. */
  readonly quantization: string | null;
  readonly architecture: string;
  readonly parameters: number | null;
  /** The template rendered a plain, a multi-turn and a tool request at load. */
  readonly templateRenderOk: boolean;
  readonly toolsSupported: boolean;
}

/** A snapshot for heartbeats and health; the capacity fields of protocol-trust §2.3. */
export interface EngineStats {
  readonly rowsRunning: number;
  readonly requestsWaiting: number;
  /** Prompt and answer tokens of all running rows. */
  readonly activeTokens: number;
  /** Most tokens the running rows may still come to. */
  readonly tokensPotentialMax: number;
  /** Moving averages; null before the first measurement. */
  readonly decodeTps: number | null;
  readonly prefillTps: number | null;
  readonly stepsExecuted: number;
  readonly tokensGenerated: number;
  readonly requestsServed: number;
  readonly msSinceLastStep: number | null;
}

export interface Engine extends AsyncDisposable {
  readonly model: EngineModel;
  /**
   * Runs one request. Throws from the iterator: `queue_full`, `bad_request` (prompt exceeds the context; reason
   * `request_exceeds_context`), `template_failed`, `engine_failed`, and `cancelled` once the signal aborts.
   * Leaving the iteration early cancels the row within one decode step.
   */
  generate(request: GenerateRequest, signal: AbortSignal): CompletionStream;
  /** Tokens of the rendered prompt, without running it. */
  countPromptTokens(request: Pick<GenerateRequest, "messages" | "tools" | "toolChoice">): Promise<number>;
  stats(): EngineStats;
  /** Resolves when the engine can run no more (crash, wedge, close); with the fault that ended it, or null after a close. */
  readonly ended: Promise<Error | null>;
  /** Ends running requests with `cancelled`, frees the model; resolves within 5 s. */
  [Symbol.asyncDispose](): Promise<void>;
}

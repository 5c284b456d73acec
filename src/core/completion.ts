/** What a running completion yields, from the engine's step loop to the HTTP response: one vocabulary along the whole road. */

export interface TextEvent {
  readonly type: "text";
  readonly text: string;
}
export interface ReasoningEvent {
  readonly type: "reasoning";
  readonly text: string;
}
/** A fragment of a tool call; `id` and `name` come with the first fragment of an index, `arguments` pieces concatenate to JSON. */
export interface ToolCallEvent {
  readonly type: "tool_call";
  readonly index: number;
  readonly id?: string;
  readonly name?: string;
  readonly arguments?: string;
}
export type CompletionEvent = TextEvent | ReasoningEvent | ToolCallEvent;

export const FINISH_REASONS = ["stop", "length", "tool_calls"] as const;
export type FinishReason = (typeof FINISH_REASONS)[number];

/** Token counts as the engine saw them. */
export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly reasoningTokens: number;
  readonly cachedTokens: number;
}

/** Durations measured where the work happened, in milliseconds with fractions. */
export interface Timings {
  /** From submission to the row being held. */
  readonly queueMs: number;
  /** From the row being held to the first generated token. */
  readonly prefillMs: number;
  /** From the first generated token to the last. */
  readonly decodeMs: number;
}

export interface CompletionTerminal {
  readonly finishReason: FinishReason;
  readonly usage: Usage;
  readonly timings: Timings;
}

/**
 * One item of a completion. Order: `accepted` once (a row is held), `events` any number of times, `terminal` once and last.
 * A failure is a thrown Fault instead of a terminal; an abort of the request's signal throws `Fault("cancelled")`.
 */
export type CompletionOutput =
  | { readonly type: "accepted" }
  | { readonly type: "events"; readonly events: readonly CompletionEvent[] }
  | { readonly type: "terminal"; readonly terminal: CompletionTerminal };

export type CompletionStream = AsyncIterable<CompletionOutput>;

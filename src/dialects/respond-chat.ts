/**
 * Answers a chat request over HTTP with a deferred commit: status and headers wait for first content, so that a failure before it
 * is an honest HTTP error and a retry elsewhere stays possible. Used alike by the coordinator and by a provider's local endpoint.
 */
import type { Clock, Timer } from "../core/clock.ts";
import type { CompletionStream, CompletionTerminal } from "../core/completion.ts";
import { jsonResponse } from "../core/http.ts";
import { HELD_CHUNKS_MAX } from "../core/limits.ts";
import {
  createChatCollector,
  createChatStream,
  isVisible,
  renderStreamError,
  type ChatIdentity,
} from "./chat/render.ts";
import type { ChatRequest } from "./chat/request.ts";
import { endedEarly, Outputs, type RespondEnd, untilGone } from "./outputs.ts";
import { type Opening, StreamBody } from "./stream-body.ts";

export type { RespondEnd } from "./outputs.ts";

export interface RespondOptions {
  readonly clock: Clock;
  readonly request: ChatRequest;
  readonly jobId: string;
  readonly outputs: CompletionStream;
  /** An accepted stream silent for this long commits 200 and sends comments from then on; 0 = never. */
  readonly keepAliveMs: number;
  /** Evaluated at commit, because what they tell is known only then. */
  readonly headers: () => Record<string, string>;
  /** Aborts when the consumer is gone. */
  readonly signal: AbortSignal;
  /** Called exactly once, whatever happens. */
  readonly onEnd?: (end: RespondEnd) => void;
}

const respondWhole = async (options: RespondOptions, outputs: Outputs, identity: ChatIdentity): Promise<Response> => {
  const collector = createChatCollector(identity);
  const { gone, stop } = untilGone(options.signal);
  const collect = async (): Promise<CompletionTerminal> => {
    for (;;) {
      const { done, value } = await outputs.next();
      if (done === true || outputs.ended) throw endedEarly();
      if (value.type === "events") collector.add(value.events);
      else if (value.type === "terminal") return value.terminal;
    }
  };
  try {
    const terminal = await Promise.race([collect(), gone]);
    const response = jsonResponse(collector.finish(terminal), { headers: options.headers() });
    outputs.end({ fault: null, terminal });
    return response;
  } finally {
    stop();
  }
};

const SILENT = Symbol("silent");

/** Waits for first content, a terminal, or too long a silence of an accepted attempt. Throws what ends the attempt before that. */
const waitForOpening = async (options: RespondOptions, outputs: Outputs): Promise<Opening> => {
  const { gone, stop } = untilGone(options.signal);
  const { promise: silence, resolve } = Promise.withResolvers<typeof SILENT>();
  let timer: Timer | null = null;
  let held = 0;
  try {
    for (;;) {
      const pending = outputs.next();
      const step = await Promise.race([pending, silence, gone]);
      if (step === SILENT) return { events: [], terminal: null, pending };
      if (step.done === true) throw endedEarly();
      const { value } = step;
      if (value.type === "terminal") return { events: [], terminal: value.terminal, pending: null };
      if (value.type === "accepted") {
        if (options.keepAliveMs > 0) timer ??= options.clock.after(options.keepAliveMs, () => resolve(SILENT));
        continue;
      }
      held += 1;
      if (held > HELD_CHUNKS_MAX || value.events.some(isVisible))
        return { events: value.events, terminal: null, pending: null };
    }
  } finally {
    stop();
    timer?.cancel();
  }
};

const STREAM_HEADERS = {
  "content-type": "text/event-stream; charset=utf-8",
  "cache-control": "no-cache",
  "x-accel-buffering": "no",
};

const respondStream = async (options: RespondOptions, outputs: Outputs, identity: ChatIdentity): Promise<Response> => {
  const opening = await waitForOpening(options, outputs);
  const includeUsage = options.request.stream_options?.include_usage ?? false;
  const render = { ...createChatStream(identity, { includeUsage }), error: renderStreamError };
  const headers = { ...options.headers(), ...STREAM_HEADERS };
  const { clock, signal, keepAliveMs } = options;
  const body = new StreamBody({ clock, signal, keepAliveMs, render, opening }, outputs);
  return new Response(new ReadableStream(body), { headers });
};

/**
 * Resolves at commit: with the whole JSON answer, or for a stream at its first content. Rejects with a Fault while nothing has
 * been sent; afterwards a Fault becomes one SSE error event and the stream ends without `[DONE]`.
 */
export const respondChat = async (options: RespondOptions): Promise<Response> => {
  const outputs = new Outputs(options.outputs, options.onEnd);
  const identity: ChatIdentity = {
    id: `chatcmpl-${options.jobId}`,
    model: options.request.model,
    createdSec: Math.floor(options.clock.nowMs() / 1000),
  };
  try {
    return await (options.request.stream ? respondStream : respondWhole)(options, outputs, identity);
  } catch (thrown) {
    throw outputs.fail(thrown);
  }
};

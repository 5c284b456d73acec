/** What data frames hold once opened: the parts of a request, events of a completion, its terminal. */
import { z } from "zod";
import { FINISH_REASONS, type CompletionEvent, type CompletionTerminal } from "../core/completion.ts";
import { clampedField, countField } from "../core/fields.ts";
import { assert, Fault } from "../core/fault.ts";
import { FRAME_EVENTS_MAX, REQUEST_BYTES_MAX, REQUEST_PART_BYTES_MAX } from "../core/limits.ts";
import { MIB } from "../core/units.ts";
import { usageField } from "./_fields.ts";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

const TEXT_CHARS_MAX = 8 * MIB;
const DURATION_MS_MAX = 1e10;

const text = z.string().max(TEXT_CHARS_MAX);
const name = z.string().max(1024);

const eventsSchema = z
  .array(
    z.discriminatedUnion("type", [
      z.object({ type: z.literal("text"), text }),
      z.object({ type: z.literal("reasoning"), text }),
      z.object({
        type: z.literal("tool_call"),
        index: z.number().int().min(0).max(1023),
        id: z.exactOptional(name),
        name: z.exactOptional(name),
        arguments: z.exactOptional(text),
      }),
    ]),
  )
  .max(FRAME_EVENTS_MAX);

const terminalSchema = z.object({
  finish_reason: z.enum(FINISH_REASONS),
  usage: usageField,
  chunks: countField,
  timings: z.object({
    queue_ms: clampedField(DURATION_MS_MAX),
    prefill_ms: clampedField(DURATION_MS_MAX),
    decode_ms: clampedField(DURATION_MS_MAX),
  }),
});

/** `chunks` is the number of chunk frames before it, hence also its own sequence. */
export type WireTerminal = CompletionTerminal & { readonly chunks: number };

/** The plaintext is completion text: no part of it may reach the Fault. */
const parseJson = (bytes: Uint8Array, what: string): unknown => {
  try {
    return JSON.parse(decoder.decode(bytes));
  } catch {
    throw new Fault("protocol_error", `malformed ${what}: not JSON`);
  }
};

const check = <T>(schema: z.ZodType<T>, value: unknown, what: string): T => {
  const result = schema.safeParse(value);
  if (!result.success) throw new Fault("protocol_error", `malformed ${what}`);
  return result.data;
};

export const encodeEvents = (events: readonly CompletionEvent[]): Uint8Array => {
  assert(events.length <= FRAME_EVENTS_MAX, "a frame holds at most FRAME_EVENTS_MAX events");
  return encoder.encode(JSON.stringify(events));
};

/** What nearly every frame holds, one event with text, without the schema's cost; null leaves it to the schema. */
const onlyTextEvent = (value: unknown): CompletionEvent | null => {
  if (!Array.isArray(value) || value.length !== 1) return null;
  const { type, text } = (value[0] ?? {}) as { readonly type?: unknown; readonly text?: unknown };
  const fits = (type === "text" || type === "reasoning") && typeof text === "string" && text.length <= TEXT_CHARS_MAX;
  return fits ? { type, text } : null;
};

/** Throws `protocol_error`. */
export const decodeEvents = (bytes: Uint8Array): CompletionEvent[] => {
  const value = parseJson(bytes, "events");
  const only = onlyTextEvent(value);
  return only === null ? check(eventsSchema, value, "events") : [only];
};

export const encodeTerminal = (terminal: WireTerminal): Uint8Array =>
  encoder.encode(
    JSON.stringify({
      finish_reason: terminal.finishReason,
      usage: {
        prompt_tokens: terminal.usage.promptTokens,
        completion_tokens: terminal.usage.completionTokens,
        reasoning_tokens: terminal.usage.reasoningTokens,
        cached_tokens: terminal.usage.cachedTokens,
      },
      chunks: terminal.chunks,
      timings: {
        queue_ms: terminal.timings.queueMs,
        prefill_ms: terminal.timings.prefillMs,
        decode_ms: terminal.timings.decodeMs,
      },
    } satisfies z.infer<typeof terminalSchema>),
  );

/** Throws `protocol_error`. The caller compares `chunks` with what it received. */
export const decodeTerminal = (bytes: Uint8Array): WireTerminal => {
  const wire = check(terminalSchema, parseJson(bytes, "terminal"), "terminal");
  return {
    finishReason: wire.finish_reason,
    usage: {
      promptTokens: wire.usage.prompt_tokens,
      completionTokens: wire.usage.completion_tokens,
      reasoningTokens: wire.usage.reasoning_tokens,
      cachedTokens: wire.usage.cached_tokens,
    },
    chunks: wire.chunks,
    timings: {
      queueMs: wire.timings.queue_ms,
      prefillMs: wire.timings.prefill_ms,
      decodeMs: wire.timings.decode_ms,
    },
  };
};

/** Views of at most REQUEST_PART_BYTES_MAX each; their number is `inference_request.parts`. */
export const splitRequest = (body: Uint8Array): Uint8Array[] => {
  assert(body.length > 0 && body.length <= REQUEST_BYTES_MAX, "a request has 1 to REQUEST_BYTES_MAX bytes");
  const parts: Uint8Array[] = [];
  for (let offset = 0; offset < body.length; offset += REQUEST_PART_BYTES_MAX)
    parts.push(body.subarray(offset, offset + REQUEST_PART_BYTES_MAX));
  return parts;
};

/** Joins the opened parts of one request again; holds no more than `inference_request` declared. */
export class RequestAssembler {
  readonly #declared: { readonly bytes: number; readonly parts: number };
  readonly #parts: Uint8Array[] = [];
  #bytes = 0;

  constructor(declared: { readonly bytes: number; readonly parts: number }) {
    assert(declared.bytes <= REQUEST_BYTES_MAX, "the declaration is schema-checked");
    this.#declared = { bytes: declared.bytes, parts: declared.parts };
  }

  get done(): boolean {
    return this.#parts.length === this.#declared.parts;
  }

  /** Throws `protocol_error` for more or less than was declared. Keeps the array: it must not change afterwards. */
  add(part: Uint8Array): void {
    const bytes = this.#bytes + part.length;
    const last = this.#parts.length + 1 === this.#declared.parts;
    const fits = part.length > 0 && part.length <= REQUEST_PART_BYTES_MAX && !this.done;
    if (!fits || bytes > this.#declared.bytes || (last && bytes !== this.#declared.bytes))
      throw new Fault("protocol_error", "request parts do not match their declaration");
    this.#parts.push(part);
    this.#bytes = bytes;
  }

  /** The whole canonical request, once `done`. */
  body(): Uint8Array {
    assert(this.done, "the request is complete");
    const [only] = this.#parts;
    if (this.#parts.length === 1 && only !== undefined) return only;
    const body = new Uint8Array(this.#bytes);
    let offset = 0;
    for (const part of this.#parts) {
      body.set(part, offset);
      offset += part.length;
    }
    return body;
  }
}

/** A small streaming client of the public API: what the demo uses to be a consumer like any other. */
import { z } from "zod";
import { Fault } from "../src/core/fault.ts";

const chunkSchema = z.object({
  choices: z.array(z.object({ delta: z.object({ content: z.string().nullish() }) })).optional(),
  usage: z.object({ prompt_tokens: z.number(), completion_tokens: z.number() }).nullish(),
  error: z.object({ message: z.string() }).optional(),
});

export interface ChatAnswer {
  readonly text: string;
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly ttftMs: number;
  /** From the first text to the last. */
  readonly decodeMs: number;
  readonly headers: Headers;
}

export interface ChatQuestion {
  /** Without `/v1`. */
  readonly url: string;
  readonly key: string;
  readonly model: string;
  readonly content: string;
  readonly nowMs: () => number;
  readonly onText: (text: string) => void;
  readonly signal: AbortSignal;
}

/** The payloads of an SSE body; ends at `[DONE]` or with the body. */
async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let partial = "";
  for await (const bytes of body) {
    const lines = (partial + decoder.decode(bytes, { stream: true })).split("\n");
    partial = lines.pop() ?? "";
    for (const line of lines) if (line.startsWith("data: ") && line !== "data: [DONE]") yield line.slice(6);
  }
}

const post = (question: ChatQuestion): Promise<Response> =>
  fetch(`${question.url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${question.key}`, "content-type": "application/json" },
    body: JSON.stringify({
      model: question.model,
      messages: [{ role: "user", content: question.content }],
      stream: true,
      stream_options: { include_usage: true },
      temperature: 0,
    }),
    signal: question.signal,
  });

/** Throws `provider_failed` when the API refuses or the stream ends with an error. */
export const askChat = async (question: ChatQuestion): Promise<ChatAnswer> => {
  const startedMs = question.nowMs();
  const response = await post(question);
  if (!response.ok || response.body === null)
    throw new Fault("provider_failed", `the API answered ${response.status}`, { hint: "see the log lines above" });
  let text = "";
  let firstMs = Number.NaN;
  let lastMs = startedMs;
  let usage = { prompt_tokens: 0, completion_tokens: 0 };
  for await (const payload of readEvents(response.body)) {
    const chunk = chunkSchema.parse(JSON.parse(payload));
    if (chunk.error !== undefined) throw new Fault("provider_failed", `the stream ended with: ${chunk.error.message}`);
    const piece = chunk.choices?.[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
    if (piece === "") continue;
    lastMs = question.nowMs();
    if (Number.isNaN(firstMs)) firstMs = lastMs;
    text += piece;
    question.onText(piece);
  }
  return {
    text,
    promptTokens: usage.prompt_tokens,
    completionTokens: usage.completion_tokens,
    ttftMs: firstMs - startedMs,
    decodeMs: lastMs - firstMs,
    headers: response.headers,
  };
};

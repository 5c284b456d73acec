/** A minimal streaming chat client for benches and flow tests that must see raw chunks and times. */

export interface StreamResult {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  /** Every `data:` payload that is JSON, in order. */
  readonly chunks: readonly ChatChunk[];
  readonly done: boolean;
  readonly completionTokens: number;
  /** From sending the request to the first chunk with text. */
  readonly ttftMs: number;
  readonly tookMs: number;
}

export interface ChatChunk {
  readonly id?: string;
  readonly model?: string;
  readonly choices?: readonly {
    readonly delta: { readonly content?: string | null; readonly role?: string };
    readonly finish_reason: string | null;
  }[];
  readonly usage?: { readonly prompt_tokens: number; readonly completion_tokens: number } | null;
  readonly error?: { readonly type: string; readonly message: string };
}

export interface StreamRequest {
  readonly baseUrl: string;
  readonly key: string;
  readonly body: Readonly<Record<string, unknown>>;
  readonly signal?: AbortSignal;
  /** Called for every chunk as it comes. */
  readonly onChunk?: (chunk: ChatChunk) => void;
}

/** Sends a streamed chat and reads it to its end; an HTTP error gives its status and no chunks. */
export const streamChat = async (request: StreamRequest): Promise<StreamResult> => {
  const { baseUrl, key, body, signal, onChunk } = request;
  const startedMs = performance.now();
  const response = await fetch(`${baseUrl}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
    body: JSON.stringify({ stream: true, stream_options: { include_usage: true }, ...body }),
    ...(signal === undefined ? {} : { signal }),
  });
  const chunks: ChatChunk[] = [];
  let text = "";
  let done = false;
  let ttftMs = Number.NaN;
  let partial = "";
  const decoder = new TextDecoder();
  const take = (line: string): void => {
    if (!line.startsWith("data: ")) return;
    if (line === "data: [DONE]") {
      done = true;
      return;
    }
    const chunk = JSON.parse(line.slice(6)) as ChatChunk;
    chunks.push(chunk);
    onChunk?.(chunk);
    const content = chunk.choices?.[0]?.delta.content ?? "";
    if (content !== "" && Number.isNaN(ttftMs)) ttftMs = performance.now() - startedMs;
    text += content;
  };
  if (response.ok && response.body !== null)
    for await (const bytes of response.body) {
      const lines = (partial + decoder.decode(bytes, { stream: true })).split("\n");
      partial = lines.pop() ?? "";
      for (const line of lines) take(line);
    }
  else await response.body?.cancel();
  const completionTokens = chunks.findLast((chunk) => chunk.usage)?.usage?.completion_tokens ?? 0;
  const tookMs = performance.now() - startedMs;
  return { status: response.status, headers: response.headers, text, chunks, done, completionTokens, ttftMs, tookMs };
};

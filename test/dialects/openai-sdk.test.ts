/** The official openai package, unmodified, against respondChat behind a real socket. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import OpenAI, { APIError, APIUserAbortError, BadRequestError, RateLimitError } from "openai";
import { type Clock, systemClock } from "../../src/core/clock.ts";
import { Fault, toFault } from "../../src/core/fault.ts";
import { faultResponse, readBody } from "../../src/core/http.ts";
import { decodeChatRequest } from "../../src/dialects/chat/request.ts";
import { respondChat, type RespondEnd } from "../../src/dialects/respond-chat.ts";
import {
  ACCEPTED,
  events,
  script,
  type ScriptLine,
  type ScriptStream,
  silence,
  terminal,
  text,
} from "../support/script-stream.ts";
import { waitFor } from "../support/wait.ts";

const endless = function* (): Generator<ScriptLine> {
  yield ACCEPTED;
  for (;;) {
    yield text("word ".repeat(100));
    yield new Promise((resolve) => setImmediate(resolve));
  }
};

const late = Promise.withResolvers<void>();

/** What each model name answers. */
const SCRIPTS: Readonly<Record<string, () => Iterable<ScriptLine>>> = {
  plain: () => [ACCEPTED, text("Hel"), text("lo 😀"), terminal()],
  tools: () => [
    ACCEPTED,
    events({ type: "reasoning", text: "let me see" }),
    events({ type: "tool_call", index: 0, id: "call_a", name: "weather" }),
    events(
      { type: "tool_call", index: 0, arguments: '{"city":' },
      { type: "tool_call", index: 0, arguments: '"Ulm"}' },
    ),
    events({ type: "tool_call", index: 1, id: "call_b", name: "time", arguments: "{}" }),
    terminal({ finishReason: "tool_calls" }),
  ],
  busy: () => [ACCEPTED, new Fault("queue_full", "all providers are busy", { retryAfterMs: 1_500 })],
  breaks: () => [ACCEPTED, text("Hel"), new Fault("provider_failed", "provider ended without completion")],
  hangs: () => [ACCEPTED, text("Hel"), silence()],
  silent: () => [ACCEPTED, silence()],
  late: () => [ACCEPTED, late.promise, text("at last"), terminal()],
  endless,
};

const ends = new Map<string, RespondEnd[]>();
const streams = new Map<string, ScriptStream>();
let ticks = 0;
/** Counts what keep-alive timers do. */
const clock: Clock = {
  ...systemClock(),
  every: (periodMs, callback) =>
    systemClock().every(periodMs, () => {
      ticks += 1;
      callback();
    }),
};
let server: ReturnType<typeof Bun.serve>;
let client: OpenAI;
let clientErrors = 0;

const answer = async (request: Request): Promise<Response> => {
  try {
    const chat = decodeChatRequest(await readBody(request, 1024 * 1024, request.signal));
    server.timeout(request, 0);
    const outputs = script(SCRIPTS[chat.model]?.() ?? []);
    streams.set(chat.model, outputs);
    return await respondChat({
      clock,
      request: chat,
      jobId: "job1",
      outputs,
      keepAliveMs: chat.model === "late" ? 5 : 0,
      headers: () => ({ "x-inference-job-id": "job1" }),
      signal: request.signal,
      onEnd: (end) => ends.set(chat.model, [...(ends.get(chat.model) ?? []), end]),
    });
  } catch (thrown) {
    return faultResponse(toFault(thrown));
  }
};

beforeAll(() => {
  server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: answer,
    error: () => {
      clientErrors += 1;
      return new Response(null, { status: 500 });
    },
  });
  client = new OpenAI({ apiKey: "sk-db-x", baseURL: `${server.url.href}v1`, maxRetries: 0 });
});
afterAll(() => server.stop(true));

const ask = (model: string) => ({ model, messages: [{ role: "user" as const, content: "hi" }] });

describe("official openai SDK", () => {
  test("whole answer", async () => {
    const completion = await client.chat.completions.create(ask("plain"));
    expect(completion.choices[0]?.message).toMatchObject({ role: "assistant", content: "Hello 😀", refusal: null });
    expect([completion.id, completion.model, completion.usage?.total_tokens]).toEqual(["chatcmpl-job1", "plain", 12]);
  });

  test("streamed answer with usage", async () => {
    const stream = await client.chat.completions.create({
      ...ask("plain"),
      stream: true,
      stream_options: { include_usage: true },
    });
    let [content, usages, last] = ["", 0, ""];
    for await (const chunk of stream) {
      content += chunk.choices[0]?.delta.content ?? "";
      last = chunk.choices[0]?.finish_reason ?? last;
      if (chunk.usage) usages += 1;
    }
    expect([content, usages, last]).toEqual(["Hello 😀", 1, "stop"]);
  });

  test("the SDK's own assembly of a stream equals the whole answer, tool calls included", async () => {
    const streamed = await client.chat.completions.stream(ask("tools")).finalChatCompletion();
    const whole = await client.chat.completions.create(ask("tools"));
    const callsOf = (completion: OpenAI.ChatCompletion): unknown =>
      completion.choices[0]?.message.tool_calls?.map((call) => call.type === "function" && [call.id, call.function]);
    expect(callsOf(whole)).toEqual([
      ["call_a", { name: "weather", arguments: '{"city":"Ulm"}' }],
      ["call_b", { name: "time", arguments: "{}" }],
    ]);
    expect(JSON.parse(JSON.stringify(callsOf(streamed)))).toMatchObject(callsOf(whole) as object);
    expect([whole, streamed].map(({ choices }) => choices[0]?.finish_reason)).toEqual(["tool_calls", "tool_calls"]);
  });

  test("an error before content has its status, type and Retry-After", async () => {
    const failure = await client.chat.completions
      .create({ ...ask("busy"), stream: true })
      .catch((thrown: unknown) => thrown);
    expect(failure).toBeInstanceOf(RateLimitError);
    const { status, type, headers } = failure as InstanceType<typeof RateLimitError>;
    expect([status, type, headers.get("retry-after")]).toEqual([429, "rate_limit_exceeded", "2"]);
  });

  test("a bad request names its field", async () => {
    const failure = await client.chat.completions.create({ ...ask("plain"), n: 2 }).catch((thrown: unknown) => thrown);
    expect(failure).toBeInstanceOf(BadRequestError);
    expect((failure as InstanceType<typeof BadRequestError>).param).toBe("n");
  });

  test("an error mid-stream is thrown after what came before it", async () => {
    const stream = await client.chat.completions.create({ ...ask("breaks"), stream: true });
    let content = "";
    const read = async (): Promise<void> => {
      for await (const chunk of stream) content += chunk.choices[0]?.delta.content ?? "";
    };
    const failure = await read().catch((thrown: unknown) => thrown);
    expect(failure).toBeInstanceOf(APIError);
    expect([content, (failure as InstanceType<typeof APIError>).type]).toEqual(["Hel", "provider_error"]);
  });

  test.each(["hangs", "endless"])("abort of a stream that %s reaches the completion", async (model) => {
    const stream = await client.chat.completions.create({ ...ask(model), stream: true });
    for await (const chunk of stream) if (chunk.choices[0]?.delta.content) stream.controller.abort();
    const [end] = await waitFor("the end of the completion", () => ends.get(model));
    expect([end?.fault?.code, ends.get(model)?.length]).toEqual(["cancelled", 1]);
  });

  test("abort while nothing has come yet", async () => {
    ends.delete("silent");
    const stop = new AbortController();
    const pending = client.chat.completions
      .create({ ...ask("silent") }, { signal: stop.signal })
      .catch((thrown: unknown) => thrown);
    await waitFor("the request to arrive", () => server.pendingRequests > 0);
    stop.abort();
    expect(await pending).toBeInstanceOf(APIUserAbortError);
    const [end] = await waitFor("the end of the completion", () => ends.get("silent"));
    expect(end?.fault?.code).toBe("cancelled");
  });

  test("keep-alive comments pass the SDK unseen", async () => {
    const stream = await client.chat.completions.create({ ...ask("late"), stream: true });
    await waitFor("some comments", () => ticks > 3);
    late.resolve();
    let content = "";
    for await (const chunk of stream) content += chunk.choices[0]?.delta.content ?? "";
    expect(content).toBe("at last");
  });

  test("a client that never reads stops the completion with bounded memory", async () => {
    ends.delete("endless");
    const startBytes = process.memoryUsage().rss;
    const body = JSON.stringify({ ...ask("endless"), stream: true });
    const socket = await Bun.connect({
      hostname: "127.0.0.1",
      port: server.port ?? 0,
      socket: {
        open(open) {
          open.write(
            `POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
          );
        },
        data(open) {
          open.pause();
        },
      },
    });
    let [pulls, still] = [0, 0];
    await waitFor("the reading upstream to stop", () => {
      const now = streams.get("endless")?.pulls ?? 0;
      still = now === pulls && now > 0 ? still + 1 : 0;
      pulls = now;
      return still > 50;
    });
    expect(process.memoryUsage().rss - startBytes).toBeLessThan(64 * 1024 * 1024);
    socket.terminate();
    const [end] = await waitFor("the end of the completion", () => ends.get("endless"));
    expect(end?.fault?.code).toBe("cancelled");
  });

  test("no error reached the server's last resort", () => {
    expect(clientErrors).toBe(0);
  });
});

/** The local endpoint as its clients see it: the official openai package, raw HTTP, and clients that misbehave. */
import { afterEach, describe, expect, test } from "bun:test";
import { connect, type Socket } from "node:net";
import OpenAI, { APIError } from "openai";
import { systemClock } from "../../src/core/clock.ts";
import { Fault } from "../../src/core/fault.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import { createFakeEngine, type FakeEngine, type FakeEngineOptions } from "../../src/engine/fake-engine.ts";
import { fakeText } from "../../src/engine/fake-plan.ts";
import { startLocalEndpoint, type LocalEndpoint } from "../../src/provider/local/local-endpoint.ts";
import { Slots } from "../../src/provider/slots.ts";
import { faultOf } from "../support/fault-of.ts";
import { memoryLog } from "../support/memory-log.ts";
import { createResponseValidator } from "../support/openapi-validate.ts";
import { sseData } from "../support/script-stream.ts";
import { waitFor } from "../support/wait.ts";

const KEY = `dk-local-${"k".repeat(43)}`;
const MODEL = "demo";

interface Local extends AsyncDisposable {
  readonly endpoint: LocalEndpoint;
  readonly engine: FakeEngine;
  readonly client: OpenAI;
  readonly lines: readonly string[];
  readonly request: (path: string, init?: RequestInit) => Promise<Response>;
}

const open: Local[] = [];
afterEach(async () => {
  await Promise.all(open.splice(0).map((local) => local[Symbol.asyncDispose]()));
});

const startLocal = async (options: FakeEngineOptions & { keepAliveMs?: number } = {}): Promise<Local> => {
  const clock = systemClock();
  const { log, lines } = memoryLog();
  const slots = new Slots({ clock, log, onChange: () => undefined, onEngineEnded: () => undefined });
  const engine = createFakeEngine({ ...options, model: { id: MODEL, ...options.model } });
  await slots.load(MODEL, () => Promise.resolve(engine));
  const endpoint = startLocalEndpoint(
    { clock, log, ids: createIds(systemRandom()), slots },
    { host: "127.0.0.1", port: 0, apiKey: KEY, version: "1.2.3", keepAliveMs: options.keepAliveMs ?? 0 },
  );
  const local: Local = {
    endpoint,
    engine,
    client: new OpenAI({ baseURL: `${endpoint.url}/v1`, apiKey: KEY, maxRetries: 0 }),
    lines,
    request: (path, init = {}) =>
      fetch(`${endpoint.url}${path}`, {
        ...init,
        headers: { authorization: `Bearer ${KEY}`, ...(init.headers as Record<string, string>) },
      }),
    async [Symbol.asyncDispose]() {
      await endpoint.stop({ graceMs: 0 });
      await slots[Symbol.asyncDispose]();
    },
  };
  open.push(local);
  return local;
};

const ask = (content: string) => ({ model: MODEL, messages: [{ role: "user" as const, content }] });
const post = (body: string | Uint8Array) => ({ method: "POST", body });
const errorOf = async (response: Response) => ((await response.json()) as { error: Record<string, unknown> }).error;

describe("the openai package", () => {
  test("answers without streaming", async () => {
    const { client, engine } = await startLocal();
    const answer = await client.chat.completions.create({ ...ask("hello there"), seed: 7, max_tokens: 12 });
    expect(answer.choices[0]?.message.content).toBe(fakeText(engine.requests[0]!, 12));
    expect(answer.choices[0]?.finish_reason).toBe("length");
    expect(answer.usage?.completion_tokens).toBe(12);
    expect(engine.requests[0]).toMatchObject({ tokensMax: 12, sampling: { seed: 7 } });
  });

  test("streams, with usage when asked", async () => {
    const { client, engine } = await startLocal();
    const stream = await client.chat.completions.create({
      ...ask("stream please"),
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let usage = 0;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage?.completion_tokens ?? usage;
    }
    expect(text).toBe(fakeText(engine.requests[0]!));
    expect(usage).toBe(24);
  });

  test("calls tools", async () => {
    const { client } = await startLocal();
    const answer = await client.chat.completions.create({
      ...ask("weather in Oslo"),
      tools: [
        {
          type: "function",
          function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
        },
      ],
    });
    const call = answer.choices[0]?.message.tool_calls?.[0];
    expect(answer.choices[0]?.finish_reason).toBe("tool_calls");
    expect(call?.type === "function" ? JSON.parse(call.function.arguments) : null).toEqual({ city: "weather in Oslo" });
  });

  test("an abort frees the row", async () => {
    const { client, engine, endpoint } = await startLocal({
      script: () => ({ events: [{ type: "text", text: "x " }], endless: true, delayBetweenMs: 1 }),
    });
    const stream = await client.chat.completions.create({ ...ask("forever"), stream: true, max_tokens: 1_000_000 });
    for await (const chunk of stream) if (chunk.choices[0]?.delta.content !== undefined) break;
    stream.controller.abort();
    await waitFor("the row to be freed", () => engine.stats().rowsRunning === 0 && endpoint.running === 0);
  });

  test("an abort before the first content frees the row, streaming or not", async () => {
    const { client, engine, endpoint } = await startLocal({ script: () => ({ events: [], delayFirstMs: 60_000 }) });
    for (const stream of [false, true]) {
      const stop = new AbortController();
      const answer = client.chat.completions.create({ ...ask("quiet"), stream }, { signal: stop.signal });
      answer.catch(() => undefined);
      await waitFor("the row", () => engine.stats().rowsRunning === 1);
      stop.abort();
      await waitFor("the row to be freed", () => engine.stats().rowsRunning === 0 && endpoint.running === 0);
    }
  });

  test("gets typed errors before the first content", async () => {
    const { client } = await startLocal();
    const thrown = await client.chat.completions
      .create({ ...ask("x"), model: "other" })
      .catch((error: unknown) => error);
    expect(thrown).toBeInstanceOf(APIError);
    expect(thrown).toMatchObject({ status: 404, code: "model_not_found", param: "model" });
  });

  test("gets one error event and no [DONE] after first content", async () => {
    const fault = new Fault("engine_failed", "the engine failed");
    const { request } = await startLocal({
      script: () => ({ events: [{ type: "text", text: "a" }], endless: true, failure: { afterTokens: 3, fault } }),
    });
    const response = await request("/v1/chat/completions", post(JSON.stringify({ ...ask("x"), stream: true })));
    const body = await response.text();
    expect(response.status).toBe(200);
    expect(body).toContain('data: {"error":{"type":"provider_error"');
    expect(body).not.toContain("[DONE]");
  });

  test("lists models", async () => {
    const { client } = await startLocal();
    expect((await client.models.list()).data.map(({ id }) => id)).toEqual([MODEL]);
    expect((await client.models.retrieve(MODEL)).id).toBe(MODEL);
  });
});

describe("answers", () => {
  test("validate against the document that is served", async () => {
    const { request } = await startLocal();
    const document: unknown = await (await request("/openapi.json")).json();
    const validator = createResponseValidator(document);
    for (const path of ["/v1/models", `/v1/models/${MODEL}`, "/health"]) {
      const response = await request(path);
      validator.json("GET", path, response.status, await response.json());
    }
    const answered = await request("/v1/chat/completions", post(JSON.stringify(ask("hello"))));
    validator.json("POST", "/v1/chat/completions", answered.status, await answered.json());
    const refused = await request("/v1/chat/completions", post("{}"));
    validator.json("POST", "/v1/chat/completions", refused.status, await refused.json());
    const streamed = await request("/v1/chat/completions", post(JSON.stringify({ ...ask("hello"), stream: true })));
    const chunks = sseData(await streamed.text()).filter((data) => data !== "[DONE]");
    expect(chunks.length).toBeGreaterThan(3);
    for (const chunk of chunks) validator.chunk(chunk);
  });

  test("open paths need no key, the others do", async () => {
    const { endpoint } = await startLocal();
    for (const path of ["/", "/health", "/v1/health"]) expect((await fetch(endpoint.url + path)).status).toBe(200);
    expect(await (await fetch(`${endpoint.url}/health`)).json()).toEqual({
      status: "ok",
      draining: false,
      providers: 1,
      version: "1.2.3",
    });
    for (const path of ["/v1/models", "/v1/models/demo", "/openapi.json"]) {
      const response = await fetch(endpoint.url + path);
      expect(response.status).toBe(401);
      expect(response.headers.get("access-control-allow-origin")).toBe("*");
      expect(await errorOf(response)).toEqual({
        type: "authentication_error",
        message: "missing credentials — use Authorization: Bearer <token>",
        code: "authentication_error",
        param: null,
      });
    }
    const wrong = await fetch(`${endpoint.url}/v1/models`, {
      headers: { authorization: `Bearer ${KEY.slice(0, -1)}x` },
    });
    expect(wrong.status).toBe(401);
  });

  test("a preflight is open to every origin", async () => {
    const { endpoint } = await startLocal();
    const response = await fetch(`${endpoint.url}/v1/chat/completions`, { method: "OPTIONS" });
    expect(response.status).toBe(204);
    expect(response.headers.get("access-control-allow-headers")).toContain("Authorization");
  });

  test("unknown endpoints are named", async () => {
    const { request } = await startLocal();
    const unknown = await request("/v1/embeddings", post("{}"));
    expect(unknown.status).toBe(404);
    expect(await errorOf(unknown)).toMatchObject({
      type: "invalid_request_error",
      message: "endpoint POST /v1/embeddings is not implemented",
    });
    expect((await request("/nothing")).status).toBe(404);
    expect((await request("/v1/chat/completions")).status).toBe(405);
    expect((await request("/v1/models/none")).status).toBe(404);
  });

  test("carry request id, job id and timing", async () => {
    const { request } = await startLocal();
    const response = await request("/v1/chat/completions", {
      ...post(JSON.stringify(ask("x"))),
      headers: { "x-request-id": "mine-1" },
    });
    expect(response.headers.get("x-request-id")).toBe("mine-1");
    const body = (await response.json()) as { id: string };
    expect(body.id).toBe(`chatcmpl-${response.headers.get("x-inference-job-id")}`);
    const timing = JSON.parse(response.headers.get("x-timing") ?? "null") as Record<string, number>;
    expect(Object.keys(timing)).toEqual([
      "parse_us",
      "route_us",
      "queue_us",
      "encrypt_us",
      "dispatch_us",
      "provider_us",
    ]);
    expect(Object.values(timing).every(Number.isInteger)).toBe(true);
    expect((await request("/health")).headers.get("x-request-id")).toMatch(/^[0-9a-v]{12}$/);
  });
});

test("a silence longer than the server's own idle limit survives, in the middle of a stream too", async () => {
  const { request } = await startLocal({
    script: () => ({
      events: ["one ", "two"].map((text) => ({ type: "text", text })),
      silence: { afterTokens: 1, ms: 14_000 },
    }),
  });
  const answers = await Promise.all(
    [false, true].map(async (stream) => {
      const response = await request("/v1/chat/completions", post(JSON.stringify({ ...ask("x"), stream })));
      return response.text();
    }),
  );
  for (const answer of answers) expect(answer).toContain("two");
}, 30_000);

describe("clients that misbehave", () => {
  test("broken bodies are refused without a quote of them", async () => {
    const { request } = await startLocal();
    for (const body of [
      "",
      "canary-4711 {",
      '{"canary-4711":',
      "[1]",
      "null",
      '{"model":"demo"}',
      '{"messages":[]}',
      JSON.stringify({ ...ask("x"), n: 2 }),
    ]) {
      const response = await request("/v1/chat/completions", post(body));
      expect(response.status).toBe(400);
      expect(await response.text()).not.toContain("canary");
    }
    expect((await request("/v1/chat/completions", post(new Uint8Array([0x7b, 0xff, 0xfe])))).status).toBe(400);
  });

  test("a 20 MB body is refused by its limit", async () => {
    const { request } = await startLocal();
    const response = await request("/v1/chat/completions", post(JSON.stringify(ask("a".repeat(20_000_000)))));
    expect(response.status).toBe(413);
    expect((await errorOf(response))["message"]).toContain("16777216-byte limit");
  });

  test("a client that never reads is cancelled", async () => {
    const { engine, endpoint } = await startLocal({
      contextTokens: 100_000_000,
      script: () => ({ events: [{ type: "text", text: "x".repeat(4_000) }], endless: true }),
    });
    const body = JSON.stringify({ ...ask("flood"), stream: true, max_tokens: 50_000_000 });
    const socket: Socket = connect(endpoint.port, "127.0.0.1");
    socket.on("error", () => undefined);
    socket.pause();
    socket.write(
      `POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${KEY}\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    await waitFor("the request to run", () => engine.requests.length === 1);
    await waitFor("the row to be freed", () => engine.stats().rowsRunning === 0, 30_000);
    socket.destroy();
    await waitFor("the request to end", () => endpoint.running === 0);
  }, 60_000);

  test("prompts never reach the log", async () => {
    const { request, lines } = await startLocal({
      script: (asked) =>
        JSON.stringify(asked).includes("fail")
          ? { events: [], failure: { afterTokens: 0, fault: new Fault("engine_failed", "the engine failed") } }
          : undefined,
    });
    for (const text of ["canary-0815 works", "canary-0815 must fail"]) {
      const response = await request("/v1/chat/completions", post(JSON.stringify(ask(text))));
      const answer = await response.text();
      if (response.status !== 200) expect(answer).not.toContain("canary");
    }
    expect(lines.join("")).not.toContain("canary");
    expect(lines.join("")).toContain("request_answered");
  });
});

describe("ends", () => {
  test("draining refuses new work, lets running work end", async () => {
    const { endpoint, request, engine } = await startLocal({
      script: () => ({
        events: [
          { type: "text", text: "a" },
          { type: "text", text: "b" },
        ],
        delayBetweenMs: 100,
      }),
    });
    const running = request("/v1/chat/completions", post(JSON.stringify(ask("slow"))));
    await waitFor("the row", () => engine.stats().rowsRunning === 1);
    const stopped = endpoint.stop({ graceMs: 5_000 });
    const refused = await request("/v1/chat/completions", post(JSON.stringify(ask("late"))));
    expect(refused.status).toBe(429);
    expect(refused.headers.get("retry-after")).toBe("3");
    expect((await errorOf(refused))["type"]).toBe("rate_limit_exceeded");
    expect((await running).status).toBe(200);
    await stopped;
    expect(await fetch(`${endpoint.url}/health`).catch(() => "refused")).toBe("refused");
  });

  test("a port in use is a fault that says what to type", async () => {
    const { endpoint } = await startLocal();
    const fault = faultOf(() =>
      startLocalEndpoint(
        {
          clock: systemClock(),
          log: memoryLog().log,
          ids: createIds(systemRandom()),
          slots: new Slots({
            clock: systemClock(),
            log: memoryLog().log,
            onChange: () => undefined,
            onEngineEnded: () => undefined,
          }),
        },
        { host: "127.0.0.1", port: endpoint.port, apiKey: KEY, version: "1" },
      ),
    );
    expect(fault.code).toBe("address_in_use");
    expect(fault.hint).toContain("--port");
  });

  test("a crashed model is known but unserved", async () => {
    const { engine, request } = await startLocal();
    engine.crash();
    const response = await waitFor("the crash to show", async () => {
      const answer = await request("/v1/chat/completions", post(JSON.stringify(ask("x"))));
      return answer.status === 503 ? answer : null;
    });
    expect((await errorOf(response))["type"]).toBe("model_unavailable");
    expect(await (await request("/health")).json()).toMatchObject({ status: "ok", providers: 0 });
  });
});

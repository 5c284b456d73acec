/** Every answer and every SSE chunk of both kinds of server, against the document it serves and against OpenAI's published one. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { Fault } from "../../src/core/fault.ts";
import { createFakeEngine, type FakeEngine } from "../../src/engine/fake-engine.ts";
import { defaultPlan, type FakePlan } from "../../src/engine/fake-plan.ts";
import type { Engine, GenerateRequest } from "../../src/engine/engine.ts";
import { openDemoEngine } from "../support/demo-engine.ts";
import { NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import {
  ENDPOINT_NAMES,
  request,
  startBoth,
  startNetwork,
  type BothEndpoints,
  type Endpoint,
  type EndpointName,
} from "../support/network.ts";
import {
  createResponseValidator,
  OPENAI_OPENAPI_FILE,
  openPublishedValidator,
  type ResponseValidator,
} from "../support/openapi-validate.ts";
import { sseData } from "../support/script-stream.ts";
import { waitFor } from "../support/wait.ts";

setDefaultTimeout(60_000);

const CHAT = "/v1/chat/completions";
const TOOLS = [
  {
    type: "function",
    function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
  },
];
const user = (content: string) => [{ role: "user", content }];
const toolRound = [
  ...user("What is the weather in Paris?"),
  {
    role: "assistant",
    content: null,
    tool_calls: [{ id: "call_1", type: "function", function: { name: "get_weather", arguments: '{"city":"Paris"}' } }],
  },
  { role: "tool", tool_call_id: "call_1", content: '{"temperature": 21, "condition": "sunny"}' },
];

/** What was asked and what came; kept, so that two documents can judge the same answers. */
interface Exchange {
  readonly at: EndpointName;
  readonly what: string;
  readonly method: string;
  readonly path: string;
  readonly status: number;
  readonly streamed: boolean;
  /** JSON body, or the data of every event without `[DONE]`. */
  readonly bodies: readonly unknown[];
}

const exchanges: Exchange[] = [];
const documents = new Map<EndpointName, ResponseValidator>();

const noteAnswer = async (
  at: EndpointName,
  what: string,
  asked: { readonly method: string; readonly path: string },
  response: Response,
): Promise<Exchange> => {
  const streamed = response.headers.get("content-type")?.startsWith("text/event-stream") ?? false;
  const bodies = streamed
    ? sseData(await response.text()).filter((event) => event !== "[DONE]")
    : [await response.json()];
  const exchange = { at, what, ...asked, status: response.status, streamed, bodies };
  exchanges.push(exchange);
  return exchange;
};

const exchange = async (
  at: EndpointName,
  endpoint: Endpoint,
  what: string,
  asked: { readonly method?: string; readonly path: string; readonly body?: unknown; readonly key?: string },
): Promise<Exchange> => {
  const { method = asked.body === undefined ? "GET" : "POST", path, body, key } = asked;
  const init = body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) };
  const headers: Record<string, string> = key === undefined ? {} : { authorization: key };
  return noteAnswer(at, what, { method, path }, await request(endpoint, path, { method, headers, ...init }));
};

const failures: Readonly<Record<string, FakePlan>> = {
  late: {
    events: [{ type: "text", text: "ha" }],
    endless: true,
    failure: { afterTokens: 3, fault: new Fault("engine_failed", "x") },
  },
  early: { events: [], failure: { afterTokens: 0, fault: new Fault("engine_failed", "x") } },
  template: { events: [], failure: { afterTokens: 0, fault: new Fault("template_failed", "x") } },
  full: { events: [], failure: { afterTokens: 0, fault: new Fault("queue_full", "x", { retryAfterMs: 1_000 }) } },
  broken: { events: [], failure: { afterTokens: 0, fault: new Fault("internal", "x") } },
  silent: { events: [], delayFirstMs: 600_000 },
  reasons: {
    events: [
      { type: "reasoning", text: "let me see" },
      { type: "text", text: "so it is" },
    ],
  },
};
const script = (asked: GenerateRequest): FakePlan => {
  const last = asked.messages.at(-1) as { readonly content?: unknown };
  return failures[String(last.content)] ?? defaultPlan(asked);
};

let real: BothEndpoints<Engine>;
let fake: BothEndpoints<FakeEngine>;
beforeAll(async () => {
  real = await startBoth(() => openDemoEngine({ contextTokens: 2048, rows: 2 }));
  fake = await startBoth(() => createFakeEngine({ script }), { silenceMs: 300 });
}, NATIVE_DEADLINE_MS);
afterAll(() => Promise.all([real[Symbol.asyncDispose](), fake[Symbol.asyncDispose]()]));

describe.each(ENDPOINT_NAMES.map((name) => [name] as const))("the %s endpoint", (name) => {
  test("serves its own document", async () => {
    const response = await request(real.at(name), "/openapi.json");
    const document = (await response.json()) as Record<string, unknown>;
    expect([response.status, document["openapi"]]).toEqual([200, "3.1.0"]);
    documents.set(name, createResponseValidator(document));
    exchanges.push({
      at: name,
      what: "itself",
      method: "GET",
      path: "/openapi.json",
      status: 200,
      streamed: false,
      bodies: [document],
    });
  });

  test("answers with the real engine: text, tools, bounds, models, health", async () => {
    const endpoint = real.at(name);
    const { model } = endpoint;
    const asked: Readonly<Record<string, Record<string, unknown>>> = {
      text: { messages: user("What is the capital of France?") },
      story: { messages: user("Tell me a story about a fox.") },
      cut: { messages: user("Count to 30."), max_tokens: 3 },
      stopped: { messages: user("Count to 30."), stop: ["5"] },
      "tool call": { messages: user("What is the weather in Paris?"), tools: TOOLS },
      "tool result": { messages: toolRound, tools: TOOLS },
      sampled: { messages: user("Hello there"), temperature: 1, top_p: 0.9, seed: 3, max_completion_tokens: 20 },
    };
    for (const [what, body] of Object.entries(asked))
      for (const how of [{}, { stream: true }, { stream: true, stream_options: { include_usage: true } }]) {
        const { status } = await exchange(name, endpoint, what, {
          path: CHAT,
          body: { model, temperature: 0, max_tokens: 200, ...body, ...how },
        });
        expect([what, status]).toEqual([what, 200]);
      }
    for (const path of ["/v1/models", `/v1/models/${model}`, "/health"])
      expect((await exchange(name, endpoint, "read", { path })).status).toBe(200);
    if (name === "coordinator") expect((await exchange(name, endpoint, "ready", { path: "/readyz" })).status).toBe(200);
  });

  test("refuses with every status a consumer can provoke", async () => {
    const endpoint = fake.at(name);
    const { model } = endpoint;
    const say = (content: string, extra = {}) => ({ path: CHAT, body: { model, messages: user(content), ...extra } });
    const image = { role: "user", content: [{ type: "image_url", image_url: { url: "data:image/png;base64,AA==" } }] };
    const asked: readonly (readonly [number, string, Parameters<typeof exchange>[3]])[] = [
      [400, "no JSON", { path: CHAT, body: "{" }],
      [400, "no messages", { path: CHAT, body: { model } }],
      [400, "two choices", say("x", { n: 2 })],
      [400, "too hot", say("x", { temperature: 9 })],
      [400, "too long", say("word ".repeat(10_000))],
      [401, "a wrong key", { ...say("x"), key: "Bearer nope" }],
      [401, "another kind of credentials", { path: "/v1/models", key: "Basic eDp5" }],
      [404, "an unknown model", { path: CHAT, body: { model: "nobody", messages: user("x") } }],
      [404, "an unknown model's entry", { path: "/v1/models/nobody" }],
      [413, "too much", say("x".repeat(17 * 1024 * 1024))],
      [415, "a picture", { path: CHAT, body: { model, messages: [image] } }],
      [422, "a template that cannot", say("template")],
      [429, "no room", say("full")],
      [name === "local" ? 500 : 502, "an engine that fails", say("early")],
      [name === "local" ? 500 : 502, "a bug", say("broken")],
    ];
    for (const [status, what, how] of asked)
      for (const stream of [false, true]) {
        const body = typeof how.body === "object" ? { ...how.body, stream } : how.body;
        const got = await exchange(name, endpoint, what, body === undefined ? how : { ...how, body });
        expect([what, got.status, got.streamed]).toEqual([what, status, false]);
      }
    const broken = await exchange(name, endpoint, "an error in the stream", say("late", { stream: true }));
    expect(broken.bodies.at(-1)).toMatchObject({ error: { type: "provider_error" } });
    for (const stream of [false, true]) await exchange(name, endpoint, "reasoning", say("reasons", { stream }));
    if (name === "coordinator") expect((await exchange(name, endpoint, "silence", say("silent"))).status).toBe(504);
  });
});

test("a coordinator without providers, and one that drains", async () => {
  const held: FakePlan = { events: [{ type: "text", text: "a" }], endless: true, delayBetweenMs: 5 };
  const plain = createFakeEngine({ script: () => held });
  await using network = await startNetwork({ engines: [plain] });
  const { model } = network;
  const body = { model, messages: user("x") };
  const stop = new AbortController();
  await request(network, CHAT, {
    method: "POST",
    body: JSON.stringify({ ...body, stream: true }),
    signal: stop.signal,
  });
  const drained = network.coordinator.drain(10_000);
  const refused = await exchange("coordinator", network, "draining", { path: CHAT, body });
  const unready = await exchange("coordinator", network, "draining", { path: "/readyz" });
  const health = await exchange("coordinator", network, "draining", { path: "/health" });
  expect([refused.status, unready.status, health.status]).toEqual([429, 503, 200]);
  stop.abort();
  await drained;

  await using empty = await startNetwork({ engines: [createFakeEngine()] });
  await empty.providers[0]?.provider.stop({ graceMs: 0 });
  await waitFor("nobody to be connected", () => empty.coordinator.health().providers === 0);
  const unserved = await exchange("coordinator", empty, "unserved", {
    path: CHAT,
    body: { ...body, model: empty.model },
  });
  const entry = await exchange("coordinator", empty, "unserved", { path: `/v1/models/${empty.model}` });
  const list = await exchange("coordinator", empty, "nothing served", { path: "/v1/models" });
  expect([unserved.status, entry.status, list.status]).toEqual([503, 503, 200]);
});

const judge = (validator: ResponseValidator, it: Exchange): void => {
  for (const body of it.bodies)
    if (it.streamed) validator.chunk(body);
    else validator.json(it.method, it.path, it.status, body);
};

const problemsOf = (found: readonly Exchange[], validatorOf: (it: Exchange) => ResponseValidator): string[] =>
  found.flatMap((it) => {
    try {
      judge(validatorOf(it), it);
      return [];
    } catch (thrown) {
      return [`${it.at}, ${it.what}, ${it.method} ${it.path} ${it.status}: ${(thrown as Error).message}`];
    }
  });

const ownOf = (it: Exchange): ResponseValidator => {
  const validator = documents.get(it.at);
  if (validator === undefined) throw new Error(`no document from ${it.at}`);
  return validator;
};

describe("the documents", () => {
  test("describe everything that came", () => {
    expect(problemsOf(exchanges, ownOf)).toEqual([]);
    const statuses = new Set(exchanges.map(({ status }) => status));
    for (const status of [200, 400, 401, 404, 413, 415, 422, 429, 500, 502, 503, 504])
      expect([status, statuses.has(status)]).toEqual([status, true]);
    for (const at of ENDPOINT_NAMES) {
      const mine = exchanges.filter((it) => it.at === at);
      expect(mine.filter(({ streamed }) => streamed).flatMap(({ bodies }) => bodies).length).toBeGreaterThan(100);
      expect(mine.filter(({ status }) => status >= 400).length).toBeGreaterThan(25);
    }
  });

  test("do not describe what is wrong", () => {
    const spoil = (it: Exchange, change: (body: Record<string, unknown>) => unknown): Exchange => ({
      ...it,
      bodies: it.bodies.map((body) => change(structuredClone(body) as Record<string, unknown>)),
    });
    const find = (is: (it: Exchange) => boolean): Exchange => {
      const found = exchanges.find(is);
      if (found === undefined) throw new Error("no such exchange");
      return found;
    };
    const isChat = (it: Exchange) => it.path === CHAT;
    const without = (key: string) => (body: Record<string, unknown>) => ({ ...body, [key]: undefined });
    const strip = (it: Exchange): Exchange => spoil(it, (body) => JSON.parse(JSON.stringify(body)) as unknown);
    for (const at of ENDPOINT_NAMES) {
      const whole = find((it) => it.at === at && isChat(it) && it.status === 200 && !it.streamed);
      const stream = find((it) => it.at === at && it.streamed && it.status === 200);
      const error = find((it) => it.at === at && it.status === 404 && isChat(it));
      const list = find((it) => it.at === at && it.path === "/v1/models" && it.status === 200);
      const wrong = [
        spoil(whole, (body) => ({ ...body, object: "chat.completion.chunk" })),
        strip(spoil(whole, without("choices"))),
        strip(spoil(stream, without("id"))),
        spoil(stream, (body) => ({ ...body, created: "now" })),
        spoil(error, ({ error: inner }) => ({ error: { ...(inner as object), message: 5 } })),
        strip(spoil(error, ({ error: inner }) => ({ error: { ...(inner as object), param: undefined } }))),
        spoil(list, (body) => ({ ...body, data: [{ id: 7 }] })),
        { ...error, status: 418 },
      ];
      expect(problemsOf(wrong, ownOf).length).toBe(wrong.length);
    }
  });
});

describe.skipIf(OPENAI_OPENAPI_FILE === undefined)("OpenAI's published document (OPENAI_OPENAPI_FILE)", () => {
  test("describes everything that came from its own paths", async () => {
    const published = await openPublishedValidator(OPENAI_OPENAPI_FILE ?? "");
    const known = exchanges.filter(({ path }) => path.startsWith("/v1/"));
    expect(known.length).toBeGreaterThan(60);
    expect(problemsOf(known, () => published)).toEqual([]);
  });
});

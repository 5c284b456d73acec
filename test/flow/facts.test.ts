/** Facts that clients and scripts rely on, as seen over HTTP at both kinds of server: texts, orders, headers, shapes. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { stat } from "node:fs/promises";
import { createFakeEngine, type FakeEngine } from "../../src/engine/fake-engine.ts";
import { defaultPlan, type FakePlan } from "../../src/engine/fake-plan.ts";
import type { GenerateRequest } from "../../src/engine/engine.ts";
import { ENDPOINT_NAMES, postChat, request, startBoth, type BothEndpoints } from "../support/network.ts";
import { sseData } from "../support/script-stream.ts";
import { waitFor } from "../support/wait.ts";

const TIMING_KEYS = ["parse_us", "route_us", "queue_us", "encrypt_us", "dispatch_us", "provider_us"];

/** Releases what the engine says next, so that a test decides when content comes. */
let silent: FakePlan = { events: [{ type: "text", text: "at last" }], delayFirstMs: 300 };
const EMPTY: FakePlan["events"] = Array.from({ length: 12 }, () => ({ type: "reasoning", text: "" }));
const PLANS: Readonly<Record<string, () => FakePlan>> = {
  late: () => silent,
  endless: () => ({ events: [{ type: "text", text: "a" }], endless: true, delayBetweenMs: 5 }),
  "eight empty": () => ({ events: EMPTY, delayBetweenMs: 10, silence: { afterTokens: 8, ms: 600_000 } }),
  "nine empty": () => ({ events: EMPTY, delayBetweenMs: 10, silence: { afterTokens: 9, ms: 600_000 } }),
};
const script = (asked: GenerateRequest): FakePlan => {
  const last = asked.messages.at(-1) as { readonly content?: unknown };
  return PLANS[String(last.content)]?.() ?? defaultPlan(asked);
};

let both: BothEndpoints<FakeEngine>;
beforeAll(async () => {
  both = await startBoth(() => createFakeEngine({ rows: 8, model: { id: "some/model" }, script }));
});
afterAll(() => both[Symbol.asyncDispose]());

interface ErrorBody {
  readonly error: Readonly<Record<string, unknown>>;
}
const errorOf = async (response: Response): Promise<ErrorBody["error"]> => {
  const body = (await response.json()) as ErrorBody;
  expect(Object.keys(body)).toEqual(["error"]);
  expect(Object.keys(body.error).toSorted()).toEqual(["code", "message", "param", "type"]);
  return body.error;
};
const say = (content: string, extra = {}) => ({ messages: [{ role: "user", content }], ...extra });

describe.each(ENDPOINT_NAMES.map((name) => [name] as const))("%s", (name) => {
  let endpoint: ReturnType<typeof both.at>;
  beforeAll(() => {
    endpoint = both.at(name);
  });
  const post = (body: unknown, headers: Record<string, string> = {}) =>
    request(endpoint, "/v1/chat/completions", {
      method: "POST",
      body: typeof body === "string" ? body : JSON.stringify(body),
      headers,
    });

  test("without credentials: 401 with the exact text", async () => {
    for (const headers of [{}, { authorization: "Basic eDp5" }, { authorization: "Bearer " }]) {
      const response = await fetch(`${endpoint.url}/v1/models`, { headers });
      expect(response.status).toBe(401);
      expect(await errorOf(response)).toEqual({
        type: "authentication_error",
        message: "missing credentials — use Authorization: Bearer <token>",
        code: "authentication_error",
        param: null,
      });
    }
  });

  test("checks come in their order: auth, body, model, messages, n, the rest, catalog", async () => {
    const { model } = endpoint;
    const large = "x".repeat(16 * 1024 * 1024);
    const wrongKey = { authorization: "Bearer wrong" };
    const steps: readonly (readonly [unknown, Record<string, string>, number, string])[] = [
      [`${large}x`, wrongKey, 401, "authentication_error"],
      [`${large}x`, {}, 413, "request body exceeds the 16777216-byte limit"],
      [large, {}, 400, "invalid JSON"],
      [{ n: 2 }, {}, 400, "model is required"],
      [{ n: 2, model: "nobody" }, {}, 400, "messages or input is required"],
      [{ n: 2, model: "nobody", temperature: 9, ...say("x") }, {}, 400, "n > 1"],
      [{ model: "nobody", temperature: 9, ...say("x") }, {}, 400, "temperature"],
      [{ model: "nobody", ...say("x") }, {}, 404, "model_not_found"],
      [{ model, ...say("x") }, {}, 200, ""],
    ];
    for (const [body, headers, status, text] of steps) {
      const response = await post(body, headers);
      expect([text, response.status]).toEqual([text, status]);
      if (status !== 200) expect(JSON.stringify(await errorOf(response))).toContain(text);
    }
  });

  test.each([
    ["GET", "/v1/nothing"],
    ["POST", "/v1/embeddings"],
    ["DELETE", "/v1/files/file_1"],
  ])("an unknown endpoint is named: %s %s", async (method, path) => {
    const response = await request(endpoint, path, { method });
    expect(response.status).toBe(404);
    expect(await errorOf(response)).toMatchObject({
      type: "invalid_request_error",
      message: `endpoint ${method} ${path} is not implemented`,
      param: null,
    });
  });

  test("ids: the request's is echoed or made, the job's is another, the completion's is the job's", async () => {
    const jobs = new Set<string>();
    for (const stream of [true, false])
      for (const given of [null, "my-own-id", "x".repeat(129), "with space"]) {
        const headers: Record<string, string> = given === null ? {} : { "x-request-id": given };
        const response = await post({ model: endpoint.model, stream, ...say("Hi") }, headers);
        const requestId = response.headers.get("x-request-id");
        if (given === "my-own-id") expect(requestId).toBe(given);
        else expect(requestId).toMatch(/^[0-9a-v]{12}$/);
        const job = response.headers.get("x-inference-job-id");
        expect(job).toMatch(/^[0-9a-f-]{36}$/);
        jobs.add(job ?? "");
        const bodies = stream ? sseData(await response.text()).slice(0, -1) : [await response.json()];
        for (const body of bodies) expect(body).toMatchObject({ id: `chatcmpl-${job}`, model: endpoint.model });
      }
    expect(jobs.size).toBe(8);
    const refused = await post("{", { "x-request-id": "my-own-id" });
    expect([refused.status, refused.headers.get("x-request-id")]).toEqual([400, "my-own-id"]);
    await refused.body?.cancel();
  });

  test("X-Timing holds its six keys as whole microseconds", async () => {
    const response = await postChat(endpoint, say("Hi"));
    const timing = JSON.parse(response.headers.get("x-timing") ?? "null") as Record<string, number>;
    expect(Object.keys(timing)).toEqual(TIMING_KEYS);
    for (const value of Object.values(timing)) expect(Number.isSafeInteger(value) && value >= 0).toBe(true);
    await response.body?.cancel();
  });

  test("a whole answer's choice carries logprobs and refusal as null", async () => {
    const body = (await (await postChat(endpoint, say("Hi"))).json()) as { choices: Record<string, unknown>[] };
    expect(body.choices[0]).toMatchObject({ index: 0, logprobs: null, message: { role: "assistant", refusal: null } });
  });

  test.each([undefined, false, true])("the usage chunk comes when asked for: include_usage %p", async (asked) => {
    const options = asked === undefined ? {} : { stream_options: { include_usage: asked } };
    const events = sseData(await (await postChat(endpoint, say("Hi", { stream: true, ...options }))).text());
    const usages = events.filter((event) => typeof event === "object" && event !== null && "usage" in event);
    expect(events.at(-1)).toBe("[DONE]");
    expect(usages.length).toBe(asked === true ? 1 : 0);
    if (asked === true) {
      expect(events.at(-2)).toBe(usages[0]);
      expect(usages[0]).toMatchObject({ choices: [], usage: { completion_tokens: 24 } });
    }
    expect(events[0]).toMatchObject({ choices: [{ delta: { role: "assistant", content: "" } }] });
  });

  test("headers go out with the first content", async () => {
    silent = { events: [{ type: "text", text: "at last" }], delayFirstMs: 300 };
    const startedMs = performance.now();
    const response = await postChat(endpoint, say("late", { stream: true }));
    expect(performance.now() - startedMs).toBeGreaterThan(280);
    const [first] = sseData(await response.text());
    expect(first).toMatchObject({ choices: [{ delta: { role: "assistant" } }] });
  });

  test("of chunks without content at most 8 are held back, then the answer commits", async () => {
    const stop = new AbortController();
    const held = postChat(endpoint, say("eight empty", { stream: true }), { signal: stop.signal });
    let committed = false;
    held.then(
      () => (committed = true),
      () => undefined,
    );
    const begun = endpoint.engine.stats().tokensGenerated;
    await waitFor("8 empty chunks", () => endpoint.engine.stats().tokensGenerated === begun + 8);
    const response = await postChat(endpoint, say("nine empty", { stream: true }), { signal: stop.signal });
    expect([response.status, committed]).toEqual([200, false]);
    stop.abort();
    await waitFor("the rows to be freed", () => endpoint.engine.stats().rowsRunning === 0);
  });

  test("health is open and has its keys; a model id with a slash is one id", async () => {
    const health = await fetch(`${endpoint.url}/health`);
    expect(health.status).toBe(200);
    expect(await health.json()).toEqual({ status: "ok", draining: false, providers: 1, version: "0.0.0-test" });
    expect(await (await request(endpoint, "/v1/models/some/model")).json()).toMatchObject({ id: "some/model" });
  });
});

test("readyz of the coordinator is open and has its keys", async () => {
  await waitFor("nothing to run", () => both.network.coordinator.health().inflight === 0);
  const response = await fetch(`${both.network.url}/readyz`);
  expect([response.status, await response.json()]).toEqual([
    200,
    { ready: true, draining: false, inflight: 0, health_reason: null },
  ]);
});

test("what is open at the local endpoint, and what it leaves in its folder", async () => {
  const { local } = both;
  for (const path of ["/", "/health", "/v1/health"]) expect((await fetch(local.url + path)).status).toBe(200);
  expect((await fetch(`${local.url}/v1/chat/completions`, { method: "OPTIONS" })).status).toBe(204);
  for (const path of ["/v1/models", "/openapi.json"]) expect((await fetch(local.url + path)).status).toBe(401);
  const path = `${local.dataDir}/local.json`;
  expect((await stat(path)).mode & 0o777).toBe(0o600);
  const record = (await Bun.file(path).json()) as Record<string, unknown>;
  expect(Object.keys(record)).toEqual(["base_url", "api_key", "host", "port", "pid", "version", "updated_at"]);
  expect(record).toMatchObject({ base_url: `${local.url}/v1`, api_key: local.key, pid: process.pid });
});

test.each(ENDPOINT_NAMES)("draining comes before everything else, with Retry-After 3: %s", async (name) => {
  await using fresh = await startBoth(() => createFakeEngine({ script }));
  const endpoint = fresh.at(name);
  const running = await postChat(endpoint, say("endless", { stream: true }));
  const stopped = name === "local" ? fresh.local.provider.stop({ graceMs: 300 }) : fresh.network.coordinator.drain(300);
  const refused = await fetch(`${endpoint.url}/v1/chat/completions`, { method: "POST", body: "{" });
  expect([refused.status, refused.headers.get("retry-after")]).toEqual([429, "3"]);
  expect(await errorOf(refused)).toMatchObject({ type: "rate_limit_exceeded", param: null });
  const health = (await (await fetch(`${endpoint.url}/health`)).json()) as { draining: boolean };
  expect(health.draining).toBe(true);
  // What still runs when the time is up is not cut as if it were whole.
  const body = await running.text().catch(() => "cut");
  expect(body).not.toContain("[DONE]");
  if (name === "local") expect(body).toContain('data: {"error":{"type":"provider_error"');
  else expect(body).toBe("cut");
  await stopped;
});

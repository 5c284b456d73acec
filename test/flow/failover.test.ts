/** What a consumer sees when providers fail, drain or are thrown out, and when keys and tokens are revoked. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { Fault, type FaultCode } from "../../src/core/fault.ts";
import { createFakeEngine, type FakeEngine } from "../../src/engine/fake-engine.ts";
import { defaultPlan, fakeText, type FakePlan } from "../../src/engine/fake-plan.ts";
import type { GenerateRequest } from "../../src/engine/engine.ts";
import { streamChat } from "../support/chat-stream.ts";
import { postChat, startNetwork, type Network } from "../support/network.ts";
import { rejectionOf } from "../support/rejection.ts";
import { ScriptedProvider } from "../support/scripted-provider.ts";
import { sseData } from "../support/script-stream.ts";
import { waitFor } from "../support/wait.ts";

setDefaultTimeout(30_000);

const BOTH_WAYS = [true, false];
const ASKED = { messages: [{ role: "user", content: "Hi" }], sampling: { seed: 1 } };
const EXPECTED = fakeText(ASKED);
const BODY = { seed: 1 };

const failing = (code: FaultCode, afterTokens = 0): FakePlan => ({
  ...defaultPlan({ ...ASKED, id: "", stop: [] }),
  failure: { afterTokens, fault: new Fault(code, "secret words of the engine") },
});

/** Engines that share one script: whoever is asked first gets the first plan, and so on; undefined = the usual answer. */
const enginesOf = (count: number, plans: readonly (FakePlan | undefined)[]): FakeEngine[] => {
  const left = [...plans];
  const script = (_request: GenerateRequest): FakePlan | undefined => left.shift();
  return Array.from({ length: count }, () => createFakeEngine({ script }));
};

const askedOf = (network: Network<FakeEngine>): number[] =>
  network.providers.map(({ engine }) => engine.requests.length);
const total = (counts: readonly number[]): number => counts.reduce((sum, count) => sum + count, 0);

interface Answer {
  readonly choices: readonly { readonly message: { readonly content: string } }[];
  readonly error?: { readonly type: string; readonly message: string; readonly code: string };
}
const textOf = async (response: Response, stream: boolean): Promise<string> =>
  stream
    ? sseData(await response.text())
        .map((event) => (event === "[DONE]" ? "" : ((event as Chunk).choices?.[0]?.delta.content ?? "")))
        .join("")
    : (((await response.json()) as Answer).choices[0]?.message.content ?? "");
interface Chunk {
  readonly choices?: readonly { readonly delta: { readonly content?: string } }[];
  readonly error?: { readonly type: string; readonly message: string; readonly param: null; readonly code: string };
}
const errorOf = async (response: Response) => ((await response.json()) as Answer).error;

describe("a provider fails before its first content", () => {
  const codes: FaultCode[] = ["engine_failed", "queue_full", "memory_short", "internal"];
  test.each(codes.flatMap((code) => BOTH_WAYS.map((stream) => [code, stream] as const)))(
    "%s: another one answers and the consumer sees nothing of it, streamed: %p",
    async (code, stream) => {
      await using network = await startNetwork({ engines: enginesOf(2, [failing(code)]) });
      const response = await postChat(network, { ...BODY, stream });
      expect(response.status).toBe(200);
      expect(await textOf(response, stream)).toBe(EXPECTED);
      expect(askedOf(network)).toEqual([1, 1]);
      const served = network.providers.find(({ engine }) => engine.stats().requestsServed === 1);
      expect(response.headers.get("x-provider-id")).toBe(served?.provider.id ?? null);
    },
  );

  test.each([
    ["bad_request", 400],
    ["template_failed", 422],
  ] as const)("%s is what every provider would say: %p at once", async (code, status) => {
    await using network = await startNetwork({ engines: enginesOf(2, [failing(code), failing(code)]) });
    const response = await postChat(network, BODY);
    expect(response.status).toBe(status);
    expect((await errorOf(response))?.message).not.toContain("secret");
    expect(total(askedOf(network))).toBe(1);
  });

  test("three attempts are made, not four; the error is the coordinator's own text", async () => {
    const plans = Array.from({ length: 4 }, () => failing("engine_failed"));
    await using network = await startNetwork({ engines: enginesOf(4, plans) });
    const response = await postChat(network, { ...BODY, stream: true });
    expect(response.status).toBe(502);
    const error = await errorOf(response);
    expect(error).toMatchObject({ type: "provider_error", code: "dispatch_exhausted" });
    expect(error?.message).not.toContain("secret");
    expect(askedOf(network).toSorted((a, b) => a - b)).toEqual([0, 1, 1, 1]);
    expect((await postChat(network, BODY)).status).toBe(200);
  });

  test("a silent stream that has committed to comments may still move on, and the answer comes once", async () => {
    const slow: FakePlan = {
      events: [{ type: "text", text: "never" }],
      delayFirstMs: 200,
      failure: { afterTokens: 0, fault: new Fault("engine_failed", "x") },
    };
    await using network = await startNetwork({ engines: enginesOf(2, [slow]), coordinator: { keepAliveMs: 50 } });
    const response = await postChat(network, { ...BODY, stream: true });
    const body = await response.text();
    expect(body).toStartWith(": keep-alive\n\n");
    const events = sseData(body) as readonly (Chunk | "[DONE]")[];
    expect(events.at(-1)).toBe("[DONE]");
    expect(events.map((it) => (it === "[DONE]" ? "" : (it.choices?.[0]?.delta.content ?? ""))).join("")).toBe(EXPECTED);
  });

  test.each(BOTH_WAYS)(
    "its engine crashes, then its connection is cut: the next one answers, streamed: %p",
    async (stream) => {
      const silent: FakePlan = { events: [], delayFirstMs: 60_000 };
      await using network = await startNetwork({ engines: enginesOf(3, [silent, silent]) });
      const pending = postChat(network, { ...BODY, stream });
      const asked = await waitFor("the first attempt", () =>
        network.providers.find(({ engine }) => engine.stats().rowsRunning === 1),
      );
      asked.engine.crash();
      const second = await waitFor("the second attempt", () =>
        network.providers.find(({ engine }) => engine !== asked.engine && engine.stats().rowsRunning === 1),
      );
      await second.provider.stop({ graceMs: 0 });
      const response = await pending;
      expect([response.status, await textOf(response, stream)]).toEqual([200, EXPECTED]);
      expect(askedOf(network)).toEqual([1, 1, 1]);
    },
  );
});

describe("a provider fails after its first content", () => {
  test.each(["engine_failed", "queue_full"] as const)(
    "%s: one error event, no [DONE], no second attempt",
    async (code) => {
      await using network = await startNetwork({ engines: enginesOf(2, [failing(code, 3)]) });
      const response = await postChat(network, { ...BODY, stream: true });
      expect(response.status).toBe(200);
      const events = sseData(await response.text()) as readonly Chunk[];
      const text = events.map(({ choices }) => choices?.[0]?.delta.content ?? "").join("");
      expect(text.length).toBeGreaterThan(0);
      expect(EXPECTED.startsWith(text)).toBe(true);
      const errors = events.filter(({ error }) => error !== undefined);
      expect(errors).toEqual([events.at(-1)!]);
      expect(errors[0]?.error).toMatchObject({ type: "provider_error", param: null });
      expect(errors[0]?.error?.message).not.toContain("secret");
      expect(total(askedOf(network))).toBe(1);
    },
  );

  test("its engine crashes mid-stream: the same; the other provider serves what comes next", async () => {
    const endless: FakePlan = { events: [{ type: "text", text: "a" }], endless: true, delayBetweenMs: 2 };
    await using network = await startNetwork({ engines: enginesOf(2, [endless]) });
    const response = await postChat(network, { ...BODY, stream: true });
    const crashed = network.providers.find(({ engine }) => engine.stats().rowsRunning === 1);
    crashed?.engine.crash();
    const body = await response.text();
    expect(body).not.toContain("[DONE]");
    expect(sseData(body).at(-1)).toMatchObject({ error: { type: "provider_error" } });
    for (let round = 0; round < 8; round += 1) expect((await postChat(network, BODY)).status).toBe(200);
    expect(crashed?.engine.requests.length).toBe(1);
  });

  test("a whole answer that breaks off is a 502, not half an answer", async () => {
    await using network = await startNetwork({ engines: enginesOf(1, [failing("engine_failed", 3)]) });
    const response = await postChat(network, BODY);
    expect([response.status, (await errorOf(response))?.type]).toEqual([502, "provider_error"]);
  });
});

describe("draining", () => {
  const paced: FakePlan = { ...defaultPlan({ ...ASKED, id: "", stop: [] }), delayBetweenMs: 10 };

  test("a provider that drains finishes what it runs and gets nothing new", async () => {
    await using network = await startNetwork({ engines: enginesOf(2, [paced]) });
    const running = postChat(network, { ...BODY, stream: true });
    const draining = await waitFor("the row", () =>
      network.providers.find(({ engine }) => engine.stats().rowsRunning === 1),
    );
    const stopped = draining.provider.stop({ graceMs: 20_000 });
    for (let round = 0; round < 6; round += 1) expect((await postChat(network, BODY)).status).toBe(200);
    expect(await textOf(await running, true)).toBe(EXPECTED);
    await stopped;
    expect(draining.engine.requests.length).toBe(1);
    await waitFor("its connection to end", () => network.coordinator.health().providers === 1);
  });

  test("a provider whose time is up cancels what it runs: one error event; the model is then known but unserved", async () => {
    const endless: FakePlan = { events: [{ type: "text", text: "a" }], endless: true, delayBetweenMs: 2 };
    await using network = await startNetwork({ engines: enginesOf(1, [endless]) });
    const response = await postChat(network, { ...BODY, stream: true });
    await network.providers[0]?.provider.stop({ graceMs: 50 });
    const body = await response.text();
    expect(body).not.toContain("[DONE]");
    expect(sseData(body).at(-1)).toMatchObject({ error: { type: "provider_error" } });
    await waitFor("the provider to be gone", () => network.coordinator.health().providers === 0);
    const later = await postChat(network, BODY);
    expect([later.status, (await errorOf(later))?.code]).toEqual([503, "model_unavailable"]);
  });

  test("a coordinator that drains lets streams end, refuses what is new with 429, and then stops", async () => {
    await using network = await startNetwork({ engines: enginesOf(1, [paced]) });
    const running = await postChat(network, { ...BODY, stream: true });
    const drained = network.coordinator.drain(20_000);
    const refused = await postChat(network, BODY);
    expect([refused.status, refused.headers.get("retry-after")]).toEqual([429, "3"]);
    expect(await errorOf(refused)).toMatchObject({ type: "rate_limit_exceeded", param: null });
    const body = await running.text();
    expect(body).toEndWith("data: [DONE]\n\n");
    await drained;
    expect(await rejectionOf(postChat(network, BODY))).toBeInstanceOf(Error);
  });
});

describe("revoking", () => {
  test("a revoked key is refused from the next request on; what it runs ends normally", async () => {
    const paced: FakePlan = { ...defaultPlan({ ...ASKED, id: "", stop: [] }), delayBetweenMs: 5 };
    await using network = await startNetwork({ engines: enginesOf(1, [paced]) });
    const running = await postChat(network, { ...BODY, stream: true });
    await network.admin.revokeKey(network.keyId);
    const refused = await postChat(network, BODY);
    expect(refused.status).toBe(401);
    expect(await errorOf(refused)).toMatchObject({ type: "authentication_error" });
    expect(await textOf(running, true)).toBe(EXPECTED);
    const { key } = await network.admin.createKey({ name: "another" });
    const answered = await streamChat({ baseUrl: network.url, key, body: { model: network.model, ...ASKED } });
    expect([answered.status, answered.done]).toEqual([200, true]);
  });

  test("a revoked join token lets nobody in any more", async () => {
    await using network = await startNetwork({ engines: enginesOf(1, []) });
    const { token, id } = await network.admin.createJoinToken({});
    const connect = () => ScriptedProvider.connect({ url: network.coordinator.providerUrl, token, register: false });
    await using welcome = await connect();
    expect(welcome.open).toBe(true);
    await network.admin.revokeJoinToken(id);
    await using refused = await connect();
    expect(refused.closed).toEqual({ code: 401, reason: "refused" });
    // The other token still counts: its provider serves.
    expect((await postChat(network, BODY)).status).toBe(200);
  });
});

/** Providers that say nothing for long: the answer still comes, comments keep the line open, and a deadline ends the hopeless. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createFakeEngine, type FakeEngine } from "../../src/engine/fake-engine.ts";
import type { FakePlan } from "../../src/engine/fake-plan.ts";
import type { GenerateRequest } from "../../src/engine/engine.ts";
import { ENDPOINT_NAMES, postChat, startBoth, startNetwork, type BothEndpoints } from "../support/network.ts";
import { waitFor } from "../support/wait.ts";

setDefaultTimeout(90_000);

const SILENCE_MS = 40_000;
const WORDS: FakePlan["events"] = ["one ", "two ", "three ", "four "].map((text) => ({ type: "text", text }));
const TEXT = "one two three four ";

/** What the user asks for is how the engine behaves. */
const PLANS: Readonly<Record<string, FakePlan>> = {
  "late first token": { events: WORDS, delayFirstMs: SILENCE_MS },
  "silence in the middle": { events: WORDS, silence: { afterTokens: 2, ms: SILENCE_MS } },
};

const saidBy = (request: GenerateRequest): string => {
  const last = request.messages.at(-1) as { readonly content?: unknown };
  return String(last.content);
};

const silentEngine = (plans = PLANS): FakeEngine =>
  createFakeEngine({ rows: 16, script: (request) => plans[saidBy(request)] });

interface Heard {
  readonly status: number;
  readonly text: string;
  readonly comments: number;
  readonly done: boolean;
  readonly error: unknown;
  readonly firstByteMs: number;
  readonly tookMs: number;
}

interface Piece {
  readonly choices?: readonly { readonly delta?: { readonly content?: string } }[];
  readonly error?: unknown;
}

type Body = Readonly<Record<string, unknown>>;
const ask = (content: string, extra: Body = {}): Body => ({ messages: [{ role: "user", content }], ...extra });

/** Reads a streamed answer event by event. */
const listen = async (endpoint: Parameters<typeof postChat>[0], content: string): Promise<Heard> => {
  const startedMs = performance.now();
  const response = await postChat(endpoint, ask(content, { stream: true }));
  const heard = { text: "", comments: 0, done: false, error: null as unknown, firstByteMs: Number.NaN };
  let partial = "";
  const decoder = new TextDecoder();
  for await (const bytes of response.body ?? []) {
    if (Number.isNaN(heard.firstByteMs)) heard.firstByteMs = performance.now() - startedMs;
    const blocks = (partial + decoder.decode(bytes, { stream: true })).split("\n\n");
    partial = blocks.pop() ?? "";
    for (const block of blocks) {
      if (block.startsWith(":")) heard.comments += 1;
      else if (block === "data: [DONE]") heard.done = true;
      else {
        const piece = JSON.parse(block.slice("data: ".length)) as Piece;
        heard.text += piece.choices?.[0]?.delta?.content ?? "";
        heard.error = piece.error ?? heard.error;
      }
    }
  }
  return { status: response.status, ...heard, tookMs: performance.now() - startedMs };
};

const askWhole = async (endpoint: Parameters<typeof postChat>[0], content: string): Promise<[number, string]> => {
  const response = await postChat(endpoint, ask(content));
  const { choices } = (await response.json()) as { choices?: { message: { content: string } }[] };
  return [response.status, choices?.[0]?.message.content ?? ""];
};

describe("40 seconds of silence, on the real clock", () => {
  let both: BothEndpoints<FakeEngine>;
  /** Without comments not one byte moves: nothing but the silence limit may end it. */
  let mute: BothEndpoints<FakeEngine>;
  beforeAll(async () => {
    both = await startBoth(() => silentEngine());
    mute = await startBoth(() => silentEngine(), { keepAliveMs: 0 });
  });
  afterAll(() => Promise.all([both[Symbol.asyncDispose](), mute[Symbol.asyncDispose]()]));

  test("survives before the first token and in the middle, streamed and not, with and without comments", async () => {
    const jobs = ENDPOINT_NAMES.flatMap((name) =>
      Object.keys(PLANS).flatMap((plan) => [
        (async () => ({ plan, heard: await listen(both.at(name), plan) }))(),
        (async () => ({ plan, whole: await askWhole(both.at(name), plan) }))(),
      ]),
    );
    const unheard = Promise.all(Object.keys(PLANS).map((plan) => listen(mute.at("coordinator"), plan)));
    for (const job of await Promise.all(jobs)) {
      if ("whole" in job) {
        expect(job.whole).toEqual([200, TEXT]);
        continue;
      }
      const { heard } = job;
      expect([heard.status, heard.text, heard.done, heard.error]).toEqual([200, TEXT, true, null]);
      expect(heard.tookMs).toBeGreaterThan(SILENCE_MS - 100);
      // Every 15 s; the middle's first may be the tick after the one in which its words came.
      expect(heard.comments).toBeGreaterThanOrEqual(job.plan === "late first token" ? 2 : 1);
      expect(heard.comments).toBeLessThanOrEqual(3);
      if (job.plan === "late first token") expect(heard.firstByteMs).toBeWithin(14_000, 20_000);
    }
    for (const heard of await unheard)
      expect([heard.status, heard.text, heard.comments, heard.done]).toEqual([200, TEXT, 0, true]);
  });
});

describe("scaled down", () => {
  const SHORT: Readonly<Record<string, FakePlan>> = {
    late: { events: WORDS, delayFirstMs: 600 },
    "late and broken": { events: WORDS, delayFirstMs: 600, silence: { afterTokens: 0, ms: 60_000 } },
    dead: { events: WORDS, delayFirstMs: 60_000 },
    "dies in the middle": { events: WORDS, silence: { afterTokens: 2, ms: 60_000 } },
  };

  test("the time to first content ends with the lease, not with the silence after it", async () => {
    await using network = await startNetwork({
      engines: [silentEngine(SHORT)],
      coordinator: { firstContentBaseMs: 250, keepAliveMs: 0 },
    });
    expect(await askWhole(network, "late")).toEqual([200, TEXT]);
    const heard = await listen(network, "late");
    expect([heard.status, heard.text, heard.done]).toEqual([200, TEXT, true]);
    expect(heard.firstByteMs).toBeGreaterThan(500);
  });

  test("an accepted silence past its limit is a 504 before the first byte, for stream and whole answer alike", async () => {
    await using network = await startNetwork({
      engines: [silentEngine(SHORT)],
      coordinator: { silenceMs: 300, keepAliveMs: 0 },
    });
    for (const stream of [true, false]) {
      const response = await postChat(network, ask("dead", { stream }));
      expect(response.status).toBe(504);
      expect(((await response.json()) as { error: unknown }).error).toMatchObject({ type: "timeout" });
    }
    await waitFor("the rows to be free", () => network.providers[0]?.engine.stats().rowsRunning === 0);
  });

  test("after the first byte it is one error event of type timeout, and no [DONE]", async () => {
    await using network = await startNetwork({
      engines: [silentEngine(SHORT)],
      coordinator: { silenceMs: 400, keepAliveMs: 100 },
    });
    const late = await listen(network, "dead");
    expect([late.status, late.text, late.done]).toEqual([200, "", false]);
    expect(late.comments).toBeGreaterThanOrEqual(2);
    expect(late.error).toMatchObject({ type: "timeout" });
    const middle = await listen(network, "dies in the middle");
    expect([middle.status, middle.text, middle.done]).toEqual([200, "one two ", false]);
    expect(middle.error).toMatchObject({ type: "timeout" });
    await waitFor("the rows to be free", () => network.providers[0]?.engine.stats().rowsRunning === 0);
  });
});

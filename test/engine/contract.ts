/** What every engine must do, run on the fake and on the real one. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { Fault } from "../../src/core/fault.ts";
import type { Engine, GenerateRequest } from "../../src/engine/engine.ts";
import { chat, collect, run } from "../support/collect.ts";
import { waitFor } from "../support/wait.ts";

export interface ContractOptions {
  readonly rows: number;
  readonly contextTokens: number;
}

const never = (): AbortSignal => new AbortController().signal;

/** The fault that a promise rejects with. */
const faultOf = async (promise: Promise<unknown>): Promise<Fault> => {
  const thrown = await promise.then(
    () => new Error("nothing was thrown"),
    (error: unknown) => error,
  );
  if (!(thrown instanceof Fault)) throw thrown;
  return thrown;
};

const idle = (engine: Engine): Promise<true> =>
  waitFor("an idle engine", () => engine.stats().rowsRunning === 0 && engine.stats().requestsWaiting === 0);

const COUNT = "Count to 30.";
const endless = (options: Partial<GenerateRequest> = {}): GenerateRequest =>
  chat(COUNT, { ignoreEos: true, tokensMax: 1500, ...options });

const WEATHER_TOOL = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const WEATHER = "What is the weather in Paris?";

/** Reads until the first events, leaves the iterator open. */
const readFirst = async (engine: Engine, signal: AbortSignal): Promise<AsyncIterator<unknown>> => {
  const iterator = engine.generate(endless(), signal)[Symbol.asyncIterator]();
  for (;;) {
    const item = await iterator.next();
    if (item.done === true) throw new Error("ended before its first events");
    if (item.value.type === "events") return iterator;
  }
};

export const engineContract = (name: string, open: (options: ContractOptions) => Promise<Engine>): void => {
  describe(`${name}: engine contract`, () => {
    setDefaultTimeout(60_000); // a real model on a busy machine
    let engine: Engine;
    beforeAll(async () => {
      engine = await open({ rows: 4, contextTokens: 2048 });
    });
    afterAll(async () => {
      await engine[Symbol.asyncDispose]();
    });

    test("the model says what it is", () => {
      expect(engine.model).toMatchObject({
        rows: 4,
        contextTokens: 2048,
        templateRenderOk: true,
        toolsSupported: true,
      });
      expect(engine.model.sizeBytes).toBeGreaterThan(0);
    });

    test("an answer is accepted, events, then a terminal with sane usage", async () => {
      const answer = await run(engine, chat(COUNT));
      const { usage, timings, finishReason } = answer.terminal;
      expect(finishReason).toBe("stop");
      expect(answer.text.length).toBeGreaterThan(20);
      expect(answer.toolCalls).toEqual([]);
      expect(usage.promptTokens).toBe(await engine.countPromptTokens({ messages: chat(COUNT).messages }));
      expect(usage.completionTokens).toBeGreaterThan(5);
      expect(usage.completionTokens).toBeLessThanOrEqual(answer.text.length + 1);
      expect([usage.reasoningTokens, usage.cachedTokens]).toEqual([0, 0]);
      for (const ms of [timings.queueMs, timings.prefillMs, timings.decodeMs]) expect(ms).toBeGreaterThanOrEqual(0);
    });

    test("the token bound ends an answer with `length`, exactly", async () => {
      const whole = await run(engine, chat(COUNT));
      const answer = await run(engine, chat(COUNT, { tokensMax: 5 }));
      expect(answer.terminal.finishReason).toBe("length");
      expect(answer.terminal.usage.completionTokens).toBe(5);
      expect(answer.text).not.toBe("");
      expect(whole.text.startsWith(answer.text)).toBe(true);
    });

    test("a stop string ends the answer wherever token borders lie, and is not shown", async () => {
      const { text } = await run(engine, chat(COUNT));
      const letters = Array.from(text);
      for (const at of [3, 4, 7, 11, 16]) {
        const stop = letters.slice(at, at + 5).join("");
        const answer = await run(engine, chat(COUNT, { stop: ["never to be seen", stop] }));
        expect(answer.text).toBe(text.slice(0, text.indexOf(stop)));
        expect(answer.terminal.finishReason).toBe("stop");
      }
    });

    test("text that only begins like a stop string is shown", async () => {
      const { text } = await run(engine, chat(COUNT));
      const answer = await run(engine, chat(COUNT, { stop: [`${text.slice(-3)}…`] }));
      expect(answer.text).toBe(text);
    });

    test("greedy and seeded answers repeat; the seed matters", async () => {
      const story = "Tell me a story about a fox.";
      const [first, second] = [await run(engine, chat(story)), await run(engine, chat(story))];
      expect(second.text).toBe(first.text);
      const sampled = (seed: number): Promise<string> =>
        run(engine, chat(story, { tokensMax: 60, sampling: { temperature: 1.5, seed } })).then((answer) => answer.text);
      const seeded = await sampled(7);
      expect(await sampled(7)).toBe(seeded);
      const others = new Set([await sampled(8), await sampled(9), await sampled(10)]);
      expect(others.size).toBeGreaterThan(1);
    });

    test("ignoreEos goes on to the bound", async () => {
      const answer = await run(engine, chat(COUNT, { ignoreEos: true, tokensMax: 200 }));
      expect(answer.terminal).toMatchObject({ finishReason: "length", usage: { completionTokens: 200 } });
    });

    test("an abort ends with `cancelled` and frees the row for the next request", async () => {
      const abort = new AbortController();
      const iterators = await Promise.all(Array.from({ length: 4 }, () => readFirst(engine, abort.signal)));
      expect(engine.stats().rowsRunning).toBe(4);
      const next = run(engine, chat(COUNT));
      abort.abort();
      for (const iterator of iterators) expect((await faultOf(iterator.next())).code).toBe("cancelled");
      expect((await next).terminal.finishReason).toBe("stop");
      await idle(engine);
      expect(engine.stats()).toMatchObject({ rowsRunning: 0, activeTokens: 0, tokensPotentialMax: 0 });
    });

    test("an abort before the start and while waiting is `cancelled` too", async () => {
      expect((await faultOf(run(engine, chat(COUNT), AbortSignal.abort()))).code).toBe("cancelled");
      const running = new AbortController();
      const busy = Array.from({ length: 4 }, () => run(engine, endless(), running.signal).catch(() => null));
      const waiting = new AbortController();
      const waits = run(engine, chat(COUNT), waiting.signal);
      await waitFor("a waiting request", () => engine.stats().requestsWaiting === 1);
      waiting.abort();
      expect((await faultOf(waits)).code).toBe("cancelled");
      running.abort();
      await Promise.all(busy);
      await idle(engine);
    });

    test("leaving the iteration early frees the row", async () => {
      for await (const output of engine.generate(endless(), never())) if (output.type === "events") break;
      await idle(engine);
    });

    test("more requests than rows wait and all complete", async () => {
      const { text } = await run(engine, chat(COUNT));
      const answers = await Promise.all(Array.from({ length: 20 }, () => run(engine, chat(COUNT))));
      expect(answers.map((answer) => answer.text)).toEqual(answers.map(() => text));
      expect(Math.max(...answers.map((answer) => answer.terminal.timings.queueMs))).toBeGreaterThan(0);
    });

    test("a full queue refuses at once", async () => {
      const abort = new AbortController();
      const all = Array.from({ length: 4 + 32 }, () => run(engine, endless(), abort.signal).catch(() => null));
      await waitFor("a full queue", () => engine.stats().requestsWaiting === 32);
      const fault = await faultOf(run(engine, chat(COUNT)));
      expect(fault.code).toBe("queue_full");
      expect(fault.retryAfterMs).toBeGreaterThan(0);
      abort.abort();
      await Promise.all(all);
      await idle(engine);
    });

    test("a prompt beyond the context is the caller's fault, one near it is cut by the context", async () => {
      const fault = await faultOf(run(engine, chat("word ".repeat(2100))));
      expect([fault.code, fault.reason]).toEqual(["bad_request", "request_exceeds_context"]);
      const answer = await run(engine, chat("word ".repeat(1000), { ignoreEos: true }));
      const { usage, finishReason } = answer.terminal;
      expect(finishReason).toBe("length");
      expect(usage.promptTokens + usage.completionTokens).toBe(2048);
    });

    test("tools give tool calls whose arguments are JSON", async () => {
      const answer = await run(engine, chat(WEATHER, { tools: [WEATHER_TOOL] }));
      expect(answer.terminal.finishReason).toBe("tool_calls");
      expect(answer.toolCalls.length).toBe(1);
      expect(answer.toolCalls[0]?.name).toBe("get_weather");
      expect(answer.toolCalls[0]?.id).not.toBe("");
      expect(Object.keys(JSON.parse(answer.toolCalls[0]?.arguments ?? "") as object)).toEqual(["city"]);
      expect(answer.text).toBe("");
    });

    test("tool choice `none` answers in words", async () => {
      const answer = await run(engine, chat(WEATHER, { tools: [WEATHER_TOOL], toolChoice: "none" }));
      expect(answer.terminal.finishReason).toBe("stop");
      expect(answer.toolCalls).toEqual([]);
      expect(answer.text).not.toBe("");
    });

    test("stats count what was done", async () => {
      await idle(engine);
      const before = engine.stats();
      const { usage } = (await run(engine, chat(COUNT))).terminal;
      const after = await waitFor("new stats", () => {
        const stats = engine.stats();
        return stats.requestsServed > before.requestsServed ? stats : null;
      });
      expect(after.requestsServed).toBe(before.requestsServed + 1);
      expect(after.tokensGenerated - before.tokensGenerated).toBe(usage.completionTokens);
      expect(after.stepsExecuted).toBeGreaterThan(before.stepsExecuted);
      expect(after.decodeTps).toBeGreaterThan(0);
      expect(after.msSinceLastStep).toBeGreaterThanOrEqual(0);
    });

    test("closing ends running and waiting requests with `cancelled`; later use is a fault", async () => {
      const own = await open({ rows: 1, contextTokens: 2048 });
      const iterator = await readFirst(own, never());
      const waits = faultOf(collect(own.generate(chat(COUNT), never())));
      await waitFor("a waiting request", () => own.stats().requestsWaiting === 1);
      const startMs = performance.now();
      await own[Symbol.asyncDispose]();
      expect(performance.now() - startMs).toBeLessThan(5000);
      const rest = faultOf(
        (async () => {
          while ((await iterator.next()).done !== true);
        })(),
      );
      expect((await rest).code).toBe("cancelled");
      expect((await waits).code).toBe("cancelled");
      expect(await own.ended).toBeNull();
      expect((await faultOf(run(own, chat(COUNT)))).code).toBe("disposed");
      expect((await faultOf(own.countPromptTokens({ messages: [] }))).code).toBe("disposed");
      await own[Symbol.asyncDispose]();
    });
  });
};

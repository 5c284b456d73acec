/** The fake engine keeps the engine contract and offers tests every kind of misfortune, on their own clock. */
import { expect, test } from "bun:test";
import { Fault } from "../../src/core/fault.ts";
import { createFakeEngine } from "../../src/engine/fake-engine.ts";
import type { GenerateRequest } from "../../src/engine/engine.ts";
import { defaultPlan, type FakePlan, fakeText, fakeWords } from "../../src/engine/fake-plan.ts";
import { chat, run } from "../support/collect.ts";
import { createFakeClock } from "../support/fake-clock.ts";
import { waitFor } from "../support/wait.ts";
import { engineContract } from "./contract.ts";

/** Answers that the contract means to interrupt take their time, as a model's would. */
const atModelSpeed = (request: GenerateRequest): FakePlan | undefined =>
  request.ignoreEos === true && (request.tokensMax ?? 0) > 1000
    ? { ...defaultPlan(request), delayBetweenMs: 2 }
    : undefined;

engineContract("fake", (options) => Promise.resolve(createFakeEngine({ ...options, script: atModelSpeed })));

const text = (value: string) => ({ type: "text", text: value }) as const;

test("64 streams at once arrive byte for byte", async () => {
  await using engine = createFakeEngine({ rows: 64 });
  const requests = Array.from({ length: 64 }, (_, index) =>
    chat(`stream ${index}`, { ignoreEos: true, tokensMax: 128, sampling: { seed: index } }),
  );
  const answers = await Promise.all(requests.map((request) => run(engine, request)));
  const expected = requests.map((request) => {
    const words = fakeWords(request);
    return Array.from({ length: 128 }, (_, index) => words[index % words.length]).join("");
  });
  expect(answers.map((answer) => answer.text)).toEqual(expected);
  expect(new Set(expected).size).toBe(64);
});

test("the default answer is known beforehand", async () => {
  await using engine = createFakeEngine();
  const request = chat("hello");
  expect((await run(engine, request)).text).toBe(fakeText(request));
});

test("silence lasts exactly as long as the clock says", async () => {
  const clock = createFakeClock();
  await using engine = createFakeEngine({
    clock,
    script: () => ({ events: [text("a"), text("b")], delayFirstMs: 40_000, silence: { afterTokens: 1, ms: 500 } }),
  });
  let done = false;
  const answer = run(engine, chat("x")).finally(() => {
    done = true;
  });
  await waitFor("the first silence", () => clock.pendingTimers === 1);
  await clock.advance(39_999);
  expect([done, engine.stats().tokensGenerated]).toEqual([false, 0]);
  await clock.advance(1);
  await waitFor("the second silence", () => clock.pendingTimers === 1);
  expect(engine.stats().tokensGenerated).toBe(1);
  await clock.advance(500);
  expect((await answer).terminal.timings).toMatchObject({ prefillMs: 40_000, decodeMs: 500 });
  expect((await answer).text).toBe("ab");
});

for (const afterTokens of [0, 2])
  test(`a planned failure comes after ${afterTokens} tokens`, async () => {
    const fault = new Fault("engine_failed", "planned");
    await using engine = createFakeEngine({
      script: () => ({ events: [text("a"), text("b"), text("c")], failure: { afterTokens, fault } }),
    });
    let seen = "";
    const thrown = await (async () => {
      for await (const output of engine.generate(chat("x"), new AbortController().signal))
        if (output.type === "events")
          seen += output.events.map((event) => ("text" in event ? event.text : "")).join("");
    })().catch((error: unknown) => error);
    expect(thrown).toBe(fault);
    expect(seen).toBe("ab".slice(0, afterTokens));
    expect(engine.stats().rowsRunning).toBe(0);
  });

test("a crash fails what runs and what comes later", async () => {
  const engine = createFakeEngine({ script: () => ({ events: [text("a")], endless: true }) });
  const running = run(engine, chat("x")).catch((error: unknown) => error);
  await waitFor("a running row", () => engine.stats().rowsRunning === 1);
  engine.crash();
  expect(await running).toMatchObject({ code: "engine_failed" });
  expect(await engine.ended).toMatchObject({ code: "engine_failed" });
  expect(await run(engine, chat("x")).catch((error: unknown) => error)).toMatchObject({ code: "engine_failed" });
});

test("reasoning is counted apart", async () => {
  await using engine = createFakeEngine({
    script: () => ({ events: [{ type: "reasoning", text: "hm " }, { type: "reasoning", text: "so" }, text("a")] }),
  });
  const answer = await run(engine, chat("x"));
  expect([answer.reasoning, answer.text, answer.terminal.usage.reasoningTokens]).toEqual(["hm so", "a", 2]);
});

test("a reader that stops reading is cancelled with bounded memory", async () => {
  await using engine = createFakeEngine({
    contextTokens: 1_000_000,
    script: () => ({ events: [text("x".repeat(10_000))], endless: true }),
  });
  const stream = engine.generate(chat("x", { tokensMax: 900_000 }), new AbortController().signal);
  const iterator = stream[Symbol.asyncIterator]();
  expect((await iterator.next()).value).toEqual({ type: "accepted" });
  await waitFor("the cancel", () => engine.stats().rowsRunning === 0);
  const thrown = await iterator.next().catch((error: unknown) => error);
  expect(thrown).toMatchObject({ code: "consumer_too_slow" });
  expect(engine.stats().tokensGenerated).toBeLessThan(120);
});

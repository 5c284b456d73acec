/** Rows decoding side by side say what they would say alone: the demo model's cases exactly, long streams as far as rounding allows. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { ChatTemplates } from "../../ffi/chat.ts";
import { Model } from "../../ffi/model.ts";
import { openNative } from "../../ffi/native.ts";
import type { Engine, GenerateRequest } from "../../src/engine/engine.ts";
import { chat, collect, type Collected, run } from "../support/collect.ts";
import { DEMO_MODEL_FILE, engineNative, openDemoEngine } from "../support/demo-engine.ts";
import { EVAL_TOKENS_MAX, type EvalCase, isRight, loadEvalCases } from "../support/eval-cases.ts";
import { largestDifference, runAlone, type SoloRun } from "../support/forced-logits.ts";

setDefaultTimeout(120_000);

/** Below this distance of the best two logits, another batch size may choose the other one (engine.md, What equality means). */
const MARGIN_MIN = 0.05;
const LOGIT_DIFFERENCE_MAX = 0.05;
const STREAM_TOKENS = 128;

let engine: Engine;
beforeAll(async () => {
  engine = await openDemoEngine({ contextTokens: 2048, rows: 8 });
});
afterAll(async () => {
  await engine[Symbol.asyncDispose]();
});

const toRequest = (it: EvalCase): GenerateRequest => ({
  id: it.id,
  messages: it.messages,
  ...(it.tools.length === 0 ? {} : { tools: it.tools }),
  sampling: { temperature: 0 },
  stop: [],
  tokensMax: EVAL_TOKENS_MAX,
});

for (const width of [1, 8])
  test(`every case of the demo model is answered rightly, ${width} at a time`, async () => {
    const cases = await loadEvalCases();
    expect(cases.length).toBe(109);
    const wrong: string[] = [];
    const left = [...cases];
    const lane = async (): Promise<void> => {
      for (let it = left.shift(); it !== undefined; it = left.shift()) {
        const answer = await run(engine, toRequest(it));
        const ended = answer.terminal.finishReason === (it.check === "tool_call" ? "tool_calls" : "stop");
        if (!ended || !isRight(it, answer)) wrong.push(it.id);
      }
    };
    await Promise.all(Array.from({ length: width }, lane));
    expect(wrong).toEqual([]);
  });

const STREAMS = [
  "Tell me a story about a fox.",
  "Count to 30.",
  "Say the alphabet.",
  "What is the capital of France?",
  "Reverse this list: apple, tree, river",
  "Who are you?",
  "What is 7 + 5?",
  "Write a haiku about autumn",
];

/** Text of the tokens that no rounding may change. */
const certainText = (model: Model, solo: SoloRun): string => {
  const unsure = solo.margins.findIndex((margin) => margin < MARGIN_MIN);
  const certain = solo.tokens.slice(0, unsure === -1 ? undefined : unsure);
  const bytes = Buffer.concat(certain.map((token) => model.piece(token)));
  return new TextDecoder().decode(bytes, { stream: true }); // a character cut by the end is left out
};

/** All in one step, so that their prompts share a batch. */
const startTogether = (texts: readonly string[]): Promise<Collected[]> =>
  Promise.all(
    texts.map((text) =>
      collect(engine.generate(chat(text, { ignoreEos: true, tokensMax: STREAM_TOKENS }), new AbortController().signal)),
    ),
  );

test("8 streams of 128 tokens equal their solo runs up to the first close choice, and their logits stay close", async () => {
  using model = Model.open(openNative(await engineNative()), DEMO_MODEL_FILE);
  using templates = ChatTemplates.open(model);
  const prompts = STREAMS.map((text) =>
    model.tokenize(templates.apply({ messages: chat(text).messages }).prompt, { special: true }),
  );
  const alone = prompts.map((prompt) => runAlone(model, prompt, STREAM_TOKENS));
  const together = await startTogether(STREAMS);
  for (const [index, answer] of together.entries()) {
    const solo = alone[index];
    if (solo === undefined) throw new Error("a stream without its solo run");
    expect(answer.terminal.usage.completionTokens).toBe(STREAM_TOKENS);
    const certain = certainText(model, solo);
    expect(certain.length).toBeGreaterThan(0);
    expect(answer.text.slice(0, certain.length)).toBe(certain);
  }
  expect(largestDifference(model, prompts, alone)).toBeLessThan(LOGIT_DIFFERENCE_MAX);
});

test("alone in the batch, the same seed gives the same tokens, run after run", async () => {
  const request = chat("Tell me a story about a fox.", { tokensMax: 100, sampling: { temperature: 1, seed: 42 } });
  const texts = new Set<string>();
  for (let round = 0; round < 5; round += 1) texts.add((await run(engine, request)).text);
  expect(texts.size).toBe(1);
});

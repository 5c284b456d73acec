/** Many streams at once through the whole path say what they would say alone: byte for byte with the fake engine, as far as rounding allows with the real one. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { ChatTemplates } from "../../ffi/chat.ts";
import { Model } from "../../ffi/model.ts";
import { openNative } from "../../ffi/native.ts";
import { createFakeEngine } from "../../src/engine/fake-engine.ts";
import { fakeText, fakeWords } from "../../src/engine/fake-plan.ts";
import { streamChat, type StreamResult } from "../support/chat-stream.ts";
import { chat } from "../support/collect.ts";
import { DEMO_MODEL_FILE, engineNative, openDemoEngine } from "../support/demo-engine.ts";
import { NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import { certainText, LOGIT_DIFFERENCE_MAX, largestDifference, runAlone } from "../support/forced-logits.ts";
import { startNetwork, type Endpoint } from "../support/network.ts";
import { waitFor } from "../support/wait.ts";

setDefaultTimeout(NATIVE_DEADLINE_MS);

const stream = (endpoint: Endpoint, content: string, extra: Readonly<Record<string, unknown>>): Promise<StreamResult> =>
  streamChat({
    baseUrl: endpoint.url,
    key: endpoint.key,
    body: { model: endpoint.model, messages: chat(content).messages, ...extra },
  });

describe("the real engine", () => {
  const TOKENS = 128;
  const PROMPTS = [
    "Tell me a story about a fox.",
    "Count to 30.",
    "Say the alphabet.",
    "What is the capital of France?",
    "Reverse this list: apple, tree, river",
    "Who are you?",
    "What is 7 + 5?",
    "Write a haiku about autumn",
  ];

  test("8 streams of 128 tokens equal their solo runs up to the first close choice, and their logits stay close", async () => {
    using model = Model.open(openNative(await engineNative()), DEMO_MODEL_FILE);
    using templates = ChatTemplates.open(model);
    const prompts = PROMPTS.map((text) =>
      model.tokenize(templates.apply({ messages: chat(text).messages }).prompt, { special: true }),
    );
    const alone = prompts.map((prompt) => runAlone(model, prompt, TOKENS));

    const engine = await openDemoEngine({ contextTokens: 2048, rows: 8 });
    await using network = await startNetwork({ engines: [engine] });
    const together = PROMPTS.map((text) =>
      stream(network, text, { temperature: 0, max_tokens: TOKENS, ignore_eos: true }),
    );
    await waitFor("all of them to decode side by side", () => engine.stats().rowsRunning === PROMPTS.length);
    for (const [index, answer] of (await Promise.all(together)).entries()) {
      expect([answer.status, answer.done, answer.completionTokens]).toEqual([200, true, TOKENS]);
      const certain = certainText(model, alone[index]!);
      expect(certain.length).toBeGreaterThan(0);
      expect(answer.text.slice(0, certain.length)).toBe(certain);
    }
    expect(largestDifference(model, prompts, alone)).toBeLessThan(LOGIT_DIFFERENCE_MAX);
  });
});

describe("the fake engine", () => {
  const STREAMS = 64;
  const TOKENS = 200;

  test.each([1, 2])("64 streams at once arrive byte for byte, over %p providers", async (providers) => {
    const engines = Array.from({ length: providers }, () => createFakeEngine({ rows: STREAMS / providers }));
    await using network = await startNetwork({ engines });
    const requests = Array.from({ length: STREAMS }, (_, index) => `question ${index} — größer 東京 🦊`);
    const answers = await Promise.all(
      requests.map((text, seed) => stream(network, text, { seed, max_tokens: TOKENS, ignore_eos: true })),
    );
    for (const [seed, answer] of answers.entries()) {
      const asked = { messages: chat(requests[seed]!).messages, sampling: { seed } };
      // 24 tokens that start over until 200 are made.
      const expected =
        fakeText(asked).repeat(8) +
        fakeWords(asked)
          .slice(0, TOKENS - 8 * 24)
          .join("");
      expect([answer.status, answer.done, answer.completionTokens]).toEqual([200, true, TOKENS]);
      expect(answer.text).toBe(expected);
    }
    expect(new Set(answers.map(({ text }) => text)).size).toBe(STREAMS);
    for (const engine of engines) expect(engine.requests.length).toBe(STREAMS / providers);
  });
});

/** First evidence that nothing leaks: load, answer, parse and unload many times, and see resident memory stay. */
import { expect, test } from "bun:test";
import { ChatTemplates } from "../../ffi/chat.ts";
import { Model } from "../../ffi/model.ts";
import type { Native } from "../../ffi/native.ts";
import { MIB } from "../../src/core/units.ts";
import { demoNative, generate, NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import { DEMO_MODEL } from "../support/native.ts";

const WARM_UP = 10;
const CYCLES = 50;
/** 50 loads that leaked their 3.6 MB of weights would grow by 180 MB; leaking a context alone by 100 MB. */
const GROWTH_BYTES_MAX = 40 * MIB;

const cycle = (native: Native): void => {
  using model = Model.open(native, DEMO_MODEL, { onProgress: () => {} });
  using chat = ChatTemplates.open(model);
  const tools = [{ type: "function", function: { name: "get_time", parameters: { type: "object", properties: {} } } }];
  const prompt = chat.apply({ messages: [{ role: "user", content: "Hello there" }], tools });
  using parser = prompt.openParser(() => "id");
  for (const token of generate(model, model.tokenize(prompt.prompt, { special: true }), { tokensMax: 8 }))
    parser.push(new TextDecoder().decode(model.piece(token)), false);
  parser.push("", true);
};

test(
  `${CYCLES} load and unload cycles leave resident memory flat`,
  async () => {
    const native = await demoNative();
    for (let index = 0; index < WARM_UP; index += 1) cycle(native);
    Bun.gc(true);
    const beforeBytes = process.memoryUsage.rss();
    for (let index = 0; index < CYCLES; index += 1) cycle(native);
    Bun.gc(true);
    expect(process.memoryUsage.rss() - beforeBytes).toBeLessThan(GROWTH_BYTES_MAX);
  },
  NATIVE_DEADLINE_MS,
);

test(
  "a thousand parsed answers leave resident memory flat",
  async () => {
    using model = Model.open(await demoNative(), DEMO_MODEL);
    using chat = ChatTemplates.open(model);
    const tools = [
      { type: "function", function: { name: "get_time", parameters: { type: "object", properties: {} } } },
    ];
    const prompt = chat.apply({ messages: [{ role: "user", content: "x" }], tools });
    const answer = "word ".repeat(20_000); // kept twice by a parser, so 1,000 leaked ones would hold 200 MB
    const parseOne = (): void => {
      using parser = prompt.openParser(() => "id");
      parser.push(answer, false);
      parser.push("", true);
    };
    for (let index = 0; index < 50; index += 1) parseOne();
    Bun.gc(true);
    const beforeBytes = process.memoryUsage.rss();
    for (let index = 0; index < 1_000; index += 1) parseOne();
    Bun.gc(true);
    expect(process.memoryUsage.rss() - beforeBytes).toBeLessThan(GROWTH_BYTES_MAX);
  },
  NATIVE_DEADLINE_MS,
);

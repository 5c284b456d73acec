/** Token ids equal those of upstream's own tool on the same file and prompts (`test/fixtures/record-upstream.ts`). */
import { beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { Batch, StepRows } from "../../ffi/batch.ts";
import { Context } from "../../ffi/context.ts";
import { Model } from "../../ffi/model.ts";
import { PIN } from "../../ffi/pin.ts";
import { type SamplerOptions, SamplerChain } from "../../ffi/sampler.ts";
import type { UpstreamFixture } from "../fixtures/record-upstream.ts";
import { addPrompt, contextOptions, demoNative, GREEDY, NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import { DEMO_MODEL } from "../support/native.ts";

let model: Model;
let fixture: UpstreamFixture;
beforeAll(async () => {
  model = Model.open(await demoNative(), DEMO_MODEL);
  fixture = (await Bun.file(join(import.meta.dir, "../fixtures/upstream-tokens.json")).json()) as UpstreamFixture;
}, NATIVE_DEADLINE_MS);

/** Answer of recorded ids as the prompt, one token a step, the end token included. */
const answerIds = (promptTokens: readonly number[], sampling: SamplerOptions): number[] => {
  using context = Context.open(model, contextOptions());
  using sampler = SamplerChain.open(model, sampling);
  const batch = new Batch(context.batchTokens);
  const rows = new StepRows(1);
  const out = new Int32Array(1);
  const tokens: number[] = [];
  rows.add(addPrompt(batch, Int32Array.from(promptTokens), 0), sampler);
  while (tokens.length < 400) {
    context.step(batch, rows, out);
    const token = out[0] ?? -1;
    tokens.push(token);
    if (model.isEog(token)) break;
    batch.clear();
    rows.clear();
    rows.add(batch.add(token, promptTokens.length + tokens.length - 1, 0, true), sampler);
  }
  return tokens;
};

test("the recording is of this pin and this model file", async () => {
  expect(fixture.pin).toBe(PIN);
  expect(fixture.modelSha256).toBe(
    new Bun.CryptoHasher("sha256").update(await Bun.file(DEMO_MODEL).bytes()).digest("hex"),
  );
  expect(fixture.cases.length).toBeGreaterThanOrEqual(20);
});

test("prompt ids", () => {
  for (const { id, prompt, promptTokens } of fixture.cases)
    expect([id, ...model.tokenize(prompt, { special: true })]).toEqual([id, ...promptTokens]);
});

test("greedy answer ids, by the shortcut and by upstream's chain", () => {
  // A limit of one candidate at some temperature goes through the chain and must come to the same tokens.
  const chain = { ...GREEDY, temperature: 1, topK: 1, seed: 1 };
  for (const { id, promptTokens, answerTokens } of fixture.cases) {
    expect([id, ...answerIds(promptTokens, GREEDY)]).toEqual([id, ...answerTokens]);
    expect([id, ...answerIds(promptTokens, chain)]).toEqual([id, ...answerTokens]);
  }
});

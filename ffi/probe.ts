/** Tries a model file for real: load it, compute a few tokens, close it. Run in a throw-away process for files not yet known good. */
import { assert } from "../src/core/fault.ts";
import { Batch, StepRows } from "./batch.ts";
import { Context } from "./context.ts";
import { Model } from "./model.ts";
import type { Native } from "./native.ts";
import { SamplerChain } from "./sampler.ts";

const PROBE_TOKENS = 4;

/** Throws what loading or computing throws. An encoder-only model is only loaded: it does not generate. */
export const probeModel = (native: Native, path: string): void => {
  using model = Model.open(native, path);
  if (!model.hasDecoder) return;
  const sizes = { contextTokens: 64, sequences: 1, batchTokens: 32, microBatchTokens: 32, threads: 1, threadsBatch: 1 };
  using context = Context.open(model, sizes);
  using sampler = SamplerChain.open(model, { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0, ignoreEos: true });
  const batch = new Batch(sizes.batchTokens);
  const rows = new StepRows(1);
  const out = new Int32Array(1);
  const prompt = model.tokenize("1 2 3", { special: false }).subarray(0, sizes.batchTokens);
  for (const [position, token] of prompt.entries()) batch.add(token, position, 0, position === prompt.length - 1);
  for (let step = 0; step < PROBE_TOKENS; step += 1) {
    rows.clear();
    rows.add(batch.length - 1, sampler);
    context.step(batch, rows, out);
    const token = out[0] ?? -1;
    assert(token >= 0, "a row without a grammar always has a next token");
    batch.clear();
    batch.add(token, prompt.length + step, 0, true);
  }
};

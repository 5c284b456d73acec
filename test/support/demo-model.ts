/** The demo model on the real library, its evaluation cases, and the plainest way to let it answer: one row, one token a step. */
import { join } from "node:path";
import { Batch, StepRows } from "../../ffi/batch.ts";
import { Context, type ContextOptions } from "../../ffi/context.ts";
import type { Model } from "../../ffi/model.ts";
import { type Native, openNative } from "../../ffi/native.ts";
import { type SamplerOptions, SamplerChain } from "../../ffi/sampler.ts";
import { nativeForTests } from "./native.ts";

/** First use on a machine: headers fetched, shim compiled, backend proven. Later ones take well under a second. */
export const NATIVE_DEADLINE_MS = 600_000;

export const demoNative = async (): Promise<Native> => openNative(await nativeForTests());

export const GREEDY: SamplerOptions = { temperature: 0, topK: 40, topP: 1, minP: 0, seed: null };

export const contextOptions = (overrides: Partial<ContextOptions> = {}): ContextOptions => ({
  contextTokens: 2048,
  sequences: 1,
  batchTokens: 512,
  microBatchTokens: 512,
  threads: 1,
  threadsBatch: 1,
  ...overrides,
});

/** One case of `eval-cases.jsonl`. */
export interface EvalCase {
  readonly id: string;
  readonly skill: string;
  readonly messages: readonly unknown[];
  readonly tools: readonly unknown[];
  readonly check: string;
  readonly expect: unknown;
}

export const readEvalCases = async (): Promise<readonly EvalCase[]> => {
  const path = join(import.meta.dir, "../../assets/demo-model/eval-cases.jsonl");
  const lines = (await Bun.file(path).text()).split("\n").filter((line) => line !== "");
  return lines.map((line) => JSON.parse(line) as EvalCase);
};

/** Puts a prompt into a sequence and returns the batch index of its last token. */
export const addPrompt = (batch: Batch, prompt: Int32Array, sequence: number): number => {
  let last = -1;
  for (const [position, token] of prompt.entries())
    last = batch.add(token, position, sequence, position === prompt.length - 1);
  return last;
};

/** Tokens of an answer in sequence 0 of a context of its own, without the end token. */
export const generate = (
  model: Model,
  prompt: Int32Array,
  options: { readonly sampling?: SamplerOptions; readonly tokensMax?: number; readonly context?: ContextOptions } = {},
): number[] => {
  using context = Context.open(model, options.context ?? contextOptions());
  using sampler = SamplerChain.open(model, options.sampling ?? GREEDY);
  const batch = new Batch(context.batchTokens);
  const rows = new StepRows(1);
  const out = new Int32Array(1);
  const tokens: number[] = [];
  rows.add(addPrompt(batch, prompt, 0), sampler);
  while (tokens.length < (options.tokensMax ?? 256)) {
    context.step(batch, rows, out);
    const token = out[0] ?? -1;
    if (token < 0 || model.isEog(token)) break;
    tokens.push(token);
    batch.clear();
    rows.clear();
    rows.add(batch.add(token, prompt.length + tokens.length - 1, 0, true), sampler);
  }
  return tokens;
};

export const toText = (model: Model, tokens: Iterable<number>): string => {
  const decoder = new TextDecoder();
  const parts = Array.from(tokens, (token) => decoder.decode(model.piece(token), { stream: true }));
  return parts.join("") + decoder.decode();
};

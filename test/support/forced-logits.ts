/** Logits of known tokens, computed alone or beside other sequences: what "the same answer" means when rounding differs. */
import { Batch, StepRows } from "../../ffi/batch.ts";
import { Context } from "../../ffi/context.ts";
import type { Model } from "../../ffi/model.ts";

/** Below this distance of the best two logits, another batch size may choose the other one. */
const MARGIN_MIN = 0.05;
/** Most that a logit may differ when the same tokens are computed beside others. */
export const LOGIT_DIFFERENCE_MAX = 0.05;

export interface SoloRun {
  readonly tokens: readonly number[];
  /** Before each token: what the model said about it. */
  readonly logits: readonly Float32Array[];
  /** Distance of the best two logits before each token; end tokens are out of the race, as `ignoreEos` has it. */
  readonly margins: readonly number[];
}

const openContext = (model: Model, sequences: number): Context =>
  Context.open(model, {
    contextTokens: 2048 * sequences,
    sequences,
    batchTokens: 512,
    microBatchTokens: 512,
    threads: 1,
    threadsBatch: 1,
    kvUnified: false,
  });

const noRows = (): StepRows => new StepRows(1);
const noTokens = new Int32Array(1);

const topTwo = (model: Model, logits: Float32Array): { readonly token: number; readonly margin: number } => {
  let [best, second, token] = [-Infinity, -Infinity, -1];
  for (const [index, value] of logits.entries()) {
    if (model.isEog(index) || value <= second) continue;
    if (value > best) [best, second, token] = [value, best, index];
    else second = value;
  }
  return { token, margin: best - second };
};

/** Greedy tokens of one prompt, alone in its context. */
export const runAlone = (model: Model, prompt: Int32Array, count: number): SoloRun => {
  using context = openContext(model, 1);
  const batch = new Batch(context.batchTokens);
  const run = { tokens: [] as number[], logits: [] as Float32Array[], margins: [] as number[] };
  let last = -1;
  for (const [position, token] of prompt.entries())
    last = batch.add(token, position, 0, position === prompt.length - 1);
  while (run.tokens.length < count) {
    context.step(batch, noRows(), noTokens);
    const logits = context.logits(last);
    const { token, margin } = topTwo(model, logits);
    run.tokens.push(token);
    run.logits.push(logits);
    run.margins.push(margin);
    batch.clear();
    last = batch.add(token, prompt.length + run.tokens.length - 1, 0, true);
  }
  return run;
};

/** Largest difference of a logit when the same tokens are computed side by side: all prompts in one batch, then one token of every sequence a step. */
export const largestDifference = (model: Model, prompts: readonly Int32Array[], runs: readonly SoloRun[]): number => {
  using context = openContext(model, prompts.length);
  const batch = new Batch(context.batchTokens);
  const lastOfPrompt: number[] = [];
  for (const [sequence, prompt] of prompts.entries())
    for (const [position, token] of prompt.entries())
      lastOfPrompt[sequence] = batch.add(token, position, sequence, position === prompt.length - 1);
  context.step(batch, noRows(), noTokens);
  let largest = 0;
  const steps = Math.min(...runs.map((run) => run.tokens.length));
  for (let step = 0; step < steps; step += 1) {
    const logits = prompts.map((_, sequence) => context.logits(step === 0 ? (lastOfPrompt[sequence] ?? 0) : sequence));
    batch.clear();
    for (const [sequence, run] of runs.entries()) {
      largest = Math.max(largest, difference(logits[sequence], run.logits[step]));
      const position = (prompts[sequence]?.length ?? 0) + step;
      batch.add(run.tokens[step] ?? 0, position, sequence, true);
    }
    context.step(batch, noRows(), noTokens);
  }
  return largest;
};

const difference = (one: Float32Array | undefined, other: Float32Array | undefined): number => {
  if (one === undefined || other === undefined) return Infinity;
  let largest = 0;
  for (const [index, value] of one.entries()) largest = Math.max(largest, Math.abs(value - (other[index] ?? Infinity)));
  return largest;
};

/** Text of the tokens that no rounding may change. */
export const certainText = (model: Model, solo: SoloRun): string => {
  const unsure = solo.margins.findIndex((margin) => margin < MARGIN_MIN);
  const certain = solo.tokens.slice(0, unsure === -1 ? undefined : unsure);
  const bytes = Buffer.concat(certain.map((token) => model.piece(token)));
  return new TextDecoder().decode(bytes, { stream: true }); // a character cut by the end is left out
};

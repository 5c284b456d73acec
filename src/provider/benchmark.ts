/** Measures an engine as its consumers feel it: prompt speed, time to first token, decode speed alone and side by side. */
import type { Clock } from "../core/clock.ts";
import type { CompletionTerminal } from "../core/completion.ts";
import { assert } from "../core/fault.ts";
import type { Engine } from "../engine/engine.ts";

export interface BenchmarkPlan {
  /** Prompt lengths of the prefill rows; those that do not fit the context are left out. */
  readonly promptTokens: readonly number[];
  /** Numbers of requests side by side of the decode rows. */
  readonly batchSizes: readonly number[];
  /** Answer tokens per request of a decode row. */
  readonly decodeTokens: number;
  /** Repetitions; each figure is the median over them. */
  readonly iterations: number;
}

export interface PrefillRow {
  /** Tokens of the rendered prompt, as counted by the engine. */
  readonly prompt_tokens: number;
  readonly tokens_per_second: number;
  readonly ttft_ms: number;
}

export interface DecodeRow {
  readonly batch_size: number;
  readonly tokens_per_sequence: number;
  readonly aggregate_tokens_per_second: number;
  readonly per_sequence_tokens_per_second: number;
  readonly ttft_ms: number;
}

export interface BenchmarkDeps {
  readonly clock: Pick<Clock, "monotonicMs">;
  readonly engine: Engine;
  readonly signal: AbortSignal;
  readonly onProgress?: (step: string) => void;
}

interface Sample {
  readonly terminal: CompletionTerminal;
  readonly ttftMs: number;
}

const WORDS = "the quick brown fox jumps over a lazy dog while seven grey geese fly south above the quiet river ".split(
  " ",
);

export const median = (values: readonly number[]): number => {
  assert(values.length > 0, "a median needs values");
  const sorted = values.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? 0;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? 0)) / 2;
};

/** Each prompt starts with its own number, so that no two share a prefix a cache could help with. */
const promptOf = (words: number, salt: number): string =>
  [`${salt}`, ...Array.from({ length: words }, (_, index) => WORDS[(index + salt) % WORDS.length] ?? "")].join(" ");

const runOne = async (deps: BenchmarkDeps, content: string, tokensMax: number): Promise<Sample> => {
  const startedMs = deps.clock.monotonicMs();
  const request = {
    id: `benchmark-${content.length}`,
    messages: [{ role: "user", content }],
    sampling: { temperature: 0 },
    stop: [],
    tokensMax,
    ignoreEos: true,
  };
  let ttftMs: number | null = null;
  let terminal: CompletionTerminal | null = null;
  for await (const output of deps.engine.generate(request, deps.signal)) {
    if (output.type === "events") ttftMs ??= deps.clock.monotonicMs() - startedMs;
    if (output.type === "terminal") ({ terminal } = output);
  }
  assert(terminal !== null, "a completion ends with its terminal");
  return { terminal, ttftMs: ttftMs ?? deps.clock.monotonicMs() - startedMs };
};

/** Words needed for about this many prompt tokens, found by counting; tokens per word differ between vocabularies. */
const wordsFor = async (deps: BenchmarkDeps, tokens: number): Promise<number> => {
  const count = (words: number): Promise<number> =>
    deps.engine.countPromptTokens({ messages: [{ role: "user", content: promptOf(words, 1) }] });
  const [few, many] = [await count(8), await count(72)];
  const tokensPerWord = Math.max((many - few) / 64, 0.25);
  return Math.max(1, Math.floor((tokens - few) / tokensPerWord) + 8);
};

const measurePrefill = async (deps: BenchmarkDeps, plan: BenchmarkPlan): Promise<readonly PrefillRow[]> => {
  const rows: PrefillRow[] = [];
  for (const tokens of plan.promptTokens.filter((length) => length + 16 < deps.engine.model.contextTokens)) {
    deps.onProgress?.(`prefill of ${tokens} tokens`);
    const words = await wordsFor(deps, tokens);
    const samples: Sample[] = [];
    for (let iteration = 0; iteration < plan.iterations; iteration += 1)
      samples.push(await runOne(deps, promptOf(words, 100 + iteration), 1));
    rows.push({
      prompt_tokens: samples[0]?.terminal.usage.promptTokens ?? 0,
      tokens_per_second: median(
        samples.map(
          ({ terminal }) => (terminal.usage.promptTokens / Math.max(terminal.timings.prefillMs, 1e-3)) * 1000,
        ),
      ),
      ttft_ms: median(samples.map((sample) => sample.ttftMs)),
    });
  }
  return rows;
};

interface BatchSample {
  readonly aggregateTps: number;
  readonly perSequenceTps: number;
  readonly ttftMs: number;
}

const runBatch = async (deps: BenchmarkDeps, batchSize: number, tokens: number): Promise<BatchSample> => {
  const samples = await Promise.all(
    Array.from({ length: batchSize }, (_, index) => runOne(deps, promptOf(16, 1_000 + index), tokens)),
  );
  // The first token belongs to the prompt's time, so n − 1 tokens fall into the decode time.
  const rates = samples.map(
    ({ terminal }) => ((terminal.usage.completionTokens - 1) / Math.max(terminal.timings.decodeMs, 1e-3)) * 1000,
  );
  const longestMs = Math.max(...samples.map(({ terminal }) => terminal.timings.decodeMs), 1e-3);
  const decoded = samples.reduce((sum, { terminal }) => sum + terminal.usage.completionTokens - 1, 0);
  return {
    aggregateTps: (decoded / longestMs) * 1000,
    perSequenceTps: median(rates),
    ttftMs: median(samples.map((sample) => sample.ttftMs)),
  };
};

const measureDecode = async (deps: BenchmarkDeps, plan: BenchmarkPlan): Promise<readonly DecodeRow[]> => {
  const rows: DecodeRow[] = [];
  for (const batchSize of plan.batchSizes) {
    deps.onProgress?.(`decode, ${batchSize} side by side`);
    const samples: BatchSample[] = [];
    for (let iteration = 0; iteration < plan.iterations; iteration += 1)
      samples.push(await runBatch(deps, batchSize, plan.decodeTokens));
    rows.push({
      batch_size: batchSize,
      tokens_per_sequence: plan.decodeTokens,
      aggregate_tokens_per_second: median(samples.map((sample) => sample.aggregateTps)),
      per_sequence_tokens_per_second: median(samples.map((sample) => sample.perSequenceTps)),
      ttft_ms: median(samples.map((sample) => sample.ttftMs)),
    });
  }
  return rows;
};

/** Runs the plan once untimed in small, then for the figures. Throws what the engine throws. */
export const runBenchmark = async (
  deps: BenchmarkDeps,
  plan: BenchmarkPlan,
): Promise<{ readonly prefill: readonly PrefillRow[]; readonly decode: readonly DecodeRow[] }> => {
  deps.onProgress?.("warm-up");
  await runBatch(deps, 1, 8);
  return { prefill: await measurePrefill(deps, plan), decode: await measureDecode(deps, plan) };
};

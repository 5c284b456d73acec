/** `darkbloom benchmark`: how fast a model runs on this machine. */
import { Command } from "commander";
import { loadConfig } from "../src/core/config.ts";
import { Fault } from "../src/core/fault.ts";
import { createLog } from "../src/core/log.ts";
import { runBenchmark, type BenchmarkPlan, type DecodeRow, type PrefillRow } from "../src/provider/benchmark.ts";
import { emit, type CommandDeps } from "./_deps.ts";
import { integerOption, listOption, settingOption } from "./_options.ts";
import { clearedBy, createProgress } from "./_progress.ts";
import { engineThreads, modelIdOf, wireEngine, wireMachine } from "./_provider.ts";
import { demoModelPath } from "./_wire.ts";

interface BenchmarkFlags {
  readonly model?: string;
  readonly ctx?: number;
  readonly threads?: number;
  readonly gpuLayers?: number;
  readonly iterations: number;
  readonly maxTokens: number;
  readonly promptTokens: readonly string[];
  readonly batch: readonly string[];
  readonly json?: true;
}

const COUNT_MAX = 1_000_000;

const toCounts = (flag: string, texts: readonly string[]): number[] =>
  texts.map(integerOption(flag, 1, COUNT_MAX)).toSorted((a, b) => a - b);

const toPlan = (flags: BenchmarkFlags): BenchmarkPlan => ({
  promptTokens: toCounts("--prompt-tokens", flags.promptTokens),
  batchSizes: toCounts("--batch", flags.batch),
  decodeTokens: flags.maxTokens,
  iterations: flags.iterations,
});

const table = (header: readonly string[], rows: readonly (readonly string[])[]): string => {
  const widths = header.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => (row[column] ?? "").length)),
  );
  return [header, ...rows]
    .map((row) => `  ${row.map((cell, column) => cell.padStart(widths[column] ?? 0)).join("   ")}`)
    .join("\n");
};

const toText = (prefill: readonly PrefillRow[], decode: readonly DecodeRow[]): string =>
  [
    "prefill",
    table(
      ["prompt tokens", "tokens/s", "first token ms"],
      prefill.map((row) => [String(row.prompt_tokens), row.tokens_per_second.toFixed(0), row.ttft_ms.toFixed(1)]),
    ),
    "",
    "decode",
    table(
      ["side by side", "tokens/s each", "tokens/s in all", "first token ms"],
      decode.map((row) => [
        String(row.batch_size),
        row.per_sequence_tokens_per_second.toFixed(0),
        row.aggregate_tokens_per_second.toFixed(0),
        row.ttft_ms.toFixed(1),
      ]),
    ),
  ].join("\n");

const benchmark = async (deps: CommandDeps, flags: BenchmarkFlags): Promise<void> => {
  const json = flags.json ?? false;
  const plan = toPlan(flags);
  const rows = Math.max(...plan.batchSizes);
  const config = loadConfig({
    environment: deps.environment,
    flags: {
      provider: {
        model: flags.model,
        contextTokens: flags.ctx,
        threads: flags.threads,
        gpuLayers: flags.gpuLayers,
        rows,
      },
    },
  });
  const progress = createProgress(deps, json && !deps.isTty);
  const { stderr: write } = clearedBy(deps, progress);
  const log = createLog({ clock: deps.clock, level: "warn", format: json ? "json" : "text", write });
  const modelPath = config.provider.model ?? (await demoModelPath(config));
  const machine = await wireMachine(deps.clock, log);
  const onProgress = (step: string): void => progress.step(step);
  const startedMs = deps.clock.monotonicMs();
  await using engine = await wireEngine({
    deps,
    config,
    log,
    machine,
    modelPath,
    id: modelIdOf(modelPath, undefined),
    onProgress,
  });
  const loadMs = deps.clock.monotonicMs() - startedMs;
  if (plan.promptTokens.every((tokens) => tokens + 16 >= engine.model.contextTokens))
    throw new Fault("usage", `no prompt length fits the context of ${engine.model.contextTokens} tokens`, {
      hint: "give smaller --prompt-tokens or a larger --ctx",
    });
  const signal = deps.signals.stopping;
  const measured = await runBenchmark({ clock: deps.clock, engine, signal, onProgress }, plan);
  progress.clear();
  const threads = engineThreads(config, machine.hardware);
  const { model } = engine;
  const report = {
    model: model.id,
    model_path: modelPath,
    quantization: model.quantization,
    size_bytes: model.sizeBytes,
    context_tokens: model.contextTokens,
    hardware: machine.hardware,
    threads,
    iterations: plan.iterations,
    load_ms: Math.round(loadMs),
    ...measured,
  };
  emit(
    deps,
    json,
    report,
    () =>
      `${model.id}, ${model.quantization ?? "unknown quantization"}, on ${machine.hardware.chip_name}, ${threads} threads, median of ${plan.iterations}\n\n${toText(measured.prefill, measured.decode)}`,
  );
};

export const benchmarkCommand = (deps: CommandDeps): Command => {
  const command = new Command("benchmark")
    .description("measure prefill, time to first token and decode speed")
    .option("--model <file>", "GGUF file (default: the configured one, else the demo model)");
  settingOption(command, "--ctx <tokens>", "provider", "contextTokens");
  settingOption(command, "--threads <number>", "provider", "threads");
  settingOption(command, "--gpu-layers <number>", "provider", "gpuLayers");
  return command
    .option("--iterations <number>", "repetitions per figure", integerOption("--iterations", 1, 1000), 3)
    .option("--max-tokens <number>", "answer tokens per request", integerOption("--max-tokens", 2, COUNT_MAX), 128)
    .option("--prompt-tokens <list>", "prompt lengths", listOption("--prompt-tokens"), ["128", "512", "1024"])
    .option("--batch <list>", "requests side by side", listOption("--batch"), ["1", "4", "8"])
    .option("--json", "print one JSON object")
    .action((flags: BenchmarkFlags) => benchmark(deps, flags));
};

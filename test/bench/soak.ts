/**
 * Memory over time in one process: model load/unload cycles, then short completions; fails when resident memory grows by 5 % or more
 * after warm-up.
 *
 * Run: bun test/bench/soak.ts [--cycles 500] [--completions 20000].
 */
import path from "node:path";
import type { Engine } from "../../src/engine/engine.ts";
import { openDemoEngine } from "../support/demo-engine.ts";

const flag = (name: string, fallback: number): number => {
  const at = process.argv.indexOf(`--${name}`);
  return at === -1 ? fallback : Number(process.argv[at + 1] ?? fallback);
};
const CYCLES = flag("cycles", 500);
const COMPLETIONS = flag("completions", 20_000);
const GROWTH_MAX = 0.05;
const WARM_UP_SHARE = 0.2;
const MIB = 1024 * 1024;

const rssMib = (): number => {
  Bun.gc(true);
  return process.memoryUsage.rss() / MIB;
};

/** Growth from the end of the warm-up to the end, each as the median of several readings. */
const growthOf = (readings: readonly number[]): number => {
  const median = (values: readonly number[]): number =>
    values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
  const warm = Math.floor(readings.length * WARM_UP_SHARE);
  const window = Math.max(1, Math.floor(readings.length * 0.1));
  const first = median(readings.slice(warm, warm + window));
  return median(readings.slice(-window)) / first - 1;
};

const complete = async (engine: Engine, id: number): Promise<number> => {
  let tokens = 0;
  const request = {
    id: `soak-${id}`,
    messages: [{ role: "user", content: `What is ${id % 10} + ${id % 7}?` }],
    sampling: { temperature: 0 },
    stop: [],
    tokensMax: 16,
  };
  for await (const output of engine.generate(request, new AbortController().signal))
    if (output.type === "terminal") tokens = output.terminal.usage.completionTokens;
  return tokens;
};

const report = (what: string, readings: readonly number[]): boolean => {
  const growth = growthOf(readings);
  const ok = growth < GROWTH_MAX;
  process.stdout.write(
    `${ok ? "ok  " : "FAIL"} ${what}: RSS ${readings[0]?.toFixed(1)} → ${readings.at(-1)?.toFixed(1)} MiB, growth after warm-up ${(growth * 100).toFixed(2)} %\n`,
  );
  return ok;
};

const every = (count: number): number => Math.max(1, Math.floor(count / 100));
const model = path.join(import.meta.dir, "../../assets/demo-model/darkbloom-demo-q8_0.gguf");

const cycles: number[] = [];
for (let cycle = 0; cycle < CYCLES; cycle += 1) {
  await using engine = await openDemoEngine({ modelPath: model, rows: 4 });
  await complete(engine, cycle);
  if (cycle % every(CYCLES) === 0) cycles.push(rssMib());
}

const completions: number[] = [];
{
  await using engine = await openDemoEngine({ modelPath: model, rows: 8 });
  let next = 0;
  let finished = 0;
  const lane = async (): Promise<void> => {
    while (next < COMPLETIONS) {
      await complete(engine, next++);
      finished += 1;
      if (finished % every(COMPLETIONS) === 0) completions.push(rssMib());
    }
  };
  await Promise.all(Array.from({ length: 8 }, lane));
}

const passed = [report(`${CYCLES} load/unload cycles`, cycles), report(`${COMPLETIONS} completions`, completions)];
process.exit(passed.every(Boolean) ? 0 : 1);

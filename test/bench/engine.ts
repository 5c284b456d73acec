/**
 * The engine without any network: tokens per second at 1 to 16 rows through the worker, and what our own code costs per row and step.
 *
 * Run: bun test/bench/engine.ts [--threads 1] [--rounds 5] [--tokens 256].
 */
import { systemClock } from "../../src/core/clock.ts";
import { createIds, systemRandom } from "../../src/core/ids.ts";
import type { GenerateRequest } from "../../src/engine/engine.ts";
import { LoadedModel } from "../../src/engine/loaded-model.ts";
import { WorkerLoop } from "../../src/engine/worker-loop.ts";
import { chat, run } from "../support/collect.ts";
import { DEMO_MODEL_FILE, engineNative, openDemoEngine } from "../support/demo-engine.ts";

const flag = (name: string, fallback: number): number => {
  const at = process.argv.indexOf(`--${name}`);
  return at === -1 ? fallback : Number(process.argv[at + 1] ?? fallback);
};
const THREADS = flag("threads", 1);
const ROUNDS = flag("rounds", 5);
const TOKENS = flag("tokens", 256);
const ROWS = [1, 4, 8, 16];

const request = (): GenerateRequest => chat("Tell me a story about a fox.", { ignoreEos: true, tokensMax: TOKENS });

const quartiles = (values: readonly number[]): string => {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share: number): string => (sorted[Math.round((sorted.length - 1) * share)] ?? Number.NaN).toFixed(1);
  return `${at(0.5)} (${at(0.25)}–${at(0.75)})`;
};

/** Tokens per second of all rows together, prompts included in the time. */
const throughput = async (rows: number): Promise<number[]> => {
  await using engine = await openDemoEngine({ contextTokens: 1024, rows, threads: THREADS });
  await run(engine, request());
  const rates: number[] = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    const startMs = performance.now();
    await Promise.all(Array.from({ length: rows }, () => run(engine, request())));
    rates.push((rows * TOKENS) / ((performance.now() - startMs) / 1000));
  }
  return rates;
};

/** Microseconds per row and step outside the native step call, in a loop on this thread; messages are made but not sent. */
const ownCost = async (rows: number): Promise<number> => {
  const spec = { location: await engineNative(), modelPath: DEMO_MODEL_FILE, id: "bench" };
  using loaded = new LoadedModel(
    { ...spec, contextTokens: 1024, rows, threads: THREADS, gpuLayers: 0 },
    () => undefined,
  );
  let [nativeMs, steps, left] = [0, 0, rows];
  const done = Promise.withResolvers<void>();
  const { context } = loaded;
  const step = context.step.bind(context);
  let startMs = 0;
  context.step = (...inputs) => {
    if (steps === 1) startMs = performance.now(); // the first step carries the prompts
    const beforeMs = performance.now();
    step(...inputs);
    if (steps >= 1) nativeMs += performance.now() - beforeMs;
    steps += 1;
  };
  const loop = new WorkerLoop({
    loaded,
    clock: systemClock(),
    ids: createIds(systemRandom()),
    post: (message) => {
      JSON.stringify(message);
      if (message.type === "step") left -= message.outputs.filter((output) => output.terminal !== undefined).length;
      if (left === 0) done.resolve();
    },
  });
  for (let ticket = 1; ticket <= rows; ticket += 1) loop.handle({ type: "submit", ticket, request: request() });
  await done.promise;
  return ((performance.now() - startMs - nativeMs) * 1000) / (steps - 1) / rows;
};

process.stdout.write(`threads ${THREADS}, ${ROUNDS} rounds of ${TOKENS} tokens per row, demo model\n`);
for (const rows of ROWS) {
  const rates = await throughput(rows);
  const costs: number[] = [];
  for (let round = 0; round < ROUNDS; round += 1) costs.push(await ownCost(rows));
  process.stdout.write(
    `${String(rows).padStart(2)} rows: ${quartiles(rates)} tokens/s, our code ${quartiles(costs)} µs per row and step\n`,
  );
}

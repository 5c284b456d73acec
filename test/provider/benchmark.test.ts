/** The benchmark's arithmetic on the fake engine, whose counts are known. */
import { expect, test } from "bun:test";
import { systemClock } from "../../src/core/clock.ts";
import { createFakeEngine } from "../../src/engine/fake-engine.ts";
import { median, runBenchmark } from "../../src/provider/benchmark.ts";

test("median of odd and even counts", () => {
  expect(median([3, 1, 2])).toBe(2);
  expect(median([4, 1, 2, 3])).toBe(2.5);
  expect(() => median([])).toThrow("a median needs values");
});

test("rows follow the plan, and prompts beyond the context are left out", async () => {
  const clock = systemClock();
  await using engine = createFakeEngine({ clock, rows: 8, contextTokens: 600 });
  const steps: string[] = [];
  const report = await runBenchmark(
    { clock, engine, signal: new AbortController().signal, onProgress: (step) => void steps.push(step) },
    { promptTokens: [64, 4096], batchSizes: [1, 4], decodeTokens: 12, iterations: 2 },
  );
  expect(report.prefill).toHaveLength(1);
  expect(report.decode.map((row) => [row.batch_size, row.tokens_per_sequence])).toEqual([
    [1, 12],
    [4, 12],
  ]);
  for (const row of report.decode) {
    expect(row.aggregate_tokens_per_second).toBeGreaterThan(0);
    expect(Number.isFinite(row.ttft_ms)).toBe(true);
  }
  expect(steps[0]).toBe("warm-up");
});

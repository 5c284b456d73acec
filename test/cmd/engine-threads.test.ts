/** How many threads the engine gets. */
import { expect, test } from "bun:test";
import { engineThreads } from "../../cmd/_provider.ts";
import { loadConfig } from "../../src/core/config.ts";

const threadsOf = (asked: number | undefined, total: number, performance: number): number =>
  engineThreads(loadConfig({ environment: {}, flags: { provider: { threads: asked } } }), {
    cpu_cores: { total, performance, efficiency: total - performance },
  });

test("one performance core is left free, what is asked for wins, and no thread is without a CPU", () => {
  expect(threadsOf(undefined, 10, 8)).toBe(7);
  expect(threadsOf(undefined, 1, 1)).toBe(1);
  expect(threadsOf(10, 10, 8)).toBe(10);
  expect(threadsOf(64, 2, 2)).toBe(2);
});

/** The batch scheduler: no row starves, no token is lost, no step exceeds its budget. */
import { describe, expect, test } from "bun:test";
import * as fc from "fast-check";
import { Fault } from "../../src/core/fault.ts";
import { BatchScheduler, type Row, type Share } from "../../src/engine/scheduler.ts";

interface Job {
  readonly id: number;
  readonly promptTokens: number;
  readonly answerTokens: number;
}

const admit = (scheduler: BatchScheduler<Job>): Row<Job>[] => {
  const held: Row<Job>[] = [];
  for (let job = scheduler.takeNext(); job !== null; job = scheduler.takeNext())
    held.push(scheduler.hold(job, job.promptTokens));
  return held;
};

const sum = (shares: readonly Share<Job>[]): number => shares.reduce((total, share) => total + share.count, 0);

const jobs = fc.array(
  fc.record({ promptTokens: fc.integer({ min: 1, max: 700 }), answerTokens: fc.integer({ min: 1, max: 40 }) }),
  { minLength: 1, maxLength: 24 },
);

describe("batch scheduler", () => {
  test("every request is computed whole, in order, within the budget, and always moves", () => {
    fc.assert(
      fc.property(
        jobs,
        fc.integer({ min: 1, max: 8 }),
        fc.integer({ min: 8, max: 256 }),
        fc.array(fc.double({ min: 0.01, max: 2000, noNaN: true }), { minLength: 1, maxLength: 50 }),
        fc.array(fc.nat({ max: 23 }), { maxLength: 3 }),
        (specs, rows, batchTokens, ...[times, cancels]) => {
          const scheduler = new BatchScheduler<Job>({ rows, batchTokens });
          const all = specs.map((spec, id): Job => ({ id, ...spec }));
          const sampled = new Map<Job, number>();
          const heldOrder: number[] = [];
          for (const job of all) scheduler.submit(job);
          for (let step = 0; step < 100_000; step += 1) {
            const cancelled = all[cancels[step] ?? -1];
            if (cancelled !== undefined) {
              scheduler.release(cancelled);
              sampled.set(cancelled, cancelled.answerTokens);
            }
            for (const row of admit(scheduler)) heldOrder.push(row.job.id);
            const shares = scheduler.plan();
            if (shares.length === 0) break;
            expect(shares.length).toBe(scheduler.rows.length); // every row is in every step
            expect(sum(shares)).toBeLessThanOrEqual(batchTokens);
            expect(new Set(shares.map((share) => share.row.slot)).size).toBe(shares.length);
            const firstPrompt = shares.findIndex((share) => !share.decoding);
            if (firstPrompt !== -1) expect(shares.slice(firstPrompt).every((share) => !share.decoding)).toBe(true);
            for (const share of shares) {
              expect(share.count).toBeGreaterThanOrEqual(1);
              if (!share.decoding) expect(share.start).toBe(share.row.promptDone);
              expect(share.sample).toBe(share.decoding || share.start + share.count === share.row.promptTokens);
            }
            scheduler.commit(times[step % times.length] ?? 1);
            for (const { row, sample } of shares) {
              const tokens = (sampled.get(row.job) ?? 0) + (sample ? 1 : 0);
              sampled.set(row.job, tokens);
              expect(row.position).toBe(row.promptDone + Math.max(0, tokens - 1));
              if (tokens === row.job.answerTokens) scheduler.release(row.job);
            }
          }
          expect(all.map((job) => sampled.get(job))).toEqual(all.map((job) => job.answerTokens));
          expect([scheduler.rows.length, scheduler.waiting.length]).toEqual([0, 0]);
          expect(heldOrder).toEqual([...heldOrder].sort((a, b) => a - b));
        },
      ),
      { numRuns: 300 },
    );
  }, 30_000);

  test("a full queue is a fault with a time to wait: rows × 8 behind the rows, at least 32", () => {
    for (const [rows, waitingMax] of [
      [1, 32],
      [4, 32],
      [8, 64],
    ] as const) {
      const scheduler = new BatchScheduler<Job>({ rows, batchTokens: 64 });
      for (let id = 0; id < rows + waitingMax; id += 1) scheduler.submit({ id, promptTokens: 1, answerTokens: 1 });
      let thrown: unknown;
      try {
        scheduler.submit({ id: -1, promptTokens: 1, answerTokens: 1 });
      } catch (error) {
        thrown = error;
      }
      expect(thrown).toBeInstanceOf(Fault);
      expect(thrown).toMatchObject({ code: "queue_full", retryAfterMs: 1000 });
    }
  });

  test("beside running rows a prompt is cut to the learned step time, alone it is not", () => {
    const scheduler = new BatchScheduler<Job>({ rows: 3, batchTokens: 2048 });
    const short: Job = { id: 0, promptTokens: 100, answerTokens: 100 };
    const long: Job = { id: 1, promptTokens: 8000, answerTokens: 1 };
    scheduler.submit(short);
    admit(scheduler);
    expect(sum(scheduler.plan())).toBe(100);
    scheduler.commit(100); // one millisecond per prompt token
    for (let step = 0; step < 20; step += 1) {
      scheduler.plan();
      scheduler.commit(60); // decoding takes 60 ms
    }
    scheduler.submit(long);
    admit(scheduler);
    expect(scheduler.plan().map((share) => share.count)).toEqual([1, 60]); // 120 ms: twice the quiet step
    scheduler.commit(120);
    scheduler.release(short);
    expect(scheduler.plan().map((share) => share.count)).toEqual([512]); // nobody waits for tokens
  });

  test("two prompts: the first gets the budget, the second still moves", () => {
    const scheduler = new BatchScheduler<Job>({ rows: 2, batchTokens: 64 });
    scheduler.submit({ id: 0, promptTokens: 500, answerTokens: 1 });
    scheduler.submit({ id: 1, promptTokens: 500, answerTokens: 1 });
    admit(scheduler);
    expect(scheduler.plan().map((share) => share.count)).toEqual([56, 8]);
  });
});

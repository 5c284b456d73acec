/** The life cycle of an attempt: its road, its deadlines, and exactly one terminal whatever happens. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { Fault } from "../../src/core/fault.ts";
import {
  isOver,
  reserveAttempt,
  stepAttempt,
  type Attempt,
  type AttemptEffect,
  type AttemptEvent,
} from "../../src/coordinator/routing/attempt.ts";

const fault = new Fault("provider_failed", "inference generation failed");

const run = (events: readonly AttemptEvent[], start = reserveAttempt(100, 1_000)): [Attempt, AttemptEffect[]] => {
  let attempt = start;
  const effects: AttemptEffect[] = [];
  for (const event of events) {
    const [next, made] = stepAttempt(attempt, event);
    attempt = next;
    effects.push(...made);
  }
  return [attempt, effects];
};

describe("attempt", () => {
  test("goes from reserved to done", () => {
    const [attempt, effects] = run([
      { type: "sent" },
      { type: "accepted", nowMs: 1 },
      { type: "chunk", nowMs: 2 },
      { type: "chunk", nowMs: 3 },
      { type: "terminal", chunks: 2 },
    ]);
    expect(attempt).toMatchObject({ phase: "done", deadlineMs: null, chunks: 2, late: 0 });
    expect(effects.map(({ type }) => type)).toEqual(["announce", "deliver", "deliver", "finish"]);
  });

  test("a chunk may come without accepted", () => {
    const [attempt] = run([{ type: "sent" }, { type: "chunk", nowMs: 2 }]);
    expect(attempt.phase).toBe("streaming");
  });

  test("expires at the first-content deadline until it is accepted, and tells the provider to stop", () => {
    const [alive] = run([{ type: "sent" }, { type: "tick", nowMs: 99 }]);
    expect(alive.phase).toBe("sent");
    const [attempt, effects] = run([{ type: "sent" }, { type: "tick", nowMs: 100 }]);
    expect(attempt.phase).toBe("expired");
    expect(effects.map(({ type }) => type)).toEqual(["fail", "send_cancel"]);
    expect(effects[0]).toMatchObject({ fault: { code: "timeout", reason: "first_content_timeout" } });
  });

  test("after accepted only silence ends it, and each chunk starts the silence anew", () => {
    const events: AttemptEvent[] = [
      { type: "sent" },
      { type: "accepted", nowMs: 50 },
      { type: "tick", nowMs: 1_049 },
      { type: "chunk", nowMs: 1_049 },
      { type: "tick", nowMs: 2_048 },
    ];
    expect(run(events)[0].phase).toBe("streaming");
    const [attempt, effects] = run([...events, { type: "tick", nowMs: 2_049 }]);
    expect(attempt.phase).toBe("expired");
    expect(effects.at(-2)).toMatchObject({ type: "fail", fault: { code: "timeout", message: "request timed out" } });
  });

  test("a terminal that names another number of chunks is a truncated answer", () => {
    const [attempt, effects] = run([{ type: "sent" }, { type: "chunk", nowMs: 1 }, { type: "terminal", chunks: 2 }]);
    expect(attempt.phase).toBe("failed");
    expect(effects.at(-1)).toMatchObject({ type: "fail", fault: { code: "encryption_failed" } });
  });

  test("an answer before the request is a protocol error", () => {
    for (const event of [
      { type: "chunk", nowMs: 1 },
      { type: "terminal", chunks: 0 },
    ] as const)
      expect(run([event])[1]).toMatchObject([{ type: "fail", fault: { code: "protocol_error" } }]);
  });

  test("the consumer's cancel reaches the provider only when there is something to cancel", () => {
    const gone = new Fault("cancelled", "the client went away");
    expect(run([{ type: "cancelled", fault: gone }])[1].map(({ type }) => type)).toEqual(["fail"]);
    expect(run([{ type: "sent" }, { type: "cancelled", fault: gone }])[1].map(({ type }) => type)).toEqual([
      "fail",
      "send_cancel",
    ]);
    expect(run([{ type: "sent" }, { type: "failed", fault }])[1].map(({ type }) => type)).toEqual(["fail"]);
  });

  test("what comes after the end is counted and has no effect", () => {
    const [attempt, effects] = run([
      { type: "sent" },
      { type: "terminal", chunks: 0 },
      { type: "chunk", nowMs: 5 },
      { type: "terminal", chunks: 1 },
      { type: "failed", fault },
      { type: "tick", nowMs: 1e9 },
    ]);
    expect(attempt).toMatchObject({ phase: "done", late: 3 });
    expect(effects.map(({ type }) => type)).toEqual(["finish"]);
  });

  test("any sequence of events has at most one terminal, nothing is delivered after it, and cancel is sent at most once", () => {
    const nowMs = fc.integer({ min: 0, max: 5_000 });
    const event: fc.Arbitrary<AttemptEvent> = fc.oneof(
      fc.constant({ type: "sent" } as const),
      nowMs.map((at) => ({ type: "accepted", nowMs: at }) as const),
      nowMs.map((at) => ({ type: "chunk", nowMs: at }) as const),
      fc.integer({ min: 0, max: 4 }).map((chunks) => ({ type: "terminal", chunks }) as const),
      fc.constant({ type: "failed", fault } as const),
      fc.constant({ type: "cancelled", fault } as const),
      nowMs.map((at) => ({ type: "tick", nowMs: at }) as const),
    );
    fc.assert(
      fc.property(fc.array(event, { maxLength: 30 }), (events) => {
        const [attempt, effects] = run(events);
        const ends = effects.filter(({ type }) => type === "finish" || type === "fail");
        expect(ends.length).toBe(isOver(attempt) ? 1 : 0);
        const end = effects.findIndex(({ type }) => type === "finish" || type === "fail");
        if (end >= 0) expect(effects.slice(end + 1).every(({ type }) => type === "send_cancel")).toBe(true);
        expect(effects.filter(({ type }) => type === "send_cancel").length).toBeLessThanOrEqual(1);
        expect(effects.filter(({ type }) => type === "deliver").length).toBe(attempt.chunks);
      }),
      { numRuns: 2_000 },
    );
  });
});

/** The link's decisions: any order of events keeps its promises, and each refusal waits as long as it should. */
import { describe, expect, test } from "bun:test";
import * as fc from "fast-check";
import { Fault } from "../../src/core/fault.ts";
import {
  backoffMs,
  dueMs,
  INITIAL_LINK,
  isConnected,
  stepLink,
  type LinkEvent,
  type LinkState,
} from "../../src/provider/link/link-machine.ts";

const EVENTS: fc.Arbitrary<LinkEvent> = fc.oneof(
  fc.constant<LinkEvent>({ type: "start" }),
  fc.constant<LinkEvent>({ type: "opened" }),
  fc.constant<LinkEvent>({ type: "welcome", nonce: "n" }),
  fc.boolean().map((online): LinkEvent => ({ type: "judged", online })),
  fc.constantFrom<LinkEvent>(
    { type: "rejected", code: "token_revoked" },
    { type: "rejected", code: "draining", retryAfterMs: 90_000 },
    { type: "refused", status: 401 },
    { type: "refused", status: 503 },
    { type: "lost", code: 1006 },
    { type: "lost", code: 1008 },
    { type: "silent" },
    { type: "suspended" },
    { type: "broken", fault: new Fault("protocol_error", "x") },
    { type: "tick" },
    { type: "drain", drainId: "d" },
  ),
);

const at = (nowMs: number, fraction = 0.5) => ({ nowMs, fraction });

/** The state after these events, all at time 0 unless they say otherwise. */
const after = (...events: readonly (LinkEvent | readonly [number, LinkEvent])[]): LinkState => {
  let state = INITIAL_LINK;
  for (const item of events) {
    const [nowMs, event] = "type" in item ? [0, item] : item;
    [state] = stepLink(state, event, at(nowMs));
  }
  return state;
};

const OPEN: readonly LinkEvent[] = [{ type: "start" }, { type: "opened" }];
const SERVING: readonly LinkEvent[] = [...OPEN, { type: "welcome", nonce: "n" }, { type: "judged", online: true }];

describe("any order of events", () => {
  test("never two sockets, registers once per socket, bounded waits, and a stop is final", () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(EVENTS, fc.nat(40_000), fc.double({ min: 0, max: 0.999, noNaN: true })), { maxLength: 80 }),
        (steps) => {
          let state = INITIAL_LINK;
          let nowMs = 0;
          let sockets = 0;
          let registered = false;
          const step = (event: LinkEvent, fraction: number): void => {
            // What ends the socket itself is told by it: no hang-up follows.
            if (event.type === "lost" || event.type === "refused") {
              if (sockets === 0) return;
              sockets = 0;
            }
            const [next, effects] = stepLink(state, event, { nowMs, fraction });
            for (const effect of effects) {
              if (effect.type === "connect") {
                expect(sockets).toBe(0);
                sockets = 1;
                registered = false;
              }
              if (effect.type === "hang_up") sockets = 0;
              if (effect.type === "send_register") {
                expect(registered).toBe(false);
                registered = true;
              }
              if (effect.type === "send_statement") expect(registered).toBe(true);
            }
            state = next;
            if (state.phase === "backoff") {
              expect(sockets).toBe(0);
              expect((dueMs(state) ?? 0) - nowMs).toBeLessThanOrEqual(90_000);
            }
            if (isConnected(state)) expect(sockets).toBe(1);
          };
          for (const [event, elapsedMs, fraction] of steps) {
            nowMs += elapsedMs;
            step(event, fraction);
          }
          step({ type: "stop" }, 0);
          expect(state).toEqual({ phase: "closed" });
          expect(sockets).toBe(0);
          step({ type: "start" }, 0);
          expect(sockets).toBe(0);
        },
      ),
      { numRuns: 3_000 },
    );
  });

  test("every phase without a deadline is one that pings or people end", () => {
    fc.assert(
      fc.property(fc.array(EVENTS, { maxLength: 40 }), (events) => {
        const state = after(...events);
        if (dueMs(state) === null)
          expect(["idle", "attesting", "serving", "draining", "closed"]).toContain(state.phase);
      }),
    );
  });
});

describe("waits", () => {
  const waitAfter = (end: LinkEvent, fraction: number, failures = 0): number => {
    let state = INITIAL_LINK;
    for (let round = 0; round <= failures; round += 1) {
      for (const event of round === 0 ? OPEN : [{ type: "opened" } as const])
        [state] = stepLink(state, event, at(0, fraction));
      [state] = stepLink(state, end, at(0, fraction));
      if (round < failures) [state] = stepLink(state, { type: "tick" }, at(dueMs(state) ?? 0, fraction));
      if (round < failures) state = { ...state, untilMs: 0 } as LinkState;
    }
    return dueMs(state) ?? Number.NaN;
  };

  test("full jitter over a window that doubles from 1 s to 30 s", () => {
    expect([0, 1, 2, 3, 4, 5, 6, 60].map((failures) => backoffMs(failures, 1))).toEqual([
      1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000,
    ]);
    expect(backoffMs(9, 0)).toBe(0);
    expect(waitAfter({ type: "lost", code: 1006 }, 0.5)).toBe(500);
  });

  test("answers that will not change soon are asked for slowly", () => {
    for (const end of [
      { type: "refused", status: 401 },
      { type: "refused", status: 404 },
      { type: "rejected", code: "model_hash_mismatch" },
      { type: "rejected", code: "token_revoked" },
      { type: "lost", code: 1008 },
      { type: "broken", fault: new Fault("provider_rejected", "x") },
    ] satisfies LinkEvent[]) {
      expect(waitAfter(end, 0)).toBe(15_000);
      expect(waitAfter(end, 1)).toBe(30_000);
    }
    expect(waitAfter({ type: "rejected", code: "draining", retryAfterMs: 4_000 }, 0)).toBe(4_000);
    expect(waitAfter({ type: "refused", status: 503 }, 0)).toBe(0);
  });

  test("a machine that slept comes back at once, without a word", () => {
    let state = after(...SERVING);
    const [next, effects] = stepLink(state, { type: "suspended" }, at(5_000, 1));
    state = next;
    expect(dueMs(state)).toBe(5_000);
    expect(effects.map(({ type }) => type)).toEqual(["hang_up"]);
  });

  test("30 s of serving forget the failures before", () => {
    const lost: LinkEvent = { type: "lost", code: 1006 };
    const failing = after(...OPEN, lost);
    const again: readonly LinkEvent[] = [
      { type: "opened" },
      { type: "welcome", nonce: "n" },
      { type: "judged", online: true },
    ];
    const serve = (servedMs: number): LinkState => {
      let [state] = stepLink(failing, { type: "tick" }, at(1_000));
      for (const event of again) [state] = stepLink(state, event, at(1_000));
      return stepLink(state, lost, at(1_000 + servedMs, 1))[0];
    };
    expect((dueMs(serve(29_999)) ?? 0) - 1_000 - 29_999).toBe(2_000);
    expect((dueMs(serve(30_000)) ?? 0) - 1_000 - 30_000).toBe(1_000);
  });

  test("each handshake has a deadline; a verdict ends the last one", () => {
    for (const events of [[OPEN[0]!], OPEN, [...OPEN, { type: "welcome", nonce: "n" } as const]]) {
      const state = after(...events);
      const due = dueMs(state) ?? Number.NaN;
      const [early] = stepLink(state, { type: "tick" }, at(due - 1));
      expect(early.phase).toBe(state.phase);
      const [late, effects] = stepLink(state, { type: "tick" }, at(due));
      expect(late.phase).toBe("backoff");
      expect(effects.map(({ type }) => type)).toEqual(["hang_up", "report"]);
    }
    expect(dueMs(after(...OPEN, { type: "welcome", nonce: "n" }, { type: "judged", online: false }))).toBeNull();
  });

  test("a drained link does not come back", () => {
    const draining = after(...SERVING, { type: "drain", drainId: "d" });
    expect(draining.phase).toBe("draining");
    expect(stepLink(draining, { type: "lost", code: 1006 }, at(0))[0].phase).toBe("closed");
  });
});

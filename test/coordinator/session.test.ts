/** The provider session as a pure function: phases, challenges, deadlines, and no way around verification. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  openSession,
  stepSession,
  takesData,
  type Registration,
  type Session,
  type SessionContext,
  type SessionEffect,
  type SessionEvent,
  type Standing,
} from "../../src/coordinator/session/session.ts";
import { scriptedModel } from "../support/scripted-provider.ts";

const options = {
  challengeMs: 300_000,
  challengeReplyMs: 30_000,
  peerSilenceMs: 30_000,
  minTrust: "self_signed",
} as const;
const at = (nowMs: number): SessionContext => ({
  nowMs,
  wallMs: 1_700_000_000_000 + nowMs,
  nonce: () => `n${nowMs}`,
  options,
});

const registration: Registration = {
  type: "register",
  protocol: 1,
  version: "1",
  capabilities: [],
  identity_key: "B",
  k_public: "k",
  hardware: {
    machine_model: "m",
    chip_name: "c",
    chip_family: "M4",
    chip_tier: "Pro",
    memory_gb: 1,
    memory_available_gb: 1,
    cpu_cores: { total: 1, performance: 1, efficiency: 0 },
    gpu_cores: 0,
    memory_bandwidth_gbs: 1,
  },
  models: [scriptedModel("m")],
};
const message = (value: Extract<SessionEvent, { type: "message" }>["message"]): SessionEvent => ({
  type: "message",
  message: value,
});
const register = message(registration);
const attest = message({ type: "attestation_response", statement: "a.b", signature: "c" });
const good: SessionEvent = { type: "verdict", verdict: { ok: true, trustLevel: "self_signed", kPublic: "k" } };
const online: Standing = {
  status: "online",
  trustLevel: "self_signed",
  reason: "verified",
  seen: null,
  expected: null,
};
const admitted: SessionEvent = { type: "admitted", standing: online };
const bad = (atOnce: boolean): SessionEvent => ({
  type: "verdict",
  verdict: { ok: false, trustLevel: "none", reason: "posture_false", seen: "x=false", expected: "x=true", atOnce },
});

const run = (
  steps: readonly (readonly [number, SessionEvent])[],
  start = openSession(0, 10_000),
): [Session, SessionEffect[]] => {
  let session = start;
  let effects: readonly SessionEffect[] = [];
  for (const [nowMs, event] of steps) [session, effects] = stepSession(session, event, at(nowMs));
  return [session, [...effects]];
};

const serving = (): Session =>
  run([
    [0, register],
    [1, attest],
    [2, good],
    [3, admitted],
  ])[0];

const types = (effects: readonly SessionEffect[]): string[] =>
  effects.map((effect) => (effect.type === "send" ? `send ${effect.message.type}` : effect.type));

describe("session", () => {
  test("registers, proves itself, is admitted, serves", () => {
    expect(types(run([[0, register]])[1])).toEqual(["welcome"]);
    const [challenged, verify] = run([
      [0, register],
      [1, attest],
    ]);
    expect(challenged.phase).toBe("challenged");
    expect(verify).toMatchObject([{ type: "verify", nonce: "n0", first: true }]);
    const [session, effects] = run([
      [0, register],
      [1, attest],
      [2, good],
      [3, admitted],
    ]);
    expect(session.phase).toBe("serving");
    expect(effects).toMatchObject([
      { type: "serve", serving: true },
      { type: "send", message: { type: "trust_status", status: "online", reason: "verified", retry_at: null } },
    ]);
  });

  test("every phase before serving has its deadline", () => {
    const tick: SessionEvent = { type: "tick", seenAtMs: 0 };
    expect(run([[9_999, tick]])[0].phase).toBe("connected");
    expect(run([[10_000, tick]])[1]).toMatchObject([
      { message: { type: "reject", code: "register_timeout" } },
      { type: "close" },
    ]);
    const [late, effects] = run([
      [0, register],
      [30_000, tick],
    ]);
    expect(late.phase).toBe("closed");
    expect(effects).toMatchObject([{ message: { code: "attestation_timeout" } }, { type: "close", code: 1008 }]);
  });

  test("another protocol version is told which one is spoken", () => {
    const [, effects] = run([[0, message({ ...registration, protocol: 2 })]]);
    expect(effects).toMatchObject([{ message: { type: "reject", code: "protocol_unsupported" } }, { type: "close" }]);
  });

  test("a second register, work before verification and a second drain are protocol errors", () => {
    const drain = message({ type: "provider_drain", drain_id: "d" });
    const accepted = message({ type: "inference_accepted", request_id: "r" });
    for (const steps of [
      [[0, attest]],
      [[0, accepted]],
      [
        [0, register],
        [1, register],
      ],
      [
        [0, register],
        [1, accepted],
      ],
    ] as const)
      expect(run(steps)[1]).toMatchObject([{ type: "close", code: 1002 }]);
    expect(run([[4, register]], serving())[1]).toMatchObject([{ type: "close", code: 1002 }]);
    expect(
      run(
        [
          [4, drain],
          [5, drain],
        ],
        serving(),
      )[1],
    ).toMatchObject([{ type: "close", code: 1002 }]);
  });

  test("a refused first statement is explained, then the connection is closed", () => {
    const [session, effects] = run([
      [0, register],
      [1, attest],
      [2, bad(true)],
    ]);
    expect(session.phase).toBe("closed");
    expect(effects).toMatchObject([
      {
        message: {
          type: "trust_status",
          status: "untrusted",
          reason: "posture_false",
          seen: "x=false",
          command: "csrutil status",
        },
      },
      { message: { type: "reject", code: "attestation_failed" } },
      { type: "close" },
    ]);
  });

  test("is challenged every five minutes, and a good answer renews it", () => {
    const [challenged, effects] = run([[300_003, { type: "tick", seenAtMs: 300_000 }]], serving());
    expect(effects).toMatchObject([{ message: { type: "attestation_challenge", nonce: "n300003" } }]);
    const [, verify] = run([[300_004, attest]], challenged);
    expect(verify).toMatchObject([{ type: "verify", nonce: "n300003", first: false }]);
    const [renewed, renew] = run(
      [
        [300_004, attest],
        [300_005, good],
      ],
      challenged,
    );
    expect(types(renew)).toEqual(["renew", "serve", "send trust_status"]);
    expect(renewed.phase).toBe("serving");
  });

  test("the third missed challenge untrusts, the sixth ends the connection, a good answer between heals", () => {
    let session = serving();
    let nowMs = 3;
    const seen: string[] = [];
    const toNextFailure = (): void => {
      for (;;) {
        nowMs += 1_000;
        const failures = "failures" in session ? session.failures : 0;
        const [next, effects] = stepSession(session, { type: "tick", seenAtMs: nowMs }, at(nowMs));
        session = next;
        seen.push(...types(effects).filter((type) => type !== "send attestation_challenge"));
        if (session.phase === "closed" || ("failures" in session && session.failures > failures)) return;
      }
    };
    toNextFailure();
    toNextFailure();
    expect(seen).toEqual([]);
    toNextFailure();
    expect(seen).toEqual(["serve", "send trust_status"]);
    expect(session).toMatchObject({
      phase: "serving",
      standing: { status: "untrusted", reason: "attestation_failures" },
    });
    const healed = stepSession(session, good, at(nowMs));
    expect(healed[0]).toMatchObject({ failures: 0, standing: { status: "online" } });
    toNextFailure();
    toNextFailure();
    toNextFailure();
    expect(session.phase).toBe("closed");
    expect(seen.at(-1)).toBe("close");
  });

  test("an explicit false untrusts at once and ends what runs", () => {
    const [session, effects] = run([[5, bad(true)]], serving());
    expect(types(effects)).toEqual(["serve", "send trust_status", "end_attempts"]);
    expect(session).toMatchObject({ phase: "serving", standing: { status: "untrusted" } });
    expect(effects[1]).toMatchObject({ message: { retry_at: new Date(at(5).wallMs + 30_000).toISOString() } });
  });

  test("a data violation is told, remembered, and the end", () => {
    const [session, effects] = run([[5, { type: "violation" }]], serving());
    expect(session.phase).toBe("closed");
    expect(types(effects)).toEqual(["serve", "send trust_status", "quarantine", "close"]);
  });

  test("silence is cut, ticks with news are not", () => {
    expect(run([[30_002, { type: "tick", seenAtMs: 3 }]], serving())[1]).toEqual([]);
    expect(run([[30_003, { type: "tick", seenAtMs: 3 }]], serving())[1]).toEqual([{ type: "terminate" }]);
  });

  test("an old heartbeat is discarded", () => {
    const beat = (seq: number): SessionEvent =>
      message({
        type: "heartbeat",
        seq,
        status: "idle",
        stats: { requests_served: 0, tokens_generated: 0 },
        system_metrics: { memory_pressure: 0, cpu_usage: 0, thermal_state: "nominal" },
        backend_capacity: {
          slots: [],
          gpu_memory_active_gb: 0,
          gpu_memory_peak_gb: 0,
          gpu_memory_cache_gb: 0,
          total_memory_gb: 0,
        },
      });
    const [session, effects] = run([[4, beat(3)]], serving());
    expect(types(effects)).toEqual(["capacity"]);
    for (const seq of [3, 2]) expect(run([[5, beat(seq)]], session)[1]).toEqual([]);
    expect(types(run([[5, beat(4)]], session)[1])).toEqual(["capacity"]);
  });

  test("a drain fences for good and is acknowledged once, when idle", () => {
    const [draining, effects] = run([[4, message({ type: "provider_drain", drain_id: "d" })]], serving());
    expect(types(effects)).toEqual(["serve", "await_idle"]);
    const [acked, ack] = run([[5, { type: "idle" }]], draining);
    expect(ack).toMatchObject([{ message: { type: "provider_drain_ack", drain_id: "d" } }]);
    expect(run([[6, { type: "idle" }]], acked)[1]).toEqual([]);
    const [, renew] = run([[7, good]], acked);
    expect(renew).toContainEqual({ type: "serve", serving: false });
  });

  test("whatever comes: no data and no service before a good verdict and admission, and closed is final", () => {
    const events: fc.Arbitrary<SessionEvent> = fc.constantFrom<SessionEvent>(
      register,
      attest,
      good,
      bad(true),
      bad(false),
      admitted,
      { type: "refused", code: "internal", retryAfterMs: 5 },
      { type: "malformed" },
      { type: "unsupported", messageType: "x" },
      { type: "violation" },
      { type: "idle" },
      { type: "gone" },
      message({ type: "provider_drain", drain_id: "d" }),
      message({ type: "inference_accepted", request_id: "r" }),
    );
    const steps = fc.array(
      fc.tuple(
        fc.integer({ min: 0, max: 60_000 }),
        fc.oneof(
          events,
          fc.nat(400_000).map((ms) => ({ type: "tick", seenAtMs: ms }) as const),
        ),
      ),
      { maxLength: 40 },
    );
    fc.assert(
      fc.property(steps, (sequence) => {
        let session = openSession(0, 10_000);
        let nowMs = 0;
        let verdicts = 0;
        let closed = false;
        for (const [pauseMs, event] of sequence) {
          nowMs += pauseMs;
          // The shell steps `admitted` only as its answer to `admit`, never from the wire.
          if (event.type === "admitted" && verdicts === 0) continue;
          const [next, effects] = stepSession(session, event, at(nowMs));
          if (effects.some(({ type }) => type === "admit")) verdicts += 1;
          if (takesData(next)) expect(verdicts).toBeGreaterThan(0);
          for (const effect of effects)
            if (effect.type === "serve" && effect.serving) expect(next.phase).toBe("serving");
          if (closed) expect(effects).toEqual([]);
          if (effects.some(({ type }) => type === "close" || type === "terminate")) expect(next.phase).toBe("closed");
          closed = next.phase === "closed";
          session = next;
        }
      }),
      { numRuns: 3_000 },
    );
  });
});

/** The choice of a provider: who is eligible, who is least loaded, and what is said when nobody is. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { TrustLevel } from "../../src/core/trust.ts";
import {
  pickLeastLoaded,
  type Candidate,
  type OfferedModel,
  type PickContext,
  type PickRequest,
} from "../../src/coordinator/routing/pick.ts";

interface Plan {
  readonly serving?: boolean;
  readonly trustLevel?: TrustLevel;
  readonly verifiedAtMs?: number;
  readonly inFlight?: number;
  readonly offer?: Partial<OfferedModel> | null;
}

const candidate = (id: string, plan: Plan = {}): Candidate => ({
  id,
  serving: plan.serving ?? true,
  trustLevel: plan.trustLevel ?? "self_signed",
  verifiedAtMs: plan.verifiedAtMs ?? 1_000,
  inFlight: plan.inFlight ?? 0,
  inFlightOf: () => plan.inFlight ?? 0,
  offer: (modelId) =>
    modelId !== "m" || plan.offer === null
      ? null
      : { templateRenderOk: true, tools: true, slotState: "idle", concurrencyMax: 4, ...plan.offer },
});

const request = (changes: Partial<PickRequest> = {}): PickRequest => ({
  modelId: "m",
  needsTools: false,
  excluded: new Set(),
  ...changes,
});

const context = (changes: Partial<PickContext> = {}): PickContext => ({
  nowMs: 1_000,
  minTrust: "self_signed",
  challengeFreshMs: 960_000,
  fraction: () => 0.5,
  ...changes,
});

const chosen = (candidates: readonly Candidate[], ...rest: [PickRequest?, PickContext?]): string => {
  const choice = pickLeastLoaded(candidates, rest[0] ?? request(), rest[1] ?? context());
  return choice.type === "chosen" ? choice.provider.id : choice.type;
};

describe("pick", () => {
  test("takes the least loaded in proportion to its capacity", () => {
    const busyBig = candidate("big", { inFlight: 4, offer: { concurrencyMax: 16 } });
    const busySmall = candidate("small", { inFlight: 2, offer: { concurrencyMax: 4 } });
    expect(chosen([busySmall, busyBig])).toBe("big");
    expect(chosen([busyBig, busySmall])).toBe("big");
  });

  test("breaks a tie by requests in flight, then by chance, evenly", () => {
    const counts = new Map<string, number>();
    const three = ["a", "b", "c"].map((id) => candidate(id));
    for (let round = 0; round < 3_000; round += 1) {
      const id = chosen(three, request(), context({ fraction: Math.random }));
      counts.set(id, (counts.get(id) ?? 0) + 1);
    }
    for (const id of ["a", "b", "c"]) expect(counts.get(id)).toBeGreaterThan(800);
    const equalShare = [candidate("x", { inFlight: 4, offer: { concurrencyMax: 8 } }), candidate("y", { inFlight: 2 })];
    expect(chosen(equalShare)).toBe("y");
  });

  test.each<[string, Plan]>([
    ["not serving", { serving: false }],
    ["too little trust", { trustLevel: "none" }],
    ["a stale challenge", { verifiedAtMs: -960_000 }],
    ["another model", { offer: null }],
    ["a crashed slot", { offer: { slotState: "crashed" } }],
    ["a reloading slot", { offer: { slotState: "reloading" } }],
  ])("passes over %s", (_name, plan) => {
    expect(chosen([candidate("bad", plan)])).toBe("none");
    expect(chosen([candidate("bad", plan), candidate("good", { inFlight: 3 })])).toBe("good");
  });

  test("passes over those that failed the request already", () => {
    expect(chosen([candidate("a"), candidate("b")], request({ excluded: new Set(["a"]) }))).toBe("b");
    expect(chosen([candidate("a")], request({ excluded: new Set(["a"]) }))).toBe("none");
  });

  test("asks for a rendering template where tools are needed, and says so", () => {
    const noTools = candidate("a", { offer: { templateRenderOk: false } });
    expect(chosen([noTools])).toBe("a");
    expect(pickLeastLoaded([noTools], request({ needsTools: true }), context())).toEqual({
      type: "none",
      reason: "tools_unsupported",
    });
    expect(chosen([noTools, candidate("b")], request({ needsTools: true }))).toBe("b");
  });

  test("calls everybody full busy, and counts four places where nothing is reported", () => {
    expect(chosen([candidate("a", { inFlight: 4 })])).toBe("busy");
    const unreported = { concurrencyMax: null, slotState: null };
    expect(chosen([candidate("a", { inFlight: 3, offer: unreported })])).toBe("a");
    expect(chosen([candidate("a", { inFlight: 4, offer: unreported })])).toBe("busy");
  });

  test("never picks an ineligible or full provider, nor a more loaded one than another eligible", () => {
    const plan = fc.record({
      serving: fc.boolean(),
      trustLevel: fc.constantFrom<TrustLevel>("none", "self_signed", "hardware"),
      verifiedAtMs: fc.constantFrom(-960_001, 0, 1_000),
      inFlight: fc.integer({ min: 0, max: 6 }),
      offer: fc.option(
        fc.record({
          slotState: fc.constantFrom("idle", "running", "crashed", "reloading", null),
          concurrencyMax: fc.constantFrom(1, 2, 4, null),
          templateRenderOk: fc.boolean(),
          tools: fc.boolean(),
        }),
      ),
    });
    fc.assert(
      fc.property(
        fc.array(plan, { maxLength: 8 }),
        fc.boolean(),
        fc.double({ min: 0, max: 0.999 }),
        (plans, tools, dice) => {
          const candidates = plans.map((one, index) => candidate(String(index), one));
          const eligible = plans.map(
            (one) =>
              one.serving &&
              one.trustLevel !== "none" &&
              one.verifiedAtMs >= 0 &&
              one.offer !== null &&
              !["crashed", "reloading"].includes(one.offer.slotState ?? "") &&
              (!tools || (one.offer.templateRenderOk && one.offer.tools)),
          );
          const load = (index: number): number => plans[index]!.inFlight / (plans[index]!.offer?.concurrencyMax ?? 4);
          const room = eligible.map((ok, index) => ok && load(index) < 1);
          const choice = pickLeastLoaded(candidates, request({ needsTools: tools }), context({ fraction: () => dice }));
          if (choice.type !== "chosen") {
            expect(room.includes(true)).toBe(false);
            expect(choice.type).toBe(eligible.includes(true) ? "busy" : "none");
            return;
          }
          const index = Number(choice.provider.id);
          expect(room[index]).toBe(true);
          for (const [other, ok] of room.entries()) if (ok) expect(load(index)).toBeLessThanOrEqual(load(other));
        },
      ),
      { numRuns: 2_000 },
    );
  });
});

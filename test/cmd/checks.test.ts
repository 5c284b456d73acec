/** The doctor's runner: deadlines, faults as results, order, text. */
import { expect, test } from "bun:test";
import { fail, pass, renderChecks, runChecks, summarize, warn, type Check } from "../../cmd/_checks.ts";
import { Fault } from "../../src/core/fault.ts";
import { createFakeClock } from "../support/fake-clock.ts";

const check = (id: string, probe: Check["probe"]): Check => ({ id, section: "local", deadlineMs: 5_000, probe });

test("a probe that hangs fails at its deadline and is told to stop; the others are not held up", async () => {
  const clock = createFakeClock();
  let aborted = false;
  const hanging = check("hanging", (signal) => {
    signal.addEventListener("abort", () => (aborted = true));
    return new Promise(() => undefined);
  });
  const running = runChecks(clock, [hanging, check("quick", async () => pass("here"))]);
  await clock.advance(5_000);
  const reports = await running;
  expect(reports.map((report) => [report.id, report.status])).toEqual([
    ["hanging", "fail"],
    ["quick", "pass"],
  ]);
  expect(aborted).toBe(true);
  expect(clock.pendingTimers).toBe(0);
});

test("a fault becomes a failed check with its hint; a bug shows no message", async () => {
  const reports = await runChecks(createFakeClock(), [
    check("fault", () => Promise.reject(new Fault("file_missing", "no model", { hint: "give --model" }))),
    check("bug", () => Promise.reject(new Error("private text"))),
  ]);
  expect(reports[0]).toMatchObject({ status: "fail", detail: "no model", fix: "give --model" });
  expect(JSON.stringify(reports[1])).not.toContain("private text");
});

test("the summary counts and the text shows marks and fixes", async () => {
  const reports = await runChecks(createFakeClock(), [
    check("a", async () => pass("fine")),
    check("b", async () => warn("so so", "do this")),
    check("c", async () => fail("broken", null)),
  ]);
  expect(summarize(reports)).toEqual({ pass: 1, warn: 1, fail: 1 });
  expect(renderChecks(reports)).toBe(
    "local\n  [PASS] a: fine\n  [WARN] b: so so\n         → do this\n  [FAIL] c: broken\n\n1 passed, 1 warnings, 1 failed",
  );
});

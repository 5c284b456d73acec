/** Shapes of identifiers and secrets, and timers of the clock. */
import { describe, expect, test } from "bun:test";
import { sleep, systemClock } from "../../src/core/clock.ts";
import { createIds, systemRandom, uuidBytes, uuidText } from "../../src/core/ids.ts";
import { formatBytes } from "../../src/core/units.ts";
import { createFakeClock } from "../support/fake-clock.ts";

describe("ids", () => {
  const ids = createIds(systemRandom());

  test("shapes", () => {
    expect(ids.requestId()).toMatch(/^[0-9a-v]{12}$/);
    expect(ids.uuid()).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    expect(ids.entityId("key")).toMatch(/^key_[0-9a-f]{24}$/);
    expect(ids.secret("sk-db")).toMatch(/^sk-db-[0-9a-f]{64}$/);
  });

  test("UUID text and bytes are the same thing", () => {
    const text = ids.uuid();
    expect(uuidText(uuidBytes(text) ?? new Uint8Array())).toBe(text);
    for (const wrong of ["", "x", text.toUpperCase().replaceAll(/[0-9-]/g, "A"), text.slice(1), `${text}0`])
      expect(uuidBytes(wrong)).toBeNull();
  });

  test("a thousand are all different", () => {
    expect(new Set(Array.from({ length: 1_000 }, () => ids.requestId())).size).toBe(1_000);
  });
});

describe("clock", () => {
  test("sleep ends with time or with its signal, and leaves no timer behind", async () => {
    const clock = createFakeClock();
    let done = false;
    const slept = sleep(clock, 50).then(() => (done = true));
    await clock.advance(49);
    expect(done).toBe(false);
    await clock.advance(1);
    await slept;
    const controller = new AbortController();
    const aborted = sleep(clock, 50, controller.signal);
    controller.abort(new Error("stop"));
    expect(aborted).rejects.toThrow("stop");
    await clock.advance(0);
    expect(clock.pendingTimers).toBe(0);
  });

  test("a delay beyond the range of a timer does not fire at once", async () => {
    let fired = false;
    const timer = systemClock().after(2 ** 40, () => (fired = true));
    await new Promise((resolve) => setImmediate(resolve));
    timer.cancel();
    expect(fired).toBe(false);
  });
});

test("bytes read well", () => {
  expect([0, 999, 1_000, 3_662_304, 42_000_000_000].map(formatBytes)).toEqual([
    "0 B",
    "999 B",
    "1.00 kB",
    "3.66 MB",
    "42.0 GB",
  ]);
});

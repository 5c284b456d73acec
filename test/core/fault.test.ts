/** The closed fault table and its three renderers. */
import { describe, expect, test } from "bun:test";
import { assert, Fault, FAULTS, toFault, WIRE_FAILURE_CODES, type FaultCode } from "../../src/core/fault.ts";
import {
  retryAfterSeconds,
  toCliEvent,
  toCliText,
  toHttpBody,
  toStreamErrorBody,
  toWireError,
} from "../../src/core/fault-render.ts";

const CODES = Object.keys(FAULTS) as FaultCode[];

describe("fault", () => {
  test("every code has a status, an exit code and a wire code of the closed sets", () => {
    for (const code of CODES) {
      const kind = FAULTS[code];
      expect(kind.status).toBeGreaterThanOrEqual(400);
      expect(kind.status).toBeLessThan(600);
      expect([1, 64, 130]).toContain(kind.exit);
      expect(WIRE_FAILURE_CODES).toContain(kind.wire);
    }
  });

  test("only usage faults exit with 64", () => {
    expect(CODES.filter((code) => FAULTS[code].exit === 64)).toEqual(["usage"]);
  });

  test("an unknown thrown value becomes internal and hides its message", () => {
    const fault = toFault(new Error("prompt text"));
    expect(fault.code).toBe("internal");
    expect(JSON.stringify(toHttpBody(fault))).not.toContain("prompt text");
    expect(toCliText(fault)).not.toContain("prompt text");
    expect(JSON.stringify(toStreamErrorBody(fault))).not.toContain("prompt text");
  });

  test("what the file system refuses is told, with its path for the owner alone", () => {
    const refusal = Object.assign(new Error("ENOSPC: no space left, copyfile '/a' -> '/home/me/b'"), {
      code: "ENOSPC",
      path: "/a",
      dest: "/home/me/b",
    });
    const fault = toFault(refusal);
    expect(fault).toMatchObject({ code: "io_failed", message: "the disk is full" });
    expect(toCliText(fault)).toContain("free disk space (/home/me/b)");
    expect(JSON.stringify(toHttpBody(fault))).not.toContain("/home/me");
    expect(toFault(Object.assign(new Error("x"), { code: "ENOENT" })).code).toBe("internal");
  });

  test("the HTTP envelope always has its four keys, param null when unset", () => {
    for (const code of CODES) {
      const { error } = toHttpBody(new Fault(code, "m"));
      expect(Object.keys(error).toSorted()).toEqual(["code", "message", "param", "type"]);
      expect(error.param).toBeNull();
    }
    expect(toHttpBody(new Fault("bad_request", "m", { param: "model" })).error.param).toBe("model");
    expect(toHttpBody(new Fault("unauthenticated", "m")).error.type).toBe("authentication_error");
  });

  test("stream errors are provider_error or timeout, nothing else", () => {
    for (const code of CODES)
      expect(toStreamErrorBody(new Fault(code, "m")).error.type).toBe(
        code === "timeout" ? "timeout" : "provider_error",
      );
  });

  test("the wire form carries no prose", () => {
    expect(toWireError(new Fault("queue_full", "secret prose", { reason: "queue_full" }))).toEqual({
      failure_code: "capacity",
      reason: "queue_full",
      status: 429,
    });
  });

  test("the command line says what happened and what to type", () => {
    const fault = new Fault("file_missing", "model.gguf is not there", { hint: "check --model" });
    expect(toCliText(fault)).toBe("error: model.gguf is not there\n  → check --model");
    expect(toCliEvent(fault)).toEqual({
      event: "error",
      code: "file_missing",
      message: "model.gguf is not there",
      hint: "check --model",
    });
  });

  test("Retry-After is a whole number of seconds from 1 to 60", () => {
    const seconds = (retryAfterMs: number): number | null =>
      retryAfterSeconds(new Fault("draining", "m", { retryAfterMs }));
    expect([seconds(1), seconds(3_000), seconds(3_001), seconds(1e9)]).toEqual([1, 3, 4, 60]);
    expect(retryAfterSeconds(new Fault("draining", "m"))).toBeNull();
  });

  test("an assertion is a bug, not a fault", () => {
    expect(() => assert(false, "x")).toThrow("assertion failed: x");
    expect(() => assert(true, "x")).not.toThrow();
  });
});

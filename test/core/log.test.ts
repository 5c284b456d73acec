/** What a log line may hold, and that sealed values never print. */
import { describe, expect, test } from "bun:test";
import { inspect } from "node:util";
import { Fault } from "../../src/core/fault.ts";
import { createLog, errorFields, type LogFields } from "../../src/core/log.ts";
import { Sealed } from "../../src/core/sealed.ts";

const collect = (format: "json" | "text", level: "debug" | "warn" = "debug") => {
  const lines: string[] = [];
  const log = createLog({ clock: { nowMs: () => 0 }, level, format, write: (line) => void lines.push(line) });
  return { lines, log };
};

describe("log", () => {
  test("json lines carry time, level, event, bound and own fields", () => {
    const { lines, log } = collect("json");
    log.with({ scope: "link" }).info("job_done", { tokens: 3, tookMs: 1.5, skipped: undefined });
    expect(JSON.parse(lines[0] ?? "")).toEqual({
      at: "1970-01-01T00:00:00.000Z",
      level: "info",
      event: "job_done",
      scope: "link",
      tokens: 3,
      tookMs: 1.5,
    });
  });

  test("lines below the level are not written", () => {
    const { lines, log } = collect("text", "warn");
    log.info("quiet");
    log.warn("loud", { text: "a\nb" });
    expect(lines).toEqual(['1970-01-01T00:00:00.000Z warn  loud text="a\\nb"\n']);
  });

  test("an object that slips past the types is named, never printed", () => {
    const { lines, log } = collect("json");
    const fields = {
      prompt: { text: "PROMPT" },
      list: ["PROMPT"],
      sealed: new Sealed("PROMPT"),
    } as unknown as LogFields;
    log.error("leaked", fields);
    expect(lines.join("")).not.toContain("PROMPT");
    expect(lines.join("")).toContain("[object]");
  });

  test("a sealed value shows only its label, whoever asks", () => {
    const sealed = new Sealed("PROMPT");
    const shown = [JSON.stringify({ sealed }), String(sealed), inspect(sealed), Bun.inspect(sealed)];
    for (const text of shown) {
      expect(text).toContain("[sealed]");
      expect(text).not.toContain("PROMPT");
    }
    expect(sealed.open()).toBe("PROMPT");
  });

  test("a foreign error's message is dropped, a fault's kept", () => {
    const foreign = new SyntaxError("Unexpected token PROMPT");
    expect(JSON.stringify(errorFields(foreign))).not.toContain("PROMPT");
    expect(errorFields(foreign)["error"]).toBe("SyntaxError");
    const fault = new Fault("engine_failed", "the engine stopped", { cause: foreign });
    expect(errorFields(fault)).toMatchObject({
      fault: "engine_failed",
      message: "the engine stopped",
      cause: "SyntaxError",
    });
    expect(JSON.stringify(errorFields(fault))).not.toContain("PROMPT");
  });

  test("a field has a length bound", () => {
    const { lines, log } = collect("json");
    log.info("long", { text: "x".repeat(100_000) });
    expect((lines[0] ?? "").length).toBeLessThan(3_000);
  });
});

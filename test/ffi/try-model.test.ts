/** Model files tried in a throw-away process: good ones once, bad ones named, crashes survived. */
import { beforeAll, describe, expect, test } from "bun:test";
import { readdir, utimes } from "node:fs/promises";
import { join } from "node:path";
import type { NativeLocation } from "../../ffi/location.ts";
import type { ChildResult } from "../../ffi/run-child.ts";
import { toTrialFault, tryModelInChild } from "../../ffi/try-model.ts";
import type { SelfCommand } from "../../src/core/spawn-self.ts";
import { NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import { DEMO_MODEL, faultFrom, nativeForTests, PROBE_SELF } from "../support/native.ts";
import { tempDir } from "../support/temp-dir.ts";

const TEST_DEADLINE_MS = 60_000;

let location: NativeLocation;

beforeAll(async () => {
  location = await nativeForTests();
}, NATIVE_DEADLINE_MS);

const counting = (): { readonly self: SelfCommand; readonly count: () => number } => {
  let children = 0;
  const self: SelfCommand = (verb, args) => {
    children += 1;
    return PROBE_SELF(verb, args);
  };
  return { self, count: () => children };
};

/** The demo model with a number of its metadata changed. */
const withNumber = async (key: string, value: number): Promise<Uint8Array> => {
  const bytes = await Bun.file(DEMO_MODEL).bytes();
  const at = Buffer.from(bytes.buffer).indexOf(key) + key.length + 4; // past the type word
  new DataView(bytes.buffer).setUint32(at, value, true);
  return bytes;
};

/** The demo model with another chat template, padded to the old one's length. */
const withTemplate = async (template: string): Promise<Uint8Array> => {
  const bytes = await Bun.file(DEMO_MODEL).bytes();
  const key = "tokenizer.chat_template";
  const at = Buffer.from(bytes.buffer).indexOf(key) + key.length + 4;
  const length = Number(new DataView(bytes.buffer).getBigUint64(at, true));
  bytes.set(new TextEncoder().encode(template.padEnd(length)), at + 8);
  return bytes;
};

describe("a model file", () => {
  test(
    "that is good is tried once, and again when it changes",
    async () => {
      await using dir = await tempDir();
      const path = join(dir.path, "model.gguf");
      await Bun.write(path, Bun.file(DEMO_MODEL));
      const { self, count } = counting();
      const options = { self, cacheDir: join(dir.path, "cache") };
      await tryModelInChild(location, path, options);
      await tryModelInChild(location, path, options);
      expect(count()).toBe(1);
      await utimes(path, 1, 1);
      await tryModelInChild(location, path, options);
      expect(count()).toBe(2);
    },
    TEST_DEADLINE_MS,
  );

  test(
    "that makes llama.cpp abort is a fault, not a crash, and is not remembered as good",
    async () => {
      await using dir = await tempDir();
      const path = join(dir.path, "model.gguf");
      await Bun.write(path, await withNumber("llama.block_count", 0));
      const cacheDir = join(dir.path, "cache");
      const fault = await faultFrom(tryModelInChild(location, path, { self: PROBE_SELF, cacheDir }));
      expect([fault.code, fault.reason]).toEqual(["model_invalid", "trial_died"]);
      expect(fault.message).toContain("SIGABRT");
      expect(await readdir(dir.path)).toEqual(["model.gguf"]);
    },
    TEST_DEADLINE_MS,
  );

  test(
    "whose template recurses without end is a fault; one that merely refuses is not",
    async () => {
      await using dir = await tempDir();
      const path = join(dir.path, "model.gguf");
      const options = { self: PROBE_SELF, cacheDir: join(dir.path, "cache") };
      await Bun.write(path, await withTemplate("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"));
      const fault = await faultFrom(tryModelInChild(location, path, options));
      expect([fault.code, fault.reason]).toEqual(["model_invalid", "trial_died"]);
      await Bun.write(path, await withTemplate("{{ raise_exception('no') }}"));
      await tryModelInChild(location, path, options);
    },
    TEST_DEADLINE_MS,
  );

  test(
    "that is cut short, or none at all, is refused in words",
    async () => {
      await using dir = await tempDir();
      const options = { self: PROBE_SELF, cacheDir: join(dir.path, "cache") };
      const cut = join(dir.path, "cut.gguf");
      await Bun.write(cut, (await Bun.file(DEMO_MODEL).bytes()).subarray(0, 1_000_000));
      const other = join(dir.path, "other.gguf");
      await Bun.write(other, "hello");
      for (const path of [cut, other]) {
        const fault = await faultFrom(tryModelInChild(location, path, options));
        expect([fault.code, fault.reason]).toEqual(["model_invalid", "trial_refused"]);
      }
      const missing = await faultFrom(tryModelInChild(location, join(dir.path, "missing.gguf"), options));
      expect(missing.code).toBe("file_missing");
    },
    TEST_DEADLINE_MS,
  );
});

describe("how a child ended", () => {
  const ended = (change: Partial<ChildResult>): ChildResult => ({
    exitCode: 0,
    signal: null,
    stdout: "",
    stderrTail: "",
    timedOut: false,
    ...change,
  });
  const codeOf = (change: Partial<ChildResult>): string | undefined => toTrialFault(ended(change), 1_000)?.code;

  test("only its own word makes it good", () => {
    expect(codeOf({ stdout: 'llama.cpp says this and that\n{"ok":true}\n' })).toBeUndefined();
    expect(codeOf({ stdout: '{"ok":true}\n', exitCode: 1 })).toBe("model_invalid");
    expect(codeOf({ stdout: "" })).toBe("model_invalid");
  });

  test("short of memory: by its own word, or by the kernel's", () => {
    const report = { ok: false, code: "memory_short", message: "no context of 64 tokens" };
    expect(codeOf({ stdout: `${JSON.stringify(report)}\n`, exitCode: 1 })).toBe("memory_short");
    expect(codeOf({ exitCode: null, signal: "SIGKILL" })).toBe("memory_short");
    expect(codeOf({ exitCode: null, signal: "SIGKILL", timedOut: true })).toBe("model_invalid");
  });

  test("a signal is named", () => {
    const fault = toTrialFault(ended({ exitCode: null, signal: "SIGSEGV" }), 1_000);
    expect(fault?.message).toContain("SIGSEGV");
    expect(fault?.reason).toBe("trial_died");
  });
});

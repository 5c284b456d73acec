/** Obtaining llama.cpp's source: only what was asked for, only from the pinned tarball, whole again after an interruption. */
import { beforeAll, describe, expect, test } from "bun:test";
import { chmod, exists, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { checkoutSource, HEADER_PATHS, integrityOf, prepareHeaders } from "../../ffi/source.ts";
import { NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import { cacheWithHeaders, faultFrom, testCacheDir } from "../support/native.ts";
import { tempDir } from "../support/temp-dir.ts";

const TEST_DEADLINE_MS = 60_000;

beforeAll(async () => {
  await prepareHeaders({ cacheDir: testCacheDir() });
}, NATIVE_DEADLINE_MS);

/** A program that takes npm's place: it gets `pack --silent --pack-destination <dir> <package>`. */
const fakeNpm = async (dir: string, body: string): Promise<readonly string[]> => {
  const path = join(dir, "npm");
  await Bun.write(path, `#!/bin/sh\n${body}\n`);
  await chmod(path, 0o700);
  return [path];
};

describe("a checkout", () => {
  test("has the headers, and a second call does nothing", async () => {
    const steps: string[] = [];
    const dir = await prepareHeaders({ cacheDir: testCacheDir(), onProgress: (step) => steps.push(step) });
    for (const path of HEADER_PATHS) expect(await exists(join(dir, path))).toBe(true);
    expect(await exists(join(dir, "include/llama.h"))).toBe(true);
    expect(await exists(join(dir, "common/chat.h"))).toBe(true);
    expect(steps).toEqual([]);
  });

  test(
    "grows by the folders asked for, from what is already here",
    async () => {
      const steps: string[] = [];
      const options = { cacheDir: testCacheDir(), npm: [], onProgress: (step: string) => steps.push(step) };
      const dir = await checkoutSource(options, ["models/templates", "tools/tokenize"]);
      expect((await readdir(join(dir, "models/templates"))).some((name) => name.endsWith(".jinja"))).toBe(true);
      expect(await exists(join(dir, "tools/tokenize"))).toBe(true);
      expect(steps).toEqual([]);
    },
    TEST_DEADLINE_MS,
  );

  test(
    "interrupted half-way is completed",
    async () => {
      const options = { cacheDir: testCacheDir(), npm: [] };
      const dir = await checkoutSource(options, ["grammars"]);
      const all = await readdir(join(dir, "grammars"));
      expect(all.length).toBeGreaterThan(1);
      // What a killed git leaves: some files, its lock, and no mark of ours.
      await rm(join(dir, "grammars", all[0] ?? ""));
      await rm(join(dir, ".git/checked-out-grammars"));
      await Bun.write(join(dir, ".git/index.lock"), "");
      await checkoutSource(options, ["grammars"]);
      expect(await readdir(join(dir, "grammars"))).toEqual(all);
    },
    TEST_DEADLINE_MS,
  );

  test("of a path that is not there is a fault", async () => {
    const fault = await faultFrom(checkoutSource({ cacheDir: testCacheDir(), npm: [] }, ["no/such/folder"]));
    expect(fault.code).toBe("native_failed");
  });
});

describe("the tarball", () => {
  test("integrity is written as npm writes it", async () => {
    await using dir = await tempDir();
    const path = join(dir.path, "file");
    await Bun.write(path, "abc");
    const sha512 = "3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw==";
    expect(await integrityOf(path)).toBe(`sha512-${sha512}`);
  });

  test("that is not the pinned one is refused and not kept", async () => {
    await using dir = await tempDir();
    const npm = await fakeNpm(dir.path, 'echo other > "$4/node-llama-cpp-3.21.1.tgz"');
    const cacheDir = join(dir.path, "cache");
    const fault = await faultFrom(prepareHeaders({ cacheDir, npm: [npm] }));
    expect([fault.code, fault.reason]).toEqual(["native_missing", "source_integrity"]);
    const left = await readdir(cacheDir, { recursive: true });
    expect(left.filter((name) => name.endsWith(".tgz"))).toEqual([]);
  });

  test("that cannot be fetched: what npm said, after every way was tried", async () => {
    await using dir = await tempDir();
    const npm = await fakeNpm(dir.path, "echo 'npm error code ENOTFOUND' >&2; exit 1");
    const steps: string[] = [];
    const options = {
      cacheDir: join(dir.path, "cache"),
      npm: [npm, npm],
      onProgress: (step: string) => steps.push(step),
    };
    const fault = await faultFrom(prepareHeaders(options));
    expect([fault.code, fault.reason]).toEqual(["native_missing", "source_fetch"]);
    expect(fault.message.match(/ENOTFOUND/g)).toHaveLength(2);
    expect(fault.hint).toContain("network");
    expect(steps).toEqual(["fetching llama.cpp headers"]);
  });

  test("without npm and bun: says so", async () => {
    await using dir = await tempDir();
    const fault = await faultFrom(prepareHeaders({ cacheDir: join(dir.path, "cache"), npm: [] }));
    expect(fault.message).toContain("neither npm nor bun");
  });

  test("is not fetched again by a cache that has the source", async () => {
    await using dir = await tempDir();
    const cacheDir = await cacheWithHeaders(join(dir.path, "cache"));
    expect(await prepareHeaders({ cacheDir, npm: [] })).toBe(await prepareHeaders({ cacheDir, npm: [] }));
  });
});

/** The choice of a CPU backend: best score first, a dying one is passed over, the result is remembered. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readdir } from "node:fs/promises";
import { basename, join } from "node:path";
import { backendName, type BackendOptions, chooseBackend, orderBackends } from "../../ffi/backends.ts";
import type { NativeLocation } from "../../ffi/location.ts";
import { NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import { copyLibraries, faultFrom, nativeForTests, plantBackend, PROBE_SELF, SILENT } from "../support/native.ts";
import { tempDir, type TempDir } from "../support/temp-dir.ts";

const HIGHEST = 2_147_483_647;
const TEST_DEADLINE_MS = 60_000;

/** One folder with the real libraries and several planted ones, which outrank every real one. */
let location: NativeLocation;
let good: string;
let folder: TempDir;

beforeAll(async () => {
  location = await nativeForTests();
  good = location.cpuBackend ?? "";
  folder = await tempDir();
  await copyLibraries(location, folder.path);
  const plant = (name: string, init: string, load?: string) =>
    plantBackend(join(folder.path, name), { score: HIGHEST, init, ...(load === undefined ? {} : { load }) });
  await plant("libggml-cpu-aborts.so", "abort();");
  await plant("libggml-cpu-traps.so", "__builtin_trap();");
  await plant("libggml-cpu-exits.so", "_exit(3);");
  await plant("libggml-cpu-empty.so", "");
  await plant("libggml-cpu-hangs.so", "for (;;) pause();");
  await plant("libggml-cpu-deadly.so", "", "abort();");
  await plantBackend(join(folder.path, "libggml-cpu-foreign.so"), { score: 0, init: "abort();" });
}, NATIVE_DEADLINE_MS);

afterAll(() => folder[Symbol.asyncDispose]());

interface Made {
  readonly options: BackendOptions;
  /** Arguments of every child that was started. */
  readonly children: string[][];
  readonly steps: string[];
}

const make = (cacheDir: string, candidates: readonly string[], overrides: Partial<BackendOptions> = {}): Made => {
  const children: string[][] = [];
  const steps: string[] = [];
  const options: BackendOptions = {
    dir: folder.path,
    shimPath: join(folder.path, basename(location.shimPath)),
    sha256: "libraries",
    candidates,
    cpu: { name: "this one", sha256: "cpu" },
    cacheDir,
    self: (verb, args) => {
      children.push([...args]);
      return PROBE_SELF(verb, args);
    },
    log: SILENT,
    onProgress: (step) => steps.push(step),
    ...overrides,
  };
  return { options, children, steps };
};

describe("order", () => {
  test("best score first, equal ones by name, unfit ones left out", () => {
    const scores = [
      { file: "b", score: 5 },
      { file: "z", score: 0 },
      { file: "a", score: 5 },
      { file: "c", score: 9 },
    ];
    expect(orderBackends(scores).map(({ file }) => file)).toEqual(["c", "a", "b"]);
  });

  test("short names", () => {
    expect(backendName("libggml-cpu-zen4.so")).toBe("zen4");
    expect(backendName("libggml-cpu-armv8.2_1.so")).toBe("armv8.2_1");
  });
});

describe("choice", () => {
  test(
    "of the real ones, the first by score passes",
    async () => {
      await using cache = await tempDir();
      const real = (await readdir(location.dir)).filter((name) => name.startsWith("libggml-cpu"));
      expect(real.length).toBeGreaterThan(1);
      const { options, steps } = make(cache.path, real);
      expect(await chooseBackend(options)).toBe(good);
      expect(steps).toEqual([`testing CPU backend ${backendName(good)}`]);
    },
    TEST_DEADLINE_MS,
  );

  const WAYS_TO_DIE: readonly (readonly [string, RegExp])[] = [
    ["libggml-cpu-aborts.so", /^killed by SIGABRT$/],
    ["libggml-cpu-traps.so", /^killed by SIG(ILL|TRAP)$/],
    ["libggml-cpu-exits.so", /^exit code 3$/],
    ["libggml-cpu-empty.so", /^exit code 1: the library does not load as a backend$/],
    ["libggml-cpu-deadly.so", /^killed by SIGABRT while it was loaded$/],
  ];
  for (const [planted, end] of WAYS_TO_DIE)
    test(
      `${planted} outranks the good one and is passed over`,
      async () => {
        await using cache = await tempDir();
        const { options } = make(cache.path, [planted, good]);
        expect(await chooseBackend(options)).toBe(good);
        const names = await readdir(join(cache.path, "self-test"));
        const name = names.find((file) => file.endsWith(".json")) ?? "";
        const { verdicts } = (await Bun.file(join(cache.path, "self-test", name)).json()) as {
          verdicts: { file: string; failure: string | null }[];
        };
        expect(verdicts.find(({ file }) => file === planted)?.failure).toMatch(end);
        expect(verdicts.find(({ file }) => file === good)?.failure).toBeNull();
      },
      TEST_DEADLINE_MS,
    );

  test(
    "one that hangs is killed at its deadline",
    async () => {
      await using cache = await tempDir();
      const { options } = make(cache.path, ["libggml-cpu-hangs.so"], { deadlineMs: 1_500 });
      const fault = await faultFrom(chooseBackend(options));
      expect(fault.message).toContain("libggml-cpu-hangs.so: no answer within 2 s");
    },
    TEST_DEADLINE_MS,
  );

  test(
    "none left is a fault that names each and how it ended",
    async () => {
      await using cache = await tempDir();
      const { options } = make(cache.path, ["libggml-cpu-aborts.so", "libggml-cpu-exits.so", "libggml-cpu-foreign.so"]);
      const fault = await faultFrom(chooseBackend(options));
      expect(fault.code).toBe("native_failed");
      expect(fault.message).toContain("libggml-cpu-aborts.so: killed by SIGABRT");
      expect(fault.message).toContain("libggml-cpu-exits.so: exit code 3");
      expect(fault.hint).toBeDefined();
    },
    TEST_DEADLINE_MS,
  );

  test("none that knows this CPU is a fault too", async () => {
    await using cache = await tempDir();
    const { options } = make(cache.path, ["libggml-cpu-foreign.so"]);
    expect((await faultFrom(chooseBackend(options))).message).toContain("none of 1 knows this CPU (this one)");
  });

  test("a folder without CPU backends needs no choice", async () => {
    await using cache = await tempDir();
    const { options, children } = make(cache.path, []);
    expect(await chooseBackend(options)).toBeNull();
    expect(children).toEqual([]);
  });
});

describe("memory", () => {
  test(
    "the result is kept for the same libraries and CPU, and for no other",
    async () => {
      await using cache = await tempDir();
      const candidates = ["libggml-cpu-aborts.so", good];
      await chooseBackend(make(cache.path, candidates).options);
      const again = make(cache.path, candidates);
      expect(await chooseBackend(again.options)).toBe(good);
      expect(again.children).toEqual([]);
      const otherCpu = make(cache.path, candidates, { cpu: { name: "other", sha256: "other" } });
      await chooseBackend(otherCpu.options);
      expect(otherCpu.children.length).toBeGreaterThan(0);
      const otherLibraries = make(cache.path, candidates, { sha256: "other" });
      await chooseBackend(otherLibraries.options);
      expect(otherLibraries.children.length).toBeGreaterThan(0);
    },
    TEST_DEADLINE_MS,
  );

  test(
    "a damaged record is made again",
    async () => {
      await using cache = await tempDir();
      await chooseBackend(make(cache.path, [good]).options);
      const dir = join(cache.path, "self-test");
      for (const name of await readdir(dir)) await Bun.write(join(dir, name), '{"cpuBackend":');
      const again = make(cache.path, [good]);
      expect(await chooseBackend(again.options)).toBe(good);
      expect(again.children.length).toBeGreaterThan(0);
    },
    TEST_DEADLINE_MS,
  );

  test(
    "two at once test once",
    async () => {
      await using cache = await tempDir();
      const first = make(cache.path, [good]);
      const second = make(cache.path, [good]);
      expect(await Promise.all([chooseBackend(first.options), chooseBackend(second.options)])).toEqual([good, good]);
      expect(first.children.length + second.children.length).toBe(2); // one child for the scores, one for the test
    },
    TEST_DEADLINE_MS,
  );
});

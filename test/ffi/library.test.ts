/** Finding, staging and building the native library: the right place, whole files, clear faults. */
import { beforeAll, describe, expect, test } from "bun:test";
import { chmod, mkdir, readdir, rm, stat, truncate } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { backendName } from "../../ffi/backends.ts";
import { prepareNative } from "../../ffi/library.ts";
import { isLibraryFile, type NativeLocation, toNativeFiles } from "../../ffi/location.ts";
import { packageFor, PIN, platformKey } from "../../ffi/pin.ts";
import { runInChild } from "../../ffi/run-child.ts";
import { buildShim } from "../../ffi/shim/build.ts";
import {
  cacheWithHeaders,
  copyLibraries,
  faultFrom,
  nativeForTests,
  nativeOptions,
  PROBE_SELF,
  testCacheDir,
} from "../support/native.ts";
import { NATIVE_DEADLINE_MS } from "../support/demo-model.ts";
import { tempDir } from "../support/temp-dir.ts";

const TEST_DEADLINE_MS = 120_000;

let location: NativeLocation;

beforeAll(async () => {
  location = await nativeForTests();
}, NATIVE_DEADLINE_MS);

/** The libraries load and compute when opened from this place, in a process of its own. */
const computes = async ({ shimPath, dir, cpuBackend }: NativeLocation): Promise<boolean> => {
  const result = await runInChild(PROBE_SELF, "_probe", ["backend", shimPath, join(dir, cpuBackend ?? "")], 30_000);
  return result.exitCode === 0;
};

describe("roles of files", () => {
  test("Linux and macOS names, the shim and add-ons left out", () => {
    const linux = ["libggml-base.so", "libggml-cpu-zen4.so", "libggml-cuda.so", "libggml.v0.4.0.so"];
    const rest = ["libllama-common.so", "libllama.v0.4.0.so", "libdarkbloom-shim-0a.so", "llama-addon.node"];
    expect(toNativeFiles([...linux, ...rest])).toEqual({
      base: "libggml-base.so",
      ggml: "libggml.v0.4.0.so",
      llama: "libllama.v0.4.0.so",
      common: "libllama-common.so",
      cpuBackends: ["libggml-cpu-zen4.so"],
      otherBackends: ["libggml-cuda.so"],
    });
    const mac = ["libggml-base.dylib", "libggml.metal.v0.4.0.dylib", "libllama-common.dylib", "libggml-metal.so"];
    const macFiles = toNativeFiles([
      ...mac,
      "libllama.metal.v0.4.0.dylib",
      "libggml-cpu-apple_m1.so",
      "libggml-blas.so",
    ]);
    expect(macFiles?.llama).toBe("libllama.metal.v0.4.0.dylib");
    expect(macFiles?.otherBackends).toEqual(["libggml-blas.so", "libggml-metal.so"]);
    expect(macFiles?.cpuBackends).toEqual(["libggml-cpu-apple_m1.so"]);
    expect(rest.slice(2).some(isLibraryFile)).toBe(false);
    expect(toNativeFiles(linux)).toBeNull();
  });
});

describe("the npm package", () => {
  test("a prepared location names whole files side by side, and is the same every time", async () => {
    expect(location.pin).toBe(PIN);
    expect(location.sha256).toMatch(/^[0-9a-f]{64}$/);
    expect(dirname(location.shimPath)).toBe(location.dir);
    expect(await readdir(location.dir)).toContain(location.cpuBackend ?? "");
    const steps: string[] = [];
    const again = await prepareNative(nativeOptions({ onProgress: (step) => steps.push(step) }));
    expect(again).toEqual(location);
    expect(steps).toEqual([]);
  });

  test("not installed: the fault names the package and how to get it", async () => {
    await using empty = await tempDir();
    const fault = await faultFrom(prepareNative(nativeOptions({ searchFrom: empty.path })));
    const name = packageFor(platformKey(process.platform, process.arch))?.name ?? "";
    expect(fault.code).toBe("native_missing");
    expect(fault.message).toContain(name);
    expect(fault.hint).toContain("npm ci");
  });

  test("another version is refused by name", async () => {
    await using root = await tempDir();
    const name = packageFor(platformKey(process.platform, process.arch))?.name ?? "";
    const file = join(root.path, "node_modules", name, "package.json");
    await Bun.write(file, JSON.stringify({ name, version: "3.20.0" }));
    const fault = await faultFrom(prepareNative(nativeOptions({ searchFrom: join(root.path, "deep/down") })));
    expect(fault.code).toBe("native_missing");
    expect(fault.message).toContain("3.20.0");
    expect(fault.message).toContain("3.21.1");
  });

  test("a GPU variant that is not installed is a fault, not the CPU package instead", async () => {
    await using empty = await tempDir();
    const fault = await faultFrom(prepareNative(nativeOptions({ gpu: "vulkan", searchFrom: empty.path })));
    expect(fault.code).toBe("native_missing");
    expect(fault.message).toMatch(/vulkan/);
  });
});

describe("a named folder", () => {
  test("missing or incomplete is a clear fault", async () => {
    await using root = await tempDir();
    const missing = await faultFrom(prepareNative(nativeOptions({ nativeDir: join(root.path, "nowhere") })));
    expect(missing.code).toBe("native_missing");
    await copyLibraries(location, root.path);
    await rm(join(root.path, toNativeFiles(await readdir(root.path))?.common ?? ""));
    const incomplete = await faultFrom(prepareNative(nativeOptions({ nativeDir: root.path })));
    expect(incomplete.code).toBe("native_missing");
    expect(incomplete.message).toContain("libllama-common");
  });

  test(
    "what was prepared from it still works after it is gone",
    async () => {
      await using root = await tempDir();
      const nativeDir = join(root.path, "given");
      await copyLibraries(location, nativeDir);
      const prepared = await prepareNative(nativeOptions({ nativeDir, cacheDir: join(root.path, "cache") }));
      expect(prepared.sha256).toBe(location.sha256);
      expect(prepared.dir.startsWith(root.path)).toBe(true);
      await rm(nativeDir, { recursive: true });
      expect(await computes(prepared)).toBe(true);
    },
    TEST_DEADLINE_MS,
  );
});

describe("files inside the executable", () => {
  test(
    "are unpacked together, for the user alone, and repaired when damaged",
    async () => {
      await using root = await tempDir();
      const files = await copyLibraries(location, join(root.path, "inside"));
      const options = nativeOptions({ cacheDir: join(root.path, "cache"), embedded: { key: "k", files } });
      const first = await prepareNative(options);
      expect(basename(first.shimPath)).toBe(basename(location.shimPath));
      expect((await stat(first.dir)).mode & 0o777).toBe(0o700);
      expect(await computes(first)).toBe(true);

      // A file of its own, as an unpacked one is: a hard link would damage the source too.
      const damage = async (name: string, change: (path: string) => Promise<unknown>): Promise<void> => {
        const path = join(first.dir, name);
        const bytes = await Bun.file(path).bytes();
        await rm(path);
        await Bun.write(path, bytes);
        await chmod(path, 0o600);
        await change(path);
      };
      const llama = toNativeFiles(Object.keys(files))?.llama ?? "";
      await damage(llama, (path) => truncate(path, 1_000));
      expect(await prepareNative(options)).toEqual(first);
      expect(await computes(first)).toBe(true);

      const whole = await Bun.file(join(first.dir, llama)).bytes();
      await damage(llama, (path) => Bun.write(path, whole.with(5_000, (whole[5_000] ?? 0) ^ 1)));
      await damage(basename(first.shimPath), (path) => truncate(path, 100));
      await rm(join(first.dir, location.cpuBackend ?? ""));
      expect(await prepareNative(options)).toEqual(first);
      expect(await computes(first)).toBe(true);
    },
    TEST_DEADLINE_MS,
  );

  test(
    "two at once unpack to the same place",
    async () => {
      await using root = await tempDir();
      const files = await copyLibraries(location, join(root.path, "inside"));
      const options = nativeOptions({ cacheDir: join(root.path, "cache"), embedded: { key: "k", files } });
      const [one, two] = await Promise.all([prepareNative(options), prepareNative(options)]);
      expect(one).toEqual(two);
      expect(await computes(one)).toBe(true);
      const left = await readdir(dirname(one.dir));
      expect(left.filter((name) => name.endsWith(".tmp"))).toEqual([]);
    },
    TEST_DEADLINE_MS,
  );
});

describe("the shim", () => {
  test("without a compiler: what to install", async () => {
    await using root = await tempDir();
    const fault = await faultFrom(
      prepareNative(nativeOptions({ cacheDir: root.path, cxx: join(root.path, "no-c++") })),
    );
    expect(fault.code).toBe("compiler_missing");
    expect(fault.hint).toMatch(/apt install g\+\+|xcode-select --install/);
  });

  test(
    "that does not compile: the compiler's own words",
    async () => {
      await using root = await tempDir();
      const sourceDir = join(root.path, "source");
      await mkdir(sourceDir);
      await Bun.write(join(sourceDir, "broken.cpp"), "int main( { this is no C++ }\n");
      const files = toNativeFiles(await readdir(location.dir));
      if (files === null) throw new Error("the location is whole");
      const paths = { libDir: location.dir, outDir: root.path, cacheDir: testCacheDir(), sourceDir };
      const fault = await faultFrom(buildShim({ ...paths, files, libsSha256: location.sha256 }));
      expect(fault.code).toBe("native_failed");
      expect(fault.message).toContain("broken.cpp");
      expect((await readdir(root.path)).toSorted()).toEqual(["source"]);
    },
    TEST_DEADLINE_MS,
  );

  test(
    "that was damaged is built again",
    async () => {
      await using root = await tempDir();
      const steps: string[] = [];
      const cacheDir = await cacheWithHeaders(join(root.path, "cache"));
      const options = nativeOptions({ cacheDir, onProgress: (step) => steps.push(step) });
      const first = await prepareNative(options);
      expect(steps).toEqual(["compiling shim", `testing CPU backend ${backendName(first.cpuBackend ?? "")}`]);
      await truncate(first.shimPath, 100);
      expect(await prepareNative(options)).toEqual(first);
      expect(steps.slice(2)).toEqual(["compiling shim"]);
      expect(await computes(first)).toBe(true);
    },
    TEST_DEADLINE_MS,
  );
});

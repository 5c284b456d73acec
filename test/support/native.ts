/** The real native library for tests, prepared once per process in the machine's own cache, and pieces to make folders of libraries from it. */
import { chmod, copyFile, mkdir, readdir, symlink } from "node:fs/promises";
import { basename, join } from "node:path";
import { type NativeOptions, prepareNative } from "../../ffi/library.ts";
import { isLibraryFile, type NativeLocation } from "../../ffi/location.ts";
import { runCommand } from "../../ffi/run-child.ts";
import { loadConfig } from "../../src/core/config.ts";
import { Fault } from "../../src/core/fault.ts";
import type { Log } from "../../src/core/log.ts";
import { selfCommand } from "../../src/core/spawn-self.ts";

export const SILENT: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {}, with: () => SILENT };

/** Children run only the `_probe` verb, whatever the rest of the program looks like. */
export const PROBE_SELF = selfCommand(join(import.meta.dir, "probe-entry.ts"));

export const DEMO_MODEL = join(import.meta.dir, "../../assets/demo-model/darkbloom-demo-q8_0.gguf");

/** State goes to a home of the test's own; this cache stays the machine's, since headers are fetched once per machine. */
export const testCacheDir = (): string => loadConfig({ environment: process.env }).cacheDir;

export const nativeOptions = (overrides: Partial<NativeOptions> = {}): NativeOptions => ({
  nativeDir: null,
  cacheDir: testCacheDir(),
  self: PROBE_SELF,
  log: SILENT,
  ...overrides,
});

let prepared: Promise<NativeLocation> | null = null;

export const nativeForTests = (): Promise<NativeLocation> => (prepared ??= prepareNative(nativeOptions()));

/** A folder of the location's libraries and its shim, as a package or an executable would bring them. */
export const copyLibraries = async (location: NativeLocation, target: string): Promise<Record<string, string>> => {
  await mkdir(target, { recursive: true });
  const files: Record<string, string> = {};
  const shim = basename(location.shimPath);
  for (const name of (await readdir(location.dir)).filter((name) => isLibraryFile(name) || name === shim)) {
    await copyFile(join(location.dir, name), join(target, name));
    await chmod(join(target, name), 0o600);
    files[name] = join(target, name);
  }
  return files;
};

/** Compiles a tiny library that looks like a CPU backend with the given score and misbehaves as told. */
export const plantBackend = async (
  path: string,
  body: { readonly score: number; readonly init: string; readonly load?: string },
) => {
  const source = `${path}.cpp`;
  await Bun.write(
    source,
    `#include <cstdlib>
#include <unistd.h>
${body.load === undefined ? "" : `__attribute__((constructor)) static void load() { ${body.load} }`}
extern "C" int ggml_backend_score() { return ${body.score}; }
extern "C" void * ggml_backend_init() { ${body.init} return nullptr; }
`,
  );
  const built = await runCommand(["c++", "-shared", "-fPIC", "-o", path, source], { deadlineMs: 60_000 });
  if (built.exitCode !== 0) throw new Error(`the planted backend does not compile: ${built.stderrTail}`);
};

/** A cache folder of the test's own that shares nothing but the fetched headers with the machine's. */
export const cacheWithHeaders = async (dir: string): Promise<string> => {
  await mkdir(dir, { recursive: true });
  await symlink(join(testCacheDir(), "source"), join(dir, "source"));
  return dir;
};

/** The Fault a promise rejects with; anything else fails the test. */
export const faultFrom = async (work: Promise<unknown>): Promise<Fault> => {
  const thrown = await work.then(
    () => new Error("no fault was thrown"),
    (error: unknown) => error,
  );
  if (thrown instanceof Fault) return thrown;
  throw thrown;
};

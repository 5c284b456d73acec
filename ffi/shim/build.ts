/** Compiles the C++ shim against the pinned headers and links it to one set of packaged libraries. */
import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { basename, join } from "node:path";
import { Fault } from "../../src/core/fault.ts";
import type { NativeFiles } from "../location.ts";
import { PIN } from "../pin.ts";
import { outputTail, runCommand } from "../run-child.ts";
import { INCLUDE_DIRS, prepareHeaders } from "../source.ts";

export interface ShimBuildOptions {
  /** Folder of the libraries to link with. */
  readonly libDir: string;
  readonly files: NativeFiles;
  /** Hash over those libraries; part of the cache key. */
  readonly libsSha256: string;
  /** Where the shim goes; beside the libraries, since it looks for them in its own folder. */
  readonly outDir: string;
  /** For llama.cpp's headers. */
  readonly cacheDir: string;
  /** Compiler; absent = the system's `c++`. */
  readonly cxx?: string;
  /** Folder of the shim's sources; absent = this one. */
  readonly sourceDir?: string;
  readonly onProgress?: (step: string) => void;
}

const FLAGS: readonly string[] = ["-std=c++17", "-O2", "-fPIC", "-pthread"];
const COMPILE_DEADLINE_MS = 300_000;

const extension = (): string => (process.platform === "darwin" ? "dylib" : "so");

/** True for the file name of a shim, whoever built it. */
export const isShimFile = (name: string): boolean => /^libdarkbloom-shim(?:-[0-9a-f]+)?\.(?:so|dylib)$/.test(name);

/** Path the shim has once built; the name holds the hash of everything that goes into it. */
export const shimPathFor = async (options: ShimBuildOptions): Promise<string> => {
  const sourceDir = options.sourceDir ?? import.meta.dir;
  const hash = createHash("sha256");
  const add = (part: string | Uint8Array): void => void hash.update(`${part.length}:`).update(part);
  for (const part of [PIN, process.platform, process.arch, FLAGS.join(" "), options.cxx ?? "", options.libsSha256])
    add(part);
  for (const name of await sourceFiles(sourceDir)) {
    add(name);
    add(await readFile(join(sourceDir, name)));
  }
  return join(options.outDir, `libdarkbloom-shim-${hash.digest("hex").slice(0, 16)}.${extension()}`);
};

const sourceFiles = async (sourceDir: string): Promise<readonly string[]> =>
  (await readdir(sourceDir)).filter((name) => /\.(?:cpp|h)$/.test(name)).toSorted();

/**
 * Builds the shim and returns its path. Throws `compiler_missing` where no C++ compiler is installed, `native_missing`
 * when the headers cannot be had, `native_failed` with the compiler's last lines otherwise.
 */
export const buildShim = async (options: ShimBuildOptions): Promise<string> => {
  const target = await shimPathFor(options);
  const cxx = await findCompiler(options.cxx);
  const headersDir = await prepareHeaders(options);
  options.onProgress?.("compiling shim");
  const workDir = join(options.outDir, `.build-${process.pid}-${crypto.randomUUID()}`);
  await mkdir(workDir, { recursive: true, mode: 0o700 });
  try {
    const sourceDir = options.sourceDir ?? import.meta.dir;
    const units = (await sourceFiles(sourceDir)).filter((name) => name.endsWith(".cpp"));
    const includes = INCLUDE_DIRS.flatMap((dir) => ["-isystem", join(headersDir, dir)]);
    const objects = await compileAll(units, (name) => {
      const object = join(workDir, `${name}.o`);
      return { object, command: [cxx, ...FLAGS, ...includes, "-c", "-o", object, join(sourceDir, name)] };
    });
    const built = join(workDir, basename(target));
    await compile([cxx, ...FLAGS, ...linkFlags(target), "-o", built, ...objects, ...linkLibraries(options)]);
    await rename(built, target);
    return target;
  } finally {
    await rm(workDir, { recursive: true, force: true });
  }
};

const linkFlags = (target: string): readonly string[] =>
  process.platform === "darwin"
    ? ["-dynamiclib", "-Wl,-rpath,@loader_path", "-install_name", `@rpath/${basename(target)}`]
    : ["-shared", "-Wl,-rpath,$ORIGIN", "-Wl,--no-undefined"];

/** By path: the linker records each library's own name, which the rpath then finds beside the shim. */
const linkLibraries = (options: ShimBuildOptions): readonly string[] => {
  const { common, llama, ggml, base } = options.files;
  return [common, llama, ggml, base].map((name) => join(options.libDir, name));
};

interface Unit {
  readonly object: string;
  readonly command: readonly string[];
}

/** One compiler process per core; the chat headers alone take seconds each. */
const compileAll = async (names: readonly string[], toUnit: (name: string) => Unit): Promise<readonly string[]> => {
  const waiting = names.map(toUnit);
  const objects = waiting.map((unit) => unit.object);
  const lanes = Array.from({ length: Math.min(waiting.length, availableParallelism()) }, async () => {
    for (let unit = waiting.shift(); unit !== undefined; unit = waiting.shift()) await compile(unit.command);
  });
  const failed = (await Promise.allSettled(lanes)).find((lane) => lane.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  return objects;
};

const compile = async (command: readonly string[]): Promise<void> => {
  const result = await runCommand(command, { deadlineMs: COMPILE_DEADLINE_MS });
  if (result.exitCode === 0) return;
  throw new Fault("native_failed", `the shim does not compile:\n${outputTail(result)}`, {
    reason: "shim_compile",
    hint: "check that the compiler knows C++17 (g++ 11 or clang 14 and newer do)",
  });
};

const COMPILER_HINT =
  process.platform === "darwin"
    ? "xcode-select --install"
    : "apt install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora), or your system's equivalent";

const findCompiler = async (wanted: string | undefined): Promise<string> => {
  const path = Bun.which(wanted ?? "c++") ?? (wanted === undefined ? (Bun.which("g++") ?? Bun.which("clang++")) : null);
  const missing = new Fault("compiler_missing", `no C++ compiler found (looked for ${wanted ?? "c++"})`, {
    hint: COMPILER_HINT,
  });
  if (path === null) throw missing;
  // A Mac without developer tools has a `c++` that only opens a dialog.
  if (process.platform === "darwin" && path.startsWith("/usr/bin/")) {
    const tools = await runCommand(["xcode-select", "-p"], { deadlineMs: 10_000 });
    if (tools.exitCode !== 0) throw missing;
  }
  return path;
};

/** Finds llama.cpp's libraries, makes them usable on this machine, and says where they are. */
import { existsSync } from "node:fs";
import { readdir, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { Fault } from "../src/core/fault.ts";
import type { Log } from "../src/core/log.ts";
import { isCompiled, type SelfCommand } from "../src/core/spawn-self.ts";
import { chooseBackend } from "./backends.ts";
import { EMBEDDED, type EmbeddedFiles } from "./embedded.ts";
import { isLibraryFile, type NativeFiles, type NativeLocation, toNativeFiles } from "./location.ts";
import { type GpuVariant, PACKAGE_VERSION, PIN, packageFor, platformKey, SUPPORTED_PLATFORMS } from "./pin.ts";
import { buildShim, isShimFile, shimPathFor } from "./shim/build.ts";
import { sha256OfFile, stageFiles } from "./stage.ts";
import { checkSystem, readCpuIdentity, readSystem } from "./system.ts";
import { withFileLock } from "./file-lock.ts";

export interface NativeOptions {
  /** A folder of libraries to use instead of any other (`DARKBLOOM_NATIVE_DIR`). */
  readonly nativeDir: string | null;
  readonly cacheDir: string;
  readonly self: SelfCommand;
  readonly log: Log;
  readonly onProgress?: (step: string) => void;
  /** Use the package built for this GPU, which must be installed; absent = the platform's default package. */
  readonly gpu?: GpuVariant | null;
  /** C++ compiler for the shim; absent = the system's `c++`. */
  readonly cxx?: string;
  /** Files inside the executable; absent = those of this build. */
  readonly embedded?: EmbeddedFiles | null;
  /** Where the search for the npm package starts; absent = the program's own folder. */
  readonly searchFrom?: string;
}

/** A set of libraries before it is staged. */
interface LibrarySet {
  readonly files: ReadonlyMap<string, string>;
  /** A shim that came with them; null = build it. */
  readonly shim: { readonly name: string; readonly path: string } | null;
}

const SHIM_LOCK_DEADLINE_MS = 900_000;
const SHIMS_MAX = 8;

/**
 * Libraries found, shim built, CPU backend proven. Seconds to a minute the first time, well under a second afterwards.
 * Throws `system_too_old`, `native_missing`, `compiler_missing` or `native_failed`, each with what to do about it.
 */
export const prepareNative = async (options: NativeOptions): Promise<NativeLocation> => {
  checkSystem(await readSystem());
  const set = await findLibraries(options);
  const files = toNativeFiles([...set.files.keys()]);
  if (files === null) throw incomplete("the native library folder");
  const stage = await stageFiles(options.cacheDir, set.files);
  const shimPath = set.shim === null ? await ensureShim(options, stage, files) : await placeShim(set.shim, stage.dir);
  const cpuBackend = await chooseBackend({
    ...options,
    ...stage,
    shimPath,
    candidates: files.cpuBackends,
    cpu: await readCpuIdentity(),
  });
  return { dir: stage.dir, shimPath, cpuBackend, pin: PIN, sha256: stage.sha256 };
};

/** Load order: the folder asked for, the copy in this executable, the npm package. */
const findLibraries = async (options: NativeOptions): Promise<LibrarySet> => {
  if (options.nativeDir !== null) return readFolder(options.nativeDir, "the folder of DARKBLOOM_NATIVE_DIR");
  const embedded = options.embedded === undefined ? EMBEDDED : options.embedded;
  if (embedded !== null) return toLibrarySet(Object.entries(embedded.files));
  return readFolder(await findPackageDir(options), "the npm package");
};

const toLibrarySet = (files: readonly (readonly [name: string, path: string])[]): LibrarySet => {
  const shim = files.find(([name]) => isShimFile(name));
  return {
    files: new Map(files.filter(([name]) => isLibraryFile(name))),
    shim: shim === undefined ? null : { name: shim[0], path: shim[1] },
  };
};

const readFolder = async (dir: string, what: string): Promise<LibrarySet> => {
  const names = await readdir(dir).catch((cause: unknown) => {
    throw new Fault("native_missing", `${what} cannot be read: ${dir}`, { cause, hint: "check the path" });
  });
  if (toNativeFiles(names) === null) throw incomplete(`${what} (${dir})`);
  return toLibrarySet(names.map((name) => [name, join(dir, name)] as const));
};

const incomplete = (what: string): Fault =>
  new Fault(
    "native_missing",
    `${what} lacks one of llama.cpp's libraries (libllama, libllama-common, libggml, libggml-base)`,
    {
      hint: `reinstall the package (npm ci), or name a folder with the libraries of ${PIN}`,
    },
  );

/** Folder of libraries inside the installed npm package, looked for upwards from the program's own folder, never from the user's. */
const findPackageDir = async (options: NativeOptions): Promise<string> => {
  const platform = platformKey(process.platform, process.arch);
  const wanted = packageFor(platform, options.gpu ?? null);
  if (wanted === null)
    throw new Fault("native_missing", `there is no prebuilt llama.cpp for ${platform} ${options.gpu ?? ""}`.trim(), {
      hint: `packages exist for ${SUPPORTED_PLATFORMS.join(", ")}, and for linux-x64 with cuda or vulkan`,
    });
  const start = options.searchFrom ?? (isCompiled() ? dirname(process.execPath) : import.meta.dir);
  const packageDir = ancestors(start)
    .map((dir) => join(dir, "node_modules", wanted.name))
    .find((dir) => existsSync(join(dir, "package.json")));
  if (packageDir === undefined)
    throw new Fault("native_missing", `the package ${wanted.name} with llama.cpp for this platform is not installed`, {
      hint: `npm ci (without --omit=optional), or: npm install ${wanted.name}@${PACKAGE_VERSION}`,
    });
  await checkPackageVersion(packageDir, wanted.name);
  return join(packageDir, wanted.binsDir);
};

const ancestors = (dir: string): readonly string[] => {
  const parent = dirname(dir);
  return parent === dir ? [dir] : [dir, ...ancestors(parent)];
};

const checkPackageVersion = async (packageDir: string, name: string): Promise<void> => {
  const { version } = (await Bun.file(join(packageDir, "package.json")).json()) as { version?: unknown };
  if (version === PACKAGE_VERSION) return;
  throw new Fault(
    "native_missing",
    `${name} is installed in version ${String(version)}, ${PACKAGE_VERSION} is needed`,
    {
      hint: "npm ci",
    },
  );
};

/** Path of the shim beside the staged libraries; built unless an intact one is there. */
const ensureShim = async (
  options: NativeOptions,
  stage: { readonly dir: string; readonly sha256: string },
  files: NativeFiles,
): Promise<string> => {
  if (isCompiled())
    throw new Fault(
      "native_missing",
      "the library folder has no libdarkbloom-shim, and this executable cannot build one",
      {
        hint: "unset DARKBLOOM_NATIVE_DIR to use the built-in libraries, or run from source once to build the shim",
      },
    );
  const build = { ...options, libDir: stage.dir, files, libsSha256: stage.sha256, outDir: stage.dir };
  const path = await shimPathFor(build);
  if (await isWhole(path)) return path;
  return withFileLock(`${path}.lock`, SHIM_LOCK_DEADLINE_MS, async () => {
    if (await isWhole(path)) return path;
    await buildShim(build);
    await Bun.write(`${path}.sha256`, await sha256OfFile(path));
    await removeOldShims(stage.dir, path);
    return path;
  });
};

/** Every change of the shim's source leaves one behind; a few stay, since another checkout may be using them. */
const removeOldShims = async (dir: string, keep: string): Promise<void> => {
  const shims = (await readdir(dir)).filter(isShimFile).map((name) => join(dir, name));
  const dated = await Promise.all(shims.map(async (path) => ({ path, builtMs: (await stat(path)).mtimeMs })));
  const old = dated.filter(({ path }) => path !== keep).toSorted((a, b) => b.builtMs - a.builtMs);
  for (const { path } of old.slice(SHIMS_MAX - 1))
    for (const file of [path, `${path}.sha256`, `${path}.lock`]) await rm(file, { force: true });
};

/** A half-written or damaged shim must be built again, not loaded. */
const isWhole = async (path: string): Promise<boolean> => {
  const recorded = Bun.file(`${path}.sha256`);
  if (!(await recorded.exists()) || !existsSync(path)) return false;
  return (await recorded.text()) === (await sha256OfFile(path));
};

/** Puts a prebuilt shim beside the staged libraries, since it finds them in its own folder. */
const placeShim = async (shim: { readonly name: string; readonly path: string }, dir: string): Promise<string> => {
  const sha256 = await sha256OfFile(shim.path);
  const target = join(dir, shim.name);
  if (existsSync(target) && (await sha256OfFile(target)) === sha256) return target;
  return withFileLock(`${target}.lock`, SHIM_LOCK_DEADLINE_MS, async () => {
    const temporary = `${target}.tmp`; // only the holder of the lock gets here
    await Bun.write(temporary, Bun.file(shim.path));
    if ((await sha256OfFile(temporary)) !== sha256)
      throw new Fault("io_failed", `the shim could not be copied whole into ${dir}`, { hint: "is the disk full?" });
    await rename(temporary, target);
    return target;
  });
};

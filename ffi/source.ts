/** Obtains llama.cpp's source at the pinned version: npm tarball → checked bundle → a checkout of only the folders asked for. */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, readdir, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { Fault } from "../src/core/fault.ts";
import { withFileLock } from "./file-lock.ts";
import { PACKAGE_VERSION, SOURCE_INTEGRITY, SOURCE_KEY, SOURCE_PACKAGE } from "./pin.ts";
import { type ChildResult, describeEnd, outputTail, runCommand } from "./run-child.ts";

export interface SourceOptions {
  readonly cacheDir: string;
  readonly onProgress?: (step: string) => void;
  /** Ways to run npm, tried in turn; absent = npm, then Bun's, whichever is installed. */
  readonly npm?: readonly (readonly string[])[];
}

/** What the shim needs to compile. */
export const HEADER_PATHS: readonly string[] = ["include", "common", "vendor", "ggml/include", "src/llama-ext.h"];

/** Folders of a checkout that go on a compiler's include path. */
export const INCLUDE_DIRS: readonly string[] = ["include", "common", "vendor", "ggml/include", "src"];

const FETCH_DEADLINE_MS = 300_000;
const GIT_DEADLINE_MS = 120_000;
const LOCK_DEADLINE_MS = 600_000;
const BUNDLE_PATH = "package/llama/gitRelease.bundle";

/** Variables set while a git hook runs would point our commands at the user's repository. */
const GIT = ["env", "-u", "GIT_DIR", "-u", "GIT_WORK_TREE", "-u", "GIT_INDEX_FILE", "git"] as const;

/** Folder with the shim's headers; fetched on the first call, found again on every later one. */
export const prepareHeaders = (options: SourceOptions): Promise<string> => checkoutSource(options, HEADER_PATHS);

/**
 * Folder of the source with at least these paths (folders or files, relative to its root) checked out.
 * Throws `native_missing` when npm, git or the network is missing or the tarball is not the pinned one.
 */
export const checkoutSource = async (options: SourceOptions, paths: readonly string[]): Promise<string> => {
  const dir = join(options.cacheDir, "source", SOURCE_KEY);
  if (await hasPaths(dir, paths)) return dir;
  return withFileLock(`${dir}.lock`, LOCK_DEADLINE_MS, async () => {
    if (!(await exists(join(dir, ".git")))) await fetchSource(options, dir);
    if (!(await hasPaths(dir, paths))) await checkout(dir, paths);
    return dir;
  });
};

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

/** A checkout killed half-way leaves some files of a folder, so presence is told by a marker written after git is done. */
const markerOf = (dir: string, path: string): string => join(dir, ".git", `checked-out-${path.replaceAll("/", "~")}`);

const hasPaths = async (dir: string, paths: readonly string[]): Promise<boolean> => {
  for (const path of paths) if (!(await exists(markerOf(dir, path))) || !(await exists(join(dir, path)))) return false;
  return true;
};

const fetchSource = async (options: SourceOptions, dir: string): Promise<void> => {
  const git = Bun.which("git");
  if (git === null)
    throw new Fault("native_missing", "git is needed once, to unpack llama.cpp's headers, and is not installed", {
      hint: process.platform === "darwin" ? "xcode-select --install" : "apt install git (or your system's equivalent)",
    });
  const temporary = `${dir}.tmp`; // only the holder of the lock gets here
  await rm(temporary, { recursive: true, force: true });
  await mkdir(temporary, { recursive: true, mode: 0o700 });
  options.onProgress?.("fetching llama.cpp headers");
  const tarball = await fetchTarball(temporary, options.npm ?? npmCommands());
  options.onProgress?.("unpacking llama.cpp headers");
  must(await runCommand(["tar", "xzf", tarball, "-C", temporary, BUNDLE_PATH], { deadlineMs: GIT_DEADLINE_MS }), "tar");
  const clone = join(temporary, "clone");
  const command = [...GIT, "clone", "--quiet", "--no-checkout", join(temporary, BUNDLE_PATH), clone];
  must(await runCommand(command, { deadlineMs: GIT_DEADLINE_MS }), "git clone");
  await rm(dir, { recursive: true, force: true });
  await rename(clone, dir);
  await rm(temporary, { recursive: true, force: true });
};

const checkout = async (dir: string, paths: readonly string[]): Promise<void> => {
  const git = [...GIT, "-c", "core.autocrlf=false", "-c", "core.hooksPath=/dev/null"];
  const place = [`--git-dir=${join(dir, ".git")}`, `--work-tree=${dir}`];
  await rm(join(dir, ".git", "index.lock"), { force: true }); // left by a killed git; we hold the lock, so no git runs
  const command = [...git, ...place, "checkout", "--quiet", "HEAD", "--", ...paths];
  must(await runCommand(command, { deadlineMs: GIT_DEADLINE_MS }), "git checkout");
  for (const path of paths) await Bun.write(markerOf(dir, path), "");
};

/** Downloads the tarball with npm, or with Bun's npm where only Bun is, and checks it against the pin. */
const fetchTarball = async (dir: string, npms: readonly (readonly string[])[]): Promise<string> => {
  const pack = ["pack", "--silent", "--pack-destination", dir, `${SOURCE_PACKAGE}@${PACKAGE_VERSION}`];
  const failures: string[] = [];
  for (const npm of npms) {
    const result = await runCommand([...npm, ...pack], { deadlineMs: FETCH_DEADLINE_MS, cwd: dir });
    const tarball = (await readdir(dir)).find((name) => name.endsWith(".tgz"));
    if (result.exitCode === 0 && tarball !== undefined) {
      await checkIntegrity(join(dir, tarball));
      return join(dir, tarball);
    }
    failures.push(`${npm.join(" ")} pack: ${describeEnd(result, FETCH_DEADLINE_MS)}\n${outputTail(result, 600)}`);
  }
  const detail = failures.length === 0 ? "neither npm nor bun is on the PATH" : failures.join("\n");
  throw new Fault(
    "native_missing",
    `could not fetch ${SOURCE_PACKAGE}@${PACKAGE_VERSION} (llama.cpp's headers): ${detail}`,
    {
      hint: "check the network connection and that `npm ping` works, then try again",
      reason: "source_fetch",
    },
  );
};

const npmCommands = (): readonly (readonly string[])[] => {
  const npm = Bun.which("npm");
  const bun = Bun.which("bun") ?? (/(?:^|\/)bun$/.test(process.execPath) ? process.execPath : null);
  return [...(npm === null ? [] : [[npm]]), ...(bun === null ? [] : [[bun, "x", "npm"]])];
};

/** `sha512-<base64>`, the form npm writes. */
export const integrityOf = async (path: string): Promise<string> => {
  const hash = createHash("sha512");
  for await (const part of createReadStream(path)) hash.update(part as Uint8Array);
  return `sha512-${hash.digest("base64")}`;
};

const checkIntegrity = async (tarball: string): Promise<void> => {
  if ((await integrityOf(tarball)) === SOURCE_INTEGRITY) return;
  await rm(tarball, { force: true });
  throw new Fault(
    "native_missing",
    `the ${SOURCE_PACKAGE}@${PACKAGE_VERSION} tarball is not the pinned one; it was deleted`,
    {
      hint: "check your npm registry setting (`npm config get registry`), run `npm cache verify`, then try again",
      reason: "source_integrity",
    },
  );
};

const must = (result: ChildResult, tool: string): void => {
  if (result.exitCode === 0) return;
  throw new Fault("native_failed", `${tool} failed while unpacking llama.cpp's headers: ${outputTail(result, 600)}`, {
    reason: "source_unpack",
  });
};

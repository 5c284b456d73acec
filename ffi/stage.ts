/** One content-addressed folder that holds a set of libraries side by side, filled at once and checked on every use. */
import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { chmod, copyFile, link, mkdir, readdir, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { Fault } from "../src/core/fault.ts";
import { withFileLock } from "./file-lock.ts";
import { PACKAGE_VERSION } from "./pin.ts";

/** File name → path to take it from; the path may lie inside the executable. */
export type FileSources = ReadonlyMap<string, string>;

export interface Stage {
  readonly dir: string;
  /** Over names and contents of the libraries. */
  readonly sha256: string;
}

const LOCK_DEADLINE_MS = 120_000;
/** Older stages are removed beyond this many; a pin leaves a new one behind with every update. */
const STAGES_MAX = 4;

export const sha256OfFile = async (path: string): Promise<string> => {
  const hash = new Bun.CryptoHasher("sha256");
  for await (const part of Bun.file(path).stream()) hash.update(part);
  return hash.digest("hex");
};

const hashAll = async (sources: FileSources): Promise<ReadonlyMap<string, string>> => {
  const hashes = new Map<string, string>();
  for (const name of [...sources.keys()].toSorted()) hashes.set(name, await sha256OfFile(sources.get(name) ?? ""));
  return hashes;
};

const combine = (hashes: ReadonlyMap<string, string>): string => {
  const hash = createHash("sha256");
  for (const [name, sha256] of hashes) hash.update(`${name}\0${sha256}\n`);
  return hash.digest("hex");
};

/**
 * Makes the folder if it is not there yet, repairs it if a file in it is missing, truncated or changed.
 * Files are hard links where the file system allows, so that neither a moved nor a removed package breaks a stage.
 */
export const stageFiles = async (cacheDir: string, sources: FileSources): Promise<Stage> => {
  const hashes = await hashAll(sources);
  const sha256 = combine(hashes);
  const root = join(cacheDir, "native");
  const dir = join(root, `${PACKAGE_VERSION}-${sha256.slice(0, 16)}`);
  if (await isIntact(dir, sources, hashes)) return { dir, sha256 };
  await withFileLock(`${dir}.lock`, LOCK_DEADLINE_MS, async () => {
    if (await isIntact(dir, sources, hashes)) return;
    await fill(dir, sources, hashes);
    await removeOldStages(root, dir);
  });
  return { dir, sha256 };
};

const isIntact = async (dir: string, sources: FileSources, hashes: ReadonlyMap<string, string>): Promise<boolean> => {
  for (const [name, sha256] of hashes) {
    const path = join(dir, name);
    const found = await stat(path).catch(() => null);
    if (found === null) return false;
    // The same file as the source, which was hashed a moment ago.
    const source = await stat(sources.get(name) ?? "").catch(() => null);
    if (source !== null && source.ino !== 0 && source.ino === found.ino && source.dev === found.dev) continue;
    if ((await sha256OfFile(path)) !== sha256) return false;
  }
  return true;
};

const fill = async (dir: string, sources: FileSources, hashes: ReadonlyMap<string, string>): Promise<void> => {
  const temporary = `${dir}.tmp`; // only the holder of the lock gets here
  await rm(temporary, { recursive: true, force: true });
  await mkdir(temporary, { recursive: true, mode: 0o700 });
  for (const [name, source] of sources) await place(source, join(temporary, name));
  if (!(await isIntact(temporary, sources, hashes)))
    throw new Fault("io_failed", `the native libraries could not be copied whole into ${dir}`, {
      hint: "check that the disk is not full, then try again",
    });
  // What a running process has mapped stays mapped; only the names change hands.
  await rm(dir, { recursive: true, force: true });
  await rename(temporary, dir);
};

const place = async (source: string, target: string): Promise<void> => {
  if (await linked(source, target)) return;
  if (source.startsWith("/$bunfs/")) await Bun.write(target, Bun.file(source));
  else await copyFile(source, target, constants.COPYFILE_FICLONE);
  await chmod(target, 0o500);
};

const linked = (source: string, target: string): Promise<boolean> =>
  link(source, target).then(
    () => true,
    () => false, // another file system, a foreign owner, inside the executable: a copy does as well
  );

const removeOldStages = async (root: string, keep: string): Promise<void> => {
  const dirs: { path: string; usedMs: number }[] = [];
  for (const entry of await readdir(root, { withFileTypes: true })) {
    const path = join(root, entry.name);
    if (entry.isDirectory() && path !== keep) dirs.push({ path, usedMs: (await stat(path)).mtimeMs });
  }
  const old = dirs.toSorted((a, b) => b.usedMs - a.usedMs).slice(STAGES_MAX - 1);
  for (const { path } of old) await rm(path, { recursive: true, force: true });
};

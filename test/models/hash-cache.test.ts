/** The hash cache answers from memory only while nothing about the file changed. */
import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readdir, readFile, rename, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createLog } from "../../src/core/log.ts";
import { openHashCache } from "../../src/models/hash-cache.ts";
import { rejectedFault } from "./rejected-fault.ts";
import { tempDir } from "../support/temp-dir.ts";

const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");

const open = async (folder: string, options: { rehash?: boolean } = {}) => {
  const lines: string[] = [];
  const log = createLog({
    clock: { nowMs: () => 0 },
    level: "debug",
    format: "json",
    write: (line) => void lines.push(line),
  });
  return { cache: await openHashCache({ folder, log, processId: 1 }, options), lines };
};

/** How often the file was really read: a remembered hash reports its size in one step, a fresh one in blocks of 1 MiB. */
const BIG = "x".repeat(2 * 1024 * 1024);
const stepsOf = async (cache: Awaited<ReturnType<typeof open>>["cache"], path: string) => {
  const steps: number[] = [];
  const digest = await cache.hash(path, (bytes) => void steps.push(bytes));
  return { digest, steps: steps.length };
};

test("a second start reads nothing, --rehash reads all", async () => {
  await using dir = await tempDir();
  const path = join(dir.path, "model");
  const folder = join(dir.path, "state");
  await writeFile(path, BIG);
  const first = await stepsOf((await open(folder)).cache, path);
  expect(first).toEqual({ digest: { sizeBytes: BIG.length, sha256: sha256(BIG) }, steps: 2 });
  const second = await stepsOf((await open(folder)).cache, path);
  expect(second).toEqual({ digest: first.digest, steps: 1 });
  expect((await stepsOf((await open(folder, { rehash: true })).cache, path)).steps).toBe(2);
});

test("the file is private, whole, and no draft stays", async () => {
  await using dir = await tempDir();
  await writeFile(join(dir.path, "a"), "1");
  await writeFile(join(dir.path, "b"), "2");
  const folder = join(dir.path, "state");
  const { cache } = await open(folder);
  await Promise.all([cache.hash(join(dir.path, "a")), cache.hash(join(dir.path, "b"))]);
  expect(await readdir(folder)).toEqual(["file-hashes.json"]);
  const path = join(folder, "file-hashes.json");
  const { mode } = await stat(path);
  expect(mode & 0o777).toBe(0o600);
  const stored = JSON.parse(await readFile(path, "utf8")) as { files: Record<string, { sha256: string }> };
  // Which of the two was hashed first is up to the system.
  const hashes = Object.values(stored.files).map((entry) => entry.sha256);
  expect(hashes.toSorted()).toEqual([sha256("1"), sha256("2")].toSorted());
});

test("another content, another file of the same size and time: both are seen", async () => {
  await using dir = await tempDir();
  const path = join(dir.path, "model");
  const { cache } = await open(join(dir.path, "state"));
  await writeFile(path, "old");
  await utimes(path, 1_000_000, 1_000_000);
  expect((await cache.hash(path)).sha256).toBe(sha256("old"));
  await writeFile(join(dir.path, "other"), "new");
  await utimes(join(dir.path, "other"), 1_000_000, 1_000_000);
  await rename(join(dir.path, "other"), path);
  expect((await cache.hash(path)).sha256).toBe(sha256("new"));
  // Same file, same size, modification time set back: the change time still tells.
  await writeFile(path, "bad");
  await utimes(path, 1_000_000, 1_000_000);
  expect((await cache.hash(path)).sha256).toBe(sha256("bad"));
});

test("a damaged cache is ignored with a word in the log, and replaced", async () => {
  await using dir = await tempDir();
  const path = join(dir.path, "model");
  await writeFile(path, "m");
  for (const damage of [
    "{",
    '{"schema_version":2,"files":{}}',
    '{"schema_version":1,"files":{"x":{"sha256":"short"}}}',
  ]) {
    await writeFile(join(dir.path, "file-hashes.json"), damage);
    const { cache, lines } = await open(dir.path);
    expect(lines.join("")).toContain("hash_cache_ignored");
    expect((await cache.hash(path)).sha256).toBe(sha256("m"));
    expect((await open(dir.path)).lines).toEqual([]);
  }
});

test("a cache that cannot be written costs nothing but time", async () => {
  await using dir = await tempDir();
  const path = join(dir.path, "model");
  await writeFile(path, "m");
  const { cache, lines } = await open(join(path, "below-a-file"));
  expect((await cache.hash(path)).sha256).toBe(sha256("m"));
  expect(lines.join("")).toContain("hash_cache_write_failed");
});

test("a file that does not exist is a fault, not an entry", async () => {
  await using dir = await tempDir();
  const { cache } = await open(dir.path);
  expect(await rejectedFault(cache.hash(join(dir.path, "none")))).toMatchObject({ code: "file_missing" });
  expect(await readdir(dir.path)).toEqual([]);
});

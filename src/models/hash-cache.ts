/** Remembers file hashes by size, times and inode, so that a start does not read 40 GB again. */
import { chmod, mkdir, readFile, realpath, rename, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import type { Log } from "../core/log.ts";
import { errorFields } from "../core/log.ts";
import { sha256Field } from "../core/fields.ts";
import { toFileFault } from "./file-fault.ts";
import { hashFile, type BytesRead, type FileDigest } from "./hash.ts";

const FILE_NAME = "file-hashes.json";
const ENTRIES_MAX = 4096;
const FILE_BYTES_MAX = 8 * 1024 * 1024;

const entrySchema = z.object({
  /** Decimal text: nanoseconds do not fit a double. The change time catches a modification time that was set back. */
  stamp: z.string().max(200),
  size_bytes: z.number().int().min(0),
  sha256: sha256Field,
});
type Entry = z.infer<typeof entrySchema>;
const fileSchema = z.object({ schema_version: z.literal(1), files: z.record(z.string().max(4096), entrySchema) });

export interface HashCacheDeps {
  /** Where `file-hashes.json` lies; created when missing. */
  readonly folder: string;
  readonly log: Log;
  readonly processId: number;
}

export interface HashCacheOptions {
  /** Reads every file again and stores what it finds. */
  readonly rehash?: boolean;
}

const stampOf = async (path: string): Promise<{ readonly stamp: string; readonly sizeBytes: number }> => {
  try {
    const { size, mtimeNs, ctimeNs, ino, dev } = await stat(path, { bigint: true });
    return { stamp: `${size}:${mtimeNs}:${ctimeNs}:${dev}:${ino}`, sizeBytes: Number(size) };
  } catch (thrown) {
    throw toFileFault(thrown, "file", path);
  }
};

export class HashCache {
  readonly #deps: HashCacheDeps;
  readonly #rehash: boolean;
  readonly #entries: Map<string, Entry>;
  #writing: Promise<void> = Promise.resolve();

  constructor(deps: HashCacheDeps, entries: ReadonlyMap<string, Entry>, options: HashCacheOptions) {
    this.#deps = deps;
    this.#entries = new Map(entries);
    this.#rehash = options.rehash ?? false;
  }

  /** The hash of a file, from memory when nothing about the file changed. `onBytes` then gets its whole size at once. */
  async hash(path: string, onBytes: BytesRead = () => undefined): Promise<FileDigest> {
    const { stamp, sizeBytes } = await stampOf(path);
    const key = await realpath(path);
    const known = this.#entries.get(key);
    if (!this.#rehash && known?.stamp === stamp && known.size_bytes === sizeBytes) {
      onBytes(sizeBytes);
      return { sizeBytes, sha256: known.sha256 };
    }
    const digest = await hashFile(path, onBytes);
    const after = await stampOf(path);
    // A file that was replaced while it was read has no hash worth remembering.
    if (after.stamp !== stamp) return digest;
    this.#entries.delete(key);
    this.#entries.set(key, { stamp, size_bytes: digest.sizeBytes, sha256: digest.sha256 });
    this.#forgetOldest();
    await this.#save();
    return digest;
  }

  #forgetOldest(): void {
    for (const key of this.#entries.keys()) {
      if (this.#entries.size <= ENTRIES_MAX) return;
      this.#entries.delete(key);
    }
  }

  /** One write at a time. A cache that cannot be written costs time later, nothing else, so it is logged and left. */
  #save(): Promise<void> {
    this.#writing = this.#writing.then(() => this.#write());
    return this.#writing;
  }

  async #write(): Promise<void> {
    const { folder, log, processId } = this.#deps;
    const path = join(folder, FILE_NAME);
    const draft = `${path}.${processId}.tmp`;
    const text = JSON.stringify({ schema_version: 1, files: Object.fromEntries(this.#entries) });
    try {
      await mkdir(folder, { recursive: true, mode: 0o700 });
      await writeFile(draft, text, { mode: 0o600 });
      await chmod(draft, 0o600);
      await rename(draft, path);
    } catch (thrown) {
      log.warn("hash_cache_write_failed", { path, ...errorFields(thrown) });
    }
  }
}

const load = async (deps: HashCacheDeps): Promise<ReadonlyMap<string, Entry>> => {
  const path = join(deps.folder, FILE_NAME);
  try {
    const bytes = await readFile(path);
    if (bytes.length > FILE_BYTES_MAX) throw new RangeError("too large");
    return new Map(Object.entries(fileSchema.parse(JSON.parse(bytes.toString("utf8"))).files));
  } catch (thrown) {
    const missing = thrown instanceof Error && "code" in thrown && thrown.code === "ENOENT";
    // Damaged or foreign: everything is hashed again and the file replaced.
    if (!missing) deps.log.warn("hash_cache_ignored", { path, ...errorFields(thrown) });
    return new Map();
  }
};

/** Opens the cache of a folder. Never fails: without a readable file it starts empty. */
export const openHashCache = async (deps: HashCacheDeps, options: HashCacheOptions = {}): Promise<HashCache> =>
  new HashCache(deps, await load(deps), options);

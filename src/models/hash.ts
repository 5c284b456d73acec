/** SHA-256 of files, streamed, and the aggregate over many (api-billing-store §7.3). */
import { createHash } from "node:crypto";
import { Fault } from "../core/fault.ts";
import { withFile } from "./file-fault.ts";

/** Called with the bytes read since the last call. */
export type BytesRead = (bytes: number) => void;

export interface FileDigest {
  readonly sizeBytes: number;
  /** Lower-case hex. */
  readonly sha256: string;
}

/** Large enough to keep a disk busy, small enough that the event loop turns between blocks. */
const BLOCK_BYTES = 1024 * 1024;

/** Faults: `file_missing`, `io_failed` (also when the file changes while it is read). */
export const hashFile = (path: string, onBytes: BytesRead = () => undefined): Promise<FileDigest> =>
  withFile("file", path, async ({ handle, sizeBytes, modifiedMs }) => {
    const hash = createHash("sha256");
    const block = new Uint8Array(BLOCK_BYTES);
    let done = 0;
    // Bounded by the size seen at the start: a file that grows for ever must not be read for ever.
    while (done < sizeBytes) {
      const { bytesRead } = await handle.read(block, 0, Math.min(BLOCK_BYTES, sizeBytes - done), done);
      if (bytesRead === 0) break;
      hash.update(block.subarray(0, bytesRead));
      done += bytesRead;
      onBytes(bytesRead);
    }
    const after = await handle.stat();
    if (done !== sizeBytes || after.size !== sizeBytes || after.mtimeMs !== modifiedMs)
      throw new Fault("io_failed", `${path} changed while it was read`, {
        hint: "wait until it is written, then try again",
      });
    return { sizeBytes, sha256: hash.digest("hex") };
  });

/** Order of UTF-8 bytes; JavaScript's own order differs beyond the basic plane. */
export const compareBytes = (a: string, b: string): number => Buffer.compare(Buffer.from(a), Buffer.from(b));

export interface PathDigest {
  readonly path: string;
  readonly sha256: string;
}

/** By path in byte order, equal paths by digest. */
export const comparePathDigests = (a: PathDigest, b: PathDigest): number =>
  compareBytes(a.path, b.path) || compareBytes(a.sha256, b.sha256);

/**
 * SHA-256 (hex) over the raw digests in path order. Paths and sizes are no part of it, so it is a short name for a
 * list of files, not a proof of it: use `manifestSha256` where the answer matters.
 */
export const aggregateSha256 = (files: readonly PathDigest[]): string => {
  const hash = createHash("sha256");
  for (const { sha256 } of files.toSorted(comparePathDigests)) hash.update(Buffer.from(sha256, "hex"));
  return hash.digest("hex");
};

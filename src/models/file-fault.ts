/** Turns what the file system says into a Fault that names the file and what to do. */
import { open, stat, type FileHandle } from "node:fs/promises";
import { Fault, type FaultOptions } from "../core/fault.ts";

const errorCode = (thrown: unknown): string =>
  thrown instanceof Error && "code" in thrown && typeof thrown.code === "string" ? thrown.code : "";

/** `what` names the thing for people, e.g. `model file`. A Fault passes through. */
export const toFileFault = (thrown: unknown, what: string, path: string): Fault => {
  if (thrown instanceof Fault) return thrown;
  const code = errorCode(thrown);
  const options = (hint: string): FaultOptions => ({ hint, cause: thrown });
  if (code === "ENOENT" || code === "ENOTDIR")
    return new Fault("file_missing", `${what} ${path} does not exist`, options("check the path"));
  if (code === "EACCES" || code === "EPERM")
    return new Fault("io_failed", `${what} ${path} may not be read by this user`, options(`chmod u+r ${path}`));
  if (code === "EISDIR")
    return new Fault("io_failed", `${path} is a folder, not a ${what}`, options("name the file in it"));
  if (code === "ELOOP") return new Fault("io_failed", `${path} is a loop of links`, options("remove the link"));
  return new Fault(
    "io_failed",
    `${what} ${path} could not be read (${code || "unknown error"})`,
    options("check the disk"),
  );
};

export interface OpenFile {
  readonly handle: FileHandle;
  readonly sizeBytes: number;
  readonly modifiedMs: number;
  readonly inode: number;
}

/** Opens a regular file for the length of one call. Anything else (folder, pipe, device) is refused before it could block. */
export const withFile = async <T>(what: string, path: string, use: (file: OpenFile) => T | Promise<T>): Promise<T> => {
  try {
    const kind = await stat(path);
    if (kind.isDirectory())
      throw new Fault("io_failed", `${path} is a folder, not a ${what}`, { hint: "name the file in it" });
    if (!kind.isFile()) throw new Fault("io_failed", `${path} is not a regular file`, { hint: `name a ${what}` });
    const handle = await open(path, "r");
    try {
      const now = await handle.stat();
      return await use({ handle, sizeBytes: now.size, modifiedMs: now.mtimeMs, inode: now.ino });
    } finally {
      await handle.close();
    }
  } catch (thrown) {
    // Without an error code it is no answer of the file system but a bug.
    throw errorCode(thrown) === "" ? thrown : toFileFault(thrown, what, path);
  }
};

/** Small files under the data folder that only their owner may read: written whole or not at all, size-bounded when read. */
import {
  chmodSync,
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname } from "node:path";
import { Fault } from "../../core/fault.ts";
import { MIB } from "../../core/units.ts";

/** None of these files comes near it; a larger one is not ours. */
const FILE_BYTES_MAX = 1 * MIB;

const codeOf = (thrown: unknown): string => (thrown as NodeJS.ErrnoException).code ?? "unknown";

/** `ENOENT` and the like are ours to name; the message of a foreign error is not. */
export const ioFault = (what: string, path: string, thrown: unknown): Fault =>
  new Fault("io_failed", `cannot ${what} ${path} (${codeOf(thrown)})`, {
    hint: `check the permissions and free space of ${dirname(path)}`,
    cause: thrown,
  });

/** Creates the folder (0700) when it is missing. Faults: `io_failed`. */
export const ensurePrivateDir = (dir: string): void => {
  try {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw ioFault("create", dir, error);
  }
};

export interface WriteOptions {
  /** Waits until the disk has it: for what must survive a power cut, such as a key. */
  readonly durable?: boolean;
}

/** Replaces the file in one step, mode 0600; readers see the old or the new text, never a part. Faults: `io_failed`. */
export const writePrivateFile = (path: string, text: string, options: WriteOptions = {}): void => {
  const draft = `${path}.${process.pid}.tmp`;
  try {
    const file = openSync(draft, "w", 0o600);
    try {
      // The mode given to open is narrowed by the umask and ignored for a draft that a crash left behind.
      chmodSync(draft, 0o600);
      writeFileSync(file, text);
      if (options.durable === true) fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(draft, path);
  } catch (error) {
    rmSync(draft, { force: true });
    throw ioFault("write", path, error);
  }
};

/** The text of the file, null when there is none. Faults: `io_failed` also for a file that is too large. */
export const readPrivateFile = (path: string): string | null => {
  let file: number;
  try {
    file = openSync(path, "r");
  } catch (error) {
    if (codeOf(error) === "ENOENT") return null;
    throw ioFault("read", path, error);
  }
  try {
    const bytes = new Uint8Array(FILE_BYTES_MAX + 1);
    let length = 0;
    for (;;) {
      const count = readSync(file, bytes, length, bytes.length - length, null);
      length += count;
      if (count === 0 || length > FILE_BYTES_MAX) break;
    }
    if (length > FILE_BYTES_MAX) throw new Fault("io_failed", `${path} is larger than ${FILE_BYTES_MAX} bytes`);
    return new TextDecoder().decode(bytes.subarray(0, length));
  } catch (error) {
    throw error instanceof Fault ? error : ioFault("read", path, error);
  } finally {
    closeSync(file);
  }
};

/** Faults: `io_failed`; a file that is already gone is no fault. */
export const removeFile = (path: string): void => {
  try {
    rmSync(path, { force: true });
  } catch (error) {
    throw ioFault("remove", path, error);
  }
};

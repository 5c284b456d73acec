/** A lock between processes that the kernel frees when its holder dies, however it dies. */
import { dlopen, FFIType } from "bun:ffi";
import { closeSync, mkdirSync, openSync } from "node:fs";
import { dirname } from "node:path";
import { Fault } from "../src/core/fault.ts";

const LOCK_EX = 2;
const LOCK_NB = 4;
const POLL_MS = 50;

const openLibc = () =>
  dlopen(process.platform === "darwin" ? "libSystem.B.dylib" : "libc.so.6", {
    flock: { args: [FFIType.i32, FFIType.i32], returns: FFIType.i32 },
  });

/**
 * Runs `work` while holding the lock file at `path`, which is left behind for the next one.
 * Throws `io_failed` when another process holds it past the deadline.
 */
export const withFileLock = async <T>(path: string, deadlineMs: number, work: () => Promise<T>): Promise<T> => {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const libc = openLibc();
  const file = openSync(path, "a", 0o600);
  try {
    const untilMs = performance.now() + deadlineMs;
    while (libc.symbols.flock(file, LOCK_EX | LOCK_NB) !== 0) {
      if (performance.now() > untilMs)
        throw new Fault("io_failed", `another process has held ${path} for ${Math.round(deadlineMs / 1000)} s`, {
          hint: "wait until it is done, or end it, then try again",
        });
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    return await work();
  } finally {
    closeSync(file);
    libc.close();
  }
};

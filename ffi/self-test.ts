/** The child's side of choosing a CPU backend: asks libraries for their score, and makes one of them compute. */
import { dlopen, FFIType } from "bun:ffi";
import { join } from "node:path";

/** Batch sizes at which backends take different code paths: one token, a few rows, a prompt chunk, a full batch. */
const BATCHES = [1, 8, 128, 512];
const MESSAGE_BYTES = 512;

/** `begin` goes out before a library is touched, so that the parent knows which one a dead child died of. */
export type ScoreLine =
  | { readonly file: string; readonly stage: "begin" }
  | { readonly file: string; readonly stage: "end"; readonly score: number };

/**
 * Reports how well each backend of a folder fits this CPU, in upstream's own measure: 0 = it does not run here.
 * A library without a score counts as 1, the lowest that runs: single-variant builds have none.
 */
export const scoreBackends = (dir: string, files: readonly string[], report: (line: ScoreLine) => void): void => {
  for (const file of files) {
    report({ file, stage: "begin" });
    report({ file, stage: "end", score: scoreOf(join(dir, file)) });
  }
};

const scoreOf = (path: string): number => {
  try {
    const library = dlopen(path, { ggml_backend_score: { args: [], returns: FFIType.i32 } });
    return library.symbols.ggml_backend_score();
  } catch (thrown) {
    // bun:ffi tells a missing symbol and an unloadable file apart only by its words.
    if (thrown instanceof Error && thrown.message.includes("ggml_backend_score")) return hasBackendInit(path) ? 1 : 0;
    return 0;
  }
};

const hasBackendInit = (path: string): boolean => {
  try {
    dlopen(path, { ggml_backend_init: { args: [], returns: FFIType.ptr } }).close();
    return true;
  } catch {
    return false; // not a backend at all: the same answer as "does not run here"
  }
};

/** Runs the shim's self-test on one backend; null when it passed, else what went wrong. May well kill the process. */
export const testBackend = (shimPath: string, backendPath: string): string | null => {
  const shim = dlopen(shimPath, {
    db_self_test_backend: {
      args: [FFIType.cstring, FFIType.ptr, FFIType.i32, FFIType.ptr, FFIType.i32],
      returns: FFIType.i32,
    },
  });
  const message = new Uint8Array(MESSAGE_BYTES);
  const path = Buffer.from(`${backendPath}\0`);
  const batches = new Int32Array(BATCHES);
  const status = shim.symbols.db_self_test_backend(path, batches, batches.length, message, message.length);
  return status === 0 ? null : (new TextDecoder().decode(message).split("\0")[0] ?? "");
};

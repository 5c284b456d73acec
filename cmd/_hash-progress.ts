/** A line on the terminal that shows how far hashing is; nothing where nobody looks. */
import { formatBytes } from "../src/core/units.ts";
import type { CommandDeps } from "./_deps.ts";

const REDRAW_MS = 250;
/** Less than this is done before anyone could read the line. */
const TOTAL_BYTES_MIN = 256 * 1000 * 1000;

export interface HashProgress {
  readonly onProgress: (doneBytes: number, totalBytes: number) => void;
  /** Wipes the line; call it before anything else is printed. */
  clear(): void;
}

export const hashProgress = (deps: Pick<CommandDeps, "stderr" | "clock" | "isTty">): HashProgress => {
  let drawnAtMs: number | null = null;
  return {
    onProgress(doneBytes, totalBytes) {
      const nowMs = deps.clock.monotonicMs();
      if (!deps.isTty || totalBytes < TOTAL_BYTES_MIN) return;
      if (drawnAtMs !== null && nowMs - drawnAtMs < REDRAW_MS) return;
      drawnAtMs = nowMs;
      const percent = Math.floor((doneBytes / totalBytes) * 100);
      deps.stderr(`\r\u001B[Khashing ${percent} % of ${formatBytes(totalBytes)}`);
    },
    clear() {
      if (drawnAtMs !== null) deps.stderr("\r\u001B[K");
      drawnAtMs = null;
    },
  };
};

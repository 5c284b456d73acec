/** One changing line on stderr for people at a terminal; plain lines elsewhere; nothing with `--json`, whose events tell. */
import type { CommandDeps } from "./_deps.ts";

export interface Progress {
  /** Shows what is being done; the same text twice is shown once. */
  step(text: string): void;
  /** Wipes the line before something else is printed. */
  clear(): void;
}

const REDRAW_MS = 80;

/** The same deps, whose other lines on stderr first wipe the progress line. */
export const clearedBy = <D extends Pick<CommandDeps, "stderr">>(deps: D, progress: Progress): D => ({
  ...deps,
  stderr: (text: string) => {
    progress.clear();
    deps.stderr(text);
  },
});

export const createProgress = (deps: Pick<CommandDeps, "stderr" | "isTty" | "clock">, silent: boolean): Progress => {
  let shown = "";
  let drawnAtMs = Number.NEGATIVE_INFINITY;
  return {
    step(text) {
      if (silent || text === shown) return;
      if (deps.isTty) {
        const nowMs = deps.clock.monotonicMs();
        if (nowMs - drawnAtMs < REDRAW_MS && text.replace(/\d+/, "") === shown.replace(/\d+/, "")) return;
        drawnAtMs = nowMs;
        deps.stderr(`\r\u001B[K${text} …`);
        shown = text;
        return;
      }
      // A percentage would fill a log file line by line.
      if (/\d+ %$/.test(text)) return;
      shown = text;
      deps.stderr(`${text} …\n`);
    },
    clear() {
      if (shown !== "" && deps.isTty) deps.stderr("\r\u001B[K");
      shown = "";
    },
  };
};

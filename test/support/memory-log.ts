/** A log that keeps its lines, so that a test can look for an event and a canary test can look for a prompt. */
import { createLog, type Log } from "../../src/core/log.ts";

export interface MemoryLog {
  readonly log: Log;
  readonly lines: readonly string[];
  has(event: string): boolean;
}

export const memoryLog = (): MemoryLog => {
  const lines: string[] = [];
  const log = createLog({
    clock: { nowMs: () => Date.now() },
    level: "debug",
    format: "json",
    write: (line) => lines.push(line),
  });
  return { log, lines, has: (event) => lines.some((line) => line.includes(`"event":"${event}"`)) };
};

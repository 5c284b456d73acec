/** How hardware detection asks the system: files and commands, each with a deadline; no answer is null, and logged. */
import { readFile } from "node:fs/promises";
import type { Log } from "../core/log.ts";

export interface SystemProbe {
  readonly platform: string;
  /** The text of a system file; null when it does not exist or does not answer in time. */
  readFile(path: string): Promise<string | null>;
  /** What a command printed; null when it is missing or late. A command that fails still says what it knows. */
  run(command: string, args: readonly string[]): Promise<string | null>;
}

const FILE_DEADLINE_MS = 2000;
/** `system_profiler` takes seconds on a busy Mac. */
const COMMAND_DEADLINE_MS = 10_000;
const OUTPUT_BYTES_MAX = 4 * 1024 * 1024;

export const systemProbe = (deps: { readonly platform: string; readonly log: Log }): SystemProbe => ({
  platform: deps.platform,
  async readFile(path) {
    try {
      return await readFile(path, { encoding: "utf8", signal: AbortSignal.timeout(FILE_DEADLINE_MS) });
    } catch (thrown) {
      deps.log.debug("system_file_unreadable", { path, error: thrown instanceof Error ? thrown.name : typeof thrown });
      return null;
    }
  },
  async run(command, args) {
    try {
      const child = Bun.spawn([command, ...args], {
        stdin: "ignore",
        stdout: "pipe",
        stderr: "ignore",
        timeout: COMMAND_DEADLINE_MS,
        killSignal: "SIGKILL",
        maxBuffer: OUTPUT_BYTES_MAX,
      });
      // Reading before waiting: a child whose pipe is full never exits.
      const text = await child.stdout.text();
      await child.exited;
      if (child.signalCode === null) return text;
      deps.log.warn("system_command_late", { command });
      return null;
    } catch (thrown) {
      deps.log.debug("system_command_missing", {
        command,
        error: thrown instanceof Error ? thrown.name : typeof thrown,
      });
      return null;
    }
  },
});

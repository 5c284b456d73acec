/** How hardware detection asks the system: files and commands, each with a deadline; no answer is null, and logged. */
import { readFile } from "node:fs/promises";
import type { Clock } from "../../core/clock.ts";
import type { Log } from "../../core/log.ts";

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

export interface SystemProbeDeps {
  readonly platform: string;
  readonly log: Log;
  readonly clock: Pick<Clock, "after">;
  /** For tests; else 10 s. */
  readonly commandDeadlineMs?: number;
}

const LATE = Symbol("late");

const runCommand = async (
  deps: SystemProbeDeps,
  words: readonly string[],
  deadlineMs: number,
): Promise<string | null> => {
  const [command = ""] = words;
  const child = Bun.spawn([...words], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "ignore",
    maxBuffer: OUTPUT_BYTES_MAX,
  });
  const { promise: late, resolve } = Promise.withResolvers<typeof LATE>();
  const timer = deps.clock.after(deadlineMs, () => resolve(LATE));
  try {
    // Reading before waiting: a child whose pipe is full never exits. Raced, not only killed: a grandchild could hold the pipe.
    const text = await Promise.race([child.stdout.text(), late]);
    if (text !== LATE) return text;
    deps.log.warn("system_command_late", { command });
    return null;
  } finally {
    timer.cancel();
    child.kill("SIGKILL");
  }
};

export const systemProbe = (deps: SystemProbeDeps): SystemProbe => ({
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
      return await runCommand(deps, [command, ...args], deps.commandDeadlineMs ?? COMMAND_DEADLINE_MS);
    } catch (thrown) {
      deps.log.debug("system_command_missing", {
        command,
        error: thrown instanceof Error ? thrown.name : typeof thrown,
      });
      return null;
    }
  },
});

/** Runs a helper program or a throw-away copy of ourselves: bounded output, a deadline, no core file. */
import type { SelfCommand } from "../src/core/spawn-self.ts";
import { KIB, MIB } from "../src/core/units.ts";

export interface ChildResult {
  /** Null when a signal ended the child. */
  readonly exitCode: number | null;
  /** e.g. `SIGILL`; null when the child exited by itself. */
  readonly signal: string | null;
  /** At most `STDOUT_BYTES_MAX`, from the start. */
  readonly stdout: string;
  /** At most `STDERR_BYTES_MAX`, from the end. */
  readonly stderrTail: string;
  readonly timedOut: boolean;
}

const STDOUT_BYTES_MAX = 1 * MIB;
const STDERR_BYTES_MAX = 16 * KIB;

/**
 * A crashing child must not write its memory to disk, start a debugger, or report to Bun's makers: no core file, no
 * backtrace, no crash report. `exec` keeps one process, so a kill reaches it.
 */
const QUIET_CRASH = [
  "/bin/sh",
  "-c",
  'ulimit -c 0; export BUN_ENABLE_CRASH_REPORTING=0 DO_NOT_TRACK=1 GGML_NO_BACKTRACE=1; exec "$@"',
  "sh",
] as const;

/** The command, run so that its crash leaves nothing behind. */
export const quietCrash = (command: readonly string[]): string[] => [...QUIET_CRASH, ...command];

/** Reads a stream to its end but keeps only its start, so that a chatty child cannot fill memory. */
const readHead = async (stream: ReadableStream<Uint8Array>, bytesMax: number): Promise<string> => {
  const parts: Uint8Array[] = [];
  let sizeBytes = 0;
  for await (const part of stream) {
    if (sizeBytes >= bytesMax) continue;
    parts.push(part);
    sizeBytes += part.byteLength;
  }
  return Buffer.concat(parts).subarray(0, bytesMax).toString("utf8");
};

/** The same for the end of a stream, where a tool says what went wrong. */
const readTail = async (stream: ReadableStream<Uint8Array>, bytesMax: number): Promise<string> => {
  let tail = Buffer.alloc(0);
  for await (const part of stream) tail = Buffer.concat([tail, part]).subarray(-bytesMax);
  return tail.toString("utf8");
};

export interface RunOptions {
  readonly deadlineMs: number;
  readonly cwd?: string;
}

/** Resolves however the child ends; throws only when the program cannot be started at all. */
export const runCommand = async (command: readonly string[], options: RunOptions): Promise<ChildResult> => {
  const child = Bun.spawn([...QUIET_CRASH, ...command], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    child.kill("SIGKILL");
  }, options.deadlineMs);
  try {
    const stdout = readHead(child.stdout, STDOUT_BYTES_MAX);
    const stderrTail = readTail(child.stderr, STDERR_BYTES_MAX);
    await child.exited;
    // A grandchild may hold the pipes open after our child is gone; what it writes is of no interest.
    const drained = Promise.all([stdout, stderrTail]);
    const [out, err] = await Promise.race([drained, afterGrace(DRAIN_GRACE_MS)]);
    return {
      exitCode: child.exitCode,
      signal: child.signalCode === null ? null : String(child.signalCode),
      stdout: out,
      stderrTail: err,
      timedOut,
    };
  } finally {
    clearTimeout(timer);
  }
};

const DRAIN_GRACE_MS = 5_000;

const afterGrace = (graceMs: number): Promise<[string, string]> =>
  new Promise((resolve) => {
    setTimeout(() => resolve(["", ""]), graceMs).unref();
  });

/** Runs `darkbloom <verb> <args…>` as a throw-away process. */
export const runInChild = (
  self: SelfCommand,
  verb: string,
  args: readonly string[],
  deadlineMs: number,
): Promise<ChildResult> => runCommand(self(verb, args), { deadlineMs });

/** How a child ended, for people: `killed by SIGILL`, `exit code 3`, `no answer within 30 s`. */
export const describeEnd = (result: ChildResult, deadlineMs: number): string => {
  if (result.timedOut) return `no answer within ${Math.round(deadlineMs / 1000)} s`;
  if (result.signal !== null) return `killed by ${result.signal}`;
  return `exit code ${result.exitCode ?? "unknown"}`;
};

/** The last lines of a tool's output, for a hint. */
export const outputTail = (result: ChildResult, charsMax = 1_500): string =>
  `${result.stdout}\n${result.stderrTail}`.trim().slice(-charsMax);

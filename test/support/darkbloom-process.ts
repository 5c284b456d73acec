/** Runs the program as a user would, as its own process, and reads its JSON lines. */
import path from "node:path";
import { waitFor } from "./wait.ts";

const ENTRY = path.join(import.meta.dir, "../../bin/darkbloom.ts");

export type JsonLine = Readonly<Record<string, unknown>>;

export interface DarkbloomProcess extends AsyncDisposable {
  readonly pid: number;
  readonly lines: readonly JsonLine[];
  /** Everything on stderr so far. */
  readonly stderr: () => string;
  readonly stdout: () => string;
  readonly exited: Promise<number>;
  /** First line with this `event`, now or later. */
  event(name: string, deadlineMs?: number): Promise<JsonLine>;
  /** All lines with this `event` once there are so many of them. */
  events(name: string, count: number, deadlineMs?: number): Promise<readonly JsonLine[]>;
  kill(signal: NodeJS.Signals): void;
}

export interface ProcessOptions {
  readonly env?: Readonly<Record<string, string>>;
  /** Replaces `bun bin/darkbloom.ts`, e.g. by the compiled executable. */
  readonly program?: readonly string[];
  /** CPUs to pin to, as `taskset` writes them. */
  readonly cpus?: string;
  readonly cwd?: string;
  /** Gives it a process group of its own, as a terminal does, so that a signal can be sent to the whole group. */
  readonly ownGroup?: true;
}

const EVENT_DEADLINE_MS = 90_000;

export const startDarkbloom = (args: readonly string[], options: ProcessOptions = {}): DarkbloomProcess => {
  const program = options.program ?? [process.execPath, ENTRY];
  const pin = options.cpus === undefined ? [] : ["taskset", "-c", options.cpus];
  const child = Bun.spawn([...pin, ...program, ...args], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    detached: options.ownGroup ?? false,
    env: { ...process.env, ...options.env },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  });
  const lines: JsonLine[] = [];
  const text = { out: "", err: "" };
  const read = async (stream: ReadableStream<Uint8Array>, onText: (piece: string) => void): Promise<void> => {
    const decoder = new TextDecoder();
    for await (const bytes of stream) onText(decoder.decode(bytes, { stream: true }));
  };
  let partial = "";
  const reading = Promise.all([
    read(child.stdout, (piece) => {
      text.out += piece;
      const pieces = (partial + piece).split("\n");
      partial = pieces.pop() ?? "";
      for (const line of pieces) if (line.startsWith("{")) lines.push(JSON.parse(line) as JsonLine);
    }),
    read(child.stderr, (piece) => void (text.err += piece)),
  ]);
  const exited = child.exited.then(async (code) => {
    await reading;
    return code;
  });
  let ended = false;
  void exited.then(() => (ended = true));
  return {
    pid: child.pid,
    lines,
    stderr: () => text.err,
    stdout: () => text.out,
    exited,
    kill: (signal) => child.kill(signal),
    async event(name, deadlineMs = EVENT_DEADLINE_MS) {
      const [found] = await this.events(name, 1, deadlineMs);
      return found ?? {};
    },
    async events(name, count, deadlineMs = EVENT_DEADLINE_MS) {
      return waitFor(
        `event ${name} of darkbloom ${args[0]}, ${count} times`,
        () => {
          const found = lines.filter((line) => line["event"] === name);
          if (found.length >= count) return found;
          if (ended) throw new Error(`darkbloom ${args.join(" ")} ended before "${name}":\n${text.out}\n${text.err}`);
          return null;
        },
        deadlineMs,
      );
    },
    async [Symbol.asyncDispose]() {
      if (!ended) child.kill("SIGTERM");
      const timer = setTimeout(() => child.kill("SIGKILL"), 8_000);
      await child.exited;
      clearTimeout(timer);
      // An orphan may hold the pipes open for ever; the test that left it has failed already.
      await Promise.race([exited, new Promise((resolve) => setTimeout(resolve, 1_000).unref())]);
    },
  };
};

/** Runs a command to its end. */
export const runDarkbloom = async (
  args: readonly string[],
  options: ProcessOptions = {},
): Promise<{ code: number; stdout: string; stderr: string; lines: readonly JsonLine[] }> => {
  const child = startDarkbloom(args, options);
  const code = await child.exited;
  return { code, stdout: child.stdout(), stderr: child.stderr(), lines: child.lines };
};

/** Starts the provider's child: no core dumps, its own process group, its errors on our stderr; and how it notices that we are gone. */
import type { Clock, Timer } from "../core/clock.ts";
import type { ChildExit } from "./supervisor-machine.ts";
import type { SupervisedChild } from "./supervisor.ts";

/** A core dump would hold prompts and keys; the limit is inherited, so a shell sets it before the program starts. */
export const withoutCoreDumps = (command: readonly string[]): string[] => [
  "/bin/sh",
  "-c",
  'ulimit -c 0 && exec "$@"',
  "sh",
  ...command,
];

/**
 * In its own process group, because a terminal's Ctrl-C would otherwise reach it twice: directly and through us.
 * `environment` absent = ours.
 */
export const spawnSupervisedChild = (
  command: readonly string[],
  environment?: Readonly<Record<string, string | undefined>>,
): SupervisedChild => {
  const child = Bun.spawn(withoutCoreDumps(command), {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
    detached: true,
    ...(environment === undefined ? {} : { env: { ...environment } }),
  });
  return {
    pid: child.pid,
    stdout: child.stdout,
    exited: child.exited.then((): ChildExit => ({ code: child.exitCode, signal: child.signalCode === null ? null : String(child.signalCode) })),
    kill: (signal) => child.kill(signal),
  };
};

const POLL_MS = 1_000;

/** Calls back once when this process's parent has ended: a child left alone has nobody to restart or stop it. */
export const onParentGone = (clock: Pick<Clock, "every">, callback: () => void): Timer => {
  const parent = process.ppid;
  const timer = clock.every(POLL_MS, () => {
    if (process.ppid === parent) return;
    timer.cancel();
    callback();
  });
  return timer;
};

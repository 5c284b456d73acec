/** The parent half of `start`: runs the same command line as a child and watches over it. */
import { quietCrash } from "../ffi/run-child.ts";
import type { Config } from "../src/core/config.ts";
import { selfCommand } from "../src/core/spawn-self.ts";
import { runSupervised, type SupervisedChild } from "../src/provider/supervisor/supervisor.ts";
import { ExitWith, STOPPED_JSON, STOPPED_TEXT, type CommandDeps } from "./_deps.ts";
import { modelIdOf, requireModelPath } from "./_provider.ts";
import type { StartFlags } from "./start.ts";
import { wireLog } from "./_wire.ts";

const kebab = (key: string): string => key.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

/** The flags as they were typed. `--force` is the parent's: a restart after a crash must not forget it. */
const toArguments = (flags: StartFlags): string[] =>
  Object.entries(flags)
    .filter(([key]) => key !== "force")
    .flatMap(([key, value]) => (value === true ? [`--${kebab(key)}`] : [`--${kebab(key)}`, String(value)]));

/**
 * In a process group of its own, so that a terminal's Ctrl-C reaches the parent alone, which passes it on once. The pipe on
 * standard input ends with the parent.
 */
const spawnChild = (flags: StartFlags): SupervisedChild => {
  const child = Bun.spawn(quietCrash(selfCommand()("start", [...toArguments(flags), "--supervised"])), {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
    detached: true,
  });
  return {
    pid: child.pid,
    stdout: child.stdout,
    exited: child.exited.then((code) => ({
      code: child.signalCode === null ? code : null,
      signal: child.signalCode === null ? null : String(child.signalCode),
    })),
    kill: (signal) => child.kill(signal),
  };
};

/** Runs until the child ends for good; its exit code becomes ours. Throws `model_crashed`. */
export const superviseStart = async (deps: CommandDeps, flags: StartFlags, config: Config): Promise<void> => {
  const json = flags.json ?? false;
  // A child that a signal meets before it listens for signals ends without a word.
  let saidStopped = false;
  const end = await runSupervised(
    {
      clock: deps.clock,
      log: wireLog(deps, config, json),
      spawnChild: () => spawnChild(flags),
      writeLine: (line) => {
        saidStopped = line === (json ? STOPPED_JSON : STOPPED_TEXT);
        deps.stdout(`${line}\n`);
      },
      onStopSignal: (handler) => deps.signals.takeOver(handler),
    },
    {
      dataDir: config.dataDir,
      models: [modelIdOf(requireModelPath(config), flags.id)],
      force: flags.force ?? false,
      json,
      stopMs: config.provider.stopMs + 1_000,
    },
  );
  if (end.fault !== null) throw end.fault;
  if (end.exitCode === 0 && !saidStopped) deps.stdout(`${json ? STOPPED_JSON : STOPPED_TEXT}\n`);
  if (end.exitCode !== 0) throw new ExitWith(end.exitCode);
};

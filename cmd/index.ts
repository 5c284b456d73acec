/** The program: which subcommands there are, how one is loaded and run, and the only top-level catch. */
import type { Command } from "commander";
import { Fault, FAULTS, toFault } from "../src/core/fault.ts";
import { toCliEvent, toCliText } from "../src/core/fault-render.ts";
import { errorFields } from "../src/core/log.ts";
import { ExitWith, STOPPED_JSON, STOPPED_TEXT, type CommandDeps } from "./_deps.ts";

interface Verb {
  readonly description: string;
  /** Loaded only when chosen, so that `--version` stays instant. */
  readonly load: () => Promise<(deps: CommandDeps) => Command>;
}

const VERBS: Readonly<Record<string, Verb>> = {
  demo: {
    description: "coordinator, provider and a first sealed chat on this machine",
    load: async () => (await import("./demo.ts")).demoCommand,
  },
  start: {
    description: "serve a model: to a coordinator, or with --local to this machine",
    load: async () => (await import("./start.ts")).startCommand,
  },
  "serve-coordinator": {
    description: "run the coordinator in the foreground",
    load: async () => (await import("./serve-coordinator.ts")).serveCoordinatorCommand,
  },
  keys: {
    description: "create, list and revoke API keys of a coordinator",
    load: async () => (await import("./keys.ts")).keysCommand,
  },
  "join-token": {
    description: "create, list and revoke tokens with which providers join a coordinator",
    load: async () => (await import("./join-token.ts")).joinTokenCommand,
  },
  doctor: {
    description: "check this machine, its model and its coordinator",
    load: async () => (await import("./doctor.ts")).doctorCommand,
  },
  benchmark: {
    description: "measure a model's speed on this machine",
    load: async () => (await import("./benchmark.ts")).benchmarkCommand,
  },
  publish: {
    description: "prepare a model for a catalog",
    load: async () => (await import("./publish.ts")).publishCommand,
  },
  hash: {
    description: "hash a model file or folder",
    load: async () => (await import("./hash.ts")).hashCommand,
  },
};

const helpText = (version: string): string => {
  const width = Math.max(...Object.keys(VERBS).map((name) => name.length));
  const lines = Object.entries(VERBS).map(([name, verb]) => `  ${name.padEnd(width)}  ${verb.description}`);
  return [
    `darkbloom ${version}: private LLM inference on people's own Macs`,
    "",
    "usage: darkbloom <command> [flags]",
    "",
    ...lines,
    "",
    "darkbloom <command> --help shows the flags of a command. New here? Run: darkbloom demo",
    "",
  ].join("\n");
};

const nearest = (name: string): string | undefined =>
  Object.keys(VERBS).find((verb) => verb.startsWith(name) || name.startsWith(verb));

const runVerb = async (deps: CommandDeps, name: string, args: readonly string[]): Promise<void> => {
  const verb = Object.hasOwn(VERBS, name) ? VERBS[name] : undefined;
  if (verb === undefined) {
    const near = nearest(name);
    throw new Fault("usage", `there is no command "${name.slice(0, 40)}"`, {
      hint: near === undefined ? "run: darkbloom --help" : `did you mean: darkbloom ${near}`,
    });
  }
  const { Command, CommanderError } = await import("commander");
  const program = new Command("darkbloom").exitOverride();
  const command = (await verb.load())(deps);
  program.addCommand(command);
  const prepare = (target: Command): void => {
    target.exitOverride().configureOutput({ writeOut: deps.stdout, writeErr: () => undefined });
    for (const child of target.commands) prepare(child);
  };
  prepare(program);
  try {
    await program.parseAsync([name, ...args], { from: "user" });
  } catch (thrown) {
    if (!(thrown instanceof CommanderError)) throw thrown;
    if (thrown.exitCode === 0) return;
    const message =
      thrown.code === "commander.help" ? "a subcommand is missing" : thrown.message.replace(/^error: /, "");
    throw new Fault("usage", message, { hint: `run: darkbloom ${name} --help` });
  }
};

/** These end by themselves in their own order; every other command has nothing to put away and just ends. */
const ENDS_ITSELF: ReadonlySet<string> = new Set(["start", "serve-coordinator", "demo"]);

/** Throws `interrupted` at the first signal; what the command was doing ends with the process. */
const untilInterrupted = async (deps: CommandDeps, name: string, running: Promise<void>): Promise<void> => {
  const stopped = deps.signals.untilStop();
  if (ENDS_ITSELF.has(name)) return running;
  const interrupted = async (): Promise<never> => {
    await stopped;
    throw new Fault("interrupted", "interrupted");
  };
  await Promise.race([running, interrupted()]);
};

/** Runs one command line and returns its exit code; prints exactly one error, on stderr or as the last JSON line. */
export const main = async (deps: CommandDeps, argv: readonly string[]): Promise<number> => {
  const [name, ...args] = argv;
  try {
    if (name === "--version" || name === "-V" || name === "version") deps.stdout(`${deps.version}\n`);
    else if (name === undefined || name === "--help" || name === "-h" || name === "help")
      deps.stdout(helpText(deps.version));
    else if (name === "_probe") return await (await import("./probe.ts")).runProbe(args);
    else await untilInterrupted(deps, name, runVerb(deps, name, args));
    return 0;
  } catch (thrown) {
    if (thrown instanceof ExitWith) return thrown.code;
    const fault = toFault(thrown);
    if (fault.code === "interrupted") {
      deps.stdout(`${argv.includes("--json") ? STOPPED_JSON : STOPPED_TEXT}\n`);
      return FAULTS.interrupted.exit;
    }
    if (argv.includes("--json")) deps.stdout(`${JSON.stringify(toCliEvent(fault))}\n`);
    else deps.stderr(`${toCliText(fault)}\n`);
    if (fault.code === "internal") deps.stderr(`${JSON.stringify(errorFields(fault))}\n`);
    return FAULTS[fault.code].exit;
  }
};

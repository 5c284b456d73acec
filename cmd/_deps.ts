/** What every subcommand gets from the outside world, so that tests can be that world. */
import type { Clock } from "../src/core/clock.ts";
import type { Ids, Random } from "../src/core/ids.ts";

export interface CommandDeps {
  readonly stdout: (text: string) => void;
  readonly stderr: (text: string) => void;
  readonly clock: Clock;
  readonly random: Random;
  readonly ids: Ids;
  /** True when stderr is a terminal, where progress may be redrawn. */
  readonly isTty: boolean;
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly version: string;
  readonly signals: StopSignals;
}

/** Ctrl-C and SIGTERM as values. A second Ctrl-C ends the process with 130; a second SIGTERM says nothing new. */
export interface StopSignals {
  /** Aborts at the first signal, with a Fault `interrupted` as its reason. */
  readonly stopping: AbortSignal;
  /** Resolves with the first signal. */
  untilStop(): Promise<"SIGINT" | "SIGTERM">;
  /** From now on every signal goes to this handler, the second Ctrl-C too, and one that has come already. */
  takeOver(handler: (signal: "SIGINT" | "SIGTERM") => void): void;
}

/** Last line of a command that a signal ended, for scripts and for people. */
export const STOPPED_JSON = '{"event":"stopped"}';
export const STOPPED_TEXT = "stopped";

/** Thrown to end with a code after everything has been said. */
export class ExitWith {
  readonly code: number;

  constructor(code: number) {
    this.code = code;
  }
}

/** One result line: JSON for scripts, else text for people. */
export const emit = (deps: Pick<CommandDeps, "stdout">, json: boolean, event: object, text: () => string): void =>
  deps.stdout(json ? `${JSON.stringify(event)}\n` : text() === "" ? "" : `${text()}\n`);

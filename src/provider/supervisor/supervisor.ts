/** The tiny parent of `darkbloom start`: runs the provider as a child, restarts it after a crash, and leaves crashing models alone. */
import type { Clock, Timer } from "../../core/clock.ts";
import { toFault } from "../../core/fault.ts";
import { errorFields, type Log } from "../../core/log.ts";
import {
  addCrash,
  clearCrashes,
  markedModels,
  modelCrashedFault,
  readCrashRecord,
  writeCrashRecord,
} from "../state/crash-record.ts";
import { readState } from "../state/state-file.ts";
import {
  INITIAL_SUPERVISOR,
  isCrash,
  stepSupervisor,
  supervisorDueMs,
  type ChildExit,
  type StopSignal,
  type SupervisedEnd,
  type SupervisorEffect,
  type SupervisorEvent,
  type SupervisorState,
} from "./supervisor-machine.ts";

export interface SupervisedChild {
  readonly pid: number;
  readonly stdout: ReadableStream<Uint8Array>;
  readonly exited: Promise<ChildExit>;
  kill(signal: StopSignal | "SIGKILL"): void;
}

export interface SupervisorDeps {
  readonly clock: Clock;
  readonly log: Log;
  readonly spawnChild: () => SupervisedChild;
  /** One line of the child's standard output, without its end. */
  readonly writeLine: (line: string) => void;
  /** Calls back for every SIGINT and SIGTERM of this process. */
  readonly onStopSignal: (handler: (signal: StopSignal) => void) => void;
}

export interface SupervisorOptions {
  readonly dataDir: string;
  /** Ids the child is going to load. */
  readonly models: readonly string[];
  /** Load models that crashed before, and forget their crashes. */
  readonly force: boolean;
  /** The child's lines are JSON: one that a crash cut off is dropped. */
  readonly json: boolean;
  /** From the stop's signal to SIGKILL; default 5 s. */
  readonly stopMs?: number;
}

const STOP_MS = 5_000;
/** A line longer than this is passed on in pieces. */
const LINE_CHARS_MAX = 1_048_576;
/** The pipe of a dead child may be held open by its own children. */
const OUTPUT_MS = 1_000;

class Supervisor {
  readonly #deps: SupervisorDeps;
  readonly #options: SupervisorOptions;
  readonly #ended = Promise.withResolvers<SupervisedEnd>();
  #state: SupervisorState = INITIAL_SUPERVISOR;
  #child: SupervisedChild | null = null;
  #timer: Timer | null = null;

  constructor(deps: SupervisorDeps, options: SupervisorOptions) {
    this.#deps = deps;
    this.#options = options;
  }

  async run(): Promise<SupervisedEnd> {
    // While it waits to restart nothing else holds the process.
    const keepAlive = setInterval(() => undefined, 2 ** 30);
    try {
      this.#deps.onStopSignal((signal) => this.#dispatch({ type: "stop", signal }));
      this.#dispatch({ type: "start" });
      return await this.#ended.promise;
    } finally {
      clearInterval(keepAlive);
      this.#timer?.cancel();
    }
  }

  #dispatch(event: SupervisorEvent): void {
    const stopMs = this.#options.stopMs ?? STOP_MS;
    const [next, effects] = stepSupervisor(this.#state, event, { nowMs: this.#deps.clock.monotonicMs(), stopMs });
    this.#state = next;
    for (const effect of effects) this.#perform(effect);
    this.#timer?.cancel();
    const due = supervisorDueMs(this.#state);
    if (due !== null)
      this.#timer = this.#deps.clock.after(due - this.#deps.clock.monotonicMs(), () =>
        this.#dispatch({ type: "tick" }),
      );
    if (this.#state.phase === "done") this.#ended.resolve(this.#state.end);
  }

  #perform(effect: SupervisorEffect): void {
    switch (effect.type) {
      case "spawn":
        this.#spawn();
        return;
      case "signal":
        this.#child?.kill(effect.signal);
        return;
      case "kill":
        this.#child?.kill("SIGKILL");
        return;
      case "report_restart":
        this.#deps.log.warn("provider_restarting", { waitMs: effect.waitMs });
    }
  }

  #spawn(): void {
    try {
      this.#child = this.#deps.spawnChild();
    } catch (error) {
      // Not a crash of the child: nothing will be different the next time.
      this.#state = { phase: "done", end: { exitCode: 1, fault: toFault(error) } };
      return;
    }
    void this.#follow(this.#child);
  }

  /** Never rejects: whatever happens to the child becomes its exit. */
  async #follow(child: SupervisedChild): Promise<void> {
    const { clock, log, writeLine } = this.#deps;
    const output = passLines(child.stdout, { writeLine, json: this.#options.json }).catch((error: unknown) =>
      log.warn("child_output_lost", errorFields(error)),
    );
    const exit = await child.exited.catch((): ChildExit => ({ code: 1, signal: null }));
    const { promise: late, resolve } = Promise.withResolvers<void>();
    const timer = clock.after(OUTPUT_MS, resolve);
    await Promise.race([output, late]);
    timer.cancel();
    const stopping = this.#state.phase === "stopping";
    const fault = isCrash(exit) && !stopping ? this.#recordCrash(child.pid, exit) : null;
    this.#dispatch({ type: "exited", exit, fault });
  }

  /** The fault that ends it all when a model has crashed once too often. */
  #recordCrash(pid: number, exit: ChildExit): ReturnType<typeof modelCrashedFault> | null {
    const { clock, log } = this.#deps;
    const { dataDir } = this.#options;
    const state = readState({ dataDir, nowMs: clock.nowMs() })?.state;
    const models = state?.pid === pid ? state.models : [];
    log.error("provider_crashed", { code: exit.code, signal: exit.signal, models: models.join(",") });
    try {
      const record = addCrash(readCrashRecord(dataDir), models, clock.nowMs());
      writeCrashRecord(dataDir, record);
      const [marked] = markedModels(record, models);
      return marked === undefined ? null : modelCrashedFault(marked);
    } catch (error) {
      log.warn("crash_not_recorded", errorFields(error));
      return null;
    }
  }
}

/** Passes whole lines on as they come. */
const passLines = async (
  stdout: ReadableStream<Uint8Array>,
  options: { readonly writeLine: (line: string) => void; readonly json: boolean },
): Promise<void> => {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of stdout) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) options.writeLine(line);
    if (rest.length > LINE_CHARS_MAX) {
      options.writeLine(rest);
      rest = "";
    }
  }
  rest += decoder.decode();
  if (rest !== "" && (!options.json || isJson(rest))) options.writeLine(rest);
};

const isJson = (text: string): boolean => {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
};

/**
 * Runs until the child ends cleanly, is stopped, or is given up. Clean ends pass their exit code through.
 * Faults: `model_crashed` before the first start, for a model that was marked in an earlier run.
 */
export const runSupervised = (deps: SupervisorDeps, options: SupervisorOptions): Promise<SupervisedEnd> => {
  const record = readCrashRecord(options.dataDir);
  const [marked] = markedModels(record, options.models);
  if (marked !== undefined && !options.force) return Promise.reject(modelCrashedFault(marked));
  if (options.force) writeCrashRecord(options.dataDir, clearCrashes(record, options.models));
  return new Supervisor(deps, options).run();
};
